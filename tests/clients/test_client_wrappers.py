"""Optimizers around optimizers, and others that step in ways of their own: every row equals a capture by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from client_inside import Named, check_inside
from torch import nn

import optrace

library = pytest.importorskip("pytorch_optimizer")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("only_what_is_new")]

STEPS = 3


class Task:
    """A small network with data, and its optimizer."""

    def __init__(self, make: Callable[[nn.Module], Any]) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
        self.x, self.y = torch.randn(12, 6), torch.randn(12, 4)
        self.optimizer = make(self.model)

    def loss(self) -> torch.Tensor:
        return (self.model(self.x) - self.y).square().mean()

    def evaluate(self) -> torch.Tensor:
        with torch.enable_grad():
            loss = self.loss()
            loss.backward()
        return loss

    def plainly(self) -> None:
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        self.optimizer.zero_grad()
        self.evaluate()
        self.optimizer.step()

    def in_two_steps(self) -> None:
        self.evaluate()
        self.optimizer.first_step(zero_grad=True)
        self.evaluate()
        self.optimizer.second_step(zero_grad=True)

    def with_closure(self) -> None:
        self.evaluate()
        self.optimizer.step(self.evaluate)
        self.optimizer.zero_grad()

    def in_conflict(self) -> None:
        self.optimizer.zero_grad()
        out = self.model(self.x)
        self.optimizer.pc_backward([out.square().mean(), (out - self.y).abs().mean()])
        self.optimizer.step()

    def gently(self) -> None:
        self.optimizer.zero_grad()
        self.optimizer.set_closure(nn.functional.mse_loss, self.x, self.y)
        self.optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def gsam(model: nn.Module) -> Any:
    base = sgd(model)
    schedule = library.ProportionScheduler(library.LinearScheduler(base, 10, 0.1), 0.1, 0.01, 0.1, 0.01)
    return library.GSAM(model.parameters(), base, model, schedule)


CASES: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Task], None], dict[str, int]]] = {
    "Lookahead": (
        lambda model: library.Lookahead(torch.optim.AdamW(model.parameters()), k=2),
        Task.plainly,
        {"Lookahead": STEPS, "AdamW": STEPS},
    ),
    "OrthoGrad": (lambda model: library.OrthoGrad(sgd(model)), Task.plainly, {"OrthoGrad": STEPS, "SGD": STEPS}),
    "TRAC": (lambda model: library.TRAC(sgd(model)), Task.plainly, {"TRAC": STEPS, "SGD": STEPS}),
    "ScheduleFreeWrapper": (
        lambda model: library.ScheduleFreeWrapper(sgd(model)),
        Task.plainly,
        {"ScheduleFreeWrapper": STEPS, "SGD": STEPS},
    ),
    "PCGrad": (lambda model: library.PCGrad(sgd(model)), Task.in_conflict, {"PCGrad": STEPS, "SGD": STEPS}),
    "SAM": (
        lambda model: library.SAM(model.parameters(), torch.optim.SGD, lr=0.1),
        Task.in_two_steps,
        {"SGD": STEPS},
    ),
    "SAM with a closure": (
        lambda model: library.SAM(model.parameters(), torch.optim.SGD, lr=0.1),
        Task.with_closure,
        {"SAM": STEPS, "SGD": STEPS},
    ),
    "LookSAM": (
        lambda model: library.LookSAM(model.parameters(), torch.optim.SGD, k=2, lr=0.1),
        Task.with_closure,
        {"LookSAM": STEPS, "SGD": STEPS},
    ),
    "FriendlySAM": (
        lambda model: library.FriendlySAM(model.parameters(), torch.optim.SGD, lr=0.1),
        Task.with_closure,
        {"FriendlySAM": STEPS, "SGD": STEPS},
    ),
    "WSAM": (
        lambda model: library.WSAM(model, model.parameters(), torch.optim.SGD, lr=0.1),
        Task.with_closure,
        {"WSAM": STEPS, "SGD": STEPS},
    ),
    "GSAM": (gsam, Task.gently, {"GSAM": STEPS, "SGD": STEPS}),
    "Magma": (lambda model: library.Magma(sgd(model)), Task.plainly, {"Magma": STEPS, "SGD": STEPS}),
    "SaRA": (lambda model: library.SaRA(model.parameters(), lr=0.1), Task.plainly, {"SaRA": STEPS}),
    "BSAM": (
        lambda model: library.BSAM(model.parameters(), num_data=12),
        Task.with_closure,
        {"BSAM": STEPS},
    ),
    "SpectralSphere": (
        lambda model: library.SpectralSphere([p for p in model.parameters() if p.dim() == 2]),
        Task.plainly,
        {"SpectralSphere": STEPS},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_optimizer_around_another_or_with_steps_of_its_own(tmp_path, name):
    make, go, steps = CASES[name]

    def train() -> Named:
        task = Task(make)
        for _ in range(STEPS):
            go(task)
        return task.model.named_parameters()

    trace = check_inside(tmp_path, train, steps.values())
    assert [kind for _, kind in trace.optimizers] == list(steps)


@pytest.fixture
def process_group(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["DistributedMuon", "DeMo"])
def test_optimizers_of_a_process_group(tmp_path, process_group, name):
    def make(model: nn.Module) -> torch.optim.Optimizer:
        if name == "DeMo":
            pytest.importorskip("einops")
            return library.DeMo(model.parameters())
        matrices = [param for param in model.parameters() if param.dim() == 2]
        others = [param for param in model.parameters() if param.dim() < 2]
        return library.DistributedMuon([{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}])

    def train() -> Named:
        task = Task(make)
        for _ in range(STEPS):
            task.plainly()
        return task.model.named_parameters()

    check_inside(tmp_path, train, [STEPS])


@pytest.mark.parametrize("name", ["LOMO", "AdaLOMO"])
def test_what_updates_inside_its_own_backward_is_told_of(tmp_path, capsys, name):
    def train() -> list[torch.Tensor]:
        task = Task(lambda model: getattr(library, name)(model, lr=0.1))
        for _ in range(4):
            task.optimizer.fused_backward(task.loss(), 0.1)
        return [param.detach() for param in task.model.parameters()]

    bare = train()
    with optrace.record(tmp_path / "run", strict=True):
        recorded = train()
    assert all(torch.equal(one, two) for one, two in zip(bare, recorded, strict=True))
    assert not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    assert "no optimizer step seen; 4 tensors that require grad changed by hand: add opt = optrace.watch(opt)" in said
