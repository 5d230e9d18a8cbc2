"""Writing the page: the public `optrace.report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from optrace.compare.align import align_steps
from optrace.compare.lint.run import lint
from optrace.compare.match import match_sources
from optrace.compare.names import Renaming
from optrace.compare.report import DiffReport
from optrace.compare.run import diff
from optrace.compare.source import Source, distinct_names, open_source
from optrace.compare.words import sentences
from optrace.errors import OptraceError, TraceError
from optrace.trace.logical import LogicalTrace
from optrace.trace.reader import Trace
from optrace.views.html.charts import Row, chart_data, event_data, hyper_data, loss_data, read_table
from optrace.views.html.pack import script_json
from optrace.views.html.tables import clip_words, group_table, health_rows, not_finite_words, provenance_rows

_HERE = Path(__file__).parent


def report(
    run: str | Path | Trace, run_b: str | Path | Trace | None = None, *, output: str | Path = "report.html"
) -> Path:
    """Write one HTML file about a run, or about two and where they part; it needs no network and no other file.

    Args:
        run: a run folder, `RUN@1` or `RUN@SGD` (an optimizer), `RUN@rank=3`, `RUN@500:600` (steps), or an open Trace.
        run_b: the run to compare with it, likewise; None: a page about `run` alone.
        output: where the page goes; an existing file is replaced.

    Returns:
        The path written.

    Raises:
        TraceError: a run is missing or unreadable, or has no step.
        CompareError: the two have no parameter or no step in common.
        OptraceError: Jinja2 is not installed, or the file cannot be written.
    """
    template = _template()
    sources = [open_source(run)] if run_b is None else [open_source(run), open_source(run_b)]
    for source in sources:
        if not isinstance(source.trace, Trace):
            raise TraceError(f"{source.spec} is no recorded run; report draws runs")
    names = [sources[0].name] if run_b is None else list(distinct_names(*sources))
    compared = None if run_b is None else diff(cast(Any, run), cast(Any, run_b))
    rows = _rows(sources)
    found = compared.first if compared is not None else None
    first = (found.param, found.step) if found is not None and found.param is not None else None
    table = read_table(sources, rows, first)
    if not len(table.steps):
        raise TraceError(f"{sources[0].spec} has no finished step to draw")
    data = chart_data(table, names, first)
    data |= {
        "hyper": hyper_data(sources, table.rows),
        "losses": loss_data(sources, table.rows),
        "events": event_data(sources, table.rows),
        "first_step": found.step if found is not None else None,
    }
    shown, more = _folded(sentences(compared)[1]) if compared is not None else ([], [])
    text = template.render(
        names=names,
        headline=_headline(sources, compared),
        lines=shown,
        more=more,
        same=compared.same if compared is not None else None,
        findings=[(name, lint(spec).findings) for name, spec in zip(names, [cast(Any, run), run_b], strict=False)],
        health=health_rows(table),
        n_params=table.n_params,
        groups=[(name, *group_table(source)) for name, source in zip(names, sources, strict=True)],
        not_finite=[(name, not_finite_words(table, side)) for side, name in enumerate(names)],
        clips=[(name, clip_words(source)) for name, source in zip(names, sources, strict=True)],
        problems=[text for name, source in zip(names, sources, strict=True) for text in _troubles(name, source)],
        provenance=provenance_rows(sources),
        data=script_json(data),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
        plotly=(_HERE / "plotly-cartesian.min.js").read_text(encoding="utf-8"),
    )
    path = Path(output)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptraceError(f"{path} cannot be written ({error.strerror}); choose another with -o") from None
    return path


def _template() -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise OptraceError("a report needs Jinja2: pip install jinja2") from None
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


def _rows(sources: list[Source]) -> list[Row]:
    """What is on the page: the parameters of the run, or those that both have."""
    if len(sources) == 1:
        params = sources[0].trace.arrow("params").to_pylist()
        return [Row(r["optimizer"], r["param"]) for r in params if r["optimizer"] in sources[0].optimizers]
    matching = match_sources(sources[0], sources[1], Renaming.parse((), ()))
    offsets = align_steps(sources[0], sources[1], matching, None).offsets
    rows = []
    for cell in matching.cells:
        pair = matching.pairs[cell.pair]
        rows.append(Row(pair.a, cell.param_a, pair.b, cell.param_b, offsets[cell.pair]))
    return rows


def _folded(lines: Any) -> tuple[list[Any], list[Any]]:
    """The lines of a verdict: those to see at once, and those to unfold; one without a label follows the one before."""
    shown: list[Any] = []
    more: list[Any] = []
    target = shown
    for label, text in lines:
        if label:
            target = more if label in ("notes", "differs") else shown
        target.append((label, text))
    return shown, more


def _troubles(name: str, source: Source) -> list[str]:
    """What is wrong with a run, and how it ended where it did not end cleanly."""
    end = source.trace.rank_info.get("end")
    how = {"clean": [], None: [f"{name} has not ended: it is running, or was killed"]}
    return [*source.trace.problems, *how.get(end, [f"{name} ended with {end}"])]


def _headline(sources: list[Source], compared: DiffReport | None) -> str:
    if compared is not None:
        return sentences(compared)[0]
    trace = sources[0].trace
    assert isinstance(trace, Trace)
    ranks = f" on {len(trace.ranks)} ranks" if isinstance(trace, LogicalTrace) else ""
    return f"{sources[0].name}: {', '.join(_steps(trace.last_step(i), name) for i, name in trace.optimizers)}{ranks}"


def _steps(count: int, name: str) -> str:
    return f"{count:,} step{'s' * (count != 1)} of {name}"
