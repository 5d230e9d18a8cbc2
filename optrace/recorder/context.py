"""What happened around each optimizer since its last step: losses, backwards, skips, clipping, batches, generators."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import get_ident as _thread
from typing import Any, NamedTuple

import torch

from optrace.recorder.account import Account, Value, number, read_scalar
from optrace.recorder.fingerprints import combine, signed
from optrace.recorder.generators import generator_fingerprint
from optrace.recorder.later import Slots
from optrace.recorder.leftovers import Leftovers, version_of

REACH_LIMIT = 16
"""With more optimizers than this a backward is counted for each of them; with fewer only where it left a gradient."""
PROBES = 32


def _params(optimizer: Any) -> list[Any]:
    """All parameters, also of an object that only looks like an optimizer."""
    groups = getattr(optimizer, "param_groups", None) or ()
    return [param for group in groups if isinstance(group, dict) for param in group.get("params", ())]


def _probes(optimizer: Any) -> list[torch.Tensor]:
    """At most `PROBES` leaf parameters of an optimizer, spread over its groups."""
    params = _params(optimizer)
    if len(params) > PROBES:
        params = [params[i * len(params) // PROBES] for i in range(PROBES)]
    return [param for param in params if isinstance(param, torch.Tensor) and param.is_leaf]


Mark = tuple[torch.Tensor, Callable[[], Any] | None, int]
"""A parameter, and its gradient's identity and version, without keeping the gradient alive."""


def _mark(param: torch.Tensor) -> Mark:
    grad = param.grad
    return (param, None, 0) if grad is None else (param, weakref.ref(grad), version_of(grad))


def _same(mark: Mark) -> bool:
    param, reference, version = mark
    grad = param.grad
    if grad is None or reference is None:
        return grad is None and reference is None
    return reference() is grad and version == version_of(grad)


class Backward(NamedTuple):
    """A backward that runs: what it counts as, for which optimizers (by id) it already did, and gradients before it."""

    thread: int
    values: list[Value]
    rng: int | None
    given: dict[int, int]
    marks: list[tuple[int, list[Mark]]]


_backward: Callable[[tuple[Any, ...]], Backward] = partial(tuple.__new__, Backward)
"""A Backward of a tuple, without a Python call."""


