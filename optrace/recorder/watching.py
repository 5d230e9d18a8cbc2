"""`optrace.watch`: sees the steps of hand-written optimizers, whatever shape they have."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

from optrace.errors import RecordError
from optrace.recorder import recording as recordings
from optrace.recorder.told import Tensor, ToldOptimizer, tensor_of

T = TypeVar("T")
Method = Callable[..., Any]

_METHODS = ("step", "update")


def watch(optimizer: T) -> T:
    """Have a hand-written optimizer recorded like torch's; returns the same object.

    Args:
        optimizer: an object with `step()` (its parameters in `param_groups` or among its attributes), one with
            `update(params, grads)` or `step(params, grads)` (dicts, lists or single arrays; changed in place or
            returned), or a function
            `f(w, dw, config) -> (w, config)`, for which a function that does the same is returned. An optimizer of
            torch is seen anyway and comes back untouched.

    Hyper-parameters are the options in its `param_groups`, else its public attributes that are numbers, strings or
    bools. State is every attribute that holds arrays which belong to the parameters: dicts by parameter, name or index,
    lists in the parameters' order, arrays of a parameter's shape; it is named after the attribute. Outside a recording
    a watched object does what it did. What it computes never changes.

    Raises:
        RecordError: it has neither `step()` nor `update()` and is no function; or it is a class, a model or a schedule.
    """
    if hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return optimizer
    if isinstance(optimizer, type):
        raise RecordError(f"watch needs an optimizer, but got the class {optimizer.__name__}; make one of it first")
    if hasattr(optimizer, "get_last_lr"):
        raise RecordError(f"watch needs an optimizer; a {type(optimizer).__name__} is a schedule, which is seen anyway")
    for name in _METHODS:
        if callable(getattr(type(optimizer), name, None)):
            _register(optimizer)
            _instrument(type(optimizer), name)
            return optimizer
    if hasattr(optimizer, "forward") and hasattr(optimizer, "parameters"):
        kind = type(optimizer).__name__
        raise RecordError(f"watch needs an optimizer, but got the model {kind}; give what steps its parameters")
    if callable(optimizer):
        return _watched_function(optimizer)  # type: ignore[return-value]
    raise RecordError(
        f"watch needs an object with step() or update(params, grads), or a function f(w, dw, config); a"
        f" {type(optimizer).__name__} is none of them"
    )


# ---- objects ----


class _Watched:
    """One watched object, and what the recordings that it has met know of it."""

    def __init__(self, thing: Any) -> None:
        key = id(thing)

        def gone(_: Any) -> None:
            _watched.pop(key, None)

        self.reference: Callable[[], Any]
        try:
            self.reference = weakref.ref(thing, gone)
        except TypeError:  # no weak references: it lives as long as the process
            self.reference = lambda: thing
        self.inside = False
        self.session: Any = None
        self.follower: Any = None

    def follow(self, session: Any, make: Callable[[], Any]) -> Any:
        """What records this object in a session; made once for each session."""
        if self.session is not session:
            self.session, self.follower = session, make()
        return self.follower


_watched: dict[int, _Watched] = {}


def _register(thing: Any) -> None:
    known = _watched.get(id(thing))
    if known is None or known.reference() is not thing:
        _watched[id(thing)] = _Watched(thing)


def _instrument(kind: type, name: str) -> None:
    """Put our method around the class's own, once; objects that nobody watches only pay for a look-up."""
    owner = next(base for base in kind.__mro__ if name in vars(base))
    original = vars(owner)[name]
    if getattr(original, "_optrace_watches", False) or not callable(original):
        return

    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        entry = _watched.get(id(self))
        session = recordings.current()
        if entry is None or session is None or not session.active or entry.inside or entry.reference() is not self:
            return original(self, *args, **kwargs)
        entry.inside = True
        try:
            run = _run_step if name == "step" else _run_update
            return run(session, entry, self, original, args, kwargs)
        finally:
            entry.inside = False

    method._optrace_watches = True  # type: ignore[attr-defined]
    setattr(owner, name, method)


