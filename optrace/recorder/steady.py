"""Knows an optimizer again that holds what it held at the step before: the kernel tells in one look.

Most steps are like the last: the same parameters at the same addresses, the same state, gradients of the same sizes
somewhere else. Then the plans of what to measure stay as they are, and nothing has to be found. Without the C kernel,
and for whatever is not plain (shards, numbers in state, tensors as options), each step is found anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from optrace.recorder.known import Mark, mark
from optrace.recorder.plans import AfterPlan, BeforePlan, Located
from optrace.trace.measure import kernel

_FIXED = frozenset({float, int, bool, str, type(None)})
_NOT_OPTIONS = frozenset({"params", "param_names"})
_NO_OPTION = ...
EXCHANGE: Any = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
"""torch's table of C functions that tell where a tensor lies; None before torch 2.10."""
_FLOAT, _BFLOAT = 2 << 8, 4 << 8
_KINDS = {
    torch.float64: _FLOAT | 64,
    torch.float32: _FLOAT | 32,
    torch.float16: _FLOAT | 16,
    torch.bfloat16: _BFLOAT | 16,
}
"""Types of gradients, as DLPack calls them: code and bits."""

DIFFERENT, OPTIONS, SAME = range(3)
"""What a look may find: something else, the same tensors under other options (floats), all the same."""

Options = list[list[Any]]
Params = list[tuple[Any, ...]]


class Steady:
    """What an optimizer held at a step, and the plans that are right for it."""

    def __init__(self, before: BeforePlan, after: AfterPlan, params: Params, options: Options, state: Any) -> None:
        self._plan, self._plan_after = before, after
        jobs, rows = before.jobs.data, before.rows.data  # views are cheaper to ask than arrays
        jobs_after, rows_after = after.jobs.data, after.all_rows.data
        self._before = jobs, rows, before.first_known, after.n_known, rows_after, after.first_known
        self._after = jobs_after, rows_after, rows, after.n_grads
        self.steps = 0
        """Steps that were known in one look."""
        self._rates = [
            (pairs, place + 1) for pairs in options for place in range(0, len(pairs), 2) if pairs[place] == "lr"
        ]
        groups = tuple(zip(params, options, strict=True))
        self._known = groups, state, (torch.Tensor, torch.nn.Parameter, torch.strided, EXCHANGE)
        """The kernel takes floats that have changed over into the lists of options."""
        self.idle = False
        """Whether there is an lr and every lr is 0."""
        self.is_idle()

    @classmethod
    def of(
        cls,
        optimizer: Any,
        plans: tuple[BeforePlan, AfterPlan],
        params: Sequence[torch.Tensor],
        located: Located,
        grads: Located | None,
        with_state: bool,
    ) -> Steady | None:
        """Remember the recorded `params` of an optimizer and where they lie, the kinds of their gradients, its state.

        `plans` have just been run. `grads`: None where they are not recorded; `with_state`: whether state is. None when
        something cannot be known again in one look.
        """
        options = _options(optimizer.param_groups)
        if kernel is None or options is None:
            return None
        recorded: dict[int, tuple[Any, ...]] = {}
        for index, (param, address) in enumerate(zip(params, located.addresses, strict=True)):
            seen, wanted = mark(param, address), _gradient(grads, index)
            if seen is None or wanted is ...:
                return None
            recorded[id(param)] = seen, bool(param.requires_grad), wanted
        groups: Params = []
        waiting = dict(recorded)
        for group in optimizer.param_groups:
            if type(group["params"]) is not list:
                return None
            groups.append(tuple([waiting.pop(id(one), (weakref.ref(one),)) for one in group["params"]]))
        state = _state(optimizer.state, recorded) if with_state else ...
        return None if state is None else cls(*plans, groups, options, state)

    @property
    def plain_parts(self) -> tuple[Any, ...]:
        """What the kernel looks at, and the plans before and after the rule."""
        return self._known, self._before, self._after

    @property
    def sampled(self) -> bool:
        """Whether updates of some parameters come from samples, which the kernel alone does not measure."""
        return bool(self._plan_after.sampled)

    def before(self, optimizer: Any, threads: int) -> int:
        """Measure before the rule if all is as it was: DIFFERENT if not, or if values were edited since the last step.

        After OPTIONS the new ones are known; ask `is_idle` then.
        """
        groups, state = optimizer.param_groups, optimizer.state
        found: int = kernel.before_again(self._known, groups, state, threads, self._before)
        return found

    def after(self, optimizer: Any, threads: int) -> bool:
        """Measure after the rule if it has left all where it was, and the options as they were; whether it has."""
        if not kernel.after_again(self._known, optimizer.param_groups, optimizer.state, threads, self._after):
            return False
        if self.sampled:
            self._plan_after.add_sampled(self._plan.param_rows)
        self.steps += 1
        return True

    def words(self) -> bytes:
        """Fingerprints in the last rows: of parameters, then of state."""
        return self._plan_after.words()

    def is_idle(self) -> bool:
        """Look at the lr anew: whether there is one and every lr is 0."""
        self.idle = bool(self._rates) and not any([pairs[place] for pairs, place in self._rates])
        return self.idle


def _gradient(grads: Located | None, index: int) -> Any:
    """Dtype, size and DLPack's kind of a gradient; None: there is none; False: not wanted; ...: it is no plain one."""
    if grads is None:
        return False
    kind = grads.kinds[index]
    if kind is None:
        return None
    return (kind, grads.numels[index], _KINDS[kind]) if kind in _KINDS else ...


def _options(groups: Sequence[Mapping[str, Any]]) -> Options | None:
    """Keys and values in turn of each group; None where one could change without becoming another object."""
    found = []
    for group in groups:
        pairs: list[Any] = []
        for key, value in group.items():
            if key in _NOT_OPTIONS:
                value = _NO_OPTION
            elif type(value) not in _FIXED and (type(value) is not tuple or not _FIXED.issuperset(map(type, value))):
                return None
            pairs += (key, value)
        found.append(pairs)
    return found


def _state(state: Any, recorded: Mapping[int, Any]) -> tuple[Any, ...] | None:
    """A parameter's reference, then key and mark of each tensor in turn, for each entry; None where there is more."""
    if not isinstance(state, dict):
        return None
    found = []
    for param, entry in state.items():
        if not isinstance(param, torch.Tensor):
            return None
        known: list[Any] = [weakref.ref(param)]
        if id(param) in recorded:
            for key, value in entry.items():
                seen: Mark | None = mark(value, value.data_ptr())
                if seen is None:
                    return None
                known += (key, seen)
        found.append(tuple(known))
    return tuple(found)