class StepContext:
    """The accounts of all optimizers of a recording; `take` closes one at each completed step.

    A backward is counted for the optimizers whose parameters it left a gradient in, so that two networks that train
    in turn have each its own loss. `loss` is the mean of the roots whose gradients are still there: those of
    backwards since the last step, less the ones that a `zero_grad` threw away (a skipped step's, all but the last
    evaluation of a closure). `n_backward` counts those too.

    Where several threads train, each looks at the gradients of its own optimizers only (those that it made, cleared or
    stepped last): a gradient must not be read while another thread's backward writes it.
    """

    def __init__(self, at_first_step: Callable[[], None] = lambda: None) -> None:
        self._tracks: dict[int, Account] = {}
        """By id of the optimizer; key 0 is what happens while no optimizer is known."""
        self._references: dict[int, weakref.ref[Any]] = {}
        self._closed = Account()
        """The account that was closed last: where an optimizer that was not known before its first step begins."""
        self._unclaimed: dict[int, Account] = {}
        """By thread: backwards that changed no gradient of a known optimizer: those of one that is not known yet."""
        self._lock = threading.RLock()
        """Held while gradients are looked at; a backward begins only when no thread does."""
        self._threads: set[int] = set()
        """Threads that have made backwards."""
        self._thread_of: dict[int, int] = {}
        """By id of the optimizer: the thread that made, cleared or stepped it last."""
        self._gone: list[weakref.ref[Any]] = []
        self._stepped: set[int] = set()
        self._past_first: set[int] = set()
        """Optimizers (by id) whose first steps are over, as far as leftovers go."""
        self._running: dict[int, Backward] = {}
        self._scaled: list[tuple[weakref.ref[Any], Value]] = []
        self._at_first_step = at_first_step
        self._leftovers = Leftovers()
        self.after_backward: Callable[[Any, int], None] | None = None
        """Called with each optimizer whose gradients a backward has changed, and how many that makes since its step."""

    @property
    def past_first(self) -> set[int]:
        """Optimizers (by id) whose first steps are over; always the same set."""
        return self._past_first

    def plain_parts(self) -> tuple[Any, ...]:
        """What the kernel notes plain calls in (see plain_calls.py): always the same objects."""
        known = self._tracks, self._thread_of, self._threads, self._gone, self._running
        return *known, Backward, self, self._leftovers.left

    # ---- optimizers ----

    def know(self, optimizer: Any) -> None:
        """Open the account of an optimizer that has just been made."""
        with self._lock:
            self._open(optimizer, Account())

    def owners(self, params: Sequence[Any]) -> list[Any]:
        """Return the known optimizers that hold one of `params`; a single known one whatever they are."""
        known = [optimizer for optimizer, _ in self._live()]
        if len(known) <= 1:
            return known
        if len(known) > REACH_LIMIT:
            return []
        ids = frozenset(map(id, params))
        return [optimizer for optimizer in known if any(id(param) in ids for param in _params(optimizer))]

    def _within(self, optimizer: Any) -> Any:
        """The known optimizer that a wrapper passes calls on to (Lightning's holds it as `_optimizer`), or itself."""
        known = {id(one): one for one, _ in self._live()}
        return next(
            (known[id(one)] for one in getattr(optimizer, "__dict__", {}).values() if id(one) in known), optimizer
        )

    def _track(self, optimizer: Any) -> Account:
        """The account of an optimizer; one not seen being made begins with what happened since the last step."""
        self._close_gone()
        key = id(optimizer)
        track = self._tracks.get(key)
        if track is not None:
            return track
        begin = max(self._tracks.values(), key=lambda other: other.n_backward, default=self._closed)
        begin = begin if begin.n_backward or begin.batch is not None else self._closed
        track = Account()
        unclaimed = self._unclaimed.get(_thread())
        if unclaimed is not None and unclaimed.n_backward:
            track.copy_from(unclaimed)
            track.batch = begin.batch
            unclaimed.clear()
        else:
            track.copy_from(begin)
        return self._open(optimizer, track)

    def _open(self, optimizer: Any, track: Account) -> Account:
        self._close_gone()
        key = id(optimizer)
        self._tracks.pop(0, None)
        self._tracks[key] = track
        self._references[key] = weakref.ref(optimizer, self._gone.append)
        self._thread_of[key] = _thread()
        return track

    def _close_gone(self) -> None:
        """Close the accounts of optimizers that are no more: not while one is collected, which can be at any moment."""
        while self._gone:
            reference = self._gone.pop()
            for key in [key for key, held in list(self._references.items()) if held is reference]:
                del self._references[key], self._tracks[key], self._thread_of[key]
                self._stepped.discard(key)
                self._past_first.discard(key)

    def _live(self) -> list[tuple[Any, Account]]:
        pairs = [(reference(), self._tracks[key]) for key, reference in list(self._references.items())]
        return [pair for pair in pairs if pair[0] is not None]

    # ---- threads ----

    def _mine(self) -> dict[int, Account]:
        """The accounts of this thread's optimizers, whose gradients no other thread's backward writes; alone: all."""
        if len(self._threads) <= 1:
            return self._tracks
        here, threads = _thread(), self._thread_of
        return {key: track for key, track in list(self._tracks.items()) if threads.get(key) == here}

    def alone(self, look: Callable[[], list[str]]) -> list[str]:
        """What `look` finds, where only one thread trains; it may read any gradient. Nothing where several do."""
        with self._lock:
            return look() if len(self._threads) <= 1 else []

    # ---- backward ----

    def begin_backward(self, roots: Sequence[Any]) -> Backward:
        """Note a backward that starts from `roots`; its values are read now, or kept where they are on a device.

        What it returns goes to `end_backward` or `fail_backward`.
        """
        with self._lock:
            values: list[Value] = []
            for root in roots:
                value = self._root_value(root) if self._scaled else read_scalar(root)
                if value is not None:
                    values.append(value)
            if self._gone:
                self._close_gone()
            here = _thread()
            self._threads.add(here)
            tracks = self._tracks if len(self._threads) <= 1 else self._mine()
            if not self._tracks:
                tracks[0] = self._tracks[0] = Account()
            rng = None
            for track in tracks.values():
                if track.rng is None:
                    rng = generator_fingerprint()
                    break
            given: dict[int, int] = {}
            marks: list[tuple[int, list[Mark]]] = []
            if 1 < len(tracks) <= REACH_LIMIT:
                marks = [(id(o), list(map(_mark, _probes(o)))) for o, _ in self._live() if id(o) in tracks]
            else:
                for key, track in tracks.items():
                    track.add(values, rng)
                    given[key] = track.n_backward
            backward = _backward((here, values, rng, given, marks))
            self._running[id(backward)] = backward
            if self._leftovers.left:
                self._leftovers.before_backward(tracks)
            return backward

    def end_backward(self, backward: Backward) -> None:
        """Count the backward for those optimizers whose gradients it changed."""
        with self._lock:
            self._running.pop(id(backward), None)
            mine = self._tracks if len(self._threads) <= 1 else self._mine()
            if self._leftovers.left:
                self._leftovers.after_backward(mine)
            if backward.marks:
                with torch._C.DisableTorchFunction():
                    for key, marks in backward.marks:
                        if key in mine and not all(map(_same, marks)):
                            self._give(backward, key)
            if not backward.given and (backward.marks or not mine):
                self._unclaimed.setdefault(backward.thread, Account()).add(backward.values, backward.rng)
        if self.after_backward is not None:
            for key, count in backward.given.items():
                reference = self._references.get(key)
                optimizer = None if reference is None else reference()
                if optimizer is not None:
                    self.after_backward(optimizer, count)

    def fail_backward(self, backward: Backward) -> None:
        """Uncount a backward that raised."""
        self._running.pop(id(backward), None)
        for key, count in backward.given.items():
            track = self._tracks.get(key)
            if track is not None and track.n_backward == count:
                track.drop(backward.values)

    def _give(self, backward: Backward, key: int) -> None:
        track = self._tracks.get(key)
        if track is not None and key not in backward.given:
            track.add(backward.values, backward.rng)
            backward.given[key] = track.n_backward

    def scaled(self, result: torch.Tensor, loss: torch.Tensor) -> None:
        """Remember that a GradScaler made `result` out of `loss`, whose value is the one to tell."""
        value = read_scalar(loss)
        if value is not None:
            self._scaled = [entry for entry in self._scaled[-7:] if entry[0]() is not None]
            self._scaled.append((weakref.ref(result), value))

    def _root_value(self, root: Any) -> Value | None:
        for reference, value in self._scaled:
            if reference() is root:
                return value
        return read_scalar(root)

    # ---- zero_grad, clip, skip, batch ----

    def zeroed(self, optimizer: Any) -> None:
        """Drop the losses whose gradients an optimizer's `zero_grad` has thrown away."""
        with self._lock:
            if id(optimizer) not in self._tracks:
                optimizer = self._within(optimizer)
            track = self._tracks.get(id(optimizer)) or self._track(optimizer)
            self._thread_of[id(optimizer)] = _thread()
            if track.n_losses or track.pending:
                track.forget_losses()

    def mark_gradients(self) -> list[tuple[Account, list[Mark]]]:
        """Look at the gradients before a module's `zero_grad`, of optimizers that have losses to lose."""
        with self._lock:
            mine = self._mine()
            if not any(track.n_losses or track.pending for track in mine.values()):
                return []
            seen = [(o, track) for o, track in self._live() if id(o) in mine]
            return [(track, [_mark(p) for p in _probes(o) if p.grad is not None]) for o, track in seen]

    def module_zeroed(self, before: list[tuple[Account, list[Mark]]]) -> None:
        """Drop the losses of optimizers all of whose gradients have changed since `mark_gradients`."""
        with self._lock:
            for track, marks in before:
                if marks and not any(map(_same, marks)):
                    track.forget_losses()

    def clipped(self, owners: Iterable[Any], norm: Value | None) -> None:
        """Note the total norm that a clip found; the first after a backward is the one before clipping."""
        if norm is None:
            return
        nobody = [] if self._references else [self._tracks.setdefault(0, Account())]
        with self._lock:
            for track in [self._track(optimizer) for optimizer in owners] or nobody:
                if track.norm is None:
                    track.norm = norm

    def skip(self, optimizer: Any) -> None:
        """Count a skipped step."""
        with self._lock:
            self._track(optimizer).n_skipped += 1

    def yielded(self, fingerprint: int) -> None:
        """Note a batch that a loader yielded, by its unsigned fingerprint."""
        with self._lock:
            if not self._tracks:
                self._tracks[0] = Account()
            for track in self._mine().values() or [self._unclaimed.setdefault(_thread(), Account())]:
                track.batch = fingerprint if track.batch is None else combine((track.batch, fingerprint))

    # ---- the step ----

    def kept_gradients(self, optimizer: Any) -> bool:
        """Whether the step just taken used gradients that still held those of the step before (of its first steps)."""
        return self._leftovers.found(optimizer)

    def known(self) -> list[Any]:
        """The live optimizers that have an account."""
        return [optimizer for optimizer, _ in self._live()]

    def take(self, optimizer: Any, slots: Slots | None = None) -> dict[str, Any]:
        """Return what happened since the optimizer's last step and start anew.

        Keys: loss (float or None), n_backward, n_skipped (int), grad_norm (float or None: before clipping, where a clip
        showed it), batch and rng (signed 64-bit fingerprints or None). Values on a device are waited for here, or with
        `slots` put there: then loss and grad_norm tell them by `optrace.recorder.later.arrived`.
        """
        with self._lock:
            if self._gone:
                self._close_gone()
            key = id(optimizer)
            track = self._tracks.get(key) or self._track(optimizer)
            here = _thread()
            self._thread_of[key] = here
            if len(self._threads) > 1 and not track.n_backward and here in self._unclaimed:
                track.join(self._unclaimed[here])
            if self._running and torch._C._current_graph_task_id() != -1:  # the step is made inside the backward
                running = list(self._running.values())
                for backward in [one for one in running if one.thread == here] or running:
                    self._give(backward, key)
            batch, norm = track.batch, track.norm
            if norm is not None:
                norm = number(norm) if slots is None else slots.put(norm)
            taken = {
                "loss": track.loss(slots),
                "n_backward": track.n_backward,
                "n_skipped": track.n_skipped,
                "grad_norm": norm,
                "batch": None if batch is None else signed(batch),
                "rng": track.rng,
            }
            self._closed, self._tracks[key] = track, self._closed
            self._tracks[key].clear()
            if key not in self._past_first:
                self._past_first_step(optimizer, key)
            return taken

    def _past_first_step(self, optimizer: Any, key: int) -> None:
        """What is looked at after an optimizer's first steps only."""
        if not self._leftovers.after_step(optimizer, _probes):
            self._past_first.add(key)
        if key not in self._stepped:
            self._stepped.add(key)
            self._at_first_step()
