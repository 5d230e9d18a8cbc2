"""Tells a recording what happens around the steps: observers on the named functions of torch that have no hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import GeneratorType
from typing import Any, Protocol

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import dataloader

from optrace.recorder import wrap_scaler
from optrace.recorder.account import read_scalar
from optrace.recorder.context import StepContext
from optrace.recorder.fingerprints import batch_fingerprint, state_dict_fingerprints
from optrace.recorder.living import living, subclasses
from optrace.recorder.patching import Begin, Calls, End, Fail, Observer, Observers, unseen
from optrace.recorder.plain_calls import noted


class Listener(Protocol):
    """What a recording is to the observers."""

    context: StepContext

    def emit(self, kind: str, optimizer: Any, data: dict[str, Any]) -> None:
        """Take one event; `optimizer` is None when it belongs to none. Values may be 0-d tensors on a device."""

    def fail(self, error: Exception) -> None:
        """Take an exception of ours: the program never sees it."""


_listeners: list[Any] = []
_calls = Calls()
_quiet = torch._C.DisableTorchFunction

Arguments = tuple[tuple[Any, ...], dict[str, Any], Any]


def install(listener: Listener) -> None:
    """Begin to tell `listener` (a Session) what happens; the first one puts the observers on."""
    if any(held is listener for held in _listeners):
        return
    _listeners.append(listener)
    if len(_listeners) == 1:
        _put_on()
    _observers.active = True
    if getattr(listener, "from_python", True):
        for optimizer in _living_optimizers():
            listener.context.know(optimizer)


def remove(listener: Listener | None = None) -> None:
    """Tell `listener` (by default the last one) no more; with the last one gone every attribute is what it was."""
    if listener is None:
        del _listeners[-1:]
    else:
        _listeners[:] = [held for held in _listeners if held is not listener]
    if not _listeners:
        _observers.active = False
        _observers.remove()


def sight() -> None:
    """Observe the overrides of classes that were defined since the last look."""
    if not _listeners:
        return
    for base, names in _METHODS.items():
        for cls in subclasses(base):
            own = vars(cls)
            for name, (kind, observer) in names.items():
                if name in own:
                    _observers.put(cls, name, kind, observer)
    wrap_scaler.put_on(_observers, subclasses)


def _living_optimizers() -> list[Any]:
    """Optimizers that the program made before it began to record itself (under `optrace record` there are none)."""
    return living(Optimizer)


def _put_on() -> None:
    sight()
    _observers.put(torch.nn.Module, "zero_grad", "module", _MODULE_ZERO_GRAD)
    _observers.put(torch.autograd, "backward", "backward", _BACKWARD)
    for name, begin in _CLIPS.items():
        if hasattr(torch.nn.utils, name):
            _observers.put(torch.nn.utils, name, "clip", Observer(begin, _end_clip, _fail_clip, traced=True))
    _observers.spread()


def _failed(error: Exception) -> None:
    for listener in _listeners:
        listener.fail(error)


def _tell(kind: str, optimizer: Any, data: dict[str, Any]) -> None:
    _calls.open.told += 1
    for listener in _listeners:
        listener.emit(kind, optimizer, data)


# ---- optimizers ----


def _begin_method(kind: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Arguments]:
    """Open a method's call; its note is None inside a call of the same kind on the same object."""

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        key, calls = (kind, id(args[0])), _calls.open
        note = None if key in calls else (args, kwargs, _calls.open.told)
        calls.append(key)
        return args, kwargs, note

    return begin


def _leave(_: Any) -> None:
    _calls.open.pop()


def _told_inside(note: Any) -> bool:
    """Whether an object that only passes calls on to another was called: the other has told already."""
    return bool(note[2] != _calls.open.told)


def _end_init(note: Any, _: Any) -> None:
    _calls.open.pop()
    if note is not None:
        sight()
        for listener in _listeners:
            listener.context.know(note[0][0])


def _end_zero_grad(note: Any, _: Any) -> None:
    _calls.open.pop()
    if note is None:
        return
    args, kwargs, told = note
    if told == _calls.open.told:
        for listener in _listeners:
            listener.context.zeroed(args[0])
        plain = len(args) == 1 and not kwargs
        _tell("zero_grad", args[0], {"set_to_none": True if plain else _set_to_none(args, kwargs)})


