"""From-scratch optimizers and learning-rate schedulers in NumPy: an executable specification of torch.optim."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optrace.reference.adadelta import Adadelta as Adadelta
    from optrace.reference.adafactor import Adafactor as Adafactor
    from optrace.reference.adagrad import Adagrad as Adagrad
    from optrace.reference.adam import Adam as Adam
    from optrace.reference.adamax import Adamax as Adamax
    from optrace.reference.adamw import AdamW as AdamW
    from optrace.reference.arithmetic import rounding as rounding
    from optrace.reference.asgd import ASGD as ASGD
    from optrace.reference.lbfgs import LBFGS as LBFGS
    from optrace.reference.lion import Lion as Lion
    from optrace.reference.muon import Muon as Muon
    from optrace.reference.nadam import NAdam as NAdam
    from optrace.reference.optimizer import Optimizer as Optimizer
    from optrace.reference.parameter import Parameter as Parameter
    from optrace.reference.radam import RAdam as RAdam
    from optrace.reference.rmsprop import RMSprop as RMSprop
    from optrace.reference.rprop import Rprop as Rprop
    from optrace.reference.rule import RULES as RULES
    from optrace.reference.rule import Rule as Rule
    from optrace.reference.sgd import SGD as SGD
    from optrace.reference.sparse import SparseGrad as SparseGrad
    from optrace.reference.sparseadam import SparseAdam as SparseAdam

_HOME = {
    "ASGD": "asgd",
    "Adadelta": "adadelta",
    "Adafactor": "adafactor",
    "Adagrad": "adagrad",
    "Adam": "adam",
    "AdamW": "adamw",
    "Adamax": "adamax",
    "LBFGS": "lbfgs",
    "Lion": "lion",
    "Muon": "muon",
    "NAdam": "nadam",
    "Optimizer": "optimizer",
    "Parameter": "parameter",
    "RAdam": "radam",
    "RMSprop": "rmsprop",
    "RULES": "rule",
    "Rprop": "rprop",
    "Rule": "rule",
    "SGD": "sgd",
    "SparseAdam": "sparseadam",
    "SparseGrad": "sparse",
    "rounding": "arithmetic",
}

__all__ = [
    "ASGD",
    "LBFGS",
    "RULES",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "Parameter",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Rule",
    "SparseAdam",
    "SparseGrad",
    "rounding",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
