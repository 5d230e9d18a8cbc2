"""Where the files of a recording go: the run that a process belongs to, and a folder for it.

A run folder is entered once, by the first step of the first process that may, and never overwritten. Small files
in it say whose it is: `.launch` (one `optrace record`, or one job of several) and `.job` (the processes that are
ranks of one run); `.start-0`, `.start-1`, ... tell the starts of a job apart. All are created exclusively, so that any
number of processes agree without talking.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optrace.errors import RecordError
from optrace.recorder.identity import Job, Launch, Process, identify, was_restarted
from optrace.recorder.settings import Settings

RUNS = "optrace-runs"
LATEST = "latest"


@dataclass(frozen=True)
class Place:
    """A process's own folder: `rank` inside `run`, made for it alone; `rank_number` as the process group has it."""

    run: Path
    rank: Path
    rank_number: int


def claim(settings: Settings) -> Place:
    """Make the folders for this process, at its first step.

    Args:
        settings: `output` is the run folder; None makes one under ./optrace-runs/. `force` moves a finished run of
            another job to `RUN~1`.

    Raises:
        RecordError: the folder holds another job's run, is no run, or cannot be written.
    """
    process = identify(settings)
    output = settle(settings).output
    assert output is not None
    run = Path(output)
    try:
        place = _enter(run, process, settings.force)
        if run.parent.name == RUNS and (place.run == run or not (run / ".job").exists()):
            _point_latest(run)
    except OSError as error:
        reason = error.strerror or str(error)
        raise RecordError(f"cannot make the run folder {output}: {reason}; choose another with -o") from error
    return place


def settle(settings: Settings) -> Settings:
    """The same settings with the output folder chosen, as an absolute path: the program may change its directory."""
    return replace(settings, output=os.path.abspath(settings.output or default_output(_program(), os.environ)))


def check(output: str, force: bool, launch: Launch, environ: Mapping[str, str]) -> None:
    """Refuse, before the program starts, an output folder that its first step would be refused; writes nothing.

    Raises:
        RecordError: as `claim`.
    """
    run = Path(output)
    if not os.path.lexists(run):
        return
    if _read(run / ".launch") == launch.id:
        job = Job.of(environ)
        restarted = was_restarted(environ) if job is None else job.restarted and (job.sure or not _has_ended(run))
        if restarted or not _rank_folder(run, job.rank if job is not None else 0).exists():
            return
    if not run.is_dir() or any(run.iterdir()):
        _refuse(run, force)


def default_output(program: str, environ: Mapping[str, str]) -> str:
    """`optrace-runs/<program>-<date>-<time>-<4 hex>`, the same for every process of a job, and not there yet.

    Where the processes of a job cannot agree on the time, the name is `<program>-<8 hex of the job's id>`.
    """
    stem = re.sub(r"[^A-Za-z0-9._+-]", "_", program).lstrip(".-")[:80] or "python"
    job = Job.of(environ)
    if job is None:
        while True:
            name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
            if not os.path.lexists(os.path.join(RUNS, name)):
                return os.path.join(RUNS, name)
    digest = hashlib.sha256(job.id.encode("utf-8", "surrogateescape")).hexdigest()
    if job.started is None:
        name = f"{stem}-{digest[:8]}"
    else:
        name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(job.started))}-{digest[:4]}"
    # An id that two jobs share (two `torchrun --rdzv-id none` on the same address): each rank passes by the runs in
    # which it has been, and so all ranks come to the same new one.
    number = 1
    while True:
        folder = os.path.join(RUNS, name if number == 1 else f"{name}-{number}")
        goes_on = job.restarted and (job.sure or not _has_ended(Path(folder)))
        if goes_on or not _rank_folder(Path(folder), job.rank).exists():
            return folder
        number += 1


def _program() -> str:
    """What the program is called in a run's name, for a recording that was started in Python."""
    if "ipykernel" in sys.modules:
        return "notebook"
    started_as = sys.argv[0] if sys.argv else ""
    return "" if started_as in ("-c", "-m") else Path(started_as).stem


def _enter(run: Path, process: Process, force: bool) -> Place:
    """The place of `process` in `run`, made."""
    for _ in range(100):
        run.mkdir(parents=True, exist_ok=True)
        try:
            inode = run.stat().st_ino
            place = _try_to_enter(run, process)
            if place is not None:
                return place
            if not force:
                _refuse_another_node(run, process)
            _refuse(run, force)
            _move_aside(run, inode)
        except FileNotFoundError:
            continue  # another process has just moved the folder away
    raise RecordError(
        f"{run} was moved away again and again while this process was entering it; choose another with -o"
    )


def _try_to_enter(run: Path, process: Process) -> Place | None:
    """The place of `process` in the folder that is there now; None where that is another job's."""
    free = _is_run(run) or not any(run.iterdir()) or _is_run(run)  # asked twice: another process may enter just now
    if not free or _write_once(run / ".launch", process.launch) != process.launch:
        return None
    if not process.may_lead or _write_once(run / ".job", process.job) != process.job:
        return _enter_child(run, process)
    rank = _make_rank(run, process)
    if rank is not None:
        return Place(run, rank, process.rank)
    return _enter_child(run, process) if process.may_be_child else None


