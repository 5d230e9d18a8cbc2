"""Drives a pure rule, `(param, grad, state, hyper) -> (param, state)`, through a case."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optrace.goldens.drive import Array, Group, State
from optrace.reference.sparse import SparseGrad

PureStep = Callable[[Array, Any, Mapping[str, Any], Mapping[str, Any]], tuple[Any, Any]]


class RuleDriver:
    """A pure rule over named parameters; the state and options of each are kept here."""

    def __init__(self, step: PureStep, sparse: bool = False) -> None:
        """Drive `step`; `sparse` gradients become `SparseGrad`s of their nonzero rows."""
        self._step, self._sparse = step, sparse
        self._params: dict[str, Array] = {}
        self._state: dict[str, Any] = {}
        self._options: list[dict[str, Any]] = []
        self._group_of: dict[str, int] = {}

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """Keep copies of the start values; every state is empty."""
        self._params = {name: np.array(values) for name, values in params.items()}
        self._state = {name: {} for name in params}
        self._options = [dict(group.options) for group in groups]
        self._group_of = {name: number for number, group in enumerate(groups) for name in group.params}

    def write_option(self, group: int, name: str, value: Any) -> None:
        """Change what the rule gets as `hyper`."""
        self._options[group][name] = value

    def save_and_load(self) -> None:
        """The state goes through a copy."""
        self._state = copy.deepcopy(self._state)

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """Apply the rule to every parameter; one without a gradient is handed None."""
        for name, grad in grads.items():
            given = np.array(self._params[name])
            grad = None if grad is None else np.array(grad)
            hyper = self._options[self._group_of[name]].copy()
            given_grad = sparse_grad(grad) if self._sparse and grad is not None else grad
            self._params[name], self._state[name] = self._call(given, given_grad, self._state[name], hyper)

    def _call(self, param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        return self._step(param, grad, state, hyper)

    def params(self) -> dict[str, Array]:
        """Copies."""
        return {name: np.array(values) for name, values in self._params.items()}

    def state(self) -> State:
        """Copies of what is numeric."""
        return {name: numeric(entries) for name, entries in self._state.items() if isinstance(entries, Mapping)}


def sparse_grad(grad: Array) -> SparseGrad:
    """The nonzero rows of a gradient."""
    rows = np.flatnonzero(grad.reshape(len(grad), -1).any(axis=1))
    return SparseGrad(rows[None, :].astype(np.int64), grad[rows], grad.shape, coalesced=True)


def numeric(entries: Mapping[str, Any]) -> dict[str, Array]:
    """Copies of the numbers and arrays among the entries."""
    found = {}
    for key, value in entries.items():
        if isinstance(value, (int, float, np.ndarray, np.generic)):
            array = np.array(value)
            if array.dtype.kind in "fiub":
                found[str(key)] = array
    return found
