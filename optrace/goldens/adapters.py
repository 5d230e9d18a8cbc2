"""One driver for each kind of candidate; here those of classes like torch's, with `step()` or `step(closure)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from optrace.errors import GoldenError
from optrace.goldens.candidate import CONFIG, OBJECT, RULE, Candidate
from optrace.goldens.closures import ClosureDriver
from optrace.goldens.drive import Driver, Inputs, NotCovered
from optrace.goldens.format import Golden
from optrace.goldens.function_adapters import ConfigDriver, RuleAdapter, UpdateAdapter
from optrace.goldens.needs import names_of, require
from optrace.goldens.object_driver import NumpyTensors, ObjectDriver, Tensors, TorchTensors
from optrace.goldens.synonyms import Names, spelled

DriverOf = Callable[[Golden], "Driver | ClosureDriver"]
"""A fresh driver for a case; raises NotCovered if the case needs an option that the candidate lacks."""


def adapt(candidate: Candidate, rule: str, defaults: Mapping[str, Any], dtype: str) -> DriverOf:
    """How this candidate is driven, tried out on a small problem.

    Args:
        candidate: what `recognise` found.
        rule: the rule it is checked against.
        defaults: that rule's options with torch's defaults.
        dtype: torch's name of the dtype of the parameters.

    Raises:
        GoldenError: it cannot be built or run in any way that is known, with what it raised.
    """
    if rule == "lbfgs":
        return _closure_adapter(candidate, defaults, dtype)
    if candidate.kind == RULE:
        return lambda golden: RuleAdapter(candidate, golden, defaults)
    if candidate.kind == CONFIG:
        return lambda golden: ConfigDriver(candidate, golden, defaults)
    if candidate.kind == OBJECT:
        return _ObjectAdapter(candidate, rule, defaults, dtype).driver
    return UpdateAdapter(candidate, defaults).driver


def _closure_adapter(candidate: Candidate, defaults: Mapping[str, Any], dtype: str) -> DriverOf:
    """L-BFGS: a class with `step(closure)`, over torch tensors where torch is there and the class works on them."""
    if candidate.kind != OBJECT:
        raise GoldenError(f"{candidate.name} has no step(closure), which lbfgs needs: give a class like torch's")
    if dtype not in ("float64", "float32"):
        raise GoldenError(f"lbfgs is checked in float64 and float32, not in {dtype}")
    names = names_of(candidate, defaults)

    def build(params: list[Any], options: Mapping[str, Any]) -> Any:
        return candidate.thing(params, **names.given(options), **candidate.extra)

    def tensors() -> list[Tensors]:
        try:
            import torch  # noqa: F401
        except ImportError:
            return [NumpyTensors()]
        return [TorchTensors(dtype), NumpyTensors()]

    def driver(golden: Golden) -> ClosureDriver:
        require(names, golden, defaults)
        for kind in tensors():
            try:
                next(ClosureDriver(golden, build, kind).run())
            except NotCovered:
                raise
            except Exception:
                continue
            return ClosureDriver(golden, build, kind)
        return ClosureDriver(golden, build, tensors()[0])

    return driver


class _ObjectAdapter:
    """A torch-like class: over torch tensors where torch is there and the class works on them, else over NumPy."""

    def __init__(self, candidate: Candidate, rule: str, defaults: Mapping[str, Any], dtype: str) -> None:
        self.candidate, self.defaults, self.dtype = candidate, defaults, dtype
        self.names = names_of(candidate, defaults)
        self.sparse = rule == "sparseadam"
        self.shape = (2, 2) if rule in ("muon", "sparseadam") else (2,)
        self.library, self.as_dicts = self._first_that_works()
        self.groups = self._takes_groups()
        if self.as_dicts and not self.names.has("lr"):
            self.names = Names({**self.names.of, "lr": ("lr",)})

    def driver(self, golden: Golden) -> Driver:
        """A driver for one case."""
        require(self.names, golden, self.defaults)
        inputs = Inputs(golden)
        if len(inputs.groups) > 1 and not self.groups:
            raise NotCovered("parameter groups")
        many = len(inputs.groups) > 1 or self.as_dicts
        return _Object(self, lambda groups: self._build(groups, many), self._tensors(self.library), inputs.strided)

    def _tensors(self, library: str) -> Tensors:
        if library == "torch":
            return TorchTensors(self.dtype, self.sparse, not self.candidate.extra.get("differentiable"))
        return NumpyTensors(self.sparse)

    def _build(self, groups: Sequence[tuple[list[Any], Mapping[str, Any]]], as_dicts: bool) -> Any:
        given = self.names.given(groups[0][1])
        if as_dicts:
            dicts = [{"params": params, **self._of_group(options)} for params, options in groups]
            accepted = set(self.candidate.accepts) | (set(given) if self.candidate.takes_any else set())
            given = {name: value for name, value in given.items() if name in accepted}
            return self.candidate.thing(dicts, **given, **self.candidate.extra)
        return self.candidate.thing(groups[0][0], **given, **self.candidate.extra)

    def _of_group(self, options: Mapping[str, Any]) -> dict[str, Any]:
        own = self.names.given(options)
        return own if self.names.has("lr") else {**own, "lr": options.get("lr", 0.1)}

    def _first_that_works(self) -> tuple[str, bool]:
        trouble: Exception | None = None
        idle: list[tuple[str, bool]] = []
        for library in self._libraries():
            for as_dicts in (False, True):
                try:
                    if self._trial(library, as_dicts, 1):
                        return library, as_dicts
                    idle.append((library, as_dicts))
                except Exception as error:
                    trouble = trouble or error
        if idle:
            return idle[0]
        why = f"{type(trouble).__name__}: {trouble}"
        raise GoldenError(f"{self.candidate.name} cannot make one step on two numbers: {why}") from trouble

    def _libraries(self) -> list[str]:
        try:
            import torch  # noqa: F401
        except ImportError:
            return ["numpy"]
        return ["torch", "numpy"] if self.dtype in ("float64", "float32", "float16") else ["torch"]

    def _takes_groups(self) -> bool:
        try:
            self._trial(self.library, True, 2)
        except Exception:
            return False
        return True

    def _trial(self, library: str, as_dicts: bool, n_groups: int) -> bool:
        """Whether two steps on a tiny problem move every parameter."""
        tensors = self._tensors(library)
        kind = self.dtype if self.dtype in ("float64", "float32", "float16") else "float32"
        start = [np.ones(self.shape, dtype=kind) for _ in range(n_groups)]
        params = [tensors.parameter(values, False) for values in start]
        options = {**self.defaults, "lr": 0.25}
        optimizer = self._build([([p], options) for p in params], as_dicts)
        for step in (1, 2):
            for parameter in params:
                tensors.give(parameter, np.full(self.shape, 0.5, dtype=kind), step)
            optimizer.step()
        return all(bool((tensors.read(p) != v).any()) for p, v in zip(params, start, strict=True))


class _Object(ObjectDriver):
    """An ObjectDriver whose candidate may keep its options elsewhere than torch does."""

    def __init__(self, adapter: _ObjectAdapter, build: Any, tensors: Tensors, strided: frozenset[str]) -> None:
        super().__init__(build, tensors, strided)
        self._adapter = adapter

    def write_option(self, group: int, name: str, value: Any) -> None:
        """Into `param_groups`, else as an attribute."""
        names = self._adapter.names.of.get(name, (name,))
        groups = getattr(self.optimizer, "param_groups", None)
        place = groups[group] if isinstance(groups, list) and isinstance(groups[group], MutableMapping) else None
        if place is not None and all(own in place for own in names):
            place.update(spelled(names, value))
        elif place is not None and name in place:
            place[name] = value
        elif len(self._groups) == 1 and all(hasattr(self.optimizer, own) for own in names):
            for own, number in spelled(names, value).items():
                setattr(self.optimizer, own, number)
        else:
            raise NotCovered(f"changing {name} between steps (no param_groups and no attribute {names[0]!r})")

    def save_and_load(self) -> None:
        """As for any optimizer; a class that defines neither method lacks them."""
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(self.optimizer, method, None)):
                raise NotCovered(method)
        super().save_and_load()
