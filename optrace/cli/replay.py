"""`optrace replay`: recompute each recorded step of a run from its own inputs."""

from __future__ import annotations

import json

import click


@click.command("replay")
@click.argument("run", default="latest")
@click.option("--rule", metavar="NAME", help="The rule to follow, by torch's class name; default: the recorded class.")
@click.option("--as", "as_class", metavar="MODULE:CLASS", help="Recompute with this class instead of a reference rule.")
@click.option(
    "--eps", type=click.FloatRange(min=0), default=4.0, show_default=True, help="How far a number may be off, in eps."
)
@click.option(
    "--format", "form", type=click.Choice(["text", "json"], case_sensitive=False), default="text", show_default=True
)
def command(run: str, rule: str | None, as_class: str | None, eps: float, form: str) -> int:
    """Recompute each recorded step of RUN from its own inputs: is it what the optimizer's rule makes of them?

    RUN may name an optimizer (RUN@1, RUN@SGD), a rank (RUN@rank=3) or a stretch of steps (RUN@500:600); default: the
    latest run, and all its optimizers. Exit status: 0 every step follows the rule, 1 one does not, 2 trouble.
    """
    from optrace.cli.output import each_optimizer
    from optrace.compare.source import open_source
    from optrace.errors import TraceError
    from optrace.replayer.run import replay
    from optrace.trace.reader import Trace

    source = open_source(run)
    if not isinstance(source.trace, Trace):
        raise TraceError(f"{run} is no recorded run; replay judges runs, `optrace golden check` judges implementations")
    given = None
    if as_class is not None:
        from optrace.goldens.candidate import load

        given = load(as_class)
    trace = source.trace
    reports, troubled = each_optimizer(
        source,
        lambda index: replay(trace, rule=rule, as_class=given, optimizer=index, steps=source.steps, tolerance=eps),
    )
    if form == "json":
        click.echo(json.dumps([report.to_dict() for report in reports], allow_nan=False))
    else:
        for report in reports:
            click.echo(str(report))
    if any(report.n_steps and not report.same for report in reports):
        return 1
    return 2 if troubled or not all(report.n_steps for report in reports) else 0
