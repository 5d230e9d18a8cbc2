"""scripts/demo, the README's first command, does what it says and ends with status 0."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_demo_records_compares_and_finds_the_planted_mistake(tmp_path):
    if not (ROOT / ".venv").exists():
        pytest.skip("needs the .venv that scripts/test makes")
    done = subprocess.run(
        [ROOT / "scripts" / "demo", tmp_path / "runs"],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reference is the same as torch - to the bit: 200 steps of SGD, 4 params" in done.stdout
    assert "mine differs from torch - since step 1" in done.stdout
    assert "(SGD) follows sgd in all 200 steps, within 0 eps" in done.stdout
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"torch", "reference", "mine"}
    assert str(tmp_path / "runs") in done.stdout
