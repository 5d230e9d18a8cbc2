"""Runs a program three times, in folders of its own: alone, under `optrace record`, under the independent capture."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from client_check import check_optimizer

import optrace
from optrace.trace.reader import Trace

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",  # or DeepSpeed, where accelerate finds it, prints a line with the time
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what pytest or a recording put there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV_", "OPTRACE_", "PYTHON"))}
    return {**kept, **QUIET, **more}


def run(command: Sequence[str | Path], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=400,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command} in {folder}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done


def record(program: str, folder: Path, *arguments: str, options: Sequence[str] = (), **more: str) -> Trace:
    """Record a program of ours into `folder`/run."""
    run(
        [sys.executable, "-m", "optrace", "record", "-o", "run", *options, PROGRAMS / program, *arguments],
        folder,
        **more,
    )
    return optrace.open(folder / "run")


class Forks:
    """Runs programs in processes forked from one that has imported torch: `client_forks.py`."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, HERE / "client_forks.py"],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, script: Path, folder: Path, *arguments: str, **more: str) -> str:
        """Run a script in a folder, which is made; its standard output."""
        assert self._server.stdin is not None and self._server.stdout is not None
        before = shlex.join([str(folder), *(f"{name}={value}" for name, value in more.items())])
        self._server.stdin.write(f"{before} -- {shlex.join([str(script), *arguments])}\n")
        self._server.stdin.flush()
        status = self._server.stdout.readline().strip()
        printed = folder.with_suffix(".stdout").read_text()
        errors = folder.with_suffix(".stderr").read_text()
        assert status == "0", f"{script} in {folder}: {status}\n{printed[-2000:]}\n{errors[-6000:]}"
        return printed

    def close(self) -> None:
        """End the server."""
        self._server.communicate()


@dataclass
class Client:
    """What came of the three runs."""

    folder: Path
    alone: str
    """Standard output of the bare run."""
    recorded: str
    trace: Trace
    errors: str
    """What the recorded run wrote on standard error."""

    @cached_property
    def captured(self) -> list[dict[str, Any]]:
        """What the independent capture saw, an optimizer each."""
        return json.loads((self.folder / "captured" / "capture.json").read_text())["optimizers"]

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return self.trace.events.to_dict("records")

    def count(self, kind: str, optimizer: int | None = None) -> int:
        return sum(e["kind"] == kind and optimizer in (None, e["optimizer"]) for e in self.events)

    def printed(self, word: str) -> list[float]:
        """The numbers that the bare run printed after a word."""
        return [float(n) for n in re.findall(rf"^{word} (\S+)", self.alone, re.MULTILINE)]

    def steps(self, column: str, optimizer: int = 0) -> list[Any]:
        frame = self.trace.steps
        return frame[frame["optimizer"] == optimizer].sort_values("step")[column].tolist()

    def names(self, optimizer: int = 0) -> list[str]:
        frame = self.trace.params
        return frame[frame["optimizer"] == optimizer]["param"].tolist()

    def check(self, steps: Iterable[int]) -> None:
        """Output and weights are those of the bare run; all rows those of the capture; so many steps an optimizer.

        And the linter, which must keep quiet on healthy programs, finds nothing.
        """
        assert self.recorded == self.alone
        weights = [(self.folder / kind / "weights.pt").read_bytes() for kind in ("alone", "recorded", "captured")]
        assert weights[0] == weights[1], "recording changed the weights"
        assert weights[0] == weights[2], "the capture changed the weights: the program is not deterministic"
        assert [captured["steps"] for captured in self.captured] == list(steps)
        assert [name for _, name in self.trace.optimizers] == [captured["class"] for captured in self.captured]
        assert self.trace.problems == []
        assert self.trace.verify() == []
        assert self.trace.rank_info["end"] == "clean"
        for index, captured in enumerate(self.captured):
            check_optimizer(self.trace, index, captured)
        found = optrace.lint(self.trace)
        assert found.clean, str(found)

    def check_losses(self) -> None:
        """Loss and number of backwards of each step are those of the capture (one optimizer, no backward lost)."""
        losses = self.captured[0]["losses"]
        assert self.steps("n_backward") == [len(roots) for roots in losses]
        assert self.steps("loss") == [sum(roots) / len(roots) for roots in losses]


Runner = Callable[..., Client]


def three_runs(
    folder: Path, forks: Forks, program: str, *arguments: str, models: str = "model", **capture_more: str
) -> Client:
    """Run `program` (of tests/clients/programs) alone, captured, and recorded as a user records it."""
    script = PROGRAMS / program
    with ThreadPoolExecutor(1) as pool:
        recorded = pool.submit(
            run,
            [sys.executable, "-m", "optrace", "record", "-o", "../run", script, *arguments],
            folder / "recorded",
        )
        alone = forks.run(script, folder / "alone", *arguments)
        capture = ("capture.json", models, str(script), *arguments)
        forks.run(HERE / "client_capture.py", folder / "captured", *capture, **capture_more)
        done = recorded.result()
    return Client(folder, alone, done.stdout, optrace.open(folder / "run"), done.stderr)
