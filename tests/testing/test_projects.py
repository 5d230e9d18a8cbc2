"""The example projects, installed beside our wheel in an environment of their own, pass their own tests."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECTS = ROOT / "tests" / "projects"


def run(*command, cwd, env=None):
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tinyoptim", "tinytrain"])
def test_project_passes_its_own_tests_in_its_own_environment(name, wheel, tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (tmp_path / "source").symlink_to(PROJECTS / name)
    target = ["--target", site, "--no-deps", "--no-build-isolation", "-q"]
    copy = tmp_path / name
    run("cp", "-r", PROJECTS / name, copy, cwd=tmp_path)
    run(sys.executable, "-m", "pip", "install", *target, wheel, copy, cwd=tmp_path)
    # torch and pytest come from the environment that runs this; a plain line of a .pth runs no other .pth, so the
    # editable optrace there is not on the path.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = ("OPTRACE_", "PYTEST_", "PYTHON", "CI", "BUILD_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(clean)}
    env |= {"OMP_NUM_THREADS": "1"}
    where = run(python, "-c", "import optrace; print(optrace.__file__)", cwd=copy, env=env)
    assert str(site) in where
    text = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=copy, env=env)
    assert " passed" in text
    assert "failed" not in text
    assert "unused" not in text