def _enter_child(run: Path, process: Process) -> Place:
    """A place in the first `child-<n>` that is this job's, or nobody's."""
    number = 1
    while True:
        child = run / f"child-{number}"
        child.mkdir(exist_ok=True)
        if _write_once(child / ".job", process.job) == process.job:
            rank = _make_rank(child, process)
            if rank is not None:
                return Place(child, rank, process.rank)
        number += 1


def _make_rank(run: Path, process: Process) -> Path | None:
    """The folder of a rank, created by this call; None where it exists and the process is no restart.

    All ranks of one start get the same number, also where there were fewer of them before: `.start-1` says which start
    is number 1.
    """
    folder = _rank_folder(run, process.rank)
    number = 0
    while True:
        file = run / f".start-{number}"
        if number and not file.exists() and not (process.restarted and (process.sure or not _has_ended(run))):
            return None
        if not process.start or _write_once(file, process.start) == process.start:
            candidate = folder if number == 0 else folder.with_name(f"{folder.name}.{number}")
            try:
                candidate.mkdir()
                return candidate
            except FileExistsError:
                if not process.restarted or _rank_info(candidate / "rank.json").get("pid") == os.getpid():
                    return None
        number += 1


def _has_ended(run: Path) -> bool:
    """Whether a rank of the last start ended cleanly: the job is over."""
    starts: dict[int, list[Path]] = {}
    for folder in run.glob("rank=*"):
        number = folder.name.partition(".")[2]
        starts.setdefault(int(number) if number.isdecimal() else 0, []).append(folder)
    last = starts[max(starts)] if starts else []
    return any(_rank_info(folder / "rank.json").get("end") == "clean" for folder in last)


def _rank_folder(run: Path, rank: int) -> Path:
    return run / f"rank={rank:05d}"


def _is_run(folder: Path) -> bool:
    return (folder / ".launch").exists() or (folder / "trace.json").exists()


def _refuse_another_node(run: Path, process: Process) -> None:
    """Raise if another launch records this process's job, as where each node has an `optrace record` in front."""
    if process.start and _read(run / ".launch") != process.launch and _read(run / ".job") == process.job:
        if not _has_ended(run):
            raise RecordError(
                f"{run} is recorded by another `optrace record` of this job; on several nodes put torchrun first"
                f" (torchrun ... -m optrace record -o {run.name} ...), and to record it anew choose another folder"
            )


def _refuse(run: Path, force: bool) -> None:
    """Raise unless `run` is a finished run that `force` may move out of the way, or is gone by now."""
    if not run.exists():
        return
    if not run.is_dir():
        raise RecordError(f"{run} is a file, not a folder for a run; choose another with -o")
    if not _is_run(run):
        raise RecordError(f"{run} holds files that are no run; choose another folder with -o")
    writer = _writer(run)
    if writer is not None:
        raise RecordError(f"{run} is being recorded by process {writer}; choose another folder with -o")
    if not force:
        raise RecordError(
            f"{run} holds a run already; choose another folder with -o, or have it moved to {run.name}~1 "
            "with --force (overwrite=True in Python)"
        )


def _writer(run: Path) -> int | None:
    """The id of a living process that has not ended its recording in `run`."""
    for file in [*run.glob("rank=*/rank.json"), *run.glob("child-*/rank=*/rank.json")]:
        info = _rank_info(file)
        pid = info.get("pid")
        if not isinstance(pid, int) or "end" in info or info.get("host", platform.node()) != platform.node():
            continue
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        except OSError:
            pass  # it lives, and is another user's
        return pid
    return None


def _rank_info(file: Path) -> dict[str, Any]:
    """What a rank.json says; nothing where it cannot be read."""
    try:
        info = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _move_aside(run: Path, inode: int) -> None:
    """Rename the folder `run` of that inode to the first of RUN~1, RUN~2, ... that is free.

    Other processes may be doing the same: where one has, and `run` is a new folder by now, that one stays.
    """
    number = 1
    while os.path.lexists(aside := run.with_name(f"{run.name}~{number}")):
        number += 1
    try:
        if run.stat().st_ino != inode:
            return
        run.rename(aside)
        if aside.stat().st_ino != inode:
            aside.rename(run)
    except FileNotFoundError:
        return


def _write_once(file: Path, text: str) -> str:
    """Create `file` with `text` unless it exists; what it then holds, which is what the first writer wrote."""
    data = f"{text}\n".encode("utf-8", "surrogateescape")
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return _read(file) or ""
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)
    return text


def _read(file: Path) -> str | None:
    """The line of a file that `_write_once` made, waiting a moment for its writer; None where there is none."""
    for _ in range(200):
        try:
            data = file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if data.endswith(b"\n"):
            return data[:-1].decode("utf-8", "surrogateescape")
        time.sleep(0.01)
    return None


def _point_latest(run: Path) -> None:
    """Let `optrace-runs/latest` name `run`: a link, or a text file where links are not allowed."""
    latest = run.with_name(LATEST)
    draft = run.with_name(f".{LATEST}-{os.urandom(8).hex()}")
    try:
        draft.symlink_to(run.name)
    except (OSError, NotImplementedError):
        draft.write_text(f"{run.name}\n")
    try:
        os.replace(draft, latest)
    except OSError:  # there is a folder of that name: not ours to touch
        draft.unlink()


def shown(path: Path) -> str:
    """A path as the user would write it: relative where it lies below the working directory."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return str(path)
    return str(path) if relative.startswith("..") else relative
