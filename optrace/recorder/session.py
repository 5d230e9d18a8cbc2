"""One recording of this process: its files, its events, its steps."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from optrace.errors import OptraceError, RecordError
from optrace.recorder import identity, place
from optrace.recorder.attach import say
from optrace.recorder.events_data import json_of
from optrace.recorder.later import Later, Slots, Tensors, arrived
from optrace.recorder.price import Mark, Price
from optrace.recorder.settings import Settings
from optrace.recorder.waiting import WaitingEvents, event_of

if TYPE_CHECKING:
    from optrace.recorder.device import Device
    from optrace.recorder.finished import Finished
    from optrace.recorder.steps import Track
    from optrace.recorder.told import ToldOptimizer

_NOTHING: dict[str, Any] = {}
_PENDING = 256
"""So many events wait for the next step; more are written without it."""
_SUSPICIOUS = 3
"""After so many backwards without an optimizer's step, the parameters are looked at."""
_WRAPPED = 4
"""So many optimizers deep a wrapper is looked into."""
_WAITING = 10_000
"""So many are kept while there are no files yet."""
_RARE = frozenset(
    {"step_skipped", "step_failed", "state_init", "load_state_dict", "add_param_group", "recorder", "user"}
)


class StoppedAfter(SystemExit):
    """Ends the program cleanly after the step that `stop_after` named; its status is 0."""


