"""Steps that are like the last in every way, recorded by the C kernel in one call before the rule and one after it.

Most steps of a training are: the same optimizer in the same thread, the same tensors, no hooks of others, options that
differ in floats at most, and rows that are laid out as before. The kernel then does what hooks.py, steps.py,
context.py, session.py and the writer do for such a step, on the same objects, and leaves to them whatever is not plain.
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable
from threading import get_ident
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import optimizer as _torchs

from optrace.trace.measure import kernel

if TYPE_CHECKING:
    from optrace.recorder.session import Session
    from optrace.recorder.steps import Steps, Track

BEFORE: dict[int, Any] = _torchs._global_optimizer_pre_hooks
AFTER: dict[int, Any] = _torchs._global_optimizer_post_hooks
_MODES: Any = getattr(torch._C, "_len_torch_function_stack", None)
_KNOWN = kernel is not None and _MODES is not None
_NOT_ASKED = ("found_inf", "grad_scale")
_ASKED = frozenset({"param_groups", "state", "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"})


def _never(*_: Any) -> bool:
    return False


class PlainSteps:
    """The optimizers of a recording whose steps are plain."""

    def __init__(self, begun: dict[int, Any], last: dict[int, Any]) -> None:
        """By id of an optimizer: its step that has `begun`, and the object that tells its `last`."""
        self._known: dict[int, Any] = {}
        self.before: Callable[[Any, tuple[Any, ...], dict[str, Any]], bool] = _never
        """before(optimizer, args, kwargs): whether the step that begins is recorded here."""
        self.after: Callable[[Any], bool] = _never
        """after(optimizer): whether the step that ends has been."""
        if _KNOWN:
            self.before, self.after = kernel.plain_steps(
                self._known, begun, last, BEFORE, AFTER, perf_counter, torch.get_num_threads, _MODES
            )

    def forget(self, optimizer: Any) -> None:
        """Steps of this optimizer are not plain."""
        self._known.pop(id(optimizer), None)

    def gone(self, key: int) -> None:
        """The optimizer with this id is no more."""
        self._known.pop(key, None)

    def expect(self, optimizer: Any, known: tuple[Any, ...]) -> None:
        """The next step of this optimizer will be plain, if all stays as it is `known`."""
        self._known[id(optimizer)] = known

    def clear(self) -> None:
        """No steps are plain any more."""
        self._known.clear()


def known_step(steps: Steps, session: Session, track: Track, optimizer: Any) -> tuple[Any, ...] | None:
    """What the kernel needs to record the next step of an optimizer whose last one was known at once; None: it cannot.

    The order of members is written down in _kernel_steps.h.
    """
    capture = track.as_ever
    parts = None if capture is None or session.plain is None else capture.known_parts()
    own = getattr(optimizer, "__dict__", {})
    if not _KNOWN or parts is None or capture is None or not own.keys() >= _ASKED:
        return None
    if any(hasattr(type(optimizer), name) for name in _NOT_ASKED):
        return None
    writer, waiting = session.plain_writing()
    order = writer.orders.get(track.index)
    if order is None:
        return None
    steady, running, finished = parts
    reference = weakref.ref(optimizer)
    taken: dict[str, Any] = {}

    def write() -> None:
        session.write_step(track, reference(), capture.known_again(running), dict(taken))

    def tell_price() -> None:
        steps.tell_price(track)

    return (
        reference,
        get_ident(),
        session.plain,
        running,
        order,
        writer,
        *steady.plain_parts,
        writer.orders,
        order.parts,
        writer.segment_bytes,
        waiting.strangers,
        session.context.past_first,
        0 if finished.tensors is None else len(finished.tensors[1]),
        track.index,
        taken,
        (capture.other_options, write, session.written_in_part, tell_price),
        array("d", (0.0, 0.0)),
        *map(vars, (session, track, capture, steady, running, order, writer, waiting, session.price, session.context)),
    )
