"""What to measure before and after a step: jobs and rows that are built once and used until something changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optrace.recorder.jobs import Jobs, Rows, fill_job
from optrace.recorder.tensors import Found, Kind, dtype_name, torch_dtype
from optrace.trace.measure import COPY, HASH, JOB, ROW, STAT, UPDATE, fingerprint, measure

Label = tuple[int, str, str, str, int]
"""Of a row: group, param, quantity, dtype, numel."""

StateLabel = tuple[int, str]
"""Position of the parameter (-1: none), key."""

_FIELDS = ("mean", "l1", "l2", "min", "max", "sample")


@dataclass
class Located:
    """Tensors of one sort, where they lie, column by column."""

    addresses: list[int]
    numels: list[int]
    kinds: list[Kind]

    @classmethod
    def of(cls, found: Sequence[Found]) -> Located:
        """The same, row by row."""
        if not found:
            return cls([], [], [])
        addresses, numels, kinds = zip(*found, strict=True)
        return cls(list(addresses), list(numels), list(kinds))

    def __len__(self) -> int:
        return len(self.addresses)

    def like(self, other: Located) -> bool:
        """Whether sizes and dtypes are the same."""
        return self is other or (self.numels == other.numels and self.kinds == other.kinds)

    def __getitem__(self, index: int) -> Found:
        return self.addresses[index], self.numels[index], self.kinds[index]

    def __iter__(self) -> Iterator[Found]:
        return zip(self.addresses, self.numels, self.kinds, strict=True)


class BeforePlan:
    """The jobs before a step: statistics of gradients, copies of parameters, fingerprints of parameters and state."""

    def __init__(
        self,
        grads: Located,
        params: Located,
        state: Located,
        copies: Sequence[int | None] | None,
        hash_params: bool,
    ) -> None:
        """`copies`: addresses for the parameters' values (None: a sample instead); without it they are only hashed."""
        self._grads, self._params, self._state, self._copies = grads, params, state, copies
        self.n_grads = len(grads)
        ops: list[tuple[int, Found, int]] = [(STAT, found, 0) for found in grads]
        with_params = copies is not None or hash_params
        for index, found in enumerate(params if with_params else ()):
            copy = copies[index] if copies is not None else None
            ops.append((HASH if copies is None else STAT if copy is None else COPY, found, copy or 0))
        ops += [(HASH, found, 0) for found in state]
        self._with_params = with_params
        self.jobs: Jobs = np.zeros(len(ops), JOB)
        """Those of the gradients come first."""
        self.rows: Rows = np.zeros(len(ops), ROW)
        for row, (op, found, copy) in enumerate(ops):
            fill_job(self.jobs[row], op, found, row, b=copy)
        self._grad_addresses = self.jobs["a"][: self.n_grads]
        self._other_addresses = self.jobs["a"][self.n_grads :]
        self._filled = params, state
        first, last = self.n_grads, self.n_grads + (len(params) if with_params else 0)
        self.first_known = first if hash_params else last
        """The row of the first parameter whose fingerprint is known from the step before, then of state."""
        self.grad_rows = self.rows[:first]
        self.param_rows = self.rows[first:last]
        self.param_fingerprints: npt.NDArray[np.int64] = self.param_rows["fingerprint"]
        self.state_fingerprints: npt.NDArray[np.int64] = self.rows[last:]["fingerprint"]
        self.present = np.array([kind is not None for kind in grads.kinds], np.bool_)

    def fits(self, grads: Located, params: Located, state: Located, copies: Sequence[int | None] | None) -> bool:
        """Whether this plan is right for these tensors."""
        return (
            self._copies is copies and self._grads.like(grads) and self._params.like(params) and self._state.like(state)
        )

    def has_params(self, params: Located) -> bool:
        """Whether sizes and dtypes of the parameters are those of this plan."""
        return self._params.like(params)

    def run(self, grads: Located, params: Located, state: Located, threads: int) -> None:
        """Measure into `rows`; the parameters' values go to their copies."""
        self._grad_addresses[:] = grads.addresses
        self.fill(params, state)
        measure(self.jobs, self.rows, threads)

    def fill(self, params: Located, state: Located) -> None:
        """Set where the parameters and the state lie."""
        if params is not self._filled[0] or state is not self._filled[1]:
            self._other_addresses[:] = (params.addresses if self._with_params else []) + state.addresses
            self._filled = params, state


