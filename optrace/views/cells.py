"""One value of a trace as text: short for tables, whole for CSV and JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from optrace.compare.report import strict

HEX_COLUMNS = frozenset({"fingerprint", "batch", "rng"})
"""Columns of 64-bit hashes, shown as 16 hexadecimal digits."""


def plain(value: Any) -> Any:
    """A value without NumPy and pandas: Python scalars, lists, None for what is missing."""
    if value is None or isinstance(value, str | bool | int | float | dict):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    return None if str(value) in ("<NA>", "NaT") else value


def whole(column: str, value: Any) -> Any:
    """A value in full: hashes as 16 hexadecimal digits, all else plain."""
    value = plain(value)
    if column in HEX_COLUMNS and isinstance(value, int):
        return hexadecimal(value)
    return value


def hexadecimal(number: int) -> str:
    """A signed 64-bit number as 16 hexadecimal digits."""
    return f"{number & (2**64 - 1):016x}"


def csv_cell(value: Any) -> str:
    """A plain value in a CSV file: floats in their shortest form that reads back, lists and dicts as JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, list | dict):
        return json.dumps(strict(value), separators=(",", ":"), ensure_ascii=False)
    return str(value)


def number_text(value: float) -> str:
    """A float in its shortest form that reads back: `0.01`, `1e-08`, `3.0`, `nan`, `inf`."""
    return repr(float(value))


def short_number(value: float, digits: int = 6) -> str:
    """A float in so many digits; a whole number without its `.0`."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.{digits}g}"


def hyper_text(value: Any) -> str:
    """A hyper-parameter: numbers in their shortest form, 3.0 as 3."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return number_text(value) if isinstance(value, float) else str(value)
