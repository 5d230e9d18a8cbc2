"""Runs pages in processes forked from one that has torch imported: a line of JSON each, answered with the exit status.

Importing torch is most of what a page costs. It is paid once for all pages, and for those of their commands that would
import it in a process of their own: these are forked from the page's process as it was before its first block.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import re
import runpy
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

import pandas  # noqa: F401
import pyarrow.compute
import pyarrow.parquet  # noqa: F401
import torch._dynamo  # noqa: F401 - which the first optimizer imports
from run_blocks import run_by_bash, run_file

IMPORTS_TORCH = re.compile(r'(python -m|optrace golden|optrace record) [\w\s./:="-]+')
"""What such a command says is nothing to a shell."""


def serve(lines: Iterable[str], answers: TextIO, start: Callable[..., None]) -> None:
    """Fork a process for each line, which calls `start` with its words and returns; answer with its exit status."""
    for line in lines:
        child = os.fork()
        if child == 0:
            answers.close()
            return start(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def start_in(folder: str, output: str) -> None:
    """Go to a folder, read nothing, and write standard output and error to a file."""
    os.chdir(folder)
    null, file = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for given, number in ((null, 0), (file, 1), (file, 2)):
        os.dup2(given, number)
    os.close(null)
    os.close(file)
    atexit.register(gc.freeze)  # or the collector looks at all of torch three times before the process may end


def run_page(page: str, folder: str, output: str) -> None:
    """Run the blocks of a page; a process of its own runs the commands."""
    start_in(folder, output)
    asked, ask = os.pipe()
    answered, answer = os.pipe()
    if os.fork() == 0:
        os.close(ask)
        return serve(os.fdopen(asked), os.fdopen(answer, "w"), run_command)
    answers = os.fdopen(answered)

    def run(command: str) -> tuple[int, str]:
        if not IMPORTS_TORCH.fullmatch(command):
            return run_by_bash(command)
        with tempfile.NamedTemporaryFile("r") as printed:
            os.write(ask, (json.dumps([shlex.split(command), os.getcwd(), printed.name]) + "\n").encode())
            return int(answers.readline()), printed.read()

    sys.path[0] = ""
    print(run_file(Path(page), run), "blocks")


def become(program: str, command: list[str], environ: dict[str, str]) -> None:
    """Be the script that `optrace record` starts, in this process; what is no script is started as ever.

    README.md's commands, and the tests of the recorder, start a Python anew, as users do.
    """
    script = command[1] if len(command) > 1 else ""
    if program != sys.executable or not script.endswith(".py") or not os.path.isfile(script):
        return START(program, command, environ)
    from optrace.recorder.attach import begin

    os.environ.clear()
    os.environ.update(environ)
    sys.orig_argv, sys.argv, sys.path[0] = command, command[1:], str(Path(script).resolve().parent)
    begin()
    runpy.run_path(script, run_name="__main__")
    sys.exit()


START = os.execvpe


def run_command(words: list[str], folder: str, output: str) -> None:
    """Be what `python -m MODULE ...` or `optrace ...` starts."""
    start_in(folder, output)
    os.execvpe = become
    sys.dont_write_bytecode = True  # where a file is written twice within a second the first one's would stay
    program = str(shutil.which(words[0]))
    if words[0] == "python":
        sys.orig_argv, sys.argv, sys.path[0] = [program, *words[1:]], words[2:], folder
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [program, *words[1:]], str(Path(program).parent)
        sys.orig_argv = [sys.executable, *sys.argv]
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, own, run_page)
