"""Finds, before and after each step, where an optimizer's parameters, gradients and state lie."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from optrace.recorder.inventory import Inventory
from optrace.recorder.known import KnownState, KnownTensors, addresses_of
from optrace.recorder.plans import Located, StateLabel
from optrace.recorder.selection import Quantities
from optrace.recorder.shards import FlatPieces
from optrace.recorder.state import Scalars, leaves, locate_leaf
from optrace.recorder.tensors import NOTHING, Found, Unmeasurable, locate, quiet_torch

_NOTHING_LOCATED = Located([], [], [])


@dataclass
class StateFound:
    """The measurable leaves of an optimizer's state."""

    labels: list[StateLabel]
    names: list[tuple[str, str]]
    """Parameter's name ("": none) and key of each."""
    located: Located
    things: list[Any] = field(default_factory=list)
    """The leaves themselves; empty where only whole values would need them."""


_NO_STATE = StateFound([], [], _NOTHING_LOCATED)


class Finder:
    """Where things lie; what has not changed since the last look is found again by a few comparisons."""

    def __init__(self, inventory: Inventory, wanted: Quantities, tell_once: Callable[[str, str], None]) -> None:
        """`tell_once(what, which)` says in the trace that something cannot be recorded."""
        self._inventory = inventory
        self._wanted = wanted
        self._tell_once = tell_once
        self.scalars = Scalars()
        """Where the numbers of a step are put to be measured."""
        self.changed = False
        """Set when the list of parameters, a size or a dtype has changed; whoever looks at it clears it."""
        self._flat = FlatPieces()
        self._params: Located | None = None
        self._known_params: KnownTensors | None = None
        self._grads = _NOTHING_LOCATED
        self._state: StateFound | None = None
        self._known_state: KnownState | None = None

    @property
    def plain(self) -> bool:
        """Whether all that was found last are plain tensors, which can be known again."""
        return (
            not self._flat
            and self._known_params is not None
            and (not self._wanted.state or (self._known_state is not None and self._known_state.tensors_only))
        )

    def params(self, optimizer: Any, keep: list[Any]) -> tuple[list[torch.Tensor], Located]:
        """The recorded parameters; those whose values are out of reach are left out from now on."""
        while True:
            params, changed = self._inventory.current(optimizer)
            if changed:
                self.changed = True
                self._known_params = self._known_state = None
                self._flat.look(params, self._inventory.stretches)
            located, blind = self._params_at(params, keep)
            if not blind:
                return params, located
            for index, reason in blind.items():
                self._tell_once("parameter not recorded", f"{self._inventory.names[index]}: {reason}")
            self._inventory.leave_out(self._inventory.names[index] for index in blind)

    def same_params(self, params: list[torch.Tensor], keep: list[Any]) -> Located:
        """The same parameters after the step; RuntimeError where one's values have gone out of reach."""
        located, blind = self._params_at(params, keep)
        if blind:
            raise RuntimeError("the values of a parameter went out of reach during step()")
        return located

    def _params_at(self, params: list[torch.Tensor], keep: list[Any]) -> tuple[Located, dict[int, str]]:
        if self._params is not None and self._known_params is not None and self._known_params.are(params):
            return self._params, {}
        located = Located.of([locate(param, keep) for param in params])
        if self._flat:
            located = self._pieces(params, located)
        blind = {i: kind.reason for i, kind in enumerate(located.kinds) if isinstance(kind, Unmeasurable)}
        if not blind:
            if self._params is not None and not self._params.like(located):
                self.changed = True
            self._params = located
            self._known_params = KnownTensors.of(params, located.addresses)
        return located, blind

    def grads(self, params: list[torch.Tensor], keep: list[Any], scale: torch.Tensor | None) -> Located:
        """The gradients, divided by `scale` where there is one."""
        if not self._wanted.grad:
            return _NOTHING_LOCATED
        grads = [param.grad if param.is_leaf or param.retains_grad else _grad_of_inner(param) for param in params]
        last = self._grads
        if scale is None and len(grads) == len(last):
            addresses = addresses_of(grads, last.numels, last.kinds)
            if addresses is not None:
                return Located(addresses, last.numels, last.kinds)
        found: list[Found] = []
        for grad in grads:
            if grad is None:
                found.append(NOTHING)
                continue
            if scale is not None:
                with quiet_torch():
                    grad = grad.detach() / scale.to(grad.device)
                keep.append(grad)
            one = locate(grad, keep)
            if isinstance(one[2], Unmeasurable):
                self._tell_once("gradient not recorded", one[2].reason)
                one = NOTHING
            found.append(one)
        self._grads = Located.of(found)
        if self._flat:
            self._grads = self._pieces(grads, self._grads)
        return self._grads

    def _pieces(self, things: Sequence[Any], located: Located) -> Located:
        """What was located for each recorded parameter, stretches of flattened ones as shards."""
        rows = enumerate(zip(things, located, strict=True))
        return Located.of([self._flat.within(index, thing, found) for index, (thing, found) in rows])

    def state(self, optimizer: Any, params: list[torch.Tensor], keep: list[Any], things: bool) -> StateFound:
        """The state of `params`; `things` says whether the leaves themselves are needed."""
        if not self._wanted.state:
            return _NO_STATE
        state = optimizer.state
        if self._known_state is not None and self._state is not None and not things:
            if self._known_state.holds(state, params, self.scalars):
                return self._state
            self.scalars.clear()
        found = leaves(state, params)
        labels: list[StateLabel] = []
        kept: list[Any] = []
        located: list[Found] = []
        for index, key, thing in found:
            if not self._wanted.has(f"state.{key}"):
                continue
            one = locate_leaf(thing, self.scalars, keep)
            if isinstance(one[2], Unmeasurable):
                self._tell_once("state not recorded", f"{key}: {one[2].reason}")
                continue
            if self._flat and index >= 0:
                one = self._flat.within(index, thing, one)
            labels.append((index, key))
            kept.append(thing)
            located.append(one)
        where = Located.of(located)
        last = self._state
        if last is not None and last.labels == labels and last.located == where:
            labels, names, where = last.labels, last.names, last.located
        else:
            names = [(self._inventory.names[index] if index >= 0 else "", key) for index, key in labels]
        self._known_state = None
        if len(found) == len(labels):
            self._known_state = KnownState.of(state, params, found, where.addresses)
        self._state = StateFound(labels, names, where)
        return StateFound(labels, names, where, kept) if things else self._state


def _grad_of_inner(param: torch.Tensor) -> torch.Tensor | None:
    """The gradient of a parameter that is no leaf (a differentiable optimizer's), without torch's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return param.grad
