"""A program that closes every descriptor and opens files of its own gets back what it wrote, and keeps its steps."""

from __future__ import annotations

import sys

from launching import run

import optrace

DAEMON = """
import os, torch
param = torch.nn.Parameter(torch.ones(3))
optimizer = torch.optim.SGD([param], lr=0.1)
def step():
    param.grad = torch.ones(3)
    optimizer.step()
step()
step()
os.closerange(3, os.sysconf("SC_OPEN_MAX"))
own = [open(f"own{i}", "wb+") for i in range(30)]
for _ in range(3):
    step()
for i, file in enumerate(own):
    file.write(b"mine")
    file.flush()
    file.seek(0)
    assert file.read() == b"mine", i
print(param.tolist())
"""


def test_nothing_is_written_into_files_of_a_program_that_closed_ours(tmp_path):
    (tmp_path / "daemon.py").write_text(DAEMON)
    alone = run([sys.executable, "daemon.py"], tmp_path)
    done = run([sys.executable, "-m", "optrace", "record", "-o", "run", "daemon.py"], tmp_path)
    assert (done.returncode, done.stdout) == (0, alone.stdout)
    assert done.stderr.count(b"\noptrace: ") < 6
    assert b"Bad file descriptor" in done.stderr
    trace = optrace.open(tmp_path / "run")
    assert sorted(trace.steps["step"]) == [1, 2]
    assert trace.verify() == []
