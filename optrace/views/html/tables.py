"""The tables of the page: parameters and their health, groups, clips, and where a run came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from optrace.compare.source import Source
from optrace.trace.reader import Trace
from optrace.views.cells import hyper_text, short_number
from optrace.views.html.charts import Table, ratio

_LEFT_OUT = ("format", "distributions", "optimizers", "unsealed")


def health_rows(table: Table) -> list[dict[str, Any]]:
    """One row a parameter: size, update-to-weight ratio, share of zero updates, NaN and inf, steps without gradient."""
    grid = table.grids[-1]
    ratios = ratio(grid)
    rows = []
    for i, label in enumerate(table.labels):
        known = np.isfinite(grid.n_zero[i])
        total = known.sum() * max(int(grid.numel[i]), 1)
        zero = float(np.nansum(grid.n_zero[i])) / total if total else None
        finite = ratios[i][np.isfinite(ratios[i])]
        bad, absent, seen = int(grid.n_bad[i].sum()), int(grid.absent[i].sum()), len(grid.steps)
        moved = bool(np.nansum(grid.l2.get("update", np.zeros((len(table.labels), 1)))[i]) > 0)
        words = []
        if absent and absent == seen:
            words.append("dead: never a gradient")
        elif seen and not moved and known.any():
            words.append("never moved")
        if bad:
            words.append("nan or inf")
        rows.append(
            {
                "param": label,
                "numel": f"{int(grid.numel[i]):,}",
                "ratio": short_number(float(np.median(finite)), 3) if len(finite) else "",
                "zero": "" if zero is None else f"{zero:.1%}",
                "bad": f"{bad:,}" if bad else "",
                "absent": f"{absent:,}" if absent else "",
                "words": ", ".join(words),
            }
        )
    return rows


def not_finite_words(table: Table, side: int) -> str:
    """Since when parameters or gradients of a side hold NaN or inf, and which first; empty where none does."""
    bad = table.grids[side].n_bad > 0
    if not bad.any():
        return ""
    first = int(np.argmax(bad.any(axis=0)))
    where = [table.labels[i] for i in np.flatnonzero(bad[:, first])]
    more = f" and {len(where) - 3} more" if len(where) > 3 else ""
    return f"NaN or inf since step {table.steps[first]}, in {', '.join(where[:3])}{more}"


def group_table(source: Source) -> tuple[list[str], list[list[str]]]:
    """The groups at their first recorded step: columns, and one row a group."""
    assert isinstance(source.trace, Trace)
    frame = source.trace.groups
    if not len(frame):
        return [], []
    first = frame.groupby(["optimizer", "group"], sort=True).head(1)
    counts = source.trace.params.groupby(["optimizer", "group"]).size()
    keys = [str(key) for key in first.columns[3:]]
    rows = [
        [str(record["optimizer"]), str(record["group"]), str(counts.get((record["optimizer"], record["group"]), 0))]
        + ["" if _is_nan(record[key]) else hyper_text(record[key]) for key in keys]
        for record in first.to_dict("records")
    ]
    return ["optimizer", "group", "parameters", *keys], rows


def clip_words(source: Source) -> str:
    """How often gradients were clipped, in a sentence; empty where no clip was seen."""
    assert isinstance(source.trace, Trace)
    events = source.trace.events
    clips = [data for kind, data in zip(events["kind"], events["data"], strict=True) if kind == "clip"]
    norms = [
        c for c in clips if isinstance(c.get("total_norm"), int | float) and isinstance(c.get("max_norm"), int | float)
    ]
    if not clips:
        return ""
    acted = sum(c["total_norm"] > c["max_norm"] for c in norms)
    return f"{len(clips):,} clips; the norm was above its limit at {acted:,} of the {len(norms):,} whose norm is known"


def provenance_rows(sources: Sequence[Source]) -> list[tuple[str, list[str], bool]]:
    """Key, what each side says, and whether they differ."""
    flats = [dict(_flat(source)) for source in sources]
    rows = []
    for key in dict.fromkeys(key for flat in flats for key in flat):
        values = [flat.get(key, "") for flat in flats]
        rows.append((key, values, len(set(values)) > 1))
    return rows


def _flat(source: Source) -> Iterator[tuple[str, str]]:
    for info in (source.trace.info, source.trace.rank_info):
        yield from _leaves("", info)


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if prefix or key not in _LEFT_OUT:
                yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list | tuple):
        yield prefix, " ".join(str(item) for item in value)
    elif value is not None:
        yield prefix, str(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value
