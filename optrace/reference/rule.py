"""What an update rule is, and the table of all of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from optrace.errors import OptraceError
from optrace.reference.arithmetic import Array

State: TypeAlias = Mapping[str, Array]
Hyper: TypeAlias = Mapping[str, Any]
Step: TypeAlias = Callable[[Any, Any, State, Hyper], tuple[Any, State]]


@dataclass(frozen=True)
class Rule:
    """The arithmetic of one optimizer, as a pure function of one parameter.

    Attributes:
        name: the class name in lower case, `"sgd"`; torch's where torch has the optimizer.
        defaults: every option that enters the arithmetic, with torch's default.
        state_keys: the keys that `state` can hold, in torch's names.
        elementwise: each element's future depends on that element alone (and on 0-d state), so that the rule can be
            replayed from a few sampled elements of a tensor.
        jumps: the update jumps where some argument changes its sign: there a last bit decides where an element goes.
        step: `(param, grad, state, hyper) -> (param, state)`. `param` and `grad` are ndarrays of one shape and dtype
            (`grad` None: nothing happens); `state` is what the last step returned, `{}` before the first; `hyper` maps
            option names to values and may hold more than the rule reads (a whole param group). Nothing is written in
            place. State tensors have the parameter's dtype; state scalars are 0-d arrays, float32 when new.
    """

    name: str
    defaults: Mapping[str, Any]
    state_keys: tuple[str, ...]
    elementwise: bool
    step: Step
    jumps: bool = False


RULES: dict[str, Rule]  # built on first use, by __getattr__

_MODULES = (
    "sgd",
    "adam",
    "adamw",
    "adamax",
    "nadam",
    "radam",
    "rmsprop",
    "adagrad",
    "adadelta",
    "asgd",
    "rprop",
    "sparseadam",
    "adafactor",
    "muon",
    "lbfgs",
    "lion",
)


def __getattr__(name: str) -> Any:
    if name != "RULES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    rules = {module: importlib.import_module(f"optrace.reference.{module}").RULE for module in _MODULES}
    globals()["RULES"] = rules
    return rules


def rule(name: str) -> Rule:
    """The rule of an optimizer, by its class name in any case (`"sgd"`, `"AdamW"`).

    Raises:
        OptraceError: there is no such rule; the message names those that are spelled nearly so.
    """
    rules: dict[str, Rule] = __getattr__("RULES")
    try:
        return rules[name.lower()]
    except KeyError:
        near = difflib.get_close_matches(name.rpartition(".")[2].lower(), rules, n=5, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(rules))}"
        raise OptraceError(f"no reference rule is called {name!r}; {advice}") from None


def counted(state: State) -> dict[str, Array]:
    """A copy of the state whose `step` is one higher (in its own dtype: a float32 counter stops at 2**24)."""
    count = state["step"]
    return {**state, "step": np.asarray(count + count.dtype.type(1))}
