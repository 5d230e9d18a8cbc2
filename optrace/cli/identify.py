"""`optrace identify`: which rule a recorded optimizer followed, and with what numbers."""

from __future__ import annotations

import click


@click.command("identify")
@click.argument("run", default="latest")
def command(run: str) -> int:
    """Say from the record alone which rule each optimizer of RUN followed, and with what numbers.

    RUN may name an optimizer (RUN@1, RUN@SGD) or a rank (RUN@rank=3); default: the latest run.
    Exit status: 0 every optimizer was identified, 1 one is none of ours, 2 trouble.
    """
    from optrace.cli.output import each_optimizer
    from optrace.compare.source import open_source
    from optrace.errors import TraceError
    from optrace.replayer.identify import identify
    from optrace.trace.reader import Trace

    source = open_source(run)
    if not isinstance(source.trace, Trace):
        raise TraceError(f"{run} is no recorded run")
    trace = source.trace
    found, troubled = each_optimizer(source, lambda index: identify(trace, optimizer=index))
    for identity in found:
        click.echo(str(identity))
    if not all(identity.rule for identity in found):
        return 1
    return 2 if troubled else 0
