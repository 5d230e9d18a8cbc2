"""The documentation builds as a site, and every page of the index is in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_site_builds_and_its_index_leads_everywhere(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = re.findall(r"\]\((\S+)\.md\)", (ROOT / "docs" / "index.md").read_text())
    assert {*pages, "index"} == {path.stem for path in (ROOT / "docs").glob("*.md")}, "the index leads everywhere"
    for page in pages:
        assert (tmp_path / "site" / page / "index.html").exists(), page
    assert (tmp_path / "site" / "images" / "report.png").exists()
    assert 'id="param-twice"' in (tmp_path / "site" / "lint" / "index.html").read_text()
