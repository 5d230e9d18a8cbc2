"""The command `optrace` without a process of its own: what it exits with and what it prints."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from optrace.cli.main import main


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def said(capsys: pytest.CaptureFixture[str], *args: object) -> Done:
    """Run `optrace ARGS` in the working directory of this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(arg) for arg in args])
    assert isinstance(end.value.code, int)
    return Done(end.value.code, *capsys.readouterr())
