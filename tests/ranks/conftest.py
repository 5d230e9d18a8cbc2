"""Runs the programs of this folder once: one launch for each number of processes, and the single process."""

from __future__ import annotations

import os
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
).split()


def launch(program, processes, *args, check=True):
    """Run a program of this folder on so many gloo processes."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPTRACE_", "PYTEST", "PYTHON"))}
    command = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *command, str(HERE / program), *map(str, args)],
        env={**env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
        cwd=args[0],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 or not check, done.stderr[-4000:]
    return done


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """A folder with one run for each layout: `single`, `ddp-2`, `fsdp2-4` ..."""
    out = tmp_path_factory.mktemp("layouts")
    subprocess.run(
        [sys.executable, str(HERE / "single.py"), str(out), str(STEPS)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    for processes, names in LAYOUTS.items():
        launch("layouts.py", processes, out, STEPS, *names)
    return out


@pytest.fixture(scope="session")
def faults(tmp_path_factory):
    """A folder with one run of two ranks for each fault."""
    out = tmp_path_factory.mktemp("faults")
    launch("faults.py", 2, out, *FAULTS)
    return out


@pytest.fixture(scope="session")
def killed(tmp_path_factory):
    """A run of two ranks of which rank 1 was killed with -9 in its third step."""
    out = tmp_path_factory.mktemp("killed")
    done = launch("faults.py", 2, out, "killed", check=False)
    assert done.returncode != 0
    return out / "killed"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
