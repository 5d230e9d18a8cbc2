"""Optimizers from the package index: every row equals a capture by hand, weights are those of the bare run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from client_capture import Captured
from client_check import check_optimizer
from client_inside import same_bits
from torch import nn

import optrace

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("only_what_is_new")]

STEPS = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "Ranger21": {"num_iterations": 100, "lr": 1e-3},
    "SophiaH": {"update_period": 2},
    "AdaHessian": {"update_period": 2},
}
WITH_GRAPH = {"SophiaH", "AdaHessian"}
WITH_CLOSURE = {"LBFGS", "AliG"}
IN_TWO_SORTS = {
    "AdaGO": "use_muon",
    "AdaMuon": "use_muon",
    "MuonClip": "use_muon",
    "Muon": "use_muon",
    "NorMuon": "use_muon",
}
"""Class -> the flag in its groups that marks matrices."""
OTHERS = {
    "schedulefree": ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"],
    "prodigyopt": ["Prodigy"],
    "lion_pytorch": ["Lion"],
}
ELSEWHERE = {"LOMO", "AdaLOMO", "DistributedMuon", "SaRA", "DeMo", "BSAM", "SpectralSphere"}
"""Classes that cannot be stepped like the others, and wrappers: tests/clients/test_client_wrappers.py."""

FOUND = {
    "AdaFactor": ("state-precision",),  # its first moment is bfloat16 by default
    "AdaGC": ("decay-on-norms",),  # weight_decay is 0.1 by default, and nothing is spared here
    "BCOS": ("decay-on-norms",),
    "FAdam": ("decay-on-norms",),
}
"""Class -> what the linter rightly says of its defaults; nothing of all others."""


def plain_optimizers() -> list[str]:
    """Classes of pytorch_optimizer that are made from parameters (or a model) alone."""
    library = pytest.importorskip("pytorch_optimizer")
    found = []
    for name, value in sorted(vars(library).items()):
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer:
            first, *more = list(inspect.signature(value.__init__).parameters.values())[1:]
            needed = {p.name for p in more if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
            if first.name in ("params", "model") and needed <= set(OPTIONS.get(name, {})) and name not in ELSEWHERE:
                found.append(name)
    return found


def cases() -> list[tuple[str, str]]:
    own = [("pytorch_optimizer", name) for name in plain_optimizers()]
    return own + [(module, name) for module, names in OTHERS.items() for name in names]


def make(module: str, name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    library = importlib.import_module(module)
    kind = getattr(library, name)
    takes_model = next(iter(list(inspect.signature(kind.__init__).parameters)[1:])) == "model"
    if name in IN_TWO_SORTS:
        matrices = [param for param in model.parameters() if param.dim() == 2]
        others = [param for param in model.parameters() if param.dim() < 2]
        flag = IN_TWO_SORTS[name]
        return model, kind([{"params": matrices, flag: True}, {"params": others, flag: False}])
    return model, kind(model if takes_model else model.parameters(), **OPTIONS.get(name, {}))


def train(
    module: str, name: str, around: Callable[..., Any] = lambda optimizer, call: call(lambda: None)
) -> list[torch.Tensor]:
    model, optimizer = make(module, name)
    if hasattr(optimizer, "train"):
        optimizer.train()
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 6, generator=generator), torch.randn(12, 4, generator=generator)

    def evaluate(seen: Callable[[], None]) -> torch.Tensor:
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward(create_graph=name in WITH_GRAPH)
        seen()
        return loss

    for _ in range(STEPS):
        if name in WITH_CLOSURE:
            around(optimizer, lambda seen: optimizer.step(lambda: evaluate(seen)))
        else:
            evaluate(lambda: None)
            around(optimizer, lambda seen: optimizer.step())
    return [param.detach().clone() for param in model.parameters()]


@pytest.mark.parametrize(("module", "name"), cases(), ids=lambda text: text)
def test_optimizer_of_a_library(tmp_path, module, name):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        bare = train(module, name)
        captured: list[tuple[Any, Captured]] = []

        def around(optimizer: Any, call: Callable[..., Any]) -> None:
            if not captured:
                captured.append((optimizer, Captured(type(optimizer).__name__)))
            capture = captured[0][1]
            capture.before(optimizer, [])
            call(lambda: capture.evaluated(optimizer))
            capture.after(optimizer)

        torch.manual_seed(0)
        with optrace.record(tmp_path / "run", quiet=True, strict=True):
            recorded = train(module, name, around)
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(a, b) for a, b in zip(bare, recorded, strict=True))
    trace = optrace.open(tmp_path / "run")
    assert trace.problems == [] and trace.last_step(0) == STEPS
    capture = captured[0][1]
    names = dict(zip(map(id, capture.params), trace.params["param"], strict=True))
    assert sorted(names.values()) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    check_optimizer(trace, 0, capture.as_json(names))
    found = optrace.lint(trace)
    assert found.codes == FOUND.get(name, ()), str(found)


def test_at_least_a_hundred_are_tried():
    assert len(plain_optimizers()) >= 100
