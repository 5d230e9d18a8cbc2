"""What to measure before and after a step whose tensors lie on a device, and room there for copies of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from optrace.recorder.device import Device
from optrace.recorder.device_find import DeviceAddress, on_device
from optrace.recorder.device_measure import DeviceJobs
from optrace.recorder.device_table import RESULT, Longs, rows_of
from optrace.recorder.jobs import Jobs, Rows, fill_job, size_of
from optrace.recorder.memory import Budget, Copies
from optrace.recorder.plans import Label, Located, sampled_update
from optrace.recorder.tensors import Found
from optrace.trace.measure import COPY, JOB, ROW, STAT, UPDATE, measure

Tell = Callable[[str, str], None]
Operation = tuple[int, Found, int, int, int]
"""Op of a job, what was located, row, second row, address of the copy."""

_ALIGNMENT = 64


class DeviceCopies(Copies):
    """Room for the parameters' values before the step: on the device, and on the host for what is measured there."""

    def __init__(self, budget: Budget, device: Device) -> None:
        super().__init__(budget)
        self._device = device
        self._shape: list[tuple[int, bool]] = []
        self._blocks: tuple[torch.Tensor | None, npt.NDArray[np.uint8] | None] = (None, None)

    def fit(self, params: Iterable[Found]) -> bool:
        """Make room for copies of `params`, as far as the budget goes; whether anything had to be changed."""
        shape = [(size_of(param), type(param[0]) is DeviceAddress) for param in params]
        if shape == self._shape:
            return False
        self.release()
        room = [0, 0]
        offsets: list[int | None] = []
        for size, there in shape:
            aligned = -(-size // _ALIGNMENT) * _ALIGNMENT
            if self._budget.take(aligned):
                offsets.append(room[there])
                room[there] += aligned
                self.held += aligned
            else:
                offsets.append(None)
                self.missing += size
        starts, blocks = [0, 0], self._take(room)
        if blocks is None:  # the device is full: every update comes from samples
            self._budget.give_back(self.held)
            self.held, self.missing = 0, sum(size for size, _ in shape)
            offsets = [None] * len(shape)
        else:
            device, host = self._blocks = blocks
            starts = [-(-host.ctypes.data // _ALIGNMENT) * _ALIGNMENT, device.data_ptr()]
        self.addresses = [
            None if offset is None else starts[there] + offset
            for offset, (_, there) in zip(offsets, shape, strict=True)
        ]
        self._shape = shape
        return True

    def _take(self, room: Sequence[int]) -> tuple[torch.Tensor, npt.NDArray[np.uint8]] | None:
        """Memory on the device and on the host; None where the device has none to give."""
        try:
            device = self._device.room(room[1])
        except torch.cuda.OutOfMemoryError:
            return None
        return device, np.empty(room[0] + _ALIGNMENT, np.uint8)

    def release(self) -> None:
        """Give all room back."""
        super().release()
        self._shape, self._blocks = [], (None, None)


class HookPlan:
    """The jobs of one hook, made ready once: those of the device are launched together, the others run at once."""

    def __init__(self, device: Device, tell: Tell, operations: Sequence[Operation], n_rows: int) -> None:
        self._n_rows = n_rows
        jobs: Jobs = np.zeros(len(operations), JOB)
        for job, (op, found, row, row2, copy) in zip(jobs, operations, strict=True):
            fill_job(job, op, found, row, row2, copy)
        there = on_device([found[0] for _, found, _, _, _ in operations])
        self._device_places, self._host_places = np.flatnonzero(there), np.flatnonzero(~there)
        # a copy on the host leaves no statistics, as one on the device does: they are taken in a second job
        copied = self._host_places[jobs["op"][self._host_places] == COPY]
        self._host_places = np.concatenate([self._host_places, copied])
        self._jobs, self._host_jobs = jobs[self._device_places], jobs[self._host_places]
        self._host_jobs["op"][len(self._host_jobs) - len(copied) :] = STAT
        self._device_jobs = DeviceJobs(device, self._jobs, tell) if len(self._jobs) else None

    def run(self, addresses: Sequence[int], threads: int) -> tuple[Rows, torch.Tensor | None]:
        """Measure what lies at `addresses` (those of the operations, in order).

        Returns the rows, of which those of the host are filled, and what the device will have found (or None).
        """
        at = np.array(addresses, np.uint64)
        rows: Rows = np.zeros(self._n_rows, ROW)
        if len(self._host_jobs):
            self._host_jobs["a"] = at[self._host_places]
            measure(self._host_jobs, rows, threads)
        if self._device_jobs is None:
            return rows, None
        self._jobs["a"] = at[self._device_places]
        return rows, self._device_jobs.launch(self._jobs)

    @property
    def size(self) -> int:
        """64-bit words that the device finds."""
        return 0 if self._device_jobs is None else len(self._device_jobs.table.jobs) * RESULT

    def fill(self, rows: Rows, results: Longs) -> None:
        """Fill the device's rows from the words (int64 [size]) that it found."""
        if self._device_jobs is not None:
            rows_of(self._device_jobs.table, results.reshape(-1, RESULT), rows)


def _places(located: Sequence[Located]) -> list[type]:
    return [type(address) for one in located for address in one.addresses]


class BeforeDevice:
    """Before a step: gradients, parameters (copied where there is room) and state, all with their statistics."""

    def __init__(
        self,
        device: Device,
        tell: Tell,
        parts: tuple[Located, Located, Located],
        copies: Sequence[int | None] | None,
        with_params: bool,
    ) -> None:
        """`parts`: gradients, parameters, state."""
        self._parts, self._copies, self._with_params = parts, copies, with_params
        self._types = _places(parts)
        grads, params, state = parts
        operations: list[Operation] = []
        for found in grads:
            operations.append((STAT, found, len(operations), 0, 0))
        for index, found in enumerate(params if with_params else ()):
            copy = copies[index] if copies is not None else None
            operations.append((STAT if copy is None else COPY, found, len(operations), 0, copy or 0))
        for found in state:
            operations.append((STAT, found, len(operations), 0, 0))
        self.plan = HookPlan(device, tell, operations, len(operations))
        first, last = len(grads), len(grads) + (len(params) if with_params else 0)
        self.grads, self.params, self.state = slice(0, first), slice(first, last), slice(last, None)
        self.present = np.array([kind is not None for kind in grads.kinds], np.bool_)

    def fits(self, parts: tuple[Located, Located, Located], copies: Sequence[int | None] | None) -> bool:
        """Whether this plan is right for these tensors."""
        return (
            self._copies is copies
            and all([old.like(new) for old, new in zip(self._parts, parts, strict=True)])
            and self._types == _places(parts)
        )

    def addresses(self, parts: tuple[Located, Located, Located]) -> list[int]:
        """Where the operations of `plan` find these tensors."""
        grads, params, state = parts
        return grads.addresses + (params.addresses if self._with_params else []) + state.addresses


class AfterDevice:
    """After a step: updates, parameters, state and the groups' numbers, in the order of the rows on disk."""

    def __init__(
        self,
        device: Device,
        tell: Tell,
        parts: tuple[Located, Located, Located, Located],
        copies: Sequence[int | None] | None,
        labels: tuple[list[Label], list[Label], list[Label], list[Label], list[Label]],
    ) -> None:
        """`parts`: parameters as they were before the step and as they are, state, numbers.

        `labels`: of the rows of gradients, updates, parameters (each empty where they are not wanted), state, numbers.
        """
        self._parts, self._copies = parts, copies
        self._types = _places(parts)
        before, params, state, scalars = parts
        self.labels = [label for some in labels for label in some]
        starts = np.cumsum([0, *map(len, labels)]).tolist()
        total, with_updates, with_params = starts[-1], bool(labels[1]), bool(labels[2])
        self.n_grads = starts[1]
        self._with_params = with_updates or with_params
        self.sampled: list[tuple[int, int, int]] = []
        """Updates without a copy: position of the parameter (-1: dtype or size changed), row, row of the parameter."""
        operations: list[Operation] = []
        for index, found in enumerate(params if self._with_params else ()):
            after = starts[2] + index if with_params else total + index
            copy = copies[index] if copies is not None else None
            if copy is not None and found[1:] == before[index][1:]:
                operations.append((UPDATE, found, starts[1] + index, after, copy))
            else:
                operations.append((STAT, found, after, 0, 0))
                if with_updates:
                    self.sampled.append((index if copy is None else -1, starts[1] + index, after))
        operations += [(STAT, found, starts[3] + i, 0, 0) for i, found in enumerate(state)]
        operations += [(STAT, found, starts[4] + i, 0, 0) for i, found in enumerate(scalars)]
        self.plan = HookPlan(device, tell, operations, total + len(params))
        self.total = total
        self.params, self.state = slice(starts[2], starts[3]), slice(starts[3], starts[4])

    def fits(self, parts: tuple[Located, Located, Located, Located], copies: Sequence[int | None] | None) -> bool:
        """Whether this plan is right for these tensors; their names are the caller's business."""
        return (
            self._copies is copies
            and all([old.like(new) for old, new in zip(self._parts, parts, strict=True)])
            and self._types == _places(parts)
        )

    def addresses(self, parts: tuple[Located, Located, Located, Located]) -> list[int]:
        """Where the operations of `plan` find these tensors."""
        _, params, state, scalars = parts
        return (params.addresses if self._with_params else []) + state.addresses + scalars.addresses

    def complete(self, rows: Rows, grads: Rows, params_before: Rows) -> Rows:
        """The rows on disk: those found, those of the gradients, and the updates that only samples are known of."""
        if self.n_grads:
            rows[: self.n_grads] = grads
        for index, update, after in self.sampled:
            rows[update] = sampled_update(params_before[index] if index >= 0 else None, rows[after])
        return rows[: self.total]