def _run_step(
    session: Any,
    entry: _Watched,
    thing: Any,
    original: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """`step()`: through the recorder of torch's optimizers where the parameters are torch's, else array by array."""
    from optrace.recorder.parameters import find_parameters

    try:
        found = find_parameters(thing)
    except RecordError as error:
        if len(args) + len(kwargs) >= 2:  # step(params, grads)
            return _run_update(session, entry, thing, original, args, kwargs)
        session.fail(error)
        return original(thing, *args, **kwargs)
    if found.torch:
        from optrace.recorder.torch_view import view_of

        view = entry.follow(session, lambda: view_of(thing))
        return session.around(view, lambda given: original(thing, *given[1:]), (view, *args), kwargs)
    follower = entry.follow(session, lambda: Follower(session, type(thing).__name__))
    follower.before(thing, found.arrays(), found.grads())
    result = original(thing, *args, **kwargs)
    try:
        found = find_parameters(thing)
    except RecordError as error:
        session.fail(error)
        return result
    follower.after(thing, found.arrays())
    return result


def _run_update(
    session: Any,
    entry: _Watched,
    thing: Any,
    original: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """`update(params, grads)`, or `step` with the same arguments."""
    given = [*args, *kwargs.values()]
    if len(given) < 2:
        return original(thing, *args, **kwargs)
    params, grads = (kwargs.get(key, value) for key, value in zip(("params", "grads"), given, strict=False))
    follower = entry.follow(session, lambda: Follower(session, type(thing).__name__))
    follower.before(thing, _named(params), _named(grads))
    result = original(thing, *args, **kwargs)
    made = result if result is not None else params
    if isinstance(made, tuple) and not isinstance(params, tuple) and made:
        made = made[0]
    follower.after(thing, _named(made))
    return result


def _named(things: Any) -> dict[str, Any]:
    """Arrays by name: the keys of a dict, `param0`, `param1`... of a list, `param0` alone."""
    if isinstance(things, Mapping):
        return {str(key): value for key, value in things.items() if value is not None}
    if isinstance(things, list | tuple):
        return {f"param{i}": value for i, value in enumerate(things) if value is not None}
    return {"param0": things}


class Follower:
    """Records the steps of one object or function whose arrays are seen before and after each of them."""

    def __init__(self, session: Any, class_name: str) -> None:
        """`class_name` is shown as its class."""
        self.session = session
        self.told = ToldOptimizer(class_name, session.settings)
        self._before: tuple[Any, ...] | None = None

    def before(self, thing: Any, params: Mapping[str, Any], grads: Mapping[str, Any]) -> None:
        """Copy what the step is about to use; a failure of ours ends the recording, never the step."""
        from optrace.recorder.attributes import options_of, state_of

        try:
            kept = {name: tensor_of(value, name) for name, value in params.items()}
            given = {name: tensor_of(value, f"the gradient of {name}") for name, value in grads.items()}
            state = _tensors(state_of(thing, params))
            groups = options_of(thing)
            self.told.put_in_groups({name: group for group, names in groups.members.items() for name in names})
            self._before = kept, given, state, groups.options
        except Exception as error:
            self._before = None
            self.session.fail(error)

    def after(self, thing: Any, params: Mapping[str, Any]) -> None:
        """Measure what the step made and write it."""
        from optrace.recorder.attributes import options_of, state_of

        if self._before is None or not self.session.active:
            return
        kept, grads, state_before, options = self._before
        self._before = None
        try:
            made = {name: tensor_of(value, name) for name, value in params.items()}
            written = changed_numbers(options, options_of(thing).options)
            self.session.write_told(
                self.told,
                thing,
                {
                    "before": kept,
                    "after": made,
                    "grads": grads,
                    "state_before": state_before,
                    "state": _tensors(state_of(thing, params)),
                    "groups": list(enumerate(options)),
                    "written": written,
                },
            )
        except Exception as error:
            self.session.fail(error)


def _tensors(state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
    return {n: {k: tensor_of(v, f"{k} of {n}") for k, v in entries.items()} for n, entries in state.items()}


def changed_numbers(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
    """Numbers of the groups that the step itself changed: (group, key) -> value after it."""
    return {
        (group, key): float(value)
        for group, (old, new) in enumerate(zip(before, after, strict=False))
        for key, value in new.items()
        if isinstance(value, int | float) and key in old and old[key] != value
    }


# ---- functions ----


def _watched_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """`f(w, dw, config)`: a step is one call for each parameter; it ends when one of them comes again."""
    calls = _Calls(getattr(function, "__name__", type(function).__name__))

    @wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        session = recordings.current()
        if session is None or not session.active or len(args) < 2:
            return function(*args, **kwargs)
        call = calls.before(session, args, kwargs)
        result = function(*args, **kwargs)
        calls.after(session, call, result)
        return result

    return watched


class _Calls:
    """The calls of one function, gathered to steps."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.session: Any = None
        self.told: ToldOptimizer | None = None
        self.names: dict[int, tuple[str, Any]] = {}
        self.gathered: dict[str, dict[str, Any]] = {}

    def before(self, session: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            if self.session is not session:
                self.session, self.told = session, ToldOptimizer(self.name, session.settings)
                self.names, self.gathered = {}, {}
                session.at_end(lambda: self.write(session))
            config = args[2] if len(args) > 2 else kwargs.get("config")
            name = self._name(config)
            if name in self.gathered:
                self.write(session)
            return {
                "name": name,
                "before": tensor_of(args[0], name),
                "grad": tensor_of(args[1], f"the gradient of {name}"),
                "config": _split(config),
            }
        except Exception as error:
            session.fail(error)
            return None

    def _name(self, config: Any) -> str:
        """A parameter is known by its config, which the function returns and is given again."""
        if config is not None and id(config) in self.names:
            return self.names[id(config)][0]
        return f"param{len({name for name, _ in self.names.values()})}"

    def after(self, session: Any, call: dict[str, Any] | None, result: Any) -> None:
        if call is None or not session.active:
            return
        try:
            made, config = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
            self.names = {key: kept for key, kept in self.names.items() if kept[0] != call["name"]}
            self.names[id(config) if config is not None else -1 - len(self.names)] = (call["name"], config)
            self.gathered[call["name"]] = {**call, "after": tensor_of(made, call["name"]), "made": _split(config)}
        except Exception as error:
            session.fail(error)

    def write(self, session: Any) -> None:
        """Write the step whose calls have been gathered."""
        calls, self.gathered = self.gathered, {}
        if not calls or self.told is None:
            return
        numbers = [call["config"][0] or call["made"][0] for call in calls.values()]
        distinct = [options for i, options in enumerate(numbers) if options not in numbers[:i]]
        self.told.put_in_groups({n: distinct.index(o) for n, o in zip(calls, numbers, strict=True)})
        session.write_told(
            self.told,
            None,
            {
                "before": {name: call["before"] for name, call in calls.items()},
                "after": {name: call["after"] for name, call in calls.items()},
                "grads": {name: call["grad"] for name, call in calls.items()},
                "state_before": {name: call["config"][1] for name, call in calls.items()},
                "state": {name: call["made"][1] for name, call in calls.items()},
                "groups": list(enumerate(distinct)),
                "written": {},
            },
        )


def _split(config: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Numbers (hyper-parameters) and arrays (state) of a config; a number that counts, `t`, is state."""
    options: dict[str, Any] = {}
    state: dict[str, Tensor] = {}
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if isinstance(value, bool | str) or value is None:
            options[str(key)] = value
        elif isinstance(value, int | float) and key not in ("t", "step", "iteration"):
            options[str(key)] = value
        elif isinstance(value, int | float) or hasattr(value, "shape"):
            state[str(key)] = tensor_of(value, str(key))
    return options, state


def told_by_name(session: Any, name: str) -> ToldOptimizer:
    """The optimizer of that name whose steps a session is told of."""
    known = _told.setdefault(session, {})
    if name not in known:
        known[name] = ToldOptimizer(name, session.settings)
    return known[name]


_told: weakref.WeakKeyDictionary[Any, dict[str, ToldOptimizer]] = weakref.WeakKeyDictionary()
