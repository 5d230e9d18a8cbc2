"""Every code block of README.md and docs/*.md runs, and prints what the page says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_block_of_the_page_runs(page, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPTRACE_", "PYTEST_")) and k != "CI"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_COLOR": "1",
        "COLUMNS": "100",
    }
    shutil.copytree(ROOT / "docs" / "examples", tmp_path, dirs_exist_ok=True)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_blocks.py")), str(page)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
