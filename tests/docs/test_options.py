"""Every option of every command stands in the documentation, and what stands there as an option is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from optrace.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "golden" / "README.md"]
OTHERS = {
    "--check",  # scripts/make_goldens
    "--quick", "--json", "--markdown", "--only",  # scripts/bench
    "--optrace-regen", "--import-mode",  # pytest
    "--standalone", "--nproc-per-node", "--nnodes", "--node-rank", "--max-restarts", "--master-addr", "--master-port",
    "--rdzv-id", "--rdzv-backend", "--rdzv-endpoint",  # torchrun
    "--save", "--resume",  # docs/examples/train.py
}  # fmt: skip


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """The long names of a command's options, and of the commands below it."""
    yield from (name for param in command.params for name in param.opts if name.startswith("--"))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from options(below, context)


def written() -> set[str]:
    return {name for page in PAGES for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", page.read_text())}


def test_every_option_is_documented_and_every_documented_one_is_there():
    known = set(options(cli, click.Context(cli))) - {"--version"}
    assert known - written() == set(), "say in docs/ what it does"
    assert written() - known - OTHERS == set(), "there is no such option (any more)"
