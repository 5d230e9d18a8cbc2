"""Learning-rate schedulers from scratch: plain Python floats, bit for bit those of torch 2.13.

`SCHEDULES` maps torch's class names in lower case to the classes. Each works on any optimizer that has `param_groups`.
A class is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optrace.reference.schedulers.base import LRScheduler
    from optrace.reference.schedulers.composite import ChainedScheduler, SequentialLR
    from optrace.reference.schedulers.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts
    from optrace.reference.schedulers.cyclic import CyclicLR
    from optrace.reference.schedulers.decay import ExponentialLR, PolynomialLR
    from optrace.reference.schedulers.functions import LambdaLR, MultiplicativeLR
    from optrace.reference.schedulers.one_cycle import OneCycleLR
    from optrace.reference.schedulers.plateau import ReduceLROnPlateau
    from optrace.reference.schedulers.steps import MultiStepLR, StepLR
    from optrace.reference.schedulers.swa import SWALR
    from optrace.reference.schedulers.warmup import ConstantLR, LinearLR

    SCHEDULES: dict[str, type[LRScheduler]]

_MODULES = {
    "LambdaLR": "functions",
    "MultiplicativeLR": "functions",
    "StepLR": "steps",
    "MultiStepLR": "steps",
    "ConstantLR": "warmup",
    "LinearLR": "warmup",
    "ExponentialLR": "decay",
    "PolynomialLR": "decay",
    "CosineAnnealingLR": "cosine",
    "CosineAnnealingWarmRestarts": "cosine",
    "CyclicLR": "cyclic",
    "OneCycleLR": "one_cycle",
    "SequentialLR": "composite",
    "ChainedScheduler": "composite",
    "ReduceLROnPlateau": "plateau",
    "SWALR": "swa",
}

__all__ = [
    "SCHEDULES",
    "SWALR",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]


def __getattr__(name: str) -> Any:
    if name == "SCHEDULES":
        found: Any = {scheduler.lower(): __getattr__(scheduler) for scheduler in _MODULES}
    elif name == "LRScheduler":
        found = import_module(f"{__name__}.base").LRScheduler
    elif name in _MODULES:
        found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
