"""Tables of text that fit a terminal: columns as wide as they need, long cells cut in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optrace.views.style import Style

WIDTH = 100
_GAP = "  "
_LEAST = 6
_BEARABLE = 12


@dataclass(frozen=True)
class Table:
    """Names of the columns and rows of cells, all as text."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(table: Table, style: Style | None = None, width: int = WIDTH) -> list[str]:
    """The table as lines of at most `width` characters: numbers to the right, empty columns left out.

    Where the columns do not fit, the widest are cut (`first.we~ght`), and columns that do not fit even so go into
    further blocks of lines below, each beginning with the first column.
    """
    style = style or Style(False)
    keep = [i for i in range(len(table.columns)) if not table.rows or any(row[i] for row in table.rows)]
    columns = [table.columns[i] for i in keep]
    rows = [[printable(row[i]) for i in keep] for row in table.rows]
    needed = [max([len(columns[i]), *(len(row[i]) for row in rows)]) for i in range(len(columns))]
    lines: list[str] = []
    for block in _blocks(needed, width):
        widths = _fit([needed[i] for i in block], width)
        right = [_is_number_column([row[i] for row in rows]) for i in block]
        if lines:
            lines.append("")
        lines.append(style.label(_line([columns[i] for i in block], widths, right)))
        lines += [_line([row[i] for i in block], widths, right) for row in rows]
    return lines


def printable(text: str) -> str:
    """Text without line breaks and control characters, which names from a stranger's trace may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text: str, width: int) -> str:
    """Text in at most `width` characters, its middle replaced by `~`: the ends of a parameter's name tell the most."""
    if len(text) <= width:
        return text
    head = (width - 1) // 3
    return text[:head] + "~" + text[len(text) - (width - 1 - head) :]


def _blocks(needed: Sequence[int], width: int) -> list[list[int]]:
    """Columns that can stand side by side if each is cut to at least what it can bear; the first is in every block."""
    if not needed:
        return []
    least = [min(size, _BEARABLE) for size in needed]
    blocks: list[list[int]] = [[]]
    used = 0
    for column, size in enumerate(least):
        if blocks[-1] and used + len(_GAP) + size > width:
            blocks.append([0])
            used = least[0]
        used += size + (len(_GAP) if blocks[-1] else 0)
        blocks[-1].append(column)
    return blocks


def _fit(needed: Sequence[int], width: int) -> list[int]:
    """Widths of columns, the widest cut first until all fit."""
    widths = list(needed)
    room = width - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _LEAST:
        widest = max(widths)
        second = max((size for size in widths if size < widest), default=_LEAST)
        count = widths.count(widest)
        excess = sum(widths) - room
        lower = max(second, widest - -(-excess // count), _LEAST)
        widths = [lower if size == widest else size for size in widths]
    return widths


def _is_number_column(cells: Sequence[str]) -> bool:
    filled = [cell for cell in cells if cell and cell != "-"]
    return bool(filled) and all(_is_number(cell) for cell in filled)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    parts = []
    for cell, width, is_right in zip(cells, widths, right, strict=True):
        text = cut(cell, width)
        parts.append(text.rjust(width) if is_right else text.ljust(width))
    return _GAP.join(parts).rstrip()
