"""The registry, the examples in docstrings, refused options, and independence from torch."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from optrace.errors import OptraceError
from optrace.reference import schedulers

from .scheduler_pairs import OURS, TORCH, Case, Pair, case, plain_optimizer, torch_optimizer

MODULES = [module.name for module in pkgutil.iter_modules(schedulers.__path__, schedulers.__name__ + ".")]

REFUSED = [
    case("LambdaLR", lr_lambda=[abs]),
    case("MultiplicativeLR", lr_lambda=[abs]),
    case("MultiplicativeLR", lr_lambda=0.9),
    case("ConstantLR", factor=1.01),
    case("ConstantLR", factor=-0.1),
    case("LinearLR", start_factor=0),
    case("LinearLR", start_factor=1.5),
    case("LinearLR", end_factor=-0.5),
    case("LinearLR", end_factor=2),
    case("CosineAnnealingWarmRestarts", T_0=0),
    case("CosineAnnealingWarmRestarts", T_0=1.5),
    case("CosineAnnealingWarmRestarts", T_0=2, T_mult=0),
    case("CosineAnnealingWarmRestarts", T_0=2, T_mult=1.5),
    case("CosineAnnealingWarmRestarts", T_0=2, eta_min="0"),
    case("CyclicLR", base_lr=0.1, max_lr=0.2, mode="square"),
    case("CyclicLR", base_lr=[0.1], max_lr=0.2),
    case("CyclicLR", base_lr=0.1, max_lr=[0.2, 0.3]),
    case("CyclicLR", base_lr=0.1, max_lr=0.2, max_momentum=[0.9]),
    case("OneCycleLR", max_lr=0.1),
    case("OneCycleLR", max_lr=0.1, epochs=3),
    case("OneCycleLR", max_lr=0.1, total_steps=0),
    case("OneCycleLR", max_lr=0.1, total_steps=1.5),
    case("OneCycleLR", max_lr=0.1, epochs=0, steps_per_epoch=3),
    case("OneCycleLR", max_lr=0.1, epochs=3, steps_per_epoch=-1),
    case("OneCycleLR", max_lr=0.1, total_steps=9, pct_start=1),
    case("OneCycleLR", max_lr=0.1, total_steps=9, pct_start=1.1),
    case("OneCycleLR", max_lr=0.1, total_steps=9, anneal_strategy="cosine"),
    case("OneCycleLR", max_lr=[0.1], total_steps=9),
    case("SWALR", swa_lr=[0.1]),
    case("SWALR", swa_lr=0.1, anneal_strategy="cosine"),
    case("SWALR", swa_lr=0.1, anneal_epochs=-1),
    case("SWALR", swa_lr=0.1, anneal_epochs=2.0),
]


@pytest.mark.parametrize("which", REFUSED, ids=str)
def test_options_that_torch_refuses_are_refused(which: Case) -> None:
    assert Pair(which).build().ended


@pytest.mark.parametrize("name", ["CyclicLR", "OneCycleLR"])
def test_an_optimizer_without_momentum_cannot_cycle_it(name: str) -> None:
    def build(side: Any, _: Any) -> Any:
        optimizer = torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))])
        options = {"max_lr": 0.1} | ({"base_lr": 0.01} if name == "CyclicLR" else {"total_steps": 9})
        return getattr(side, name)(optimizer, **options)

    assert Pair(Case(name, build)).build().ended


@pytest.mark.parametrize("key", ["momentum", "betas", "both"])
@pytest.mark.parametrize("name", ["CyclicLR", "OneCycleLR"])
def test_defaults_decide_what_is_cycled_and_betas_come_first(name: str, key: str) -> None:
    both = {"momentum": 0.5, "betas": (0.8, 0.9)}
    defaults = {"lr": 0.1} | (both if key == "both" else {key: both[key]})

    def build(side: Any, optimizer: Any) -> Any:
        options = {"base_lr": 0.01} if name == "CyclicLR" else {"total_steps": 30}
        return getattr(side, name)(optimizer, max_lr=0.3, **options)

    def group() -> dict[str, Any]:
        return {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1} | both

    pair = Pair(Case(name, build))
    theirs = torch.optim.Optimizer([group()], dict(defaults))
    pair.optimizers = (SimpleNamespace(param_groups=[group()], defaults=dict(defaults)), theirs)
    theirs.step = lambda: None  # type: ignore[method-assign]
    theirs.step._wrapped_by_lr_sched = theirs._opt_called = True  # type: ignore[attr-defined]
    pair.build().steps(12)
    assert not pair.ended


def test_an_optimizer_without_defaults_shows_its_momentum_in_its_groups() -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1, "betas": (0.9, 0.99)}])
    OURS.CyclicLR(optimizer, base_lr=0.01, max_lr=0.1).step()
    assert 0.8 < optimizer.param_groups[0]["betas"][0] < 0.9
    assert "momentum" not in optimizer.param_groups[0]


def test_refusals_quote_the_value_and_are_errors_of_ours() -> None:
    with pytest.raises(OptraceError, match=r"factor=1\.5"):
        OURS.ConstantLR(plain_optimizer(), factor=1.5)
    with pytest.raises(ValueError, match="pct_start=1 "):
        OURS.OneCycleLR(plain_optimizer(), max_lr=1.0, total_steps=5, pct_start=1)


@pytest.mark.parametrize("name", [name for name in schedulers.SCHEDULES if name not in ("chainedscheduler",)])
def test_what_has_no_param_groups_is_no_optimizer(name: str) -> None:
    needed = {
        "lambdalr": [abs],
        "multiplicativelr": [abs],
        "steplr": [3],
        "multisteplr": [[3]],
        "exponentiallr": [0.5],
        "cosineannealinglr": [3],
        "cosineannealingwarmrestarts": [3],
        "cycliclr": [0.1, 0.2],
        "onecyclelr": [0.1, 9],
        "sequentiallr": [[schedulers.StepLR(plain_optimizer(), 3)], []],
        "swalr": [0.1],
    }
    with pytest.raises((TypeError, ValueError)):
        schedulers.SCHEDULES[name](torch.nn.Linear(1, 1), *needed.get(name, []))


def test_every_scheduler_of_torch_is_in_the_registry() -> None:
    theirs = set(lr_scheduler.__all__) - {"LRScheduler"} | {"SWALR"}
    assert set(schedulers.SCHEDULES) == {name.lower() for name in theirs}
    for name in theirs:
        assert schedulers.SCHEDULES[name.lower()] is getattr(schedulers, name)
        assert schedulers.SCHEDULES[name.lower()].__name__ == name
        assert issubclass(getattr(schedulers, name), schedulers.LRScheduler)


@pytest.mark.parametrize("name", sorted(set(lr_scheduler.__all__) - {"LRScheduler"} | {"SWALR"}))
def test_options_and_defaults_are_torchs(name: str) -> None:
    def options(side: Any) -> list[tuple[str, Any]]:
        return [(key, one.default) for key, one in inspect.signature(getattr(side, name)).parameters.items()]

    assert options(OURS) == options(TORCH)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="NoSuchLR"):
        _ = schedulers.NoSuchLR


def test_a_scheduler_is_imported_when_it_is_asked_for_and_torch_never() -> None:
    program = (
        "import sys; from optrace.reference import schedulers; import optrace.reference.schedulers as s;"
        "assert not any(m.endswith('schedulers.cyclic') for m in sys.modules);"
        "s.StepLR; assert not any(m.endswith('schedulers.cyclic') for m in sys.modules);"
        "assert len(s.SCHEDULES) == 16; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_subclass_needs_only_get_lr() -> None:
    class Halves(schedulers.LRScheduler):
        def get_lr(self) -> list[float]:
            return [base_lr / 2**self.last_epoch for base_lr in self.base_lrs]

    optimizer = torch_optimizer(lrs=(0.5,))
    scheduler = Halves(optimizer)
    scheduler.step()
    assert scheduler.get_last_lr() == [0.25] == [optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_scheduler_has_an_example() -> None:
    for scheduler in schedulers.SCHEDULES.values():
        assert doctest.DocTestFinder(recurse=False).find(scheduler)[0].examples, scheduler
