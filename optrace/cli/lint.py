"""`optrace lint`: look at one run for what is rarely meant."""

from __future__ import annotations

import click


@click.command("lint", epilog="Exit status: 0 nothing found, 1 something found, 2 trouble.")
@click.argument("run", default="latest")
@click.option(
    "--format", "form", type=click.Choice(["text", "json"], case_sensitive=False), default="text", show_default=True
)
def command(run: str, form: str) -> int:
    """Look at RUN for what quietly spoils training: each finding has a code, what shows it, and what to do.

    RUN may name an optimizer (RUN@1, RUN@SGD) or a rank (RUN@rank=3); default: the latest run. The codes are explained
    in docs/lint.md.
    """
    from optrace.compare.lint.run import lint

    report = lint(run)
    click.echo(report.to_json(indent=2) if form == "json" else str(report))
    return 0 if report.clean else 1
