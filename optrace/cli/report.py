"""`optrace report`: a run, or two and where they part, as one HTML file."""

from __future__ import annotations

import click


@click.command("report", epilog="Exit status: 0, or 2 for any trouble.")
@click.argument("run", default="latest")
@click.argument("run_b", required=False)
@click.option("-o", "--output", metavar="FILE", default="report.html", show_default=True, help="The file to write.")
def command(run: str, run_b: str | None, output: str) -> None:
    """Write a page about RUN, or about RUN and RUN_B and where they part.

    The page is one file that opens in any browser without a network: attach it to an issue. Runs are named as in
    `optrace diff`: RUN, RUN@1, RUN@SGD, RUN@rank=3, RUN@500:600; default: the latest run. Needs Jinja2
    (pip install jinja2).
    """
    from optrace.views.html.write import report

    path = report(run, run_b, output=output)
    click.echo(f"optrace: wrote {path} ({path.stat().st_size / 1e6:.1f} MB)", err=True)