class Session:
    """One recording: sees every optimizer step of the process from `begin` to `end`.

    It has no files until the first step has been completed. Nothing that goes wrong in it reaches the program, unless
    the settings are strict.
    """

    def __init__(self, settings: Settings, *, from_python: bool = True, measure_on: Device | None = None) -> None:
        """`from_python`: started by the program itself rather than by `optrace record`.

        `measure_on`: measure there whatever lies there; None: on the device of an optimizer's first parameter.
        """
        self.settings = settings
        self.from_python = from_python
        self.measure_on = measure_on
        self.active = False
        """Whether steps are being recorded."""
        self.stopping: StoppedAfter | None = None
        """What ends the program once `stop_after` is reached."""
        self.failure: str | None = None
        """Why the recording stopped before its end; None if it did not."""
        self.price = Price()
        self._calibration: Any = None
        self._aside = 0.0
        """Seconds spent in finding out the price."""
        self.plain: tuple[Any, ...] | None = None
        """What the kernel needs to note plain calls (see plain_calls.py); None while it is not to."""
        self._begun = False
        self._hooks: Any = None
        self._see_torch()
        self._place: place.Place | None = None
        self._rank: Any = None
        self._rank_info: dict[str, Any] = {}
        self._params: dict[int, list[dict[str, Any]]] = {}
        self._optimizers: dict[int, dict[str, Any]] = {}
        self._waiting = WaitingEvents(self._index_of)
        self._later = Later()
        self._lock = threading.RLock()
        self._indexes = count()
        self._at_end: list[Callable[[], None]] = []
        self._n_backward = 0
        self._by_hand: Any = None
        self._last_step = 0

    def _see_torch(self) -> None:
        """Get ready to see torch's optimizers, where torch is installed."""
        self.context: Any = None
        self._steps: Any = None
        if find_spec("torch") is not None:
            from optrace.recorder import calibrate  # noqa: F401  (makes its tensor before the program has modes)
            from optrace.recorder.context import StepContext
            from optrace.recorder.steps import Steps

            self.context, self._steps = StepContext(_sight), Steps(self)
            if self.settings.micro:
                self.context.after_backward = self._steps.after_backward

    def __repr__(self) -> str:
        if self.path is None:
            return f"<optrace recording: {'no step yet' if self.active else 'no step was seen'}>"
        doing = "recording to" if self.active else "stopped recording to" if self.failure else "recorded to"
        return f"<optrace {doing} {place.shown(self.path)}: last step {self._last_step}>"

    # ---- life ----

    @property
    def path(self) -> Path | None:
        """The run's folder; None before the first step."""
        return None if self._place is None else self._place.run

    def begin(self) -> None:
        """Start seeing steps and events."""
        self.active = self._begun = True
        if self._steps is not None:
            from optrace.recorder import wrappers
            from optrace.recorder.hooks import StepHooks

            self._hooks = StepHooks(self._steps)
            self._hooks.install()
            wrappers.install(self)

    def end(self, how: str = "clean") -> None:
        """Stop: finish the files and take everything off; a second call does nothing."""
        if not self._begun:
            return
        self._begun = False
        try:
            if self.active:
                if self._hooks is not None:
                    self._hooks.settle()
                for finish in self._at_end:
                    finish()
                self.flush(last=True)
        except Exception as error:
            self.fail(error)
        finally:
            was_active, self.active, self.plain = self.active, False, None
            if self._hooks is not None:
                from optrace.recorder import wrappers

                self._hooks.remove()
                self._hooks = None
                wrappers.remove(self)
        if was_active:
            try:
                if self._rank is not None:
                    self._rank.close(how)
                if self.settings.values in ("grad", "full") and "torch" in sys.modules:
                    from optrace.recorder.whole import buffers

                    buffers.release()
            except Exception as error:
                self._failed(error)
            else:
                self._say_end(how)

    def stop(self) -> None:
        """End this recording (`optrace.start` returned it); a second call does nothing."""
        from optrace.recorder.recording import finish

        finish(self, "clean")

    def fail(self, error: Exception) -> None:
        """Stop recording because of `error`: one line on stderr, a word in the trace; strict: OptraceError."""
        if not self.active:
            return
        try:
            with self._lock:
                self._later.write_all()
        except Exception:  # what failed first is told
            self._later = Later()
        self.active, self.plain = False, None
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        from optrace.trace.writer import TraceFull

        text = str(error) or type(error).__name__
        if not isinstance(error, OptraceError):
            text = f"{type(error).__name__}: {text}"
        self.failure = text
        full = isinstance(error, TraceFull)
        try:
            if self._rank is not None:
                self._rank.close(f"error: {text}")
        except Exception as second:
            text += f" (and the trace could not be closed: {second})"
        say(f"recording stopped, the program goes on: {text}")
        if self.settings.strict and not full:
            raise error if isinstance(error, OptraceError) else RecordError(f"the recorder failed: {text}") from error

    def end_program(self) -> None:
        """End the process, or the `with optrace.record(...)` block, cleanly: `stop_after` is reached."""
        self.stopping = StoppedAfter(0)
        raise self.stopping

    def forked(self) -> None:
        """This is a child now: forget the parent's files and steps; an own step begins a run of its own."""
        if self._rank is not None:
            self._rank.close()
        self._lock, self.plain = threading.RLock(), None
        self._rank, self._place, self._params, self._optimizers = None, None, {}, {}
        self._waiting, self._n_backward, self._last_step = WaitingEvents(self._index_of), 0, 0
        self._later = Later()
        self._indexes, self._at_end, self._by_hand = count(), [], None
        self.price, self._calibration = Price(), None
        if self._hooks is not None:
            self._hooks.remove()
        if self._begun:
            self._see_torch()
            self.begin()

    # ---- events ----

    def emit(self, kind: str, optimizer: Any, data: dict[str, Any]) -> None:
        """Take an event; it is on disk with the next step, or at once if its kind is rare."""
        if not self.active:
            return
        index, step, reference = -1, 0, None
        if optimizer is not None and self._steps is not None:
            track = self._steps.find(optimizer)
            if track is None or track.index < 0:
                track = self._track_of(optimizer)
            if track is not None:
                index, step = track.index, track.completed
            else:
                reference = _reference(optimizer)
        if kind == "backward":
            self._n_backward += 1
            if self._n_backward == _SUSPICIOUS and self._rank is None:
                self._suspect_hand_work()
        with self._lock:
            self._waiting.put(step, kind, index, data, reference)
            if self._rank is None:
                if len(self._waiting) > _WAITING:
                    self._waiting.drop(_WAITING // 2)
            elif kind in _RARE or len(self._waiting) > _PENDING:
                try:
                    self.flush()
                except Exception as error:
                    self.fail(error)

    def tell(self, what: str, line: str | None = None, *, optimizer: Any = None, **data: Any) -> None:
        """Say something about the recording itself: in the trace, and on stderr if there is a line."""
        if line is not None and not self.settings.quiet:
            say(line)
        self.emit("recorder", optimizer, {"what": what, **data})

    def _track_of(self, optimizer: Any) -> Track | None:
        """The track of an optimizer that has stepped, or of the one inside a wrapper (Accelerate's, Lightning's)."""
        for _ in range(_WRAPPED):
            track: Track | None = self._steps.find(optimizer)
            if track is not None and track.index >= 0:
                return track
            inside = getattr(optimizer, "__dict__", {})
            optimizer = inside.get("optimizer") or inside.get("_optimizer")
            if optimizer is None:
                break
        return None

    def _index_of(self, optimizer: Any) -> int | None:
        track = self._track_of(optimizer)
        return None if track is None else track.index

    def flush(self, last: bool = False) -> None:
        """Write the events that wait, if there are files; the last time also those of optimizers that never stepped.

        Where steps wait for a device, the events wait with them, but for the last time.
        """
        with self._lock:
            if self._rank is not None:
                if self._later:
                    self._later.write(len(self._later) if last else 0)
                    if self._later:
                        return
                events = self._waiting.take(last or not self.active)
                if events:
                    self._rank.write_events(events)

    def carry(self, slots: Slots) -> None:
        """Have the numbers on a device that the waiting events tell of come with a step's results."""
        with self._lock:
            self._waiting.carry(slots)

    # ---- optimizers that are not torch's ----

    def next_index(self) -> int:
        """The index of an optimizer that makes its first step."""
        return next(self._indexes)

    def at_end(self, finish: Callable[[], None]) -> None:
        """Have something done before the recording ends."""
        self._at_end.append(finish)

    def around(
        self, view: Any, rule: Callable[[tuple[Any, ...]], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one step of an optimizer that torch's hooks do not see; `view` shows its groups and state as torch's do.

        `rule` is given the arguments, the view first, with a closure wrapped where there is one.
        """
        replaced = self._steps.before_step(view, args, kwargs)
        if replaced is not None:
            args = replaced[0]
        try:
            result = rule(args)
        except BaseException:
            self._steps.step_raised(view)
            raise
        self._steps.after_step(view)
        return result

    def step(
        self,
        params: Mapping[str, Any],
        grads: Mapping[str, Any] | None = None,
        state: Mapping[str, Mapping[str, Any]] | None = None,
        hyper: Mapping[str, Any] | None = None,
        loss: Any = None,
        before: Mapping[str, Any] | None = None,
        *,
        optimizer: str = "optimizer",
    ) -> None:
        """Record one step that was made in any library, called after the update.

        Args:
            params: the parameters after the step, name -> anything NumPy can read (NumPy, JAX, MLX, torch).
            grads: what the rule consumed, by the same names; None or missing: it had no gradient.
            state: name -> key -> array or number, after the step.
            hyper: the options that the rule used.
            loss: the loss of this step.
            before: the parameters before the step; None takes those of the call before this one.
            optimizer: a name, where one program steps several.

        Raises:
            RecordError: something in it holds no numbers, or a gradient names no parameter.
        """
        from optrace.recorder.told import tensor_of
        from optrace.recorder.watching import told_by_name

        if not self.active:
            return
        unknown = sorted(set(grads or ()) - set(params))
        if unknown:
            raise RecordError(f"grads names {', '.join(unknown)}, which params does not")
        told = told_by_name(self, optimizer)
        after = {name: tensor_of(value, name) for name, value in params.items()}
        given = {n: tensor_of(g, f"the gradient of {n}") for n, g in (grads or {}).items() if g is not None}
        kept = told.last() if before is None else {name: tensor_of(value, name) for name, value in before.items()}
        entries = {
            name: {key: tensor_of(value, f"{key} of {name}") for key, value in of.items() if value is not None}
            for name, of in (state or {}).items()
        }
        self.write_told(
            told,
            None,
            {
                "before": kept,
                "after": after,
                "grads": given,
                "state_before": {},
                "state": entries,
                "groups": [(0, dict(hyper or {}))],
                "written": {},
            },
            loss=None if loss is None else float(loss),
        )

    def write_told(self, told: ToldOptimizer, thing: Any, arrays: dict[str, Any], loss: float | None = None) -> None:
        """Write the next step of an optimizer whose arrays were handed over (see `ToldOptimizer.step`)."""
        if not self.active:
            return
        if told.index < 0:
            told.index = self.next_index()
        world = told.world(arrays["before"], arrays["state_before"]) if told.completed == 0 else None
        finished = told.step(**arrays)
        with self._lock:
            if world is not None:
                self.write_world(told, thing, world)
            if finished is not None:
                self.write_step(told, thing, finished, {"loss": loss})
        last = self.settings.stop_after
        if last is not None and told.completed >= last:
            self.end_program()

    def _suspect_hand_work(self) -> None:
        """Backwards without a step: remember the parameters, to say at the end whether they were changed by hand."""
        try:
            from optrace.recorder.by_hand import Parameters

            self._by_hand = Parameters()
        except Exception as error:
            self.tell("parameters not looked at", reason=str(error))

    # ---- steps ----

    def write_world(self, track: Track | ToldOptimizer, optimizer: Any, world: Finished) -> None:
        """Write step 0 of an optimizer; its first step makes the files."""
        with self._lock:
            if self._rank is None:
                if not self.active:  # another thread has just failed to make the files
                    return
                self._open()
            self._note_optimizer(track, optimizer)
            data = {
                "what": "begin",
                "class": track.class_name,
                "rows": 0 if world.tensors is None else len(world.tensors[1]),
            }
            self._write(track, optimizer, 0, world, None, "recorder", data)
            if self._steps is not None and self.plain is None and self.active:
                self.expect_plain_calls()

    def expect_plain_calls(self, optimizer: Any = None) -> None:
        """Have the kernel note calls that are like most; `optimizer`: one that is to count as having stepped."""
        from optrace.recorder.plain_calls import plain_parts

        if optimizer is not None:
            self._steps.stand_in(optimizer)
        self.plain = plain_parts(self, self._steps.by_id, self._waiting, self._lock)

    def plain_writing(self) -> tuple[Any, WaitingEvents]:
        """What writes steps, and the events that are written with the next one (see plain_steps.py)."""
        return self._rank, self._waiting

    def written_in_part(self, error: Exception) -> None:
        """A step that the kernel wrote failed amid it: take it back and stop."""
        self._waiting.events.clear()
        try:
            self._rank.take_back()
        except Exception as second:
            error = second
        self.fail(error)

    def write_step(
        self, track: Track | ToldOptimizer, optimizer: Any, finished: Finished, taken: dict[str, Any]
    ) -> None:
        """Write one finished step with the events before it."""
        with self._lock:
            if not self._write_again(track, finished, taken):
                self._write(track, optimizer, track.completed, finished, taken, "step", {})
            if track.completed > self._last_step:
                self._last_step = track.completed

    def _write_again(self, track: Track | ToldOptimizer, finished: Finished, taken: dict[str, Any]) -> bool:
        """Write a step that is laid out as the one before it; whether it was."""
        if self.plain is None or finished.values or self._later or track.capture is None:
            return False
        events, tensors = self._waiting.events, finished.tensors
        if finished.waiting is not None or track.capture.params_changed or self._waiting.strangers:
            return False
        seq = self._waiting.next_seq()
        events.append(event_of((seq, track.completed, "step", track.index, _NOTHING)))
        try:
            done: bool = self._rank.write_again(track.completed, track.index, finished.groups, tensors, taken, events)
        except BaseException:
            events.clear()
            raise
        if not done:
            events.pop()
            self._waiting.spare_seq(seq)
            return False
        events.clear()
        self.price.events = seq
        if tensors is not None:
            self.price.rows += len(tensors[1])
        return True

    def _write(
        self,
        track: Track | ToldOptimizer,
        optimizer: Any,
        step: int,
        finished: Finished,
        taken: dict[str, Any] | None,
        kind: str,
        data: dict[str, Any],
    ) -> None:
        if self._rank is None:
            return
        if track.capture is not None and track.capture.params_changed:
            track.capture.params_changed = False
            self._params[track.index] = track.capture.params_table(track.class_name)
            self._rank.write_params([row for index in sorted(self._params) for row in self._params[index]])
        if finished.values:
            from optrace.recorder import whole

            values = whole.owned(finished.values)
            self._rank.write_values(step, values, whole.returner(values))
        waiting = finished.waiting
        events = self._waiting.take(last=not self.active, clean=waiting is None)
        seq = self.price.events = self._waiting.next_seq()
        events.append(event_of((seq, step, kind, track.index, data)))
        if waiting is None and not self._later:
            self._put(step, track.index, finished.groups, finished.tensors, taken, events)
            return
        index, groups, tensors = track.index, finished.groups, finished.tensors
        if waiting is None and tensors is not None:  # the next step is measured into the same rows
            tensors = tensors[0], tensors[1].copy(), tensors[2].copy()

        def write(found: Tensors | None) -> None:
            row = None if taken is None else {key: arrived(value) for key, value in taken.items()}
            known = [event._replace(data=json_of(event.data)) for event in events]
            self._put(step, index, groups, tensors if waiting is None else found, row, known)
            if waiting is not None:
                self.price.hooks += waiting.seconds

        self._later.put(waiting, write)

    def _put(
        self,
        step: int,
        optimizer: int,
        groups: list[tuple[int, dict[str, Any]]],
        tensors: Tensors | None,
        taken: dict[str, Any] | None,
        events: list[Any],
    ) -> None:
        """Write a step all of which is known."""
        self._rank.write_step(step, optimizer, groups=groups, tensors=tensors, steps=taken, events=events)
        if tensors is not None:
            self.price.rows += len(tensors[1])

    def _open(self) -> None:
        """Make the folder and the files."""
        from optrace.recorder.provenance import environment, run_info
        from optrace.recorder.recording import end_with_process
        from optrace.trace.writer import RankWriter, RunWriter

        settings = self.settings
        if settings.output is not None and os.path.abspath(settings.output) in recorded_here:
            settings = replace(settings, force=True)
        self._place = place.claim(settings)
        recorded_here.add(str(self._place.run))
        RunWriter.create(self._place.run, run_info(self.settings))
        self._rank = RankWriter(self._place.rank, self.settings.max_size, staging_bytes=self.settings.staging)
        self._rank_info = {**environment(), "rank": self._place.rank_number, "optimizers": []}
        self._rank.write_rank(self._rank_info)
        if self.from_python and not self.settings.quiet and self._place.rank_number == 0:
            say(f"recording to {place.shown(self._place.run)}")
        end_with_process(self)

    def _note_optimizer(self, track: Track | ToldOptimizer, optimizer: Any) -> None:
        """Add an optimizer to rank.json: its class, where it comes from, how it is implemented."""
        facts: dict[str, Any] = {"class": track.class_name, "implementation": "by hand"}
        if hasattr(optimizer, "param_groups") and not hasattr(track, "last"):
            from optrace.recorder.implementation import optimizer_facts

            facts = optimizer_facts(optimizer)
        self._optimizers[track.index] = {"index": track.index, **facts}
        self._rank_info["optimizers"] = [self._optimizers[index] for index in sorted(self._optimizers)]
        self._rank.write_rank(self._rank_info)

    # ---- words ----

    def tell_price(self, now: float, on_device: bool) -> float:
        """Say once what recording costs, as soon as it can be told; the seconds that it took to find that out.

        A step of the first optimizer has just ended at `now`; `on_device`: its rows come later.
        """
        if self._rank is None or self.price.told:
            return 0.0
        price = self.price
        try:
            if self._later:  # the price is that of rows that have been written
                with self._lock:
                    self._later.write_all()
            start = perf_counter()
            if price.wants_observed:
                price.observed(*self._observed_calls())
            spent = perf_counter() - start
        except Exception as error:
            self.fail(error)
            return 0.0
        mark = Mark(now, price.hooks, self._aside, price.rows, self._rank.bytes_written, price.events, self._n_backward)
        self._aside += spent
        if price.step_ended(mark, soon=on_device):
            self._say_price()
        return spent

    def _observed_calls(self) -> Any:
        """What it costs now to observe a call."""
        if self._calibration is None:
            from optrace.recorder.calibrate import Calibration

            self._calibration = Calibration(self)
        return self._calibration.take()

    def _say_price(self) -> None:
        line = self.price.line(0 if self._steps is None else self._steps.held)
        if line is not None and not self.settings.quiet and self._speaks():
            say(line)

    def _say_end(self, how: str) -> None:
        if self.settings.quiet:
            return
        if self._place is None:
            if (self._n_backward and not _is_worker()) or (how == "clean" and self._recorded_nothing()):
                changed = self._by_hand.changed() if self._by_hand is not None else 0
                say(
                    f"no optimizer step seen; {changed} tensors that require grad changed by hand:"
                    " add opt = optrace.watch(opt)"
                    if changed
                    else "no optimizer step seen: nothing was recorded; for a loop of your own there is run.step(...)"
                )
            return
        if not self._speaks():
            return
        if not self.price.told:
            self._say_price()
        if self.settings.params and not self.price.rows:
            globs = " or ".join(self.settings.params)
            say(f"no parameter is called {globs}: no tensor was recorded; a run without --params lists the names")
        steps = f"{self._last_step} steps are" if self._last_step != 1 else "1 step is"
        shown = place.shown(self._place.run)
        say(f"{steps} in {shown}; see them with: optrace show {shown}")

    def _recorded_nothing(self) -> bool:
        """Whether all of what was launched has made no step: this process, and those below it."""
        output = self.settings.output
        return not self.from_python and identity.is_the_program() and output is not None and not os.path.isdir(output)

    def _speaks(self) -> bool:
        return self._place is not None and self._place.rank_number == 0


recorded_here: set[str] = set()
"""Runs that this process has recorded: recording to one of them again moves it out of the way."""


def _is_worker() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _sight() -> None:
    from optrace.recorder import wrappers

    wrappers.sight()


def _reference(thing: Any) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(thing)
    except TypeError:
        return None
