"""Run one program under `python` and under `optrace record`, in the same folder, and give both results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROBE = Path(__file__).with_name("probe.py")
RECORD = ["-m", "optrace", "record"]
DESCENT = """
class Descent(torch.optim.Optimizer):
    '''One of torch's that a program makes without importing torch's compiler: half of what a small process takes.'''

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def add_param_group(self, group):
        self.param_groups.append({**self.defaults, **group})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for param in group["params"]:
                param -= group["lr"] * param.grad
"""
"""The source of an optimizer for programs that start many processes."""


def environment(**changes):
    """This process's environment without what pytest, coverage or a recording put there."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV_", "OPTRACE_", "PYTHON"))}
    return {**env, "OMP_NUM_THREADS": "1", **{k: v for k, v in changes.items() if v is not None}}


def run(argv, cwd, env=None, **options):
    return subprocess.run(argv, cwd=cwd, env=env or environment(), capture_output=True, timeout=300, **options)


def both(program, cwd, flags=(), env=None, record=("-q",), **options):
    """Results of the program (script or `-m module`, and its arguments) alone and recorded."""
    options.setdefault("stdin", subprocess.DEVNULL) if "input" not in options else None
    alone = run([sys.executable, *flags, *program], cwd, env, **options)
    recorded = run([sys.executable, *flags, *RECORD, *record, *program], cwd, env, **options)
    return alone, recorded


def assert_same(alone, recorded):
    assert recorded.stdout == alone.stdout
    assert recorded.stderr == alone.stderr
    assert recorded.returncode == alone.returncode


def without_ours(stderr):
    """The lines of standard error that are not optrace's."""
    return b"".join(line for line in stderr.splitlines(keepends=True) if not line.startswith(b"optrace: "))
