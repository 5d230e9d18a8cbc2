"""From what the recorder hands over to the bytes of record batches, with nothing allocated per row."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.arrays import record_batch
from optrace.trace.jsonfile import to_json
from optrace.trace.measure import kernel
from optrace.trace.schema import COLUMNS, ROW_BYTES, SAMPLE_SLOTS, Event
from optrace.trace.stream import BatchTemplate

TEMPLATES = 256
"""Layouts kept per table; a program that goes through more of them only pays for making them again."""

_KEY_COLUMNS = ("step", "optimizer")
_STATISTICS = 9
_FIRST_STATISTIC = "mean"
_SECOND_STATISTIC = "l1"

_fill_tensors: Any = None if kernel is None else kernel.fill_tensors
_fill_step: Any = None if kernel is None else kernel.fill_step
_fill_events: Any = None if kernel is None else kernel.fill_events
"""Each fills a batch that has been laid out before in one call; None without the C kernel."""

Part = tuple[Any, ...]
"""What a standing order knows of a table: the message of its last batch, then where its numbers go."""


class TensorLayout:
    """What the rows of one kind of step are about: constant columns, built once and handed over with each step."""

    def __init__(
        self,
        optimizer: int,
        group: Sequence[int],
        param: Sequence[str],
        quantity: Sequence[str],
        dtype: Sequence[str],
        numel: Sequence[int],
    ) -> None:
        """One entry a row in each sequence; `numel` counts the real view of complex tensors. TraceError if uneven."""
        lengths = {len(group), len(param), len(quantity), len(dtype), len(numel)}
        if len(lengths) != 1:
            raise TraceError(f"the columns of a tensor layout have different lengths: {sorted(lengths)}")
        self.optimizer = optimizer
        self.group = tuple(group)
        self.param = tuple(param)
        self.quantity = tuple(quantity)
        self.dtype = tuple(dtype)
        self.numel = tuple(numel)
        self._template: BatchTemplate | None = None
        self._rows: npt.NDArray[np.void] | None = None
        self._there = b""

    def __len__(self) -> int:
        return len(self.param)

    def fill(self, step: int, rows: npt.NDArray[np.void], present: npt.NDArray[np.bool_]) -> bytearray:
        """The batch of one step; `rows` are `measure.ROW`s and `present` booleans, both in the layout's order."""
        count = len(self.param)
        if rows is not self._rows:
            self._look_at(rows)
        if present.shape != (count,):
            raise TraceError(f"a layout of {count} tensors got present {present.shape}")
        template = self._template
        if template is None:
            template = self._template = self._build()
        there = present.tobytes()
        if there != self._there:
            self._bits[:] = np.packbits(present, bitorder="little")
            self._there = there
        if _fill_tensors is not None:
            _fill_tensors(template.bytes, self._places, step, self._given)
        else:
            self._step.fill(step)
            self._statistics[:] = self._given[:, :_STATISTICS].T
            self._sample[:] = self._given[:, _STATISTICS:]
        return template.bytes

    def part(self, rows: npt.NDArray[np.void], present: npt.NDArray[np.bool_]) -> Part | None:
        """For a standing order, after `fill`; None where the rows are not contiguous."""
        if self._template is None or self._rows is not rows or not present.flags.c_contiguous:
            return None
        views = self._given.data, present.data  # cheaper to ask than arrays
        return self._template.bytes, self._places, *views, self._there

    def _look_at(self, rows: npt.NDArray[np.void]) -> None:
        """Take another array of rows; the same one may be filled anew for each step."""
        count = len(self.param)
        if rows.shape != (count,) or rows.dtype.itemsize != ROW_BYTES:
            raise TraceError(f"a layout of {count} tensors got rows {rows.shape} of {rows.dtype.itemsize} bytes")
        whole = rows.flags.c_contiguous
        self._rows = rows if whole else None
        self._given = (rows if whole else np.ascontiguousarray(rows)).view(np.int64).reshape(count, ROW_BYTES // 8)

    def _build(self) -> BatchTemplate:
        count = len(self.param)
        columns = {
            "optimizer": [self.optimizer] * count,
            "group": self.group,
            "param": [clean(name) for name in self.param],
            "quantity": [clean(name) for name in self.quantity],
            "dtype": self.dtype,
            "numel": self.numel,
        }
        template = BatchTemplate(record_batch("tensors", count, columns))
        self._step = template.view("step", "i8")
        self._bits = template.view("present", "u1")
        self._sample = template.view("sample", "i8").reshape(count, SAMPLE_SLOTS)
        first = template.view(_FIRST_STATISTIC, "i8")
        second = template.view(_SECOND_STATISTIC, "i8")
        stride = second.ctypes.data - first.ctypes.data  # columns of one width lie at one distance from each other
        whole = np.frombuffer(template.bytes, np.uint8)
        start = first.ctypes.data - whole.ctypes.data
        self._statistics = np.ndarray((_STATISTICS, count), np.int64, template.bytes, start, (stride, 8))
        self._places = struct.pack("4q", template.place("step")[0], start, stride, template.place("sample")[0])
        return template


class StepBatches:
    """The one row of a step in the table `steps`; a template for each pattern of nulls."""

    _names = tuple(column.name for column in COLUMNS["steps"][len(_KEY_COLUMNS) :])
    _counts = tuple(column.name for column in COLUMNS["steps"][len(_KEY_COLUMNS) :] if not column.nullable)

    def __init__(self) -> None:
        self._templates: dict[tuple[bool, ...], _StepTemplate] = {}
        self._last: _StepTemplate | None = None

    def fill(self, step: int, optimizer: int, values: Mapping[str, Any]) -> bytearray:
        """The batch of one step; a missing or None number is null (the counts: 0)."""
        last = self._last
        if (
            last is not None
            and _fill_step is not None
            and _fill_step(last.message, last.places, *last.keys, step, optimizer, values)
        ):
            return last.message
        numbers: list[Any] = [values.get(name) for name in self._names]
        known = tuple([number is not None for number in numbers])
        template = self._templates.get(known)
        if template is None:
            nulls = {name for name, there in zip(self._names, known, strict=True) if not there}
            template = self._templates[known] = _StepTemplate(nulls.difference(self._counts))
        self._last = template
        if not all(known):
            numbers = [values.get(name) for name, _ in template.fields]
            numbers = [0 if number is None else number for number in numbers]
        try:
            template.pack(template.message, template.start, step, optimizer, *numbers)
        except struct.error:  # an integer of 64 bits without a sign, or one of another kind
            numbers = [
                signed(int(number)) if integer else number
                for number, (_, integer) in zip(numbers, template.fields, strict=True)
            ]
            template.pack(template.message, template.start, step, optimizer, *numbers)
        return template.message

    def part(self) -> Part | None:
        """For a standing order, after `fill`."""
        last = self._last
        return None if last is None else (last.message, last.places, *last.keys)


class _StepTemplate:
    """A batch of one row; `pack` puts step, optimizer and the numbers of `fields` at their places in one call."""

    def __init__(self, nulls: set[str]) -> None:
        template = BatchTemplate(record_batch("steps", 1, {}, frozenset(nulls)))
        columns = [column for column in COLUMNS["steps"] if column.name not in nulls]
        self.message = template.bytes
        self.fields = [(column.name, column.type != "double") for column in columns[len(_KEY_COLUMNS) :]]
        self.start = template.place(columns[0].name)[0]
        codes = {"int64": ("q", 8), "int32": ("i", 4), "double": ("d", 8)}
        layout, end = "<", self.start
        for column in columns:
            at = template.place(column.name)[0]
            code, width = codes[column.type]
            layout += f"{at - end}x{code}"
            end = at + width
        self.pack = struct.Struct(layout).pack_into
        self.keys = [template.place(name)[0] for name in _KEY_COLUMNS]
        self.places: tuple[Any, ...] = ()
        """Name, code and place of each column but the keys, one after the other; code 0 where it is null."""
        for column in COLUMNS["steps"][len(_KEY_COLUMNS) :]:
            null = column.name in nulls
            code = "0" if null else codes[column.type][0]
            self.places += (column.name, code, 0 if null else template.place(column.name)[0])


class EventBatches:
    """Events, several a batch; their JSON is padded with spaces to a few sizes so that batches keep their layout."""

    def __init__(self) -> None:
        self._templates: dict[Any, _EventTemplate] = {}
        self._last: tuple[Any, ...] | None = None

    def fill(self, events: Sequence[Event]) -> bytearray:
        """The batch of these events (at least one), in their order."""
        last = self._last
        if last is not None and _fill_events is not None and _fill_events(*last, events):
            message: bytearray = last[0]
            return message
        seqs, steps, kinds, optimizers, data = zip(*events, strict=True)
        texts = [_text(one) if one else b"{}" for one in data]
        sizes = tuple([_bucket(len(text)) for text in texts])
        template = self._templates.get((kinds, sizes))
        if template is None:
            if len(self._templates) >= TEMPLATES:
                self._templates.clear()
            template = self._templates[kinds, sizes] = _EventTemplate(kinds, sizes)
        self._last = template.message, template.places, kinds, sizes
        message = template.message
        template.longs(message, template.seq, *seqs)
        template.longs(message, template.step, *steps)
        template.ints(message, template.optimizer, *optimizers)
        template.texts(message, template.data, *[text.ljust(size) for text, size in zip(texts, sizes, strict=True)])
        return message

    def part(self) -> Part | None:
        """For a standing order, after `fill`."""
        return self._last


class _EventTemplate:
    """A batch of events of these kinds, and where their numbers and texts are."""

    def __init__(self, kinds: tuple[str, ...], sizes: tuple[int, ...]) -> None:
        columns = {"kind": [clean(kind) for kind in kinds], "data": [" " * size for size in sizes]}
        template = BatchTemplate(record_batch("events", len(kinds), columns))
        self.message = template.bytes
        places = [template.place(name)[0] for name in ("seq", "step", "optimizer", "data")]
        self.seq, self.step, self.optimizer, self.data = places
        self.places = struct.pack("4q", self.seq, self.step, self.optimizer, self.data)
        self.longs = struct.Struct(f"<{len(kinds)}q").pack_into
        self.ints = struct.Struct(f"<{len(kinds)}i").pack_into
        self.texts = struct.Struct("".join(f"{size}s" for size in sizes)).pack_into


def _bucket(size: int) -> int:
    """`size` rounded up: to 32 below 256, beyond that to an eighth of its power of two."""
    if size <= 256:
        return size + 31 & -32
    unit = 1 << (size.bit_length() - 3)
    return (size + unit - 1) // unit * unit


def _text(data: Mapping[str, Any]) -> bytes:
    """The data of an event as `to_json` writes it; the plain ones, which come with every step, by a shorter way."""
    parts = []
    for key, value in data.items():
        write = _WRITERS.get(type(value))
        if write is None or type(key) is not str:
            return to_json(data).encode()
        parts.append(f"{_quoted(key)}:{write(value)}")
    return f"{{{','.join(parts)}}}".encode()


def _word(value: bool | None) -> str:
    return "null" if value is None else "true" if value else "false"


_WRITERS: dict[type, Any] = {str: _quoted, int: repr, bool: _word, type(None): _word}


def signed(number: int) -> int:
    """The same 64 bits as a signed number; OverflowError beyond 64 bits."""
    return number - 2**64 if 2**63 <= number < 2**64 else number


def clean(text: str) -> str:
    """`text` with what UTF-8 cannot hold (lone surrogates) written as escapes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text
