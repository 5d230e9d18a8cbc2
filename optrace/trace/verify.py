"""The deep check of a trace: every byte read, and the files checked against each other."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from optrace.errors import TraceError
from optrace.trace.arrays import elements
from optrace.trace.blocks import Blocks
from optrace.trace.measure import fingerprint
from optrace.trace.rank import event_data
from optrace.trace.schema import PARAM_COLUMNS
from optrace.trace.values import ValuesFile
from optrace.trace.whole import values_files

if TYPE_CHECKING:
    from optrace.trace.reader import Trace

_CANONICAL_NAN = np.uint64(0x7FF8000000000000)


def verify(trace: Trace) -> list[str]:
    """What is wrong with the files of a trace, in words; all ranks when the trace is that of a run."""
    if not trace.ranks:
        return trace.problems
    found = []
    for part in trace.parts():
        assert part.rank_path is not None
        name = part.rank_path.name
        checks = (_problems, _rank_info, _params, _events, _tensors, _other_tables, _values)
        for check in checks:
            try:
                found += [f"{name}: {text}" for text in check(part)]
            except TraceError as error:
                found.append(f"{name}: {error}")
    return list(dict.fromkeys(found))


def _problems(trace: Trace) -> list[str]:
    return trace.problems


def _rank_info(trace: Trace) -> list[str]:
    return [] if isinstance(trace.rank_info.get("end", ""), str) else ["rank.json: `end` is no text"]


def _params(trace: Trace) -> list[str]:
    frame = trace.params
    if not len(frame):
        return ["params.json is missing or empty"]
    missing = [
        column.name for column in PARAM_COLUMNS if not column.type.endswith("null") and frame[column.name].isna().any()
    ]
    return [f"params.json: {name} is missing in some rows" for name in missing]


def _events(trace: Trace) -> list[str]:
    found = []
    rows = trace.arrow("events")
    seq = elements(rows.column("seq"))
    if len(np.unique(seq)) < len(seq):
        found.append("events: a seq occurs twice")
    for text in rows.column("data").to_pylist():
        event_data(text)
    kinds = np.array(rows.column("kind").to_pylist(), object)
    steps, optimizers = elements(rows.column("step")), elements(rows.column("optimizer"))
    for optimizer in np.unique(optimizers).tolist():
        own = steps[(optimizers == optimizer) & (kinds == "step")]
        if (np.diff(own) != 1).any():
            found.append(f"events: the steps of optimizer {optimizer} are not numbered one after the other")
    return found


def _tensors(trace: Trace) -> list[str]:
    import pyarrow.compute as pc

    rows = trace.arrow("tensors")
    found = []
    numbers = {name: elements(rows.column(name)) for name in ("step", "optimizer", "numel", "n_nan", "n_inf", "n_zero")}
    counts = numbers["n_nan"] + numbers["n_inf"] + numbers["n_zero"]
    wrong = (numbers["n_nan"] < 0) | (numbers["n_inf"] < 0) | (numbers["n_zero"] < 0) | (counts > numbers["numel"])
    if wrong.any():
        found.append(f"tensors: {int(wrong.sum())} rows count more special elements than the tensor has")
    codes = [_codes(rows.column(name)) for name in ("param", "quantity")]
    nameless = pc.equal(rows.column("param"), "").to_numpy()
    groups = np.where(nameless, elements(rows.column("group")), 0)  # each group has a `group.<key>` of its own
    keys = np.stack([numbers["step"], numbers["optimizer"].astype(np.int64), groups, *codes])
    if keys.shape[1]:
        keys = keys[:, np.lexsort(keys)]
        twice = int((np.diff(keys, axis=1) == 0).all(axis=0).sum())
        if twice:
            found.append(f"tensors: {twice} rows occur twice")
    return found


def _other_tables(trace: Trace) -> list[str]:
    found = []
    for name in ("groups", "steps"):
        rows = trace.arrow(name)
        columns = ["step", "optimizer"] + (["group", "key"] if name == "groups" else [])
        keys = np.stack([_codes(rows.column(column)) for column in columns])
        if keys.shape[1]:
            keys = keys[:, np.lexsort(keys)]
            twice = int((np.diff(keys, axis=1) == 0).all(axis=0).sum())
            if twice:
                found.append(f"{name}: {twice} rows occur twice")
    return found


def _values(trace: Trace) -> list[str]:
    assert trace.rank_path is not None
    found = []
    blocks = Blocks({0: trace.params_rows()})
    for step, paths in values_files(trace.rank_path).items():
        rows = trace.arrow("tensors", step=step, columns=["optimizer", "param", "quantity", "present", "fingerprint"])
        known = {f"{r['optimizer']}/{r['quantity']}/{r['param']}": r for r in rows.to_pylist()}
        for path in paths:
            file = ValuesFile(path)
            for key in file.keys():
                row = known.get(key)
                if row is None:
                    found.append(f"values/{path.name}: {key} has no row in tensors")
                elif fingerprint(_in_place(_hashed(file, key), blocks, row)) != row["fingerprint"] % 2**64:
                    found.append(f"values/{path.name}: {key} does not have the fingerprint of its row")
    return found


def _in_place(values: Any, blocks: Blocks, row: dict[str, Any]) -> Any:
    """A rank's block where it lies in the whole tensor, with zeros around it, which count nothing."""
    held = blocks.split(row["optimizer"], row["param"], row["quantity"]).blocks
    if not held or math.prod(held[0].shape) != values.size:
        return values
    whole = np.zeros(held[0].of, values.dtype)
    whole[tuple(slice(o, o + n) for o, n in zip(held[0].offset, held[0].shape, strict=True))] = values.reshape(
        held[0].shape
    )
    return whole


def _hashed(file: ValuesFile, key: str) -> Any:
    """The values as they were hashed: an update's NaNs all alike."""
    values = file.read(key)
    if key.split("/", 2)[1] != "update" or not np.isnan(values).any():
        return values
    bits = values.astype(np.float64).view(np.uint64)
    bits[np.isnan(values)] = _CANONICAL_NAN
    return bits.view(np.float64)


def _codes(column: Any) -> Any:
    """Equal entries as equal int64 numbers."""
    import pyarrow as pa

    if pa.types.is_string(column.type):
        return elements(column.combine_chunks().dictionary_encode().indices).astype(np.int64)
    return elements(column).astype(np.int64)
