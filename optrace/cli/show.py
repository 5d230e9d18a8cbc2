"""`optrace show`: look at a recorded run, all of it on one screen or one of its tables."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optrace.errors import TraceError

if TYPE_CHECKING:
    import pandas as pd

    from optrace.compare.source import Source

TABLES = ("groups", "params", "steps", "tensors", "events")
FORMATS = ("table", "csv", "json")
_ROWS_AT_ONCE = 2000


@click.command(
    name="show",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0, or 2 for any trouble; with --verify 1 when the trace is damaged.",
)
@click.argument("run", metavar="[RUN]", required=False)
@click.argument("table", metavar="[groups|params|steps|tensors|events]", required=False)
@click.option("--step", metavar="N", help="Only step N, or steps A:B.")
@click.option("--param", metavar="GLOB", help="Only parameters of this name or glob.")
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS, case_sensitive=False),
    default="table",
    help="table, csv or json (one row a line).",
)
@click.option("--verify", is_flag=True, help="Read every file to its last byte and check it.")
@click.option("--follow", is_flag=True, help="Go on printing rows (default: of steps) until the recording ends.")
def command(
    run: str | None, table: str | None, step: str | None, param: str | None, form: str, verify: bool, follow: bool
) -> int:
    """Show a run: without a table an overview on one screen.

    RUN is a run's folder, RUN@1 or RUN@SGD (one optimizer of it), RUN@rank=3, RUN@500:600; default: the latest run.
    The tables in full are `--format csv` and `--format json`; the eye's version leaves out what says nothing.
    """
    from optrace.compare.source import open_source

    if run in TABLES and table not in TABLES:
        run, table = table, run
    if table is not None and table not in TABLES:
        if Path(table).is_dir():
            raise click.UsageError(f"show reads one run; to compare the two: optrace diff {run} {table}")
        near = [name for name in TABLES if name.startswith(table.lower()[:4])]
        advice = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(TABLES)}"
        raise click.UsageError(f"there is no table {table!r}; {advice}")
    if table is None and (follow or step or param or form != "table") and not verify:
        if not follow:
            raise click.UsageError(f"name the table that is meant: {', '.join(TABLES)}")
        table = "steps"
    if run == "":
        raise click.UsageError("the run's name is empty; name a run, or leave it out for the latest")
    source = open_source(run or "latest")
    if not source.recorded:
        raise TraceError(f"{source.spec} is no recorded run; show reads runs")
    if not verify and not follow and source.steps != (None, None):
        _refuse_missing_step(source, source.spec.rpartition("@")[2], *source.steps)
    if verify:
        return _verify(source)
    if table is None:
        from optrace.cli.output import colorful, emit
        from optrace.views.overview import overview

        emit(overview(source, colorful()), None, TraceError)
        return 0
    selection = _selection(source, table, step, param)
    frames = _followed(source, table, selection) if follow else _stretches(source, table, selection)
    if not _print(frames, table, form) and not follow:
        if step is not None or param is not None:
            what = " and ".join(f"{name} {value}" for name, value in (("step", step), ("param", param)) if value)
            raise TraceError(f"{source.name} recorded no {table} of {what}")
        click.echo("no rows", err=True)
    return 0


def _verify(source: Source) -> int:
    problems = source.trace.verify()  # type: ignore[attr-defined]
    for problem in problems:
        click.echo(problem)
    if not problems:
        click.echo(f"{source.name} is whole: every file reads to its last byte and agrees with the others")
    return 1 if problems else 0


def _selection(source: Source, table: str, step: str | None, param: str | None) -> dict[str, Any]:
    """What to read of the table; TraceError for a step or parameter that the run does not have."""
    selection: dict[str, Any] = {}
    everything = dict(source.trace.optimizers)
    if len(source.optimizers) == 1 and len(everything) > 1:
        selection["optimizer"] = source.optimizers[0]
    elif set(source.optimizers) != set(everything):
        raise TraceError(f"{source.spec} means several optimizers; show one: {source.spec.partition('@')[0]}@0")
    low, high = source.steps
    if step is not None:
        if table == "params":
            raise TraceError("params has no steps; leave --step out")
        from optrace.recorder.settings import parse_steps

        low, high = parse_steps(step)
        if low is not None and high is not None and low > high:
            raise TraceError(f"--step {step} holds no step; write FIRST:LAST")
        _refuse_missing_step(source, step, low, high)
    if (low, high) != (None, None):
        selection["step"] = (low, high)
    if param is not None:
        if table not in ("params", "tensors"):
            raise TraceError(f"{table} has no parameters; --param goes with params and tensors")
        _refuse_missing_param(source, param)
        selection["param"] = param
    return selection


def _refuse_missing_step(source: Source, step: str, low: int | None, high: int | None) -> None:
    from optrace.compare.arrow import integers

    steps = integers(source.trace.arrow("events", columns=["step"]).column("step"))
    last = int(steps.max(initial=0))
    if (low is not None and low > last) or (high is not None and high < 0):
        raise TraceError(f"{source.name} has no step {step}; its last is {last}")


def _refuse_missing_param(source: Source, param: str) -> None:
    from difflib import get_close_matches
    from fnmatch import fnmatchcase

    from optrace.compare.source import param_rows

    names = list(dict.fromkeys(row["param"] for row in param_rows(source)))
    if any(name == param or fnmatchcase(name, param) for name in names):
        return
    near = get_close_matches(param, names, n=3, cutoff=0.5) or [name for name in names if param.strip("*") in name][:3]
    advice = f"near it are {', '.join(near)}" if near else f"it has {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
    raise TraceError(f"{source.name} has no parameter {param!r}; {advice}")


def _stretches(source: Source, table: str, selection: dict[str, Any]) -> Iterator[pd.DataFrame]:
    """The table in stretches of steps, so that a long run needs no more memory than a short one."""
    trace: Any = source.trace
    if table == "params":
        yield trace.table(table, **selection)
        return
    from optrace.compare.arrow import integers

    counted = {key: value for key, value in selection.items() if table == "tensors" or key != "param"}
    steps = integers(trace.arrow(table, columns=["step"], **counted).column("step"))
    if table == "events" or len(steps) <= 2 * _ROWS_AT_ONCE:
        yield trace.table(table, **selection)
        return
    import numpy as np

    known, counts = np.unique(steps, return_counts=True)
    parts = (np.cumsum(counts) - 1) // _ROWS_AT_ONCE
    for part in np.unique(parts):
        own = known[parts == part]
        yield trace.table(table, **{**selection, "step": (int(own[0]), int(own[-1]))})


def _followed(source: Source, table: str, selection: dict[str, Any]) -> Iterator[pd.DataFrame]:
    """Rows as they are finished, until the recording ends or Ctrl-C."""
    from fnmatch import fnmatchcase

    if table == "params":
        raise TraceError("params does not grow; --follow goes with groups, steps, tensors and events")
    low, high = selection.get("step", (None, None))
    try:
        for frame in source.trace.follow(table):  # type: ignore[attr-defined]
            kept = frame["step"].ge(0 if low is None else low)
            kept &= frame["step"].le(frame["step"].max() if high is None else high)
            if "optimizer" in selection:
                kept &= frame["optimizer"].eq(selection["optimizer"])
            if "param" in selection:
                kept &= frame["param"].map(lambda name: fnmatchcase(name, selection["param"]))
            if kept.any():
                yield frame[kept]
    except KeyboardInterrupt:
        return


def _print(frames: Iterator[pd.DataFrame], table: str, form: str) -> int:
    """Print all rows; how many there were."""
    from optrace.cli.output import colorful
    from optrace.views.trace_table import table_csv, table_json, table_text

    color = colorful()
    columns: list[str] | None = None
    count = 0
    for frame in frames:
        if not len(frame):
            continue
        if form == "table":
            lines = table_text(frame, table, color)
        elif form == "csv":
            header = columns != list(frame.columns)
            if header and columns is not None and set(frame.columns) <= set(columns):
                frame = frame.reindex(columns=columns)
                header = False
            lines = table_csv(frame, table, header=header)
            columns = list(frame.columns)
        else:
            lines = table_json(frame, table)
        count += len(frame)
        for line in lines:
            click.echo(line)
        sys.stdout.flush()
    return count
