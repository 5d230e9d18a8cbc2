"""The tables of a trace: as text for the eye, as CSV or JSON lines in full for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from optrace.compare.report import strict
from optrace.views.cells import csv_cell, hexadecimal, hyper_text, plain, short_number, whole
from optrace.views.style import Style
from optrace.views.tables import Table, render

if TYPE_CHECKING:
    import pandas as pd

_HIDDEN = {
    "params": ("index", "stride", "numel", "placement"),
    "tensors": ("numel", "absmax", "l1", "sample", "present", "fingerprint"),
    "steps": (),
}
_KEYS = ("step", "optimizer", "group")


def table_text(frame: pd.DataFrame, name: str, color: bool = False) -> Iterator[str]:
    """A frame of table `name` as lines for the eye, at most 100 characters wide.

    Statistics have six digits, hyper-parameters all; columns that say nothing (one optimizer, no NaN anywhere, one
    dtype) and l1, absmax, fingerprint and sample are left out. A gradient that was None says so in the place of dtype.
    """
    if name == "events":
        yield from _events_text(frame, color)
        return
    columns = [column for column in frame.columns if column not in _HIDDEN.get(name, ())]
    cells = {column: [_cell(name, column, value) for value in frame[column].tolist()] for column in columns}
    if name == "tensors":
        for row, present in enumerate(frame["present"].tolist()):
            if not present:
                cells["dtype"][row] = "None"
                for column in ("mean", "l2", "min", "max", "n_nan", "n_inf", "n_zero"):
                    cells[column][row] = ""
    kept = [column for column in columns if not _says_nothing(name, column, cells[column])]
    rows = [[cells[column][row] for column in kept] for row in range(len(frame))]
    yield from render(Table([_title(column) for column in kept], rows), Style(color))


def table_csv(frame: pd.DataFrame, name: str, *, header: bool) -> Iterator[str]:
    """A frame as lines of CSV with every column in full; options that a group lacks are empty."""
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = list(frame.columns)
    if header:
        writer.writerow(columns)
    for values in _rows(frame, name):
        writer.writerow([csv_cell(value) if column in values else "" for column, value in _pairs(columns, values)])
    yield from buffer.getvalue().splitlines()


def table_json(frame: pd.DataFrame, name: str) -> Iterator[str]:
    """A frame as JSON objects, one a row and a line; options that a group lacks are left out.

    Strict: numbers that are not finite are the strings "nan", "inf" and "-inf".
    """
    for values in _rows(frame, name):
        yield json.dumps(strict(values), allow_nan=False, ensure_ascii=False)


def _pairs(columns: list[str], values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((column, values.get(column)) for column in columns)


def _rows(frame: pd.DataFrame, name: str) -> Iterator[dict[str, Any]]:
    columns = list(frame.columns)
    for row in zip(*(frame[column].tolist() for column in columns), strict=True):
        values = {column: whole(column, value) for column, value in zip(columns, row, strict=True)}
        if name == "groups":
            values = {key: value for key, value in values.items() if key in _KEYS or not _is_nan(value)}
        if name == "tensors":
            values["sample"] = values["sample"][: min(values["numel"], len(values["sample"]))]
        if name == "steps":
            values = {key: None if _is_nan(value) and key != "loss" else value for key, value in values.items()}
        yield values


def _cell(name: str, column: str, value: Any) -> str:
    value = plain(value)
    if value is None:
        return "None" if name == "groups" else ""
    if column in ("fingerprint", "batch", "rng"):
        return hexadecimal(value)
    if isinstance(value, float):
        if name == "groups":
            return "" if math.isnan(value) else hyper_text(value)
        return "" if math.isnan(value) and name == "steps" else short_number(value)
    if isinstance(value, list):
        return "x".join(map(str, value)) if value else "()"
    return str(value)


def _title(column: str) -> str:
    return {"optimizer": "opt", "optimizer_class": "class"}.get(column, column)


def _says_nothing(name: str, column: str, cells: list[str]) -> bool:
    values = set(cells)
    if len(values) != 1:
        return False
    (only,) = values
    if name == "tensors" and column == "dtype":
        return only != "None"
    boring = {
        "optimizer": {"0"},
        "n_nan": {"0", ""},
        "n_inf": {"0", ""},
        "n_skipped": {"0"},
        "device": {"cpu"},
        "requires_grad": {"True"},
        "group": {"0"} if name == "tensors" else set(),
    }
    return only in boring.get(column, set()) or only == ""


def _events_text(frame: pd.DataFrame, color: bool) -> Iterator[str]:
    """Events with their data as `key=value`, uncut: a line may be longer than the table's width."""
    rows = []
    for seq, step, kind, optimizer, data in zip(
        *(frame[column].tolist() for column in ("seq", "step", "kind", "optimizer", "data")), strict=True
    ):
        facts = data if isinstance(data, dict) else {}
        words = " ".join(f"{key}={_fact(value)}" for key, value in facts.items())
        rows.append([str(seq), str(step), "" if optimizer < 0 else str(optimizer), kind, words])
    yield from render(Table(("seq", "step", "opt", "kind", "data"), rows), Style(color))


def _fact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(strict(value), separators=(",", ":"), ensure_ascii=False)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
