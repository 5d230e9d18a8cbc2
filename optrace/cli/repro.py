"""`optrace repro`: the one step at which two runs part, as a script to paste into an issue."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("repro")
@click.argument("a")
@click.argument("b")
@click.option("-o", "output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead.")
def command(a: str, b: str, output: Path | None) -> int:
    """Print a self-contained script with the numbers of the one step at which B leaves A, and an assert that fails.

    Exit status: 0 the script was made, 2 trouble (also when the runs are the same).
    """
    from optrace.compare.repro import repro
    from optrace.errors import CompareError

    text = repro(a, b)
    if output is None:
        click.echo(text, nl=False)
        return 0
    try:
        output.write_text(text)
    except OSError as error:
        raise CompareError(f"cannot write {output}: {error.strerror}") from None
    return 0
