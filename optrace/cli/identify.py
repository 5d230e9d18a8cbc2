"""`optrace identify`: which rule a recorded optimizer followed, and with what numbers."""

from __future__ import annotations

import click


@click.command("identify")
@click.argument("run", default="latest")
def command(run: str) -> int:
    """Say from the record alone which rule each optimizer of RUN followed, and with what numbers.

    Exit status: 0 every optimizer was identified, 1 one is none of ours, 2 trouble.
    """
    from optrace.compare.source import open_source
    from optrace.errors import TraceError
    from optrace.replayer.identify import identify
    from optrace.trace.reader import Trace

    source = open_source(run)
    if not isinstance(source.trace, Trace):
        raise TraceError(f"{run} is no recorded run")
    found = [identify(source.trace, optimizer=index) for index in source.optimizers]
    for identity in found:
        click.echo(str(identity))
    return 0 if all(identity.rule for identity in found) else 1
