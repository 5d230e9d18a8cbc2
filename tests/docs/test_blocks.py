"""Every code block of README.md and docs/*.md runs, and prints what the page says."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def environment() -> dict[str, str]:
    """What a user has who activated this virtual environment, without what pytest or a recording put there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OPTRACE_", "PYTEST_")) and k != "CI"}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**kept, "PATH": path, "NO_COLOR": "1", "COLUMNS": "100"}


@pytest.fixture(scope="session")
def run_page() -> Iterator[Callable[[Path, Path], tuple[int, str]]]:
    """`run_page(page, folder)`: exit status and output of the page's blocks, without importing torch anew."""
    command = [sys.executable, str(HERE / "forked_pages.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as server:

        def run(page: Path, folder: Path) -> tuple[int, str]:
            output = folder.with_suffix(".output")
            server.stdin.write(json.dumps([str(page), str(folder), str(output)]) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline()), output.read_text()

        yield run
        server.stdin.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of docs/examples."""
    return shutil.copytree(ROOT / "docs" / "examples", tmp_path / "folder")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_of_the_page_runs(page, folder, run_page):
    status, printed = run_page(page, folder)
    assert status == 0, printed


def test_every_block_of_the_first_page_runs_in_processes_that_are_started_as_users_start_them(folder):
    command = [sys.executable, str(HERE / "run_blocks.py"), str(ROOT / "README.md")]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("python -m platform\nnot this", f"`python -m platform` prints\n{platform.platform()}"),
        ("python -m no_such_module", "`python -m no_such_module` exits 1, not 0:\n"),
        ("false | true; false", "`false | true; false` exits 1, not 0:\n"),
    ],
    ids=["prints something else", "does not exit with 0", "of the shell"],
)
def test_a_page_whose_commands_do_something_else_fails(folder, tmp_path, run_page, command, told):
    page = tmp_path / "page.md"
    page.write_text(f"```console\n$ echo well\nwell\n$ {command}\n```\n")
    status, printed = run_page(page, folder)
    assert status == 1 and printed.startswith(f"page.md:1: {told}"), printed
