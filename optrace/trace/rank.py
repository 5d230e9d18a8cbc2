"""One rank's folder as tables: which segments there are, which steps are whole, and the rows asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.arrays import booleans, elements, no_rows
from optrace.trace.jsonfile import read_json
from optrace.trace.schema import COLUMNS, SEGMENT_NAME, TABLES, arrow_schema, whole_step
from optrace.trace.select import Selection
from optrace.trace.tail import StreamTail

_EVERYTHING = Selection()
_TRIES = 20


class RankFolder:
    """Reads `rank=<n>/`; what it says of whole steps and open segments stays as it is until `refresh`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tails: dict[tuple[str, int], StreamTail] = {}
        self._current: set[tuple[str, int]] = set()
        self._whole: dict[int, int] | None = None
        self._spans: dict[Path, tuple[int, int] | None] = {}

    def refresh(self) -> None:
        """Look again at what a running process has written since."""
        self._current.clear()
        self._whole = None

    def json(self, name: str, kind: type) -> Any:
        """The content of rank.json (dict) or params.json (list); an empty one when there is no such file."""
        path = self.path / name
        return read_json(path, kind) if os.path.exists(path) else kind()

    def segments(self, table: str) -> list[tuple[int, Path]]:
        """The table's segments in order; of a stream and its sealed copy only the copy."""
        found: dict[int, Path] = {}
        try:
            names = sorted(os.listdir(self.path))
        except OSError as error:
            raise TraceError(f"cannot read {self.path}: {error.strerror or error}") from None
        for name in names:  # .arrows sorts before .parquet
            match = SEGMENT_NAME.fullmatch(name)
            if match and match[1] == table:
                found[int(match[2])] = self.path / name
        return sorted(found.items())

    def whole(self) -> dict[int, int]:
        """The last finished step of each optimizer (0: only the world before step 1)."""
        if self._whole is None:
            rows = self.read("events", columns=["step", "kind", "optimizer", "data"])
            self._whole = last_steps(rows)
        return self._whole

    def read(
        self,
        table: str,
        selection: Selection = _EVERYTHING,
        columns: Iterable[str] | None = None,
        after: Mapping[int, int] | None = None,
        coded: bool = False,
    ) -> Any:
        """Rows of a table as a `pyarrow.Table`, in the order in which they are stored; `columns` None for all.

        With `coded` strings come as dictionaries. Rows of unfinished steps are left out; with `after`, so are those up
        to that step of each optimizer. TraceError for a segment that is damaged or of something else.
        """
        import pyarrow as pa

        schema = arrow_schema(table)
        wanted = schema.names if columns is None else list(columns)
        for name in wanted:
            if name not in schema.names:
                raise TraceError(f"{table} has no column {name!r}; it has {', '.join(schema.names)}")
        whole = None if table == "events" else self.whole()
        needed = selection.columns(schema) | set(wanted)
        if whole is not None:
            needed |= {"step", "optimizer"}
        if after is not None and after:
            selection = _later(selection, after, whole or {})
        parts = []
        for rows in self._parts(table, selection, needed):
            mask = selection.mask(rows)
            if whole is not None:
                steps, optimizers = elements(rows.column("step")), elements(rows.column("optimizer"))
                mask = _both(mask, steps <= _per_optimizer(optimizers, whole, -1))
                if after:
                    mask = _both(mask, steps > _per_optimizer(optimizers, after, -1))
            parts.append((rows if mask is None else _where(rows, mask)).select(wanted))
        target = pa.schema([schema.field(name) for name in wanted])
        if coded and parts:
            words = pa.dictionary(pa.int32(), pa.string())
            types = [words if field.type == pa.string() else field.type for field in target]
            target = pa.schema(list(zip(wanted, types, strict=True)))
            parts = [_coded(part) for part in parts]
        return pa.concat_tables([part.cast(target) for part in parts]) if parts else no_rows(target)

    def _parts(self, table: str, selection: Selection, needed: set[str]) -> list[Any]:
        """The segments' rows before the rows are looked at one by one; again when a stream is sealed meanwhile."""
        for _ in range(_TRIES):
            try:
                return [
                    self._open_segment(table, number, path, needed)
                    if path.suffix == ".arrows"
                    else read_sealed(path, table, selection, needed)
                    for number, path in self.segments(table)
                    if path.suffix == ".arrows" or selection.reaches(self._span(path))
                ]
            except FileNotFoundError:
                continue
        raise TraceError(f"the {table} segments of {self.path} keep changing; is something deleting files there?")

    def _open_segment(self, table: str, number: int, path: Path, needed: set[str]) -> Any:
        return self.tail(table, number, path).rows().select([c.name for c in COLUMNS[table] if c.name in needed])

    def segment_ends(self, table: str) -> list[int]:
        """The last step in each sealed segment, in order; TraceError for one that is damaged."""
        try:
            spans = [self._span(path) for _, path in self.segments(table) if path.suffix == ".parquet"]
        except FileNotFoundError:
            return []
        return sorted({span[1] for span in spans if span is not None})

    def _span(self, path: Path) -> tuple[int, int] | None:
        """The first and last step in a sealed segment, which never changes; None where its footer does not tell."""
        if path not in self._spans:
            self._spans[path] = steps_of(path)
        return self._spans[path]

    def tail(self, table: str, number: int, path: Path) -> StreamTail:
        """The open segment, read as far as it was when first asked for since `refresh`."""
        key = (table, number)
        tail = self._tails.get(key)
        if tail is None:
            tail = self._tails[key] = StreamTail(path, table)
        if key not in self._current:
            try:
                tail.read()
            except FileNotFoundError:
                raise
            except OSError as error:
                raise TraceError(f"cannot read {path}: {error.strerror or error}") from None
            self._current.add(key)
        return tail

    def problems(self) -> list[str]:
        """What is missing, torn or unfinished, in words; looks at the files anew."""
        found = []
        fresh = RankFolder(self.path)
        rows = []
        for table in TABLES:  # events come last, here and on disk: so no step that is whole looks unfinished
            segments = fresh.segments(table)
            numbers = [number for number, _ in segments]
            missing = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
            found += [f"{table}: segment {number} is missing" for number in missing]
            for number, path in segments:
                if path.suffix != ".arrows":
                    continue
                try:
                    tail = fresh.tail(table, number, path)
                except FileNotFoundError:
                    continue  # sealed meanwhile, so whole
                if tail.problem is not None:
                    found.append(tail.problem)
                if table != "events":
                    part = tail.rows()
                    rows.append((table, elements(part.column("step")), elements(part.column("optimizer"))))
        whole = fresh.whole()
        for table, steps, optimizers in rows:
            beyond = steps > _per_optimizer(optimizers, whole, -1)
            for optimizer in np.unique(optimizers[beyond]).tolist():
                own = steps[beyond & (optimizers == optimizer)]
                found.append(
                    f"step {int(own.min())} of optimizer {optimizer} was not finished:"
                    f" its {len(own)} rows of {table} are left out"
                )
        return found


