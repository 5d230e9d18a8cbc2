"""Taking a stream apart into rows: batches with the same header are copied out together, not one by one.

A stream holds a batch a step, so a long run has many small ones; pyarrow spends 40 microseconds on each. Batches whose
header (and string offsets) are byte for byte the same differ in their bodies only, which NumPy gathers at the speed of
memory. Whatever does not fit this pattern is read by pyarrow, batch by batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.trace.arrays import numbers

_CONTINUATION = b"\xff\xff\xff\xff"
_FIELD_TYPES = {"int64": 8, "int32": 4, "double": 8}


@dataclass(frozen=True)
class Decoded:
    """What `decode` made of some bytes."""

    rows: Any
    """A `pyarrow.Table` of the whole batches, in order."""
    end: int
    """Where the last whole batch (or the end mark) ends."""
    ended: bool
    """Whether the end mark was found."""


@dataclass(frozen=True)
class _Header:
    """A kind of batch: its length, rows and the places of its buffers, counted from the start of the message."""

    length: int
    rows: int
    columns: tuple[tuple[tuple[int, int] | None, ...], ...]
    """For each column, for each Arrow buffer of it (nested ones after their parent's): (offset, size) or None."""
    offsets: tuple[tuple[int, int], ...]
    """Where the offsets of the string columns lie."""


def decode(data: Any, schema: Any, start: int) -> Decoded:
    """Decode the batches in `data` (bytes-like) from `start` on, which must be the start of a message.

    Stops before the first message that is torn or damaged; nothing is raised. Every batch is validated.
    """
    try:
        found = _decode_alike(data, schema, start)
    except _errors():
        found = None
    return found if found is not None else _decode_each(data, schema, start)


def _errors() -> tuple[type[BaseException], ...]:
    """What pyarrow and our own checks raise on damaged bytes."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, EOFError, MemoryError, OverflowError, TypeError, IndexError)


def _decode_each(data: Any, schema: Any, start: int) -> Decoded:
    """Batch by batch, up to the first one that cannot be read."""
    import pyarrow as pa

    whole = pa.py_buffer(data)
    batches = []
    position = start
    ended = False
    try:
        while position < len(whole) and not ended:
            if bytes(whole[position : position + 8]) == _CONTINUATION + bytes(4):
                ended = True
                position += 8
            else:
                batch, length = _read_batch(whole, position, schema)
                batches.append(batch)
                position += length
    except _errors():
        pass
    return Decoded(pa.Table.from_batches(batches, schema), position, ended)


def _read_batch(whole: Any, position: int, schema: Any) -> tuple[Any, int]:
    import pyarrow as pa

    reader = pa.BufferReader(whole.slice(position))
    batch = pa.ipc.read_record_batch(pa.ipc.read_message(reader), schema)
    check(batch, schema)
    return batch, int(reader.tell())


def check(rows: Any, schema: Any) -> None:
    """ValueError (or an ArrowException) when rows are not valid Arrow data or have nulls where the schema has none."""
    rows.validate(full=True)
    for field, column in zip(schema, rows.columns, strict=True):
        if not field.nullable and column.null_count:
            raise ValueError(f"{field.name} has nulls")


def _decode_alike(data: Any, schema: Any, start: int) -> Decoded | None:
    """All batches, those of one kind together; None when something is not as it should be."""
    import pyarrow as pa

    view = memoryview(data)
    whole = pa.py_buffer(data)
    headers: dict[bytes, _Header] = {}
    kinds: dict[tuple[bytes, ...], tuple[_Header, list[int]]] = {}
    order: list[tuple[int, int]] = []  # for each batch: number of its kind, number within its kind
    number_of: dict[tuple[bytes, ...], int] = {}
    position, size = start, len(view)
    ended = False
    while position + 8 <= size:
        if view[position : position + 4] != _CONTINUATION:
            break
        length = int.from_bytes(view[position + 4 : position + 8], "little", signed=True)
        if length == 0:
            ended = True
            position += 8
            break
        if length < 0 or position + 8 + length > size:
            break
        head = bytes(view[position : position + 8 + length])
        header = headers.get(head)
        if header is None:
            try:
                header = headers[head] = _header(whole, position, schema)
            except _errors():
                break
        if position + header.length > size:
            break
        kind = (head, *[bytes(view[position + at : position + at + many]) for at, many in header.offsets])
        if kind not in kinds:
            number_of[kind] = len(kinds)
            kinds[kind] = (header, [])
        positions = kinds[kind][1]
        order.append((number_of[kind], len(positions)))
        positions.append(position)
        position += header.length
    array = np.frombuffer(data, np.uint8)
    parts = [_gather(array, header, positions, schema) for header, positions in kinds.values()]
    rows = pa.Table.from_batches(parts, schema)
    if len(parts) > 1:
        sizes = np.array([header.rows for header, _ in kinds.values()], np.int64)
        starts = np.concatenate([[0], np.cumsum([part.num_rows for part in parts])[:-1]])
        kind_of, index = np.array(order, np.int64).T
        counts = sizes[kind_of]
        first = starts[kind_of] + index * counts
        before = np.cumsum(counts) - counts
        rows = rows.combine_chunks().take(numbers(np.repeat(first - before, counts) + np.arange(rows.num_rows)))
    return Decoded(rows, position, ended)


def _header(whole: Any, position: int, schema: Any) -> _Header:
    """Read one batch with pyarrow and note where its buffers are: that tells all batches with this header."""
    import pyarrow as pa

    batch, length = _read_batch(whole, position, schema)
    base = whole.address + position
    columns = []
    offsets = []
    for field, column in zip(schema, batch.columns, strict=True):
        buffers = column.buffers()
        places = tuple(None if b is None else (b.address - base, b.size) if b.size else (0, 0) for b in buffers)
        if any(place is not None and not 0 <= place[0] <= length - place[1] for place in places):
            raise ValueError("a buffer lies outside its message")
        columns.append(places)
        if pa.types.is_string(field.type) and places[1] is not None:
            offsets.append((places[1][0], 4 * (batch.num_rows + 1)))
    return _Header(length, batch.num_rows, tuple(columns), tuple(offsets))


def _gather(array: npt.NDArray[np.uint8], header: _Header, positions: list[int], schema: Any) -> Any:
    """The rows of all batches of one kind as one `pyarrow.RecordBatch`, validated."""
    import pyarrow as pa

    count = len(positions)
    steps = np.diff(positions)
    if (steps == (steps[0] if count > 1 else 0)).all():
        stride = int(steps[0]) if count > 1 else header.length
        messages = np.lib.stride_tricks.as_strided(
            array[positions[0] :], (count, header.length), (stride, 1), writeable=False
        )
    else:
        messages = np.concatenate([array[p : p + header.length] for p in positions]).reshape(count, -1)
    columns = [
        _column(messages, header.rows, field.type, places) for field, places in zip(schema, header.columns, strict=True)
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    check(batch, schema)
    return batch


def _column(messages: npt.NDArray[np.uint8], rows: int, kind: Any, places: Any) -> Any:
    """One column of `len(messages)` batches of `rows` rows each."""
    import pyarrow as pa

    total = len(messages) * rows
    validity = None if places[0] is None else _bits(messages, places[0], rows)
    if pa.types.is_string(kind):
        at = places[1][0]
        offsets = messages[0, at : at + 4 * (rows + 1)].copy().view(np.int32)
        ends = np.tile(np.diff(offsets), len(messages)).cumsum()
        if total and int(ends[-1]) >= 2**31:
            raise OverflowError("more text than one array holds")
        joined = np.concatenate([[0], ends]).astype(np.int32)
        text = _bytes(messages, (places[2][0] + int(offsets[0]), int(offsets[-1] - offsets[0]))) if places[2] else b""
        return pa.StringArray.from_buffers(total, pa.py_buffer(joined), pa.py_buffer(text), validity)
    if pa.types.is_boolean(kind):
        return pa.Array.from_buffers(kind, total, [validity, _bits(messages, places[1], rows)])
    if pa.types.is_fixed_size_list(kind):
        slots = kind.list_size
        if len(places) != 3 or places[1] is not None:
            raise ValueError("a sample has nulls")
        values = _bytes(messages, (places[2][0], 8 * slots * rows))
        child = pa.Array.from_buffers(kind.value_type, total * slots, [None, pa.py_buffer(values)])
        return pa.FixedSizeListArray.from_arrays(child, type=kind)
    width = _FIELD_TYPES[str(kind)]
    return pa.Array.from_buffers(kind, total, [validity, pa.py_buffer(_bytes(messages, (places[1][0], width * rows)))])


def _bytes(messages: npt.NDArray[np.uint8], place: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The same stretch of every message, one after the other."""
    at, size = place
    if at + size > messages.shape[1]:
        raise ValueError("a buffer lies outside its message")
    return np.ascontiguousarray(messages[:, at : at + size])


def _bits(messages: npt.NDArray[np.uint8], place: tuple[int, int], rows: int) -> Any:
    """A bitmap of `rows` bits per message, put together."""
    import pyarrow as pa

    bits = np.unpackbits(_bytes(messages, (place[0], (rows + 7) // 8)), axis=1, count=rows, bitorder="little")
    return pa.py_buffer(np.packbits(bits.reshape(-1), bitorder="little"))