class AfterPlan:
    """The jobs after a step: updates, parameters, state and the group's numbers, in the order of the rows on disk."""

    def __init__(
        self,
        labels: Callable[[str, Sequence[int], Sequence[Kind]], list[Label]],
        state_labels: list[Label],
        group_labels: list[Label],
        before: Located,
        grads: Located,
        params: Located,
        state: Located,
        scalars: Located,
        copies: Sequence[int | None] | None,
        wanted: tuple[bool, bool, bool],
    ) -> None:
        """`before` are the parameters as the pre-hook saw them; `wanted`: grad, update, param."""
        self._parts = (before, grads, params, state, scalars)
        self._copies = copies
        want_grad, want_update, want_param = wanted
        count = len(params)
        dtypes = [kind if kind is not None else params.kinds[i] for i, kind in enumerate(grads.kinds)]
        sizes = [size if grads.kinds[i] is not None else params.numels[i] for i, size in enumerate(grads.numels)]
        self.labels: list[Label] = labels("grad", sizes, dtypes) if want_grad else []
        self.n_grads = len(self.labels)
        update_row = len(self.labels)
        self.labels += labels("update", params.numels, params.kinds) if want_update else []
        param_row = len(self.labels)
        self.labels += labels("param", params.numels, params.kinds) if want_param else []
        state_row = len(self.labels)
        self.labels += state_labels
        scalar_row = len(self.labels)
        self.labels += group_labels
        total = len(self.labels)
        # rows that are measured but not wanted go behind the others
        self.all_rows: Rows = np.zeros(total + count, ROW)
        self.rows = self.all_rows[:total]
        self.sampled: list[tuple[int, int, int]] = []
        """Updates without a copy: position of the parameter (-1: dtype or size changed), row, row of the parameter."""
        self._with_params = want_update or want_param
        ops: list[tuple[int, Found, int, int, int]] = []
        for index, found in enumerate(params if self._with_params else ()):
            after = param_row + index if want_param else total + index
            copy = copies[index] if copies is not None else None
            if copy is not None and found[1:] == before[index][1:]:
                ops.append((UPDATE, found, update_row + index, after, copy))
            else:
                ops.append((STAT, found, after, 0, 0))
                if want_update:
                    self.sampled.append((index if copy is None else -1, update_row + index, after))
        ops += [(STAT, found, state_row + i, 0, 0) for i, found in enumerate(state)]
        ops += [(STAT, found, scalar_row + i, 0, 0) for i, found in enumerate(scalars)]
        self.jobs: Jobs = np.zeros(len(ops), JOB)
        for number, (op, found, row, row2, copy) in enumerate(ops):
            fill_job(self.jobs[number], op, found, row, row2, copy)
        self._addresses = self.jobs["a"]
        self._filled = params, state, scalars
        self.param_fingerprints: npt.NDArray[np.int64] = self.rows[param_row:state_row]["fingerprint"]
        self.state_fingerprints: npt.NDArray[np.int64] = self.rows[state_row:scalar_row]["fingerprint"]
        self.first_known, self.n_known = param_row, scalar_row - param_row
        """The rows of parameters and state."""
        self._known = self.rows[param_row:scalar_row]["fingerprint"]
        self._grad_words = words_of(self.rows[: self.n_grads])
        self.present = np.ones(total, np.bool_)

    def fits(
        self,
        before: Located,
        grads: Located,
        params: Located,
        state: Located,
        scalars: Located,
        copies: Sequence[int | None] | None,
    ) -> bool:
        """Whether this plan is right for these tensors; their names are the caller's business."""
        parts = (before, grads, params, state, scalars)
        return self._copies is copies and all([old.like(new) for old, new in zip(self._parts, parts, strict=True)])

    def run(
        self,
        grads: tuple[Rows, npt.NDArray[np.bool_]],
        params: Located,
        state: Located,
        scalars: Located,
        before: Rows,
        threads: int,
    ) -> None:
        """Measure into `rows` and `present`; `grads` and `before` (one row a parameter) come from before the step."""
        if self._filled[0] is not params or self._filled[1] is not state or self._filled[2] is not scalars:
            self._addresses[:] = (params.addresses if self._with_params else []) + state.addresses + scalars.addresses
            self._filled = params, state, scalars
        measure(self.jobs, self.all_rows, threads)
        if self.n_grads:
            self._grad_words[:] = words_of(grads[0])
            self.present[: self.n_grads] = grads[1]
        self.add_sampled(before)

    def add_sampled(self, before: Rows) -> None:
        """Fill the rows of updates that are known by their samples only."""
        for index, update, after in self.sampled:
            self.all_rows[update] = sampled_update(before[index] if index >= 0 else None, self.all_rows[after])

    def words(self) -> bytes:
        """The fingerprints of parameters and state, one after the other."""
        return self._known.tobytes()


def words_of(rows: Rows) -> npt.NDArray[np.int64]:
    """The same rows as 64-bit words, [n, words of a row]: copied at once rather than field by field."""
    return np.ascontiguousarray(rows).view(np.int64).reshape(len(rows), ROW.itemsize // 8)


def sampled_update(before: np.void | None, after: np.void) -> np.void:
    """The row of an update of which only the sample is known: statistics NaN, counts -1, the sample's fingerprint."""
    row = np.zeros((), ROW)
    for name in _FIELDS:
        row[name] = np.nan
    for name in ("n_nan", "n_inf", "n_zero"):
        row[name] = -1
    if before is not None:
        row["sample"] = after["sample"] - before["sample"]
    word = fingerprint(np.where(np.isnan(row["sample"]), np.nan, row["sample"]))
    row["fingerprint"] = word - 2**64 if word >= 2**63 else word
    return row[()]  # type: ignore[return-value]


def make_label(group: int, param: str, quantity: str, numel: int, kind: Kind) -> Label:
    """A row's label from what was located."""
    return group, param, quantity, dtype_name(torch_dtype(kind)), numel