def read_sealed(path: Path, table: str, selection: Selection, columns: Iterable[str]) -> Any:
    """The wanted rows of a Parquet segment, checked; string columns as dictionaries.

    One row group after the other is read and looked through: a segment that is read whole takes several times as long,
    and as much memory as all its rows, of which a stretch of steps is a small part.

    TraceError when the file is damaged or holds other columns; FileNotFoundError when it is gone.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(table)
    names = [name for name in schema.names if name in set(columns)]
    coded = [name for name in names if schema.field(name).type == pa.string() and name not in ("data", "text")]
    with _whole_file(path), pq.ParquetFile(path, read_dictionary=coded, page_checksum_verification=True) as file:
        found = file.schema_arrow
        types = {
            name: pa.dictionary(pa.int32(), pa.string()) if name in coded else schema.field(name).type for name in names
        }
        if found.names != schema.names or any(found.field(name).type != types[name] for name in names):
            raise TraceError(f"{path} does not hold the columns of {table}; was it written by another program?")
        metadata = file.metadata
        parts = [file.read_row_groups([], columns=names)]
        for group in selection.row_groups(metadata):
            rows = file.read_row_group(group, columns=names, use_threads=False)  # which twice as much time would take
            if rows.num_rows != metadata.row_group(group).num_rows:
                raise TraceError(f"{path} is damaged: it holds another number of rows than it says")
            rows.validate(full=True)
            if any(rows.column(name).null_count for name in names if not schema.field(name).nullable):
                raise TraceError(f"{path} is damaged: it has nulls where a trace has none")
            mask = selection.mask(rows)
            parts.append(rows if mask is None else _where(rows, mask))
    return pa.concat_tables(parts)


def steps_of(path: Path) -> tuple[int, int] | None:
    """The least and the largest step in a sealed segment, from its footer; None where that does not tell.

    TraceError when the file is damaged; FileNotFoundError when it is gone.
    """
    import pyarrow.parquet as pq

    with _whole_file(path), pq.ParquetFile(path) as file:
        metadata = file.metadata
        if "step" not in metadata.schema.names:
            return None
        column = metadata.schema.names.index("step")
        found = [metadata.row_group(number).column(column).statistics for number in range(metadata.num_row_groups)]
        if not found or any(one is None or not one.has_min_max for one in found):
            return None
        return min(one.min for one in found), max(one.max for one in found)


def _where(rows: Any, mask: npt.NDArray[np.bool_]) -> Any:
    """The rows of the mask: where they are most of the rows and stand together, without copying them."""
    count = int(np.count_nonzero(mask))
    if count == len(mask):
        return rows
    first = int(np.argmax(mask)) if count else 0
    if 2 * count > len(mask) and mask[first : first + count].all():
        return rows.slice(first, count)
    return rows.filter(booleans(mask))


def _coded(rows: Any) -> Any:
    """The rows with columns of strings as dictionaries."""
    import pyarrow as pa

    for number, field in enumerate(rows.schema):
        if field.type == pa.string():
            rows = rows.set_column(number, field.name, rows.column(number).dictionary_encode())
    return rows


@contextmanager
def _whole_file(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into a TraceError that names it."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OverflowError,
        MemoryError,
    ) as error:
        raise TraceError(f"{path} is damaged: {_first_line(error)}") from None


def last_steps(events: Any) -> dict[int, int]:
    """Optimizer to its last finished step, from rows of `events` (columns step, kind, optimizer, data)."""
    whole: dict[int, int] = {}
    for chunk in events.select(["step", "kind", "optimizer", "data"]).to_batches():
        kinds = chunk.column("kind").dictionary_encode()
        words = kinds.dictionary.to_pylist()
        codes = elements(kinds.indices)
        steps, optimizers = elements(chunk.column("step")), elements(chunk.column("optimizer"))
        if "step" in words:
            ends = codes == words.index("step")
            for optimizer in np.unique(optimizers[ends]).tolist():
                last = int(steps[ends & (optimizers == optimizer)].max())
                whole[optimizer] = max(last, whole.get(optimizer, last))
        if "recorder" in words:
            for row in np.flatnonzero((codes == words.index("recorder")) & (steps == 0)).tolist():
                if whole_step("recorder", event_data(chunk.column("data")[row].as_py())):
                    whole.setdefault(int(optimizers[row]), 0)
    return whole


def event_data(text: str) -> dict[str, Any]:
    """The JSON object of an event; TraceError if it is none."""
    import json

    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise TraceError(f"the events are damaged: {text[:60]!r} is no JSON object")
    return data


def _later(selection: Selection, after: Mapping[int, int], whole: Mapping[int, int]) -> Selection:
    """The selection narrowed to steps beyond the least of `after`, when every optimizer is in it."""
    if set(whole) - set(after):
        return selection
    least = min(after.values()) + 1
    first = least if selection.first is None else max(least, selection.first)
    return Selection(first, selection.last, selection.optimizer, selection.names)


def _per_optimizer(optimizers: npt.NDArray[Any], steps: Mapping[int, int], other: int) -> npt.NDArray[np.int64]:
    """For each row the number that `steps` gives for its optimizer."""
    limits = np.full(len(optimizers), other, np.int64)
    for optimizer, step in steps.items():
        limits[optimizers == optimizer] = step
    return limits


def _both(one: npt.NDArray[np.bool_] | None, other: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return other if one is None else one & other


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
