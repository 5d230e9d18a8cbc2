"""Drivers of candidates that are not like torch's: pure rules, functions with a config, `update(params, grads)`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from optrace.errors import GoldenError
from optrace.goldens.candidate import Candidate
from optrace.goldens.drive import Array, Driver, Group, Inputs, NotCovered, State
from optrace.goldens.format import Golden
from optrace.goldens.needs import names_of, needed, one_group, require
from optrace.goldens.rule_driver import RuleDriver
from optrace.goldens.synonyms import every_name, spelled


class RuleAdapter(RuleDriver):
    """A pure rule; crashing on a gradient that is None means that its caller is to skip such parameters."""

    def __init__(self, candidate: Candidate, golden: Golden, defaults: Mapping[str, Any]) -> None:
        super().__init__(candidate.thing, Inputs(golden).sparse)
        self._read: set[str] = set()
        self._needed = needed(golden, defaults)
        self._extra = dict(candidate.extra)

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """As RuleDriver, with mappings that note what is read."""
        super().start(params, groups)
        self._options = [_Noted({**group.options, **self._extra}, self._read) for group in groups]

    def _call(self, param: Array, grad: Any, state: Any, hyper: Any) -> tuple[Any, Any]:
        try:
            return super()._call(param, grad, state, hyper)
        except (TypeError, AttributeError, ValueError) as error:
            if grad is None:
                raise NotCovered("gradients that are None") from error
            raise

    def unread(self) -> list[str]:
        """Options that the case sets and that the rule never looked at."""
        return [name for name in self._needed if name not in self._read]


class _Noted(dict[str, Any]):
    """A dict that notes which keys somebody looked for."""

    def __init__(self, values: Mapping[str, Any], read: set[str]) -> None:
        super().__init__(values)
        self._noted = read

    def __getitem__(self, key: str) -> Any:
        self._noted.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._noted.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As dict's."""
        self._noted.add(key)
        return super().get(key, default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """As dict's."""
        self._noted.add(key)
        return super().setdefault(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        """As dict's."""
        self._noted.add(key)
        return super().pop(key, *default)

    def _all(self) -> None:
        self._noted.update(dict.keys(self))

    def __iter__(self) -> Iterator[str]:
        self._all()
        return super().__iter__()

    def __or__(self, other: Any) -> Any:
        self._all()
        return super().__or__(other)

    def __ror__(self, other: Any) -> Any:
        self._all()
        return super().__ror__(other)

    def keys(self) -> Any:
        """As dict's."""
        self._all()
        return super().keys()

    def items(self) -> Any:
        """As dict's."""
        self._all()
        return super().items()

    def values(self) -> Any:
        """As dict's."""
        self._all()
        return super().values()

    def __deepcopy__(self, memo: Any) -> _Noted:
        return _Noted(copy.deepcopy(self._plain(), memo), self._noted)

    def copy(self) -> _Noted:
        """As dict's, still noting."""
        return _Noted(self._plain(), self._noted)

    def _plain(self) -> dict[str, Any]:
        return dict(zip(dict.keys(self), dict.values(self), strict=True))


class ConfigDriver:
    """A function `f(w, dw, config) -> (w, config)`, with a config of its own for each parameter.

    A config first holds every option of the case under all names that it may go by; what the function keeps in it
    between steps is its state. An option counts as taken when the function looked one of its names up.
    """

    def __init__(self, candidate: Candidate, golden: Golden, defaults: Mapping[str, Any]) -> None:
        self._function, self._extra = candidate.thing, dict(candidate.extra)
        self._options = dict(one_group(golden))
        self._needed, self._defaults = needed(golden, defaults), defaults
        self._read: set[str] = set()
        self._params: dict[str, Array] = {}
        self._configs: dict[str, Any] = {}

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """A config for each parameter."""
        self._params = {name: np.array(values) for name, values in params.items()}
        given: dict[str, Any] = {}
        for option, value in self._options.items():
            for names in every_name(option, self._defaults):
                given = {**spelled(names, value), **given}
        self._configs = {name: _Noted({**given, **self._extra}, self._read) for name in params}

    def write_option(self, group: int, name: str, value: Any) -> None:
        """Into every config."""
        for config in self._configs.values():
            for names in every_name(name, self._defaults):
                config.update(spelled(names, value))

    def save_and_load(self) -> None:
        """The configs go through a copy."""
        self._configs = copy.deepcopy(self._configs)

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """Call the function once a parameter."""
        for name, grad in grads.items():
            if grad is None:
                raise NotCovered("gradients that are None")
            result = self._function(np.array(self._params[name]), np.array(grad), self._configs[name])
            if not isinstance(result, tuple) or len(result) != 2:
                raise GoldenError("a function f(w, dw, config) must return (w, config)")
            self._params[name], config = np.asarray(result[0]), result[1]
            same = isinstance(config, _Noted)
            self._configs[name] = config if same else _Noted(config or {}, self._read)

    def unread(self) -> list[str]:
        """Options that the case sets and that the function never looked at under any name."""
        return [option for option in self._needed if not self._was_read(option)]

    def _was_read(self, option: str) -> bool:
        return any(all(name in self._read for name in names) for names in every_name(option, self._defaults))

    def params(self) -> dict[str, Array]:
        """Copies."""
        return {name: np.array(values) for name, values in self._params.items()}

    def state(self) -> State:
        """Nothing: the names in a config are the function's own."""
        return {}


class UpdateAdapter:
    """A NumPy class with `update(params, grads)`: dicts by name, lists, or one array an object."""

    def __init__(self, candidate: Candidate, defaults: Mapping[str, Any]) -> None:
        self.candidate, self.defaults = candidate, defaults
        self.names = names_of(candidate, defaults)
        self.container = self._first_that_works()

    def driver(self, golden: Golden) -> Driver:
        """A driver for one case."""
        one_group(golden)
        require(self.names, golden, self.defaults)
        return _UpdateDriver(self)

    def build(self, options: Mapping[str, Any]) -> Any:
        """A new object of the class."""
        return self.candidate.thing(**self.names.given(options), **self.candidate.extra)

    def _first_that_works(self) -> type:
        trouble: Exception | None = None
        for container in (dict, list, np.ndarray):
            try:
                params = {"a": np.ones(2), "b": np.ones(3)}
                optimizer = self.build({**self.defaults, "lr": 0.25})
                for _ in range(2):
                    grads = {name: np.full(values.shape, 0.5) for name, values in params.items()}
                    if container is np.ndarray:
                        params = {"a": _updated(optimizer, params["a"], grads["a"])}
                    else:
                        params = _call_update(optimizer, params, grads, container)
                if all((values != 1).any() for values in params.values()):
                    return container
            except Exception as error:
                trouble = trouble or error
        why = "its parameters do not move" if trouble is None else f"{type(trouble).__name__}: {trouble}"
        raise GoldenError(f"{self.candidate.name}.update(params, grads) takes no dicts, lists or arrays: {why}")


def _call_update(optimizer: Any, params: Mapping[str, Array], grads: Mapping[str, Any], container: type) -> Any:
    names = list(params)
    if container is dict:
        given: Any = dict(params)
        result = optimizer.update(given, dict(grads))
    else:
        given = list(params.values())
        result = optimizer.update(given, [grads[name] for name in names])
    if result is None:
        result = given
    if isinstance(result, Mapping):
        return {name: np.asarray(result[name]) for name in names}
    return {name: np.asarray(value) for name, value in zip(names, result, strict=True)}


def _updated(optimizer: Any, param: Array, grad: Any) -> Array:
    result = optimizer.update(param, grad)
    return np.asarray(param if result is None else result)


class _UpdateDriver:
    """Drives `update(params, grads)`; gradients stay in the same memory from step to step."""

    def __init__(self, adapter: UpdateAdapter) -> None:
        self._adapter = adapter
        self._params: dict[str, Array] = {}
        self._grads: dict[str, Array] = {}
        self._options: Mapping[str, Any] = {}
        self._optimizers: dict[str, Any] = {}

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """One object, or one a parameter where it takes single arrays."""
        self._params = {name: np.array(values) for name, values in params.items()}
        self._grads = {name: np.zeros_like(values) for name, values in params.items()}
        self._options = groups[0].options
        single = self._adapter.container is np.ndarray
        self._optimizers = {name: self._adapter.build(self._options) for name in (params if single else [""])}

    def write_option(self, group: int, name: str, value: Any) -> None:
        """As attributes."""
        names = self._adapter.names.of.get(name, (name,))
        for optimizer in self._optimizers.values():
            if not all(hasattr(optimizer, own) for own in names):
                raise NotCovered(f"changing {name} between steps (no attribute {names[0]!r})")
            for own, number in spelled(names, value).items():
                setattr(optimizer, own, number)

    def save_and_load(self) -> None:
        """Where the class has both methods."""
        for optimizer in self._optimizers.values():
            if not (hasattr(optimizer, "state_dict") and hasattr(optimizer, "load_state_dict")):
                raise NotCovered("state_dict")
        saved = {name: copy.deepcopy(optimizer.state_dict()) for name, optimizer in self._optimizers.items()}
        self._params = {name: np.array(values) for name, values in self._params.items()}
        self._optimizers = {name: self._adapter.build(self._options) for name in saved}
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(saved[name])

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """Call `update`."""
        given: dict[str, Any] = {}
        for name, grad in grads.items():
            given[name] = None
            if grad is not None:
                self._grads[name][...] = grad
                given[name] = self._grads[name]
        try:
            if self._adapter.container is np.ndarray:
                for name, optimizer in self._optimizers.items():
                    self._params[name] = _updated(optimizer, self._params[name], given[name])
            else:
                self._params = _call_update(self._optimizers[""], self._params, given, self._adapter.container)
        except (TypeError, AttributeError, ValueError) as error:
            if any(grad is None for grad in given.values()):
                raise NotCovered("gradients that are None") from error
            raise

    def params(self) -> dict[str, Array]:
        """Copies."""
        return {name: np.array(values) for name, values in self._params.items()}

    def state(self) -> State:
        """Nothing: the attributes of such classes have names of their own."""
        return {}