def _set_to_none(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(args[1] if len(args) > 1 else kwargs.get("set_to_none", True))


def _end_state_dict(note: Any, result: Any) -> None:
    _calls.open.pop()
    if note is not None and not _told_inside(note):
        _tell("state_dict", note[0][0], state_dict_fingerprints(result))


def _begin_load(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    key, calls = ("load_state_dict", id(args[0])), _calls.open
    calls.append(key)
    if calls.count(key) > 1:
        return args, kwargs, None
    given = args[1] if len(args) > 1 else kwargs.get("state_dict")
    return args, kwargs, (args, state_dict_fingerprints(given), _calls.open.told)


def _end_load(note: Any, _: Any) -> None:
    _calls.open.pop()
    if note is not None and not _told_inside(note):
        _tell("load_state_dict", note[0][0], note[1])


def _end_add_param_group(note: Any, _: Any) -> None:
    _calls.open.pop()
    if note is None or _told_inside(note):
        return
    optimizer = note[0][0]
    if ("__init__", id(optimizer)) not in _calls.open:
        groups = getattr(optimizer, "param_groups", None)
        if groups:
            _tell("add_param_group", optimizer, {"group": len(groups) - 1, "n_params": len(groups[-1]["params"])})


def _end_mode(mode: str) -> Callable[[Any, Any], None]:
    def end(note: Any, _: Any) -> None:
        _calls.open.pop()
        if note is not None and not _told_inside(note):
            _tell("optimizer_mode", note[0][0], {"mode": mode})

    return end


# ---- modules, backward ----


def _begin_module_zero_grad(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    with _quiet():
        marks = [(listener.context, listener.context.mark_gradients()) for listener in _listeners]
    return args, kwargs, (marks, type(args[0]).__name__, _set_to_none(args, kwargs))


def _end_module_zero_grad(note: Any, _: Any) -> None:
    marks, name, set_to_none = note
    with _quiet():
        for context, before in marks:
            context.module_zeroed(before)
    _tell("zero_grad", None, {"module": name, "set_to_none": set_to_none})


def _begin_backward(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Note a backward, unless it runs inside another (a reentrant checkpoint's, one that torch itself starts)."""
    calls, running = _calls.open, None
    if "backward" not in calls and torch._C._current_graph_task_id() == -1:
        roots = args[0] if args else kwargs.get("tensors")
        if not isinstance(roots, list | tuple):
            roots = (roots,)
        _tell("backward", None, {})
        with _quiet():
            running = [(heard.context, heard.context.begin_backward(roots)) for heard in _listeners]
    calls.append("backward")
    return args, kwargs, running


def _end_backward(note: Any, _: Any) -> None:
    _calls.open.pop()
    if note is not None:
        for context, backward in note:
            context.end_backward(backward)


def _fail_backward(note: Any) -> None:
    _calls.open.pop()
    if note is not None:
        for context, backward in note:
            context.fail_backward(backward)


# ---- clipping ----


def _clip(kind: str, limit: str, total: str | None) -> Callable[[tuple[Any, ...], dict[str, Any]], Arguments]:
    """Observe one clip function; `limit` is its second parameter, `total` the name of a norm that it is given."""

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        calls, note = _calls.open, None
        given = _argument(args, kwargs, 0, "parameters")
        if "clip" in calls:  # torch's one function calls another
            _calls.clipping = given
        else:
            with _quiet():
                data: dict[str, Any] = {"kind": kind, limit: _scalar(_argument(args, kwargs, 1, limit))}
                if kind == "norm" and total is None:
                    data["norm_type"] = _scalar(_argument(args, kwargs, 2, "norm_type", 2.0))
                norm = None if total is None else read_scalar(_argument(args, kwargs, 2, total))
            if isinstance(given, GeneratorType):
                seen: list[Any] = []
                given = _remembering(given, seen)
                args, kwargs = ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "parameters": given})
                given = seen
            _calls.clipping = given
            note = data, norm
        calls.append("clip")
        return args, kwargs, note

    return begin


def _end_clip(note: Any, result: Any) -> None:
    _calls.open.pop()
    if note is None:
        return
    (data, norm), given, _calls.clipping = note, _calls.clipping, None
    if norm is None and isinstance(result, torch.Tensor):
        with _quiet():
            norm = read_scalar(result)
    if data["kind"] == "norm":
        data["total_norm"] = norm
    params = [given] if isinstance(given, torch.Tensor) else given if isinstance(given, list | tuple) else []
    owner = None
    for listener in _listeners:
        owners = listener.context.owners(params)
        listener.context.clipped(owners, norm)
        owner = owners[0] if len(owners) == 1 else owner
    _tell("clip", owner, data)


def _fail_clip(note: Any) -> None:
    _calls.open.pop()
    if note is not None:
        _calls.clipping = None


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


@unseen
def _remembering(given: Iterable[Any], seen: list[Any]) -> Iterator[Any]:
    """What a generator yields, when it is asked for it."""
    for param in given:
        seen.append(param)
        yield param


def _scalar(value: Any) -> Any:
    """A number, the value of a tensor (kept on its device), or the text of anything else (`inf`)."""
    if isinstance(value, torch.Tensor):
        return read_scalar(value)
    return value if value is None or isinstance(value, int | float) else str(value)


_CLIPS = {
    "clip_grad_norm_": _clip("norm", "max_norm", None),
    "clip_grads_with_norm_": _clip("norm", "max_norm", "total_norm"),
    "clip_grad_value_": _clip("value", "clip_value", None),
}


# ---- schedulers ----


def _begin_scheduler(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    calls = _calls.open
    note = None if "scheduler" in calls else args[0]
    calls.append("scheduler")
    return args, kwargs, note


def _end_scheduler_step(scheduler: Any, _: Any) -> None:
    _calls.open.pop()
    if scheduler is not None:
        last_epoch = getattr(scheduler, "last_epoch", None)
        data = {"class": type(scheduler).__name__, "last_epoch": last_epoch}
        _tell("scheduler_step", getattr(scheduler, "optimizer", None), data)


def _end_scheduler_init(scheduler: Any, _: Any) -> None:
    _calls.open.pop()
    if scheduler is not None:
        sight()


# ---- loaders ----


def _begin_next(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    key, calls = ("next", id(args[0])), _calls.open
    counts = key not in calls and torch.is_grad_enabled()
    calls.append(key)
    return args, kwargs, counts


def _end_next(counts: bool, batch: Any) -> None:
    """Note a batch, unless gradients are off: then it is for evaluation."""
    _calls.open.pop()
    if counts:
        fingerprint = batch_fingerprint(batch)
        for listener in _listeners:
            listener.context.yielded(fingerprint)


def _often(kind: str, begin: Begin, end: End, fail: Fail, traced: bool = False) -> Observer:
    """The observer of calls that come with every step."""
    return Observer(begin, end, fail, traced, noted(kind, _listeners, _calls, begin, end))


def _method(kind: str, end: End) -> tuple[str, Observer]:
    return kind, Observer(_begin_method(kind), end, _leave)


_MODULE_ZERO_GRAD = Observer(_begin_module_zero_grad, _end_module_zero_grad, traced=True)
_BACKWARD = _often("backward", _begin_backward, _end_backward, _fail_backward, traced=True)
_METHODS: dict[type, dict[str, tuple[str, Observer]]] = {
    Optimizer: {
        "__init__": _method("__init__", _end_init),
        "zero_grad": ("zero_grad", _often("zero_grad", _begin_method("zero_grad"), _end_zero_grad, _leave)),
        "state_dict": _method("state_dict", _end_state_dict),
        "load_state_dict": ("load_state_dict", Observer(_begin_load, _end_load, _leave)),
        "add_param_group": _method("add_param_group", _end_add_param_group),
        "train": _method("train", _end_mode("train")),
        "eval": _method("eval", _end_mode("eval")),
    },
    LRScheduler: {
        "step": ("scheduler", _often("scheduler", _begin_scheduler, _end_scheduler_step, _leave)),
        "_initial_step": ("scheduler_init", Observer(_begin_scheduler, _end_scheduler_init, _leave)),
    },
    dataloader._BaseDataLoaderIter: {"__next__": ("next", Observer(_begin_next, _end_next, _leave))},
}

_observers = Observers(_failed, torch.compiler.is_compiling, torch.compiler.is_dynamo_compiling)
wrap_scaler.connect(_listeners, _tell)
