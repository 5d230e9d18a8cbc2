"""Every optimizer of torch, in every implementation and dtype: the recorded rows are those of a capture by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from independent import Capture

import optrace

pytestmark = pytest.mark.usefixtures("only_what_is_new")

STEPS = 4
SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (16,), (17,), (3, 5), (0,), (6, 7))
STRIDED = (9, 4)
OPTIMIZERS = sorted(
    name
    for name, value in vars(torch.optim).items()
    if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
    "Adam": {"amsgrad": True},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adagrad": {"initial_accumulator_value": 0.1},
}
ONLY_2D = {"Muon"}
SPARSE_ONLY = {"SparseAdam"}
WITH_CLOSURE = {"LBFGS"}
CONTIGUOUS_ONLY = {"LBFGS"}  # views its parameters flat
NOT_EMPTY = {"Adafactor"}  # divides by the number of elements


@dataclass(frozen=True)
class Case:
    name: str
    implementation: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.name}-{self.implementation}-{str(self.dtype).removeprefix('torch.')}"


def implementations(name: str) -> Iterator[str]:
    accepted = inspect.signature(getattr(torch.optim, name)).parameters
    yield "for-loop"
    yield from (option for option in ("foreach", "fused") if option in accepted)


CASES = [Case(name, way, dtype) for name in OPTIMIZERS for way in implementations(name) for dtype in DTYPES]


def make_params(case: Case) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = ((4, 3), (3, 5)) if case.name in ONLY_2D else SHAPES
    if case.name in NOT_EMPTY:
        shapes = tuple(shape for shape in shapes if 0 not in shape)
    params = [torch.randn(shape, generator=generator).to(case.dtype) for shape in shapes]
    if case.name not in CONTIGUOUS_ONLY:
        params.append(torch.randn(STRIDED, generator=generator).to(case.dtype).t())
    return [param.requires_grad_() for param in params]


def make_optimizer(case: Case, params: list[torch.Tensor]) -> torch.optim.Optimizer:
    options = dict(OPTIONS.get(case.name, {}))
    if case.implementation != "for-loop":
        options[case.implementation] = True
    elif "foreach" in inspect.signature(getattr(torch.optim, case.name)).parameters:
        options["foreach"] = False
    named = [(f"w{i}", param) for i, param in enumerate(params)]
    if case.name in WITH_CLOSURE:
        return getattr(torch.optim, case.name)(named, max_iter=3, **options)
    half = len(named) // 2
    groups = [{"params": named[:half]}, {"params": named[half:], "lr": 0.03}]
    return getattr(torch.optim, case.name)(groups, **options)


def set_gradients(case: Case, params: list[torch.Tensor], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        if case.name in SPARSE_ONLY:
            param.grad = sparse_gradient(param, generator)
        elif isinstance(param.grad, torch.Tensor):
            param.grad.copy_(torch.randn(param.shape, generator=generator))
        else:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def sparse_gradient(param: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Two entries, one of them in two parts: uncoalesced."""
    if param.dim() == 0 or param.numel() == 0:
        return torch.zeros_like(param).to_sparse()
    rows = torch.tensor([[0, param.shape[0] - 1, 0]])
    values = torch.randn((3, *param.shape[1:]), generator=generator).to(param.dtype)
    return torch.sparse_coo_tensor(rows, values, param.shape, check_invariants=True)


def run(case: Case, around: Callable[..., Any]) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    params = make_params(case)
    optimizer = make_optimizer(case, params)
    names = {id(param): f"w{i}" for i, param in enumerate(params)}
    for step in range(1, STEPS + 1):
        set_gradients(case, params, step)
        if case.name in WITH_CLOSURE:
            around(optimizer, names, lambda: optimizer.step(lambda: evaluate(params)))
        else:
            around(optimizer, names, optimizer.step)
        if step == 2 and "lr" in optimizer.param_groups[0]:
            optimizer.param_groups[0]["lr"] *= 0.5
    return params, optimizer


def evaluate(params: list[torch.Tensor]) -> torch.Tensor:
    """A quadratic bowl."""
    for param in params:
        param.grad = None
    with torch.enable_grad():
        loss = torch.stack([(param.double() ** 2).sum() * (i + 1) for i, param in enumerate(params)]).sum()
        loss.backward()
    return loss


def bare(case: Case) -> list[torch.Tensor]:
    return run(case, lambda optimizer, names, call: call())[0]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    def bits(tensor: torch.Tensor) -> bytes:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return one.shape == other.shape and one.dtype == other.dtype and bits(one) == bits(other)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_equal_a_capture_by_hand_and_weights_a_bare_run(case: Case, tmp_path: Path) -> None:
    try:
        expected = bare(case)
    except (RuntimeError, ValueError) as error:
        pytest.skip(f"torch itself refuses: {str(error).splitlines()[0]}")
    capture = Capture()
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        if case.name in WITH_CLOSURE:
            params, _ = run(case, lambda optimizer, names, call: capture_closure(capture, optimizer, names))
        else:
            params, _ = run(case, capture.around)
    assert all(map(same_bits, params, expected))
    trace = optrace.open(tmp_path / "run")
    assert trace.problems == []
    capture.check(trace.tensors, trace.groups)


def capture_closure(capture: Capture, optimizer: torch.optim.Optimizer, names: dict[int, str]) -> None:
    """Step with a closure and note as gradients the last ones that it left."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    last: dict[str, np.ndarray | None] = {}

    def closure() -> torch.Tensor:
        loss = evaluate(params)
        last.update({names[id(p)]: p.grad.detach().clone() for p in params})
        return loss

    capture.around(optimizer, names, lambda: optimizer.step(closure))
    for name, grad in last.items():
        capture.put(capture.step, name, "grad", grad)


def test_all_optimizers_of_torch_are_among_the_cases() -> None:
    assert {"SGD", "AdamW", "LBFGS", "Muon", "SparseAdam", "Adafactor"} <= set(OPTIMIZERS)
    assert len(OPTIMIZERS) >= 13
