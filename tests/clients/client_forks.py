"""Imports torch once and forks each program: a line `FOLDER NAME=VALUE... -- SCRIPT ARG...`, answered with its status.

The program is the main module of a process with the arguments, the folder and the variables given; its output goes to
files beside the folder (`.stdout`, `.stderr`). Importing torch, and what its optimizers import, is most of what a small
program costs.
"""

from __future__ import annotations

import atexit
import gc
import os
import runpy
import shlex
import sys
from pathlib import Path

import torch
import torch._dynamo  # which the first optimizer imports


def start(folder: Path, variables: dict[str, str], words: list[str]) -> None:
    """What a forked process does until the program returns."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.environ.update(variables)
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    atexit.register(gc.freeze)  # or the collector looks at all of torch three times before the process may end
    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        before, words = line.split(" -- ", 1)
        folder, *variables = shlex.split(before)
        child = os.fork()
        if child == 0:
            answers.close()
            start(Path(folder), dict(one.split("=", 1) for one in variables), shlex.split(words))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    main()
