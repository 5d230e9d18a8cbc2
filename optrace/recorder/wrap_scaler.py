"""Tells a recording what a GradScaler does: the scale it takes out, the steps it skips, the loss it scaled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.amp.grad_scaler import OptState

from optrace.recorder.account import read_scalar
from optrace.recorder.patching import Calls, Observer, Observers

Arguments = tuple[tuple[Any, ...], dict[str, Any], Any]

_calls = Calls()
_listeners: list[Any] = []
_tell: Callable[[str, Any, dict[str, Any]], None]


def connect(listeners: list[Any], tell: Callable[[str, Any, dict[str, Any]], None]) -> None:
    """Say who listens (a list that changes) and how events are told."""
    global _listeners, _tell
    _listeners, _tell = listeners, tell


def put_on(observers: Observers, subclasses: Callable[[type], Iterator[type]]) -> None:
    """Observe `scale`, `unscale_` and `step` of GradScaler and of the classes that override them."""
    for cls in subclasses(torch.amp.GradScaler):
        observers.put(cls, "scale", "scale", Observer(_begin("scale"), _end(_end_scale), _leave))
        observers.put(cls, "unscale_", "unscale", Observer(_begin("unscale_"), _end(_end_unscale), _leave))
        observers.put(cls, "step", "scaler_step", Observer(_begin("step", _before_step), _end(_end_step), _leave))


def current_scale(scaler: Any) -> Any:
    """The scale as it is now: a float, or a copy on the device (an update changes the scale in place)."""
    scale = getattr(scaler, "_scale", None)
    if not isinstance(scale, torch.Tensor):
        return None
    with torch._C.DisableTorchFunction():
        value = read_scalar(scale)
        return value.clone() if isinstance(value, torch.Tensor) else value


def _begin(
    name: str, before: Callable[[Any], None] | None = None
) -> Callable[[tuple[Any, ...], dict[str, Any]], Arguments]:
    """Open a call, last of all; its note is None inside a call of the same method (an override that calls super())."""

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        key = (name, id(args[0]))
        note = None if key in _calls.open else (args, kwargs)
        if note is not None and before is not None:
            before(note)
        _calls.open.append(key)
        return args, kwargs, note

    return begin


def _end(tell: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    def end(note: Any, result: Any) -> None:
        _calls.open.pop()
        if note is not None:
            tell(note, result)

    return end


def _leave(_: Any) -> None:
    _calls.open.pop()


def _enabled(scaler: Any) -> bool:
    return bool(getattr(scaler, "_enabled", False))


def _given(note: Any, name: str) -> Any:
    args, kwargs = note
    return args[1] if len(args) > 1 else kwargs.get(name)


def _end_scale(note: Any, result: Any) -> None:
    loss = _given(note, "outputs")
    if isinstance(loss, torch.Tensor) and isinstance(result, torch.Tensor) and result is not loss:
        with torch._C.DisableTorchFunction():
            for listener in _listeners:
                listener.context.scaled(result, loss)


def _end_unscale(note: Any, _: Any) -> None:
    scaler = note[0][0]
    if _enabled(scaler):
        _tell("unscale", _given(note, "optimizer"), {"scale": current_scale(scaler)})


def _by_kernel(optimizer: Any) -> bool:
    """Whether the optimizer takes the scale out itself, and itself skips (the fused ones): its hooks are called."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _state(scaler: Any, optimizer: Any) -> dict[str, Any]:
    """What a scaler remembers of an optimizer in this iteration; looked up without inserting."""
    states = getattr(scaler, "_per_optimizer_states", None)
    found = states.get(id(optimizer)) if isinstance(states, dict) else None
    return found if isinstance(found, dict) else {}


def _before_step(note: Any) -> None:
    scaler, optimizer = note[0][0], _given(note, "optimizer")
    if _enabled(scaler) and _by_kernel(optimizer):
        stage = _state(scaler, optimizer).get("stage")
        if stage is None or stage is OptState.READY:
            _tell("unscale", optimizer, {"scale": current_scale(scaler), "by": "step"})


def _end_step(note: Any, _: Any) -> None:
    """Tell a skip that no hook sees; torch has waited for these flags a moment ago, so reading them costs little."""
    scaler, optimizer = note[0][0], _given(note, "optimizer")
    if not _enabled(scaler) or _by_kernel(optimizer):
        return
    flags = _state(scaler, optimizer).get("found_inf_per_device", {}).values()
    if any(flag.item() for flag in flags):
        for listener in _listeners:
            listener.context.skip(optimizer)
        _tell("step_skipped", optimizer, {"scale": current_scale(scaler), "why": "inf or nan in the gradients"})
