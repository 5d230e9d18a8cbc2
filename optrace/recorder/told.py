"""Records optimizers whose arrays are handed over: `session.step(...)`, NumPy classes, functions. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import RecordError
from optrace.recorder.finished import Finished
from optrace.recorder.selection import Quantities, is_recorded
from optrace.recorder.settings import Settings
from optrace.trace.measure import ROW, measure_array
from optrace.trace.writer import TensorLayout

Array = npt.NDArray[Any]
Arrays = Mapping[str, Any]
_Row = tuple[int, str, str, str, int]


@dataclass(frozen=True)
class Tensor:
    """Values that can be measured, and the dtype that they had."""

    values: Array
    dtype: str

    @property
    def numel(self) -> int:
        """Elements; twice that for complex."""
        return self.values.size * (2 if self.values.dtype.kind == "c" else 1)


def tensor_of(thing: Any, name: str) -> Tensor:
    """A copy of anything NumPy can read; bfloat16 and float8 are widened to float32.

    RecordError for what holds no numbers.
    """
    if hasattr(thing, "detach"):
        thing = thing.detach()
        if "bfloat16" in str(thing.dtype):
            return Tensor(np.array(thing.float().cpu().numpy()), "bfloat16")
        thing = thing.cpu().numpy()
    array = np.array(thing)
    kind = array.dtype.name
    if array.dtype.kind not in "biufc":
        try:
            array = array.astype(np.float32)
        except (TypeError, ValueError):
            raise RecordError(f"{name} holds no numbers but {array.dtype}: {str(thing)[:60]!r}") from None
    return Tensor(array, kind)


class ToldOptimizer:
    """One optimizer whose steps are told, with what was recorded of it last."""

    def __init__(self, class_name: str, settings: Settings) -> None:
        """`class_name` is shown as its class."""
        self.class_name = class_name
        self.index = -1
        self.completed = 0
        self.params_changed = False
        self.capture = self
        """Where the session asks for the rows of `params`."""
        self._settings = settings
        self._wanted = Quantities(settings.quantities)
        self._group_of: dict[str, int] = {}
        self._shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self._last: dict[str, Tensor] = {}
        self._recorded: dict[tuple[str, str], int] = {}
        self._layouts: dict[tuple[_Row, ...], TensorLayout] = {}

    def params_table(self, class_name: str) -> list[dict[str, Any]]:
        """The rows of the table `params`."""
        counts: dict[int, int] = {}
        rows = []
        for name, (shape, dtype) in self._shapes.items():
            group = self._group_of.get(name, 0)
            counts[group] = counts.get(group, -1) + 1
            size = int(np.prod(shape, dtype=np.int64))
            strides = [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]
            rows.append(
                {
                    "optimizer": self.index,
                    "optimizer_class": class_name,
                    "group": group,
                    "index": counts[group],
                    "param": name,
                    "shape": list(shape),
                    "stride": strides,
                    "dtype": dtype,
                    "device": "cpu",
                    "numel": size,
                    "placement": None,
                    "requires_grad": True,
                }
            )
        return rows

    def world(self, before: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> Finished:
        """Step 0: the parameters and the state before the first step."""
        self._note(before)
        rows = [(name, "param", tensor) for name, tensor in before.items() if self._wanted.param]
        rows += [(n, f"state.{k}", t) for n, entries in state.items() for k, t in entries.items()]
        return Finished([], self._measured([row for row in rows if self._wanted.has(row[1])], set()))

    def step(
        self,
        before: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        grads: Mapping[str, Tensor | None],
        state_before: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Mapping[str, Tensor]],
        groups: list[tuple[int, dict[str, Any]]],
        written: Mapping[tuple[int, str], float],
    ) -> Finished | None:
        """The rows of the next step; None when the settings leave it out."""
        self._note(after)
        self.completed += 1
        if not is_recorded(self.completed, self._settings):
            return None
        rows: list[tuple[str, str, Tensor]] = []
        absent: set[tuple[str, str]] = set()
        for name, tensor in before.items():
            if self._changed(name, "param", tensor):
                rows.append((name, "param_in", tensor))
        for name, entries in state_before.items():
            rows += [
                (n, q, t) for n, q, t in _state_rows(name, entries, "state_in") if self._changed(n, f"state.{q[9:]}", t)
            ]
        for name in after:
            grad = grads.get(name)
            if grad is None:
                absent.add((name, "grad"))
                grad = Tensor(np.zeros(0, np.float32), self._shapes[name][1])
            rows.append((name, "grad", grad))
            if name in before:
                rows.append((name, "update", Tensor(_change(before[name], after[name]), after[name].dtype)))
            rows.append((name, "param", after[name]))
            rows += _state_rows(name, state.get(name, {}), "state")
        rows += [row for name in state if name not in after for row in _state_rows(name, state[name], "state")]
        numbers = [
            (f"{group}", f"group.{key}", Tensor(np.array(value), "float64")) for (group, key), value in written.items()
        ]
        wanted = [row for row in rows if self._wanted.has(row[1])]
        tensors = self._measured(wanted, absent, [row for row in numbers if self._wanted.has(row[1])])
        return Finished(groups, tensors)

    def put_in_groups(self, groups: Mapping[str, int]) -> None:
        """Say which group each parameter is in; the others are in group 0."""
        if groups != self._group_of:
            self._group_of = dict(groups)
            self.params_changed = True

    def last(self) -> dict[str, Tensor]:
        """The parameters after the last step that was told."""
        return self._last

    def _note(self, params: Mapping[str, Tensor]) -> None:
        self._last = dict(params)
        shapes = {name: (tensor.values.shape, tensor.dtype) for name, tensor in params.items()}
        if any(self._shapes.get(name) != shape for name, shape in shapes.items()):
            self._shapes.update(shapes)
            self.params_changed = True

    def _changed(self, name: str, quantity: str, tensor: Tensor) -> bool:
        known = self._recorded.get((name, quantity))
        return known is None or known != int(measure_array(tensor.values)["fingerprint"])

    def _measured(
        self,
        rows: list[tuple[str, str, Tensor]],
        absent: set[tuple[str, str]],
        numbers: list[tuple[str, str, Tensor]] | None = None,
    ) -> tuple[TensorLayout, npt.NDArray[np.void], npt.NDArray[np.bool_]] | None:
        every = rows + (numbers or [])
        if not every:
            return None
        measured = np.zeros(len(every), ROW)
        present = np.ones(len(every), np.bool_)
        labels: list[_Row] = []
        for i, (name, quantity, tensor) in enumerate(every):
            of_group = quantity.startswith("group.")
            group = int(name) if of_group else self._group_of.get(name, 0)
            labels.append((group, "" if of_group else name, quantity, tensor.dtype, tensor.numel))
            measured[i] = measure_array(tensor.values)
            present[i] = (name, quantity) not in absent
            if quantity == "param" or quantity.startswith("state."):
                self._recorded[name, quantity] = int(measured[i]["fingerprint"])
        if self._settings.values == "none":
            measured["sample"] = np.nan
        key = tuple(labels)
        if key not in self._layouts:
            columns = [list(column) for column in zip(*labels, strict=True)]
            self._layouts[key] = TensorLayout(self.index, *columns)
        return self._layouts[key], measured, present


def _state_rows(name: str, entries: Mapping[str, Tensor], quantity: str) -> list[tuple[str, str, Tensor]]:
    return [(name, f"{quantity}.{key}", tensor) for key, tensor in entries.items()]


def _change(before: Tensor, after: Tensor) -> Array:
    """After - before in float64, complex as its real view, every NaN the same."""
    new, old = (_real(tensor.values).astype(np.float64) for tensor in (after, before))
    if new.shape != old.shape:
        return np.full(new.shape, np.nan)
    with np.errstate(all="ignore"):
        change: Array = new - old
    change[np.isnan(change)] = np.nan
    return change


def _real(values: Array) -> Array:
    if values.dtype.kind != "c":
        return values
    return np.stack([values.real, values.imag], axis=-1)
