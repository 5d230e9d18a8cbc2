"""Runs the programs of this folder once: their ranks are forked from one process that has torch imported."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STEPS = 4
LAYOUTS = {
    2: ["ddp", "fsdp2", "tp", "fsdp1", "fsdp1-flat", "zero", "fsdp2-full"],
    4: ["ddp", "fsdp2", "both", "hsdp"],
}
FAULTS = (
    "ddp by-hand missed-all-reduce layer-not-reduced other-lr bit-flip resumed older-step fsdp2-clip fsdp2-clip-local"
    " fsdp2 fsdp2-other-lr fsdp2-bit-flip averaged"
).split()


class Launcher:
    """`launch(program, processes, folder, *arguments)` runs a program of this folder on so many gloo processes."""

    def __init__(self, errors: Path) -> None:
        """`errors` is the file for what the programs write to standard error."""
        self._errors = errors
        self._server: subprocess.Popen[str] | None = None

    def __call__(self, program, processes, out, *arguments, well=True):
        if self._server is None:
            self._server = self._start()
        words = [program, processes, out, *arguments]
        self._server.stdin.write(shlex.join(map(str, words)) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline().strip()
        assert answer == ("ok" if well else "failed"), self._errors.read_text()[-6000:]

    def _start(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OPTRACE_", "PYTEST", "PYTHON"))}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        with self._errors.open("w") as written:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": written}
            return subprocess.Popen([sys.executable, str(HERE / "forked.py")], env=env, text=True, **pipes)

    def close(self) -> None:
        if self._server is not None:
            with self._server as server:
                server.stdin.close()


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    launcher = Launcher(tmp_path_factory.mktemp("launch") / "stderr")
    yield launcher
    launcher.close()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """`made_once(name, make)` is a folder that `make(folder)` has filled, once for all workers of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def fill(name, make):
        folder = root / f"ranks-{name}"
        with (root / f"ranks-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed
            if not (folder / ".made").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                (folder / ".made").touch()
        return folder

    return fill


@pytest.fixture(scope="session")
def layouts(launch, made_once):
    """A folder with one run for each layout: `single`, `ddp-2`, `fsdp2-4` ..."""

    def make(out):
        launch("single", 1, out, STEPS)
        for processes, names in LAYOUTS.items():
            launch("layouts", processes, out, STEPS, *names)

    return made_once("layouts", make)


@pytest.fixture(scope="session")
def partial(launch, made_once):
    """A folder with a run of two ranks whose gradients are partial sums, and one of one process with their sum."""
    return made_once("partial", lambda out: launch("partial", 2, out))


@pytest.fixture(scope="session")
def faults(launch, made_once):
    """A folder with one run of two ranks for each fault."""
    return made_once("faults", lambda out: launch("faults", 2, out, *FAULTS))


@pytest.fixture(scope="session")
def killed(launch, made_once):
    """A run of two ranks of which rank 1 was killed with -9 in its third step."""
    return made_once("killed", lambda out: launch("faults", 2, out, "killed", well=False)) / "killed"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
