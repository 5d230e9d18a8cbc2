"""`optrace diff`: say where two runs part, since when, and in what."""

from __future__ import annotations

from pathlib import Path

import click

from optrace.errors import CompareError

FORMATS = ("text", "markdown", "json")


@click.command(
    name="diff",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 same, 1 differ, 2 trouble. Results go to standard output, all else to standard error.",
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="[B]", default="latest")
@click.option(
    "--align", metavar="I:J", help="Step I of A is step J of B [default: found by counters and start values]."
)
@click.option("--map", "map_", metavar="OLD=NEW", multiple=True, help="A's names (a regular expression) as B has them.")
@click.option("--state", metavar="OLD=NEW", multiple=True, help="A's state OLD is B's NEW.")
@click.option("--rtol", type=float, default=0.0, metavar="X", help="Relative tolerance beside eps [default: 0].")
@click.option("--atol", type=float, default=0.0, metavar="X", help="Absolute tolerance [default: 0].")
@click.option(
    "--eps", type=float, metavar="N", help="Roundings granted to a step [default: 4; 64 for other gradients]."
)
@click.option("--exact", is_flag=True, help="Judge by bits, whatever the runs were made with.")
@click.option("--noise", metavar="A2", help="A second recording of A: what lies within 3 times its distance is noise.")
@click.option("--details", is_flag=True, help="Add both lanes, errors in eps, provenance and the divergences.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=100, metavar="N", help="Divergences listed [default: 100]."
)
@click.option("--engine", type=click.Choice(("dask",)), help="Read the tensors of many ranks on a Dask cluster.")
@click.option(
    "--format", "form", type=click.Choice(FORMATS, case_sensitive=False), default="text", help="text, markdown or json."
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write there.")
def command(
    a: str,
    b: str,
    align: str | None,
    map_: tuple[str, ...],
    state: tuple[str, ...],
    rtol: float,
    atol: float,
    eps: float | None,
    exact: bool,
    noise: str | None,
    details: bool,
    limit: int,
    engine: str | None,
    form: str,
    output: Path | None,
) -> int:
    """Compare run B (the candidate; default: the latest run) with run A (the reference).

    Each is a run's folder, or RUN@1 or RUN@SGD (one optimizer of it), RUN@rank=3, RUN@500:600 (steps 500 to 600),
    golden:NAME, or a CSV or safetensors file in golden format. Tolerances for single parameters and quantities come
    from [[tool.optrace.diff.rules]] of the nearest pyproject.toml at or above the working directory.
    """
    if noise is not None and Path(noise).resolve() == Path(b).resolve():
        raise click.UsageError(f"--noise takes a second recording of A, and {noise} is B itself")
    from optrace.cli.output import emit, progress_bar
    from optrace.compare.patterns import nearest_rules
    from optrace.compare.run import diff

    with progress_bar("comparing") as progress:
        report = diff(
            a,
            b,
            align=align,
            map=map_,
            state=state,
            rtol=rtol,
            atol=atol,
            eps=eps,
            exact=exact,
            noise=noise,
            rules=nearest_rules(Path.cwd()),
            limit=limit,
            engine=engine,
            progress=progress,
        )
    if form == "json":
        text = report.to_json(indent=2) + "\n"
    elif form == "markdown":
        from optrace.views.markdown import diff_markdown

        text = diff_markdown(report, details=details)
    else:
        from optrace.cli.output import colorful
        from optrace.views.text import diff_text

        text = diff_text(report, details=details, color=output is None and colorful())
    emit(text, output, CompareError)
    return 0 if report.same else 1
