"""What the tables of a trace hold: columns with their Arrow types and meaning, and the number of the format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

FORMAT = 1
"""Format of the traces that this version writes; it reads this one and all earlier ones."""

SAMPLE_SLOTS = 16
SEGMENT_BYTES = 64 * 2**20
"""A stream that has grown to this size is closed and sealed."""

ROW_BYTES = 8 * (9 + SAMPLE_SLOTS)
"""Size of one `measure.ROW`: nine numbers of 8 bytes, then the sample."""


@dataclass(frozen=True)
class Column:
    """One stored column: its name, the name of its Arrow type, what it means."""

    name: str
    type: str
    doc: str
    nullable: bool = False


class Event(NamedTuple):
    """Something that happened in a recorded process; `seq` counts them, `step` is DESIGN's (completed steps)."""

    seq: int
    step: int
    kind: str
    optimizer: int
    data: dict[str, Any]


_KEYS = (
    Column("step", "int64", "the step's number, from 1; 0 is the world before step 1"),
    Column("optimizer", "int32", "the optimizer's index"),
)

COLUMNS: dict[str, tuple[Column, ...]] = {
    "groups": (
        *_KEYS,
        Column("group", "int32", "index into param_groups"),
        Column("key", "string", "the option's name; the i-th member of a tuple or list is `<name>.<i>`"),
        Column("kind", "string", "float, int, bool, str, none, or other (text holds the name of its type)"),
        Column("number", "double", "the value of a float, int or bool (0, 1); NaN for the other kinds"),
        Column("text", "string", "the value of a str; an int beyond 2**53 in hexadecimal; else empty"),
    ),
    "tensors": (
        *_KEYS,
        Column("group", "int32", "index of the group that holds the parameter"),
        Column("param", "string", "the parameter's name"),
        Column("quantity", "string", "param, grad, update, state.<key>, group.<key>, param_in, state_in.<key>"),
        Column("dtype", "string", "the tensor's dtype, in torch's words without `torch.`"),
        Column("numel", "int64", "number of elements; twice that for complex"),
        Column("present", "bool", "false for a gradient that was None"),
        Column("mean", "double", "mean of the finite elements; NaN if there is none"),
        Column("l1", "double", "sum of |x| over the finite elements"),
        Column("l2", "double", "square root of the sum of x*x over the finite elements"),
        Column("min", "double", "least finite element; NaN if there is none"),
        Column("max", "double", "greatest finite element; NaN if there is none"),
        Column("n_nan", "int64", "elements that are NaN"),
        Column("n_inf", "int64", "elements that are inf or -inf"),
        Column("n_zero", "int64", "elements that are 0.0 or -0.0"),
        Column("fingerprint", "int64", "64-bit hash of the values, as a signed number"),
        Column("sample", "sample", "16 elements at fixed indices as float64, padded with NaN"),
    ),
    "steps": (
        *_KEYS,
        Column("loss", "double", "mean over the roots of the backwards since the last step; null if none", True),
        Column("n_backward", "int64", "backward passes since the last step"),
        Column("n_skipped", "int64", "skipped steps since the last step"),
        Column("grad_norm", "double", "total norm before clipping, where a clip showed it; else null", True),
        Column("batch", "int64", "fingerprint of what DataLoaders yielded since the last step; null if nothing", True),
        Column("rng", "int64", "fingerprint of the generators' states at the first backward; null if unknown", True),
        Column("seconds", "double", "wall-clock seconds since the optimizer's last step ended; null if unknown", True),
    ),
    "events": (
        Column("seq", "int64", "position among the events of the process, from 1"),
        Column("step", "int64", "steps that the optimizer has completed; a `step` event has its own number"),
        Column("kind", "string", "what happened: backward, step, clip, recorder, user, ..."),
        Column("optimizer", "int32", "the optimizer's index; -1 when the event belongs to none"),
        Column("data", "string", "a JSON object, padded with spaces at its end"),
    ),
}

TABLES = tuple(COLUMNS)
"""The tables that are stored as segments, in the order in which a step is written; params is a JSON file."""

DERIVED = {"tensors": (Column("absmax", "double", "max(|min|, |max|): computed by the reader, not stored"),)}

PARAM_COLUMNS: tuple[Column, ...] = (
    Column("optimizer", "int", "the optimizer's index, in order of first step"),
    Column("optimizer_class", "str", "its class name"),
    Column("group", "int", "index into param_groups"),
    Column("index", "int", "position within the group"),
    Column("param", "str", "qualified name, unique within the optimizer"),
    Column("shape", "list of int", "sizes (of the whole tensor, for a shard)"),
    Column("stride", "list of int", "strides in elements"),
    Column("dtype", "str", "dtype in torch's words without `torch.`"),
    Column("device", "str", "like cpu, cuda:0"),
    Column("numel", "int", "number of elements (complex counts once here)"),
    Column("placement", "str or null", "how a DTensor is placed; null for a plain tensor"),
    Column("requires_grad", "bool", "whether gradients were asked for"),
)

SEGMENT_NAME = re.compile(r"(groups|tensors|steps|events)-([0-9]{8})\.(arrows|parquet)")
RANK_NAME = re.compile(r"rank=([0-9]{5,9})(?:\.([1-9][0-9]{0,5}))?")
CHILD_NAME = re.compile(r"child-([0-9]{1,9})")
VALUES_NAME = re.compile(r"([0-9]{8,18})(?:\.([1-9][0-9]{0,5}))?\.safetensors")


def segment_name(table: str, number: int, suffix: str) -> str:
    """Name of a table's `number`-th segment (from 1); suffix is `arrows` (a stream) or `parquet` (sealed)."""
    return f"{table}-{number:08d}.{suffix}"


@cache
def arrow_schema(table: str) -> Any:
    """The `pyarrow.Schema` of a stored table, the same in streams and sealed segments."""
    import pyarrow as pa

    types = {
        "int64": pa.int64(),
        "int32": pa.int32(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "string": pa.string(),
        "sample": pa.list_(pa.field("item", pa.float64(), nullable=False), SAMPLE_SLOTS),
    }
    return pa.schema([pa.field(column.name, types[column.type], nullable=column.nullable) for column in COLUMNS[table]])


def whole_step(kind: str, data: dict[str, Any]) -> bool:
    """Whether an event of this kind ends a step: a `step`, or the recorder's `begin`, which ends step 0."""
    return kind == "step" or (kind == "recorder" and data.get("what") == "begin")
