"""Calls that come with every step, noted by the C kernel where nothing about them is out of the ordinary.

A training of one optimizer in one thread calls `zero_grad`, `backward` and a scheduler's `step` around each step, and
what they do to accounts and events is always the same. The kernel does it to the same objects as wrappers.py and
context.py, in a fraction of the time, and hands over to them whatever is not plain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from optrace.recorder.generators import LAST, generator_fingerprint
from optrace.recorder.steady import EXCHANGE
from optrace.trace.measure import kernel
from optrace.trace.schema import Event

if TYPE_CHECKING:
    from optrace.recorder.session import Session

Begin = Callable[[tuple[Any, ...], dict[str, Any]], Any]
End = Callable[[Any, Any], None]
Quick = Callable[[Any, Any, Any], Any]

_ASK_TORCH = tuple(getattr(torch._C, name, None) for name in ("_current_graph_task_id", "_len_torch_function_stack"))
_KNOWN = kernel is not None and None not in _ASK_TORCH


def noted(kind: str, listeners: list[Any], calls: Any, begin: Begin, end: End) -> Quick | None:
    """How a function of this kind ("zero_grad", "scheduler", "backward") is called while it is observed.

    `begin` and `end` note any call; plain ones are noted in the kernel. None where there is none.
    """
    if not _KNOWN:
        return None

    def quick(raw: Any, fail: Any, failed: Any) -> Any:
        return kernel.observed(kind, listeners, calls, begin, end, raw, fail, failed)

    return quick


def plain_parts(session: Session, tracks: dict[int, Any], waiting: Any, lock: Any) -> tuple[Any, ...] | None:
    """What the kernel needs of a session that has files; None where it cannot help.

    `tracks` are the session's optimizers by id; `waiting` events are appended to while `lock` is held.
    """
    if not _KNOWN:
        return None
    return (
        tracks,
        waiting.events,
        waiting.numbers,
        Event,
        lock.acquire,
        lock.release,
        *session.context.plain_parts(),
        session,
        torch.Tensor,
        (torch.float32, torch.float64),
        torch.strided,
        (*_ASK_TORCH, generator_fingerprint, LAST),
        EXCHANGE,
        getattr(threading, "_active", None),
    )
