"""Imports torch once and forks the ranks of jobs: a line `PROGRAM PROCESSES FOLDER ARG...` each, answered when done.

Every rank is a process of its own with the environment that torchrun would give it; only the import of torch, the
longest part of such a small job, is paid once for all. When a rank fails the others are ended. The recorder is not
imported here: it would take the ranks for a pool that the recorded program started.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import traceback
from pathlib import Path

import deepspeed_zero
import faults
import layouts
import own
import partial
import pyarrow.compute  # which the recorder imports, as pyarrow.parquet
import pyarrow.parquet  # noqa: F401
import single
import torch
import torch._dynamo  # which DDP imports

PREPARE = {"deepspeed_zero": deepspeed_zero.prepare}
PROGRAMS = {module.__name__: module.main for module in (deepspeed_zero, faults, layouts, own, partial, single)}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def run_rank(program: str, out: Path, arguments: list[str]) -> None:
    """What a forked process does; it never returns."""
    status = 1
    try:
        PROGRAMS[program](out, arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def job(program: str, processes: int, out: Path, arguments: list[str]) -> bool:
    """Run the ranks of one job; whether all ended well."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    alive = set()
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            if processes > 1:
                os.environ.update(address, RANK=str(rank), LOCAL_RANK=str(rank))
            run_rank(program, out, arguments)
        alive.add(pid)
    well = True
    while alive:
        pid, status = os.wait()
        alive.discard(pid)
        if status and well:
            well = False
            for other in alive:
                os.kill(other, signal.SIGTERM)
    return well


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed goes to standard error
    for line in sys.stdin:
        program, processes, out, *arguments = shlex.split(line)
        PREPARE.get(program, lambda: None)()
        well = job(program, int(processes), Path(out), arguments)
        print("ok" if well else "failed", file=answers, flush=True)


if __name__ == "__main__":
    main()
