"""Runs the programs of this folder once: their ranks are forked from one process that has torch imported."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STEPS = 4
LAYOUTS = {
    2: ["ddp", "fsdp2", "tp", "fsdp1", "zero", "fsdp2-full"],
    4: ["ddp", "fsdp2", "both", "hsdp"],
}
FAULTS = (
    "ddp by-hand missed-all-reduce layer-not-reduced other-lr bit-flip resumed older-step fsdp2-clip fsdp2-clip-local"
    " fsdp2 fsdp2-other-lr fsdp2-bit-flip"
).split()


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    """`launch(program, processes, folder, *arguments)` runs a program of this folder on so many gloo processes."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPTRACE_", "PYTEST", "PYTHON"))}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    errors = tmp_path_factory.mktemp("launch") / "stderr"
    with (
        errors.open("w") as written,
        subprocess.Popen(
            [sys.executable, str(HERE / "forked.py")],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
        ) as server,
    ):

        def ask(program, processes, out, *arguments, well=True):
            words = [program, processes, out, *arguments]
            server.stdin.write(shlex.join(map(str, words)) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline().strip()
            assert answer == ("ok" if well else "failed"), errors.read_text()[-6000:]

        yield ask
        server.stdin.close()


@pytest.fixture(scope="session")
def layouts(launch, tmp_path_factory):
    """A folder with one run for each layout: `single`, `ddp-2`, `fsdp2-4` ..."""
    out = tmp_path_factory.mktemp("layouts")
    launch("single", 1, out, STEPS)
    for processes, names in LAYOUTS.items():
        launch("layouts", processes, out, STEPS, *names)
    return out


@pytest.fixture(scope="session")
def partial(launch, tmp_path_factory):
    """A folder with a run of two ranks whose gradients are partial sums, and one of one process with their sum."""
    out = tmp_path_factory.mktemp("partial")
    launch("partial", 2, out)
    return out


@pytest.fixture(scope="session")
def faults(launch, tmp_path_factory):
    """A folder with one run of two ranks for each fault."""
    out = tmp_path_factory.mktemp("faults")
    launch("faults", 2, out, *FAULTS)
    return out


@pytest.fixture(scope="session")
def killed(launch, tmp_path_factory):
    """A run of two ranks of which rank 1 was killed with -9 in its third step."""
    out = tmp_path_factory.mktemp("killed")
    launch("faults", 2, out, "killed", well=False)
    return out / "killed"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
