"""Sees every optimizer step through torch's global hooks, last before the rule and first after it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from threading import get_ident as _thread
from types import FrameType
from typing import Any, Protocol, TypeVar

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from optrace.recorder.plain_steps import AFTER, BEFORE, PlainSteps
from optrace.recorder.uncompiled import leave_uncompiled

F = TypeVar("F", bound=Callable[..., Any])
Replaced = tuple[tuple[Any, ...], dict[str, Any]] | None
"""What torch lets a pre-hook return: other arguments for `step()`."""

KEY = "optrace"
"""Under this key our instance hooks stand in an optimizer's dicts of hooks, for the length of a step only.

They are put there by the global pre-hook, so that they come after whatever instance hooks the program has, and are
gone after the step, so that copies and pickles of the optimizer never hold them."""


class Watcher(Protocol):
    """What sees the steps: the recording of a process."""

    def before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Replaced:
        """The rule is about to run; `args` begins with the optimizer."""

    def after_step(self, optimizer: Any) -> None:
        """The rule has run."""

    def step_raised(self, optimizer: Any) -> None:
        """The step that was begun last never came to its end."""

    def known_step(self, optimizer: Any) -> tuple[Any, ...] | None:
        """What the kernel needs to record the next step (see plain_steps.py); None where it cannot."""


def _invisible(hook: F) -> F:
    """A hook that is run as it is where `torch.compile` traces the call of `step()` around it.

    `torch.compiler.disable` would do, at half a microsecond a call, and import the compiler in programs that may never
    use it. The mark breaks the graph at the hook; what the hook calls is left alone by the frame evaluator.
    """
    hook._torchdynamo_disable = True  # type: ignore[attr-defined]
    leave_uncompiled(hook, calls_too=True)
    return hook


class _Open:
    """A step that has begun: how deep its calls of `step()` are nested, and where they run."""

    __slots__ = ("alone", "depth", "measured", "optimizer", "thread")

    def __init__(self, optimizer: Any, thread: int, gone: Callable[[Any], Any]) -> None:
        self.optimizer = weakref.ref(optimizer, gone)  # weak: a step that raised is only noticed later
        self.thread = thread
        self.depth = 1
        self.measured = False
        self.alone = False
        """Whether the global hooks measure, since there are no others."""


class StepHooks:
    """The hooks of one recording, from `install` to `remove`."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._open: dict[int, _Open] = {}
        self._over: dict[int, _Open] = {}
        """The last step of each optimizer: as long as it lives, its next one is told by the same object."""
        self._plain = PlainSteps(self._open, self._over)
        self._handles: list[Any] = []

    def install(self) -> None:
        """Put the global hooks on."""
        if not self._handles:
            self._handles = [
                register_optimizer_step_pre_hook(self._enter),
                register_optimizer_step_post_hook(self._leave),
            ]

    def remove(self) -> None:
        """Take all hooks off; steps that have begun are forgotten."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for step in list(self._open.values()):
            optimizer = step.optimizer()
            if optimizer is not None:
                self._clean(optimizer)
        self._open.clear()
        self._over.clear()
        self._plain.clear()

    def settle(self) -> None:
        """Tell of every begun step that cannot be running any more: an exception ended it."""
        for key, step in list(self._open.items()):
            if step.thread == _thread() and not _calls(step.optimizer()):
                self._drop(key, step)

    def _drop(self, key: int, step: _Open) -> None:
        del self._open[key]
        optimizer = step.optimizer()
        if optimizer is not None:
            self._clean(optimizer)
            self._watcher.step_raised(optimizer)

    @_invisible
    def _enter(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Replaced:
        """First of the pre-hooks: puts ours behind the optimizer's own, where it has any."""
        if self._plain.before(optimizer, args, kwargs):
            return None
        step = self._open.get(id(optimizer))
        if step is not None:
            if step.optimizer() is optimizer and step.thread != _thread():
                return None
            if step.optimizer() is optimizer and _calls(optimizer) > 1:  # a subclass called super().step()
                step.depth += 1
                return None
            self._drop(id(optimizer), step)
        self._plain.forget(optimizer)
        key, step = id(optimizer), self._over.get(id(optimizer))
        if step is None or step.optimizer() is not optimizer or step.thread != _thread():
            step = self._over[key] = _Open(optimizer, _thread(), lambda _: self._gone(key))
        self._open[key] = step
        step.depth = 1
        before, after = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
        step.alone = step.measured = not before and not after and len(BEFORE) == len(AFTER) == 1
        if step.alone:
            return self._watcher.before_step(optimizer, args, kwargs)
        before[KEY] = self._begin
        after[KEY] = self._end
        after.move_to_end(KEY, last=False)
        return None

    @_invisible
    def _begin(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Replaced:
        step = self._open.get(id(optimizer))
        if step is None or step.measured or step.thread != _thread():
            return None
        step.measured = True
        return self._watcher.before_step(optimizer, args, kwargs)

    @_invisible
    def _end(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step = self._open.get(id(optimizer))
        if step is None or step.depth > 1 or not step.measured or step.thread != _thread():
            return
        step.measured = False
        try:
            self._watcher.after_step(optimizer)
        except BaseException:  # the recording ends the program: no later hook will run
            self._forget(optimizer)
            raise

    @_invisible
    def _leave(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Last of the post-hooks: takes ours away again."""
        if self._plain.after(optimizer):
            return
        step = self._open.get(id(optimizer))
        if step is None or step.thread != _thread():
            return
        step.depth -= 1
        if step.depth:
            return
        if step.alone:
            self._open.pop(id(optimizer), None)
            self._watcher.after_step(optimizer)
            known = self._watcher.known_step(optimizer)
            if known is not None:
                step.depth = 1  # as the kernel expects of a step that is about to begin
                self._plain.expect(optimizer, known)
        else:
            del self._open[id(optimizer)]
            optimizer._optimizer_step_pre_hooks.pop(KEY, None)
            optimizer._optimizer_step_post_hooks.pop(KEY, None)

    def _gone(self, key: int) -> None:
        self._over.pop(key, None)
        self._plain.gone(key)

    def _forget(self, optimizer: Any) -> None:
        self._open.pop(id(optimizer), None)
        self._clean(optimizer)

    @staticmethod
    def _clean(optimizer: Any) -> None:
        for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
            hooks.pop(KEY, None)


def _calls(optimizer: Any) -> int:
    """How many calls of the optimizer's `step()`, one inside the other, are running in this thread."""
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _OPTIMIZER_FILE and "wrapper" in code.co_name and _is_first_argument(optimizer, frame):
            count += 1
        frame = frame.f_back
    return count


def _is_first_argument(optimizer: Any, frame: FrameType) -> bool:
    variables = frame.f_locals
    args = variables.get("args")
    return variables.get("self") is optimizer or (isinstance(args, tuple) and len(args) > 0 and args[0] is optimizer)


_OPTIMIZER_FILE = torch.optim.Optimizer.profile_hook_step.__code__.co_filename
