"""Takes what it costs to observe a call: on functions of its own, told to a recording of its own that has no files."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optrace.recorder.patching import Calls, Observer, Observers
from optrace.recorder.plain_calls import noted
from optrace.recorder.price import ObservedCall

if TYPE_CHECKING:
    from optrace.recorder.session import Session

CACHE = 2**20
"""Bytes that are read to have the caches of a core used for something else."""

_quiet = torch._C.DisableTorchFunction
_ROOT = torch.zeros((), dtype=torch.float32, device="cpu")
"""Made on import, before the program turns on modes that would see it."""


class _Scratch:
    """A module for functions that do nothing, and an optimizer without parameters."""

    def __init__(self) -> None:
        self.param_groups: list[Any] = []

    def zero_grad(self) -> None:
        """Do nothing."""

    def backward(tensors: Any) -> None:
        """Do nothing."""


class Calibration:
    """Observed calls that do nothing, made once in a while to be timed.

    The observers are those of the program's calls in little: the same wrapper, account and queue of events. Those are
    not timed themselves: a call may be made by compiled code, which a clock would break apart.
    """

    def __init__(self, session: Session) -> None:
        """`session`: the recording whose observers are to be told of."""
        self._told = type(session)(replace(session.settings, quiet=True, output=None))
        self._told.active = True
        self._context = self._told.context
        self._context.after_backward = None
        kind = type("_Observed", (_Scratch,), {name: vars(_Scratch)[name] for name in ("zero_grad", "backward")})
        observers = Observers(session.fail, torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling)
        self._calls, told = Calls(), [self._told]
        for name, begin, end in (
            ("zero_grad", self._begin, self._end_zero_grad),
            ("backward", self._begin_backward, self._end_backward),
        ):
            quick = noted(name, told, self._calls, begin, end)
            observers.put(kind, name, name, Observer(begin, end, traced=name == "backward", quick=quick))
        observers.active = True
        self._elsewhere = np.zeros(CACHE // 8)
        self._kind: Any = kind
        self._thing: Any = kind()
        self._root = _ROOT
        self._context.know(self._thing)
        self._told.expect_plain_calls(self._thing)

    def take(self) -> tuple[ObservedCall, ObservedCall]:
        """Seconds of an observed call: when something else has used the caches, and right after that again."""
        self._elsewhere.sum()
        return self._once(), self._once()

    def _once(self) -> ObservedCall:
        start = perf_counter()
        self._thing.zero_grad()
        middle = perf_counter()
        self._kind.backward(self._root)
        end = perf_counter()
        self._context.take(self._thing)
        return ObservedCall(middle - start, end - middle)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._calls.open.append("zero_grad")
        return args, kwargs, (args, kwargs, self._calls.open.told)

    def _end_zero_grad(self, note: Any, _: Any) -> None:
        self._calls.open.pop()
        self._context.zeroed(note[0][0])
        self._told.emit("zero_grad", self._thing, {"set_to_none": True})

    def _begin_backward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._calls.open.append("backward")
        self._told.emit("zero_grad", None, {})  # a third backward without a step would be looked into
        with _quiet():
            return args, kwargs, [(self._context, self._context.begin_backward(args))]

    def _end_backward(self, note: Any, _: Any) -> None:
        self._calls.open.pop()
        self._context.end_backward(note[0][1])
