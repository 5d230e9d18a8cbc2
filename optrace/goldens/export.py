"""Prints a golden case as literals for a test file in Rust, C, Swift, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from optrace.errors import GoldenError
from optrace.goldens.format import Golden, Row, write_number


def export_text(golden: Golden, language: str) -> str:
    """The whole case: header, tolerances, and every row with step, group, param, quantity, shape and values.

    Args:
        golden: any case.
        language: rust, c, swift or json.

    Raises:
        GoldenError: another language.
    """
    writers: dict[str, Callable[[Golden], str]] = {"rust": _rust, "c": _c, "swift": _swift, "json": _json}
    if language not in writers:
        raise GoldenError(f"goldens are exported as {', '.join(writers)}, not {language!r}")
    return writers[language](golden)


def _comment(golden: Golden, mark: str) -> list[str]:
    lines = [f"golden {golden.name} of optrace", f"hyper {json.dumps([dict(g) for g in golden.hyper])}"]
    return [f"{mark} {line}" for line in lines + [f"{key}: {value}" for key, value in golden.notes.items()]]


def _name(golden: Golden) -> str:
    return "".join(c if c.isalnum() else "_" for c in golden.name)


def _numbers(row: Row, special: dict[str, str]) -> str:
    texts = [write_number(value) for value in row.values.reshape(-1)]
    return ", ".join(special.get(text, text) for text in texts)


def _shape(row: Row) -> str:
    return ", ".join(map(str, row.values.shape))


def _quoted(text: str) -> str:
    return json.dumps(text)


def _rust(golden: Golden) -> str:
    special = {"nan": "f64::NAN", "inf": "f64::INFINITY", "-inf": "f64::NEG_INFINITY"}
    name = _name(golden).upper()
    lines = [
        *_comment(golden, "//"),
        "pub struct Row {",
        "    pub step: u32,",
        "    pub group: u32,",
        "    pub param: &'static str,",
        "    pub quantity: &'static str,",
        "    pub shape: &'static [usize],",
        "    pub values: &'static [f64],",
        "}",
        f"pub const {name}_TOLERANCE_STEP: f64 = {write_number(golden.tolerance_step)};",
        f"pub const {name}_TOLERANCE_FREE: f64 = {write_number(golden.tolerance_free)};",
        f"pub static {name}: &[Row] = &[",
    ]
    for row in golden.rows:
        values = _numbers(row, special)
        lines.append(
            f"    Row {{ step: {row.step}, group: {row.group}, param: {_quoted(row.param)}, quantity: "
            f"{_quoted(row.quantity)}, shape: &[{_shape(row)}], values: &[{values}] }},"
        )
    return "\n".join([*lines, "];", ""])


def _c(golden: Golden) -> str:
    special = {"nan": "NAN", "inf": "INFINITY", "-inf": "-INFINITY"}
    name = _name(golden)
    lines = [
        *_comment(golden, "//"),
        "#include <math.h>",
        "#include <stddef.h>",
        "#ifndef OPTRACE_GOLDEN_ROW",
        "#define OPTRACE_GOLDEN_ROW",
        "struct golden_row {",
        "    int step, group;",
        "    const char *param, *quantity;",
        "    size_t ndim, numel;",
        "    const size_t *shape;",
        "    const double *values;",
        "};",
        "#endif",
        f"#define {name.upper()}_TOLERANCE_STEP {write_number(golden.tolerance_step)}",
        f"#define {name.upper()}_TOLERANCE_FREE {write_number(golden.tolerance_free)}",
    ]
    rows: list[str] = []
    for number, row in enumerate(golden.rows):
        shape, values = f"{name}_{number}_shape", f"{name}_{number}"
        lines.append(f"static const size_t {shape}[] = {{{_shape(row) or '1'}}};")
        lines.append(f"static const double {values}[] = {{{_numbers(row, special) or '0'}}};")
        rows.append(
            f"    {{{row.step}, {row.group}, {_quoted(row.param)}, {_quoted(row.quantity)}, "
            f"{row.values.ndim}, {row.values.size}, {shape}, {values}}},"
        )
    lines += [f"static const struct golden_row {name}[] = {{", *rows, "};"]
    return "\n".join([*lines, f"static const size_t {name}_rows = {len(rows)};", ""])


def _swift(golden: Golden) -> str:
    special = {"nan": "Double.nan", "inf": "Double.infinity", "-inf": "-Double.infinity"}
    name = _name(golden)
    lines = [
        *_comment(golden, "//"),
        f"enum {name} {{",
        "    struct Row {",
        "        let step: Int, group: Int, param: String, quantity: String, shape: [Int], values: [Double]",
        "    }",
        f"    static let toleranceStep: Double = {write_number(golden.tolerance_step)}",
        f"    static let toleranceFree: Double = {write_number(golden.tolerance_free)}",
        "    static let rows: [Row] = [",
    ]
    lines += [
        f"        Row(step: {row.step}, group: {row.group}, param: {_quoted(row.param)}, quantity: "
        f"{_quoted(row.quantity)}, shape: [{_shape(row)}], values: [{_numbers(row, special)}]),"
        for row in golden.rows
    ]
    return "\n".join([*lines, "    ]", "}", ""])


def _json(golden: Golden) -> str:
    rows: Sequence[dict[str, Any]] = [
        {
            "step": row.step,
            "group": row.group,
            "param": row.param,
            "quantity": row.quantity,
            "shape": list(row.values.shape),
            "values": [_json_number(write_number(value)) for value in row.values.reshape(-1)],
        }
        for row in golden.rows
    ]
    head = {
        "rule": golden.rule,
        "case": golden.case,
        "dtype": golden.dtype,
        "hyper": [dict(group) for group in golden.hyper],
        "tolerance_step": golden.tolerance_step,
        "tolerance_free": golden.tolerance_free,
        **golden.notes,
    }
    body = ",\n".join("  " + json.dumps(row) for row in rows)
    return json.dumps(head)[:-1] + ', "rows": [\n' + body + "\n]}\n"


def _json_number(text: str) -> float | str:
    return text if text in ("nan", "inf", "-inf") else float(text)
