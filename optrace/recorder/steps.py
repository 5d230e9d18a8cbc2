"""Decides what each call of an optimizer's `step()` is (a step, a skipped one, none) and has it recorded."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from optrace.recorder.account import read_scalar
from optrace.recorder.capture import Capture
from optrace.recorder.finished import Finished
from optrace.recorder.hooks import Replaced
from optrace.recorder.leftovers import STEPS as LEFT
from optrace.recorder.memory import Budget
from optrace.recorder.micro import MOST, MicroGradients, micro_gradients
from optrace.recorder.names import ParamNames
from optrace.recorder.parts import PartsCapture
from optrace.recorder.plain_steps import known_step
from optrace.recorder.selection import is_recorded
from optrace.recorder.step_kinds import Kind, first_param, held_twice, initialises_state, params_of
from optrace.recorder.tensors import is_within_reach

if TYPE_CHECKING:
    from optrace.recorder.session import Session


_LISTED = 100
"""Names of parameters that an event lists at most."""
_WATCHED = LEFT + 1
"""So many steps of an optimizer may have used gradients of the step before; later ones are not looked at."""
_REAL = frozenset({torch.Tensor, torch.nn.Parameter})


@dataclass
class Track:
    """One optimizer that has been seen to step."""

    optimizer: weakref.ref[Any]
    class_name: str
    index: int = -1
    """In order of first step; -1 until then."""
    completed: int = 0
    kind: Kind = Kind.NOT_SEEN
    capture: Capture | PartsCapture | None = None
    world: Finished | None = None
    ended: float | None = None
    """When its last step ended."""
    hooked: float = 0.0
    """Seconds that the hooks of the running step have taken."""
    in_parts: bool = False
    """Whether the last call of `step()` was not the last of its step."""
    micro: list[MicroGradients] = field(default_factory=list)
    """Gradients after each backward since the last step, where they were asked for."""
    as_ever: Capture | None = None
    """What has recorded its last step, where every step is recorded: it may know the next one at once."""
    known_at_once: bool = False
    """Whether the running step was known at once, and is none of the first."""


class Steps:
    """The optimizers of one recording and their steps."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._settings = session.settings
        self._names = ParamNames()
        self._budgets = {"": Budget(session.settings.memory)}
        self.by_id: dict[int, Track] = {}
        """The optimizers seen, by id."""
        self._stopping = threading.Lock()
        self._every_step = self._settings.every == 1 and self._settings.steps is None
        self._plain = self._every_step and self._settings.stop_after is None and not self._settings.micro
        self.stopped = False
        """Whether `stop_after` has ended the recording."""

    @property
    def tracks(self) -> list[Track]:
        """The optimizers seen, in order."""
        return list(self.by_id.values())

    @property
    def held(self) -> int:
        """Bytes held for copies of parameters."""
        return sum(budget.held for budget in self._budgets.values())

    def find(self, optimizer: Any) -> Track | None:
        """The track of an optimizer that has stepped."""
        track = self.by_id.get(id(optimizer))
        return track if track is not None and track.optimizer() is optimizer else None

    def stand_in(self, optimizer: Any) -> None:
        """Take something for an optimizer that has stepped."""
        self.by_id[id(optimizer)] = Track(weakref.ref(optimizer), type(optimizer).__name__, self._session.next_index())

    # ---- the hooks ----

    def before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Replaced:
        """Measure before the rule; a closure is wrapped so that the gradients it makes are seen."""
        start = perf_counter()
        session = self._session
        if not session.active:
            return None
        track, replaced = None, None
        try:
            with torch._C.DisableTorchFunction():
                track = self.by_id.get(id(optimizer))
                if track is None or track.optimizer() is not optimizer:
                    track = self._new_track(optimizer)
                replaced = self._before(optimizer, track, args, kwargs)
        except Exception as error:
            session.fail(error)
        seconds = perf_counter() - start
        session.price.hooks += seconds
        if track is not None:
            track.hooked = seconds
        return replaced

    def after_step(self, optimizer: Any) -> None:
        """Measure after the rule and write the step."""
        start = perf_counter()
        session = self._session
        track = self.by_id.get(id(optimizer))
        if track is None or track.optimizer() is not optimizer or not session.active:
            return
        try:
            with torch._C.DisableTorchFunction():
                if track.known_at_once and track.as_ever is not None:
                    self._after_as_ever(optimizer, track, track.as_ever, start)
                else:
                    self._after(optimizer, track, start)
        except Exception as error:
            session.fail(error)
        now = perf_counter()
        session.price.hooks += now - start
        if track.in_parts:
            if track.ended is not None:
                track.ended += track.hooked + now - start
            return
        track.ended = now
        if session.active:
            if not session.price.told and track.index == 0 and track.kind is Kind.RECORDED:
                self.tell_price(track)
            if self._settings.stop_after is not None:
                self._stop_if_done(track)

    def tell_price(self, track: Track) -> None:
        """Say what recording costs, if it can be told after the step that has just ended."""
        if track.ended is not None and track.index == 0:
            on_device = track.capture is not None and track.capture.slots is not None
            track.ended += self._session.tell_price(track.ended, on_device)

    def known_step(self, optimizer: Any) -> tuple[Any, ...] | None:
        """What the kernel needs to record the next step of an optimizer that has just made one; None: it cannot."""
        track = self.by_id.get(id(optimizer))
        if track is None or not track.known_at_once or not self._plain:
            return None
        return known_step(self, self._session, track, optimizer)

    def step_raised(self, optimizer: Any) -> None:
        """An exception ended the last step: an event, no number."""
        track = self.find(optimizer)
        if track is None or not self._session.active:
            return
        if track.capture is not None:
            track.capture.forget()
        if track.kind is not Kind.NOT_SEEN:
            self._session.emit("step_failed", optimizer, {})
        track.kind = Kind.NOT_SEEN

    def after_backward(self, optimizer: Any, number: int) -> None:
        """Keep the gradients that the `number`-th backward since the last step has left (`micro`)."""
        track = self.find(optimizer) or self._new_track(optimizer)
        if self._session.active and is_recorded(track.completed + 1, self._settings):
            if number <= MOST:
                start = perf_counter()
                track.micro.append(micro_gradients(number, params_of(optimizer)))
                self._session.price.hooks += perf_counter() - start
            elif number == MOST + 1:
                self._session.tell("gradients of further backwards not recorded", most=MOST, optimizer=optimizer)

    # ---- before ----

    def _before(self, optimizer: Any, track: Track, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Replaced:
        if (
            track.as_ever is not None
            and not track.micro
            and getattr(optimizer, "found_inf", None) is None
            and getattr(optimizer, "grad_scale", None) is None
            and track.as_ever.again(optimizer)
        ):
            track.kind, track.known_at_once = Kind.RECORDED, track.completed >= _WATCHED
            return self._with_closure(optimizer, track, args, kwargs) if len(args) > 1 or kwargs else None
        track.as_ever, track.known_at_once = None, False
        track.kind = self._judge(optimizer, track)
        if track.kind not in (Kind.COUNTED, Kind.RECORDED):
            return None
        if track.index < 0:
            track.index = self._session.next_index()
        step = track.completed + 1
        if track.capture is None:
            track.capture = self._capture_of(optimizer, track)
        if track.completed == 0:
            track.world = track.capture.world(optimizer)
        if track.kind is Kind.RECORDED:
            scale = getattr(optimizer, "grad_scale", None)
            track.capture.before(optimizer, step, scale if isinstance(scale, torch.Tensor) else None, track.micro)
        return self._with_closure(optimizer, track, args, kwargs)

    def _capture_of(self, optimizer: Any, track: Track) -> Capture | PartsCapture:
        """Measures on the host, or on the device where the optimizer's parameters lie."""
        first, device, tell = first_param(optimizer), self._session.measure_on, self._teller(optimizer)
        on_host = partial(Capture, track.index, self._settings, self._names, self._budgets[""], tell)
        parts = PartsCapture.of(optimizer, on_host)
        if parts is not None:
            return parts
        if device is None and getattr(first, "is_cpu", True):
            return on_host()
        from optrace.recorder.device_capture import capture_of

        return capture_of(track.index, self._settings, self._names, self._budgets, tell, first, device)

    def _judge(self, optimizer: Any, track: Track) -> Kind:
        """What kind of call of `step()` this is."""
        first = first_param(optimizer)
        if type(first) not in _REAL and first is not None:
            if not is_within_reach(first) and not any(map(is_within_reach, params_of(optimizer))):
                return Kind.NOT_SEEN
        if first is not None and first.is_cuda and torch.cuda.is_current_stream_capturing():
            self._session.tell("step not recorded", which="it was captured into a CUDA graph", optimizer=optimizer)
            return Kind.NOT_SEEN
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, torch.Tensor) and bool(found_inf.detach().ne(0).any().item()):
            return Kind.SKIPPED
        if initialises_state(optimizer):
            return Kind.STATE_INIT
        return Kind.RECORDED if is_recorded(track.completed + 1, self._settings) else Kind.COUNTED

    def _with_closure(self, optimizer: Any, track: Track, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Replaced:
        """The arguments with the closure wrapped; None when there is none."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure) or isinstance(closure, torch.Tensor | torch.nn.Module | type):
            return None
        watched = self._watched(closure, optimizer, track)
        if len(args) > 1:
            return (args[0], watched, *args[2:]), kwargs
        return args, {**kwargs, "closure": watched}

    def _watched(self, closure: Callable[..., Any], optimizer: Any, track: Track) -> Callable[..., Any]:
        reference = weakref.ref(optimizer)

        def evaluate(*args: Any, **kwargs: Any) -> Any:
            result = closure(*args, **kwargs)
            start = perf_counter()
            session = self._session
            if session.active:
                try:
                    with torch._C.DisableTorchFunction():
                        session.emit("closure", reference(), {"loss": _loss_of(result)})
                        if track.kind is Kind.RECORDED and track.capture is not None:
                            track.capture.evaluated(optimizer)
                except Exception as error:
                    session.fail(error)
                self._spent(optimizer, perf_counter() - start)
            return result

        try:
            return wraps(closure)(evaluate)
        except (AttributeError, TypeError):
            return evaluate

    # ---- after ----

    def _after(self, optimizer: Any, track: Track, now: float) -> None:
        session = self._session
        kind = track.kind
        track.in_parts = False
        if kind is Kind.SKIPPED:
            session.context.skip(optimizer)
            session.emit("step_skipped", optimizer, {"why": "inf or nan in the gradients"})
        elif kind is Kind.STATE_INIT:
            session.emit("state_init", optimizer, {})
        if kind not in (Kind.COUNTED, Kind.RECORDED) or track.capture is None:
            return
        track.in_parts = not track.capture.ends_step(optimizer)
        if track.in_parts:
            if kind is Kind.RECORDED:
                track.capture.after(optimizer)
            return
        track.micro.clear()
        slots = track.capture.slots
        taken = session.context.take(optimizer, slots)
        if slots is not None:
            if kind is not Kind.RECORDED:
                slots.take()
            elif track.world is None:  # step 0 is written at once, with the events before it
                session.carry(slots)
        taken["seconds"] = None if track.ended is None else now - track.ended - track.hooked
        finished = track.capture.after(optimizer) if kind is Kind.RECORDED else None
        track.completed += 1
        if track.completed <= _WATCHED:
            self._oversights(optimizer, track)
        if self._every_step and finished is not None and isinstance(track.capture, Capture):
            track.as_ever = track.capture
        if track.world is not None:
            session.write_world(track, optimizer, track.world)
            track.world = None
        if finished is not None:
            session.write_step(track, optimizer, finished, taken)

    def _after_as_ever(self, optimizer: Any, track: Track, capture: Capture, now: float) -> None:
        """The same for a step that was known at once before the rule ran."""
        track.in_parts = False
        taken = self._session.context.take(optimizer)
        taken["seconds"] = None if track.ended is None else now - track.ended - track.hooked
        finished = capture.after(optimizer)
        track.completed += 1
        self._session.write_step(track, optimizer, finished, taken)

    def _oversights(self, optimizer: Any, track: Track) -> None:
        """Tell what is rarely meant and can only be seen while the program runs; of the first steps."""
        if self._session.context.kept_gradients(optimizer):
            self._session.tell("gradients kept", optimizer=optimizer, step=track.completed)
        if track.completed == 1:
            held = [param for other in self._session.context.known() for param in params_of(other)]
            unheld = self._session.context.alone(partial(self._names.unheld, params_of(optimizer), held))
            twice = held_twice(optimizer)
            if unheld:
                listed = unheld[:_LISTED]
                self._session.tell("unheld", optimizer=optimizer, params=listed, count=len(unheld))
            if twice:
                groups = [group for group in optimizer.param_groups if isinstance(group, dict)]
                names = self._names.name(track.index, groups)
                params = [names[id(param)] for param in twice[:_LISTED]]
                self._session.tell("held twice", optimizer=optimizer, params=params, count=len(twice))

    def _stop_if_done(self, track: Track) -> None:
        """End the program when all optimizers have come as far as `stop_after` says."""
        last = self._settings.stop_after
        if last is None or track.completed < last:
            return
        with self._stopping:
            live = [other for other in self.tracks if other.optimizer() is not None and other.completed]
            if self.stopped or (track.completed == last and any(other.completed < last for other in live)):
                return
            self.stopped = True
        self._session.end_program()

    # ---- tracks ----

    def _new_track(self, optimizer: Any) -> Track:
        tracks, key = self.by_id, id(optimizer)

        def gone(reference: weakref.ref[Any]) -> None:
            held = tracks.get(key)
            if held is not None and held.optimizer is reference:
                del tracks[key]
                if held.capture is not None:
                    held.capture.release()

        track = tracks[key] = Track(weakref.ref(optimizer, gone), type(optimizer).__name__)
        return track

    def _teller(self, optimizer: Any) -> Callable[..., None]:
        reference = weakref.ref(optimizer)
        session = self._session

        def tell(what: str, line: str | None = None, **data: Any) -> None:
            session.tell(what, line, optimizer=reference(), **data)

        return tell

    def _spent(self, optimizer: Any, seconds: float) -> None:
        self._session.price.hooks += seconds
        track = self.find(optimizer)
        if track is not None:
            track.hooked += seconds


def _loss_of(result: Any) -> Any:
    """What a closure returned, as an event may hold it."""
    if isinstance(result, torch.Tensor):
        return read_scalar(result)
    return result if isinstance(result, int | float) else None
