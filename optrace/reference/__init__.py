"""From-scratch optimizers and learning-rate schedulers in NumPy: an executable specification of torch.optim."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optrace.reference.arithmetic import rounding as rounding
    from optrace.reference.optimizer import Optimizer as Optimizer
    from optrace.reference.parameter import Parameter as Parameter
    from optrace.reference.parameter import SparseGrad as SparseGrad
    from optrace.reference.rule import RULES as RULES
    from optrace.reference.rule import Rule as Rule
    from optrace.reference.sgd import SGD as SGD

_HOME = {
    "RULES": "rule",
    "SGD": "sgd",
    "Optimizer": "optimizer",
    "Parameter": "parameter",
    "Rule": "rule",
    "SparseGrad": "parameter",
    "rounding": "arithmetic",
}

__all__ = [
    "RULES",
    "SGD",
    "Optimizer",
    "Parameter",
    "Rule",
    "SparseGrad",
    "rounding",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
