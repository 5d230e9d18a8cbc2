"""Where the files of a recording go: which run a process belongs to, which rank it is, and a folder for it.

A run folder is entered once, by the first step of the first process that may, and never overwritten. Two small files
in it say whose it is: `.launch` (one `optrace record`, or one job of several) and `.job` (the processes that are
ranks of one run). Both are created exclusively, so that any number of processes agree without talking.
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
from optrace.recorder.settings import Settings

LAUNCH_VARIABLE = "OPTRACE_LAUNCH"
MEMBER_VARIABLE = "OPTRACE_MEMBER"
RUNS = "optrace-runs"
LATEST = "latest"

_THIS_TREE = os.urandom(8).hex()  # shared with children by fork: what a recording started in Python is known by
_THIS_PID = os.getpid()


@dataclass(frozen=True)
class Place:
    """A process's own folder: `rank` inside `run`, made for it alone; `rank_number` as the process group has it."""

    run: Path
    rank: Path
    rank_number: int


@dataclass(frozen=True)
class Launch:
    """One `optrace record`, as the processes below it know it."""

    id: str
    pid: int
    is_python: bool
    """Whether process `pid` itself is the Python to record (not: a command that starts some)."""
    shared: bool = False
    """Whether another launch may bear the same id: the other processes of its job, or the same job again."""

    def to_json(self) -> str:
        """The launch as one line of JSON, for the environment."""
        return json.dumps([self.id, self.pid, self.is_python, self.shared])

    @classmethod
    def from_json(cls, text: str) -> Launch:
        """Read what `to_json` wrote."""
        return cls(*json.loads(text))


@dataclass(frozen=True)
class Job:
    """Processes that train together, told by what their launcher put into the environment."""

    id: str
    rank: int
    restarted: bool
    """Whether a process of this rank that is found to have been there belongs to the same job."""
    started: float | None
    """When it started, seconds since the epoch, as each of its processes would say; None where they might disagree."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Job | None:
        """The job of a process with this environment; None for a process on its own."""
        tasks = _number(environ, "SLURM_STEP_NUM_TASKS") or _number(environ, "SLURM_NTASKS") or 1
        in_slurm = "SLURM_JOB_ID" in environ and "SLURM_STEP_ID" in environ
        rank = _number(environ, "RANK")
        if rank is None and in_slurm and tasks > 1:
            rank = _number(environ, "SLURM_PROCID")
        address = ":".join(environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
        elastic = environ.get("TORCHELASTIC_RUN_ID")
        if rank is None or not (elastic or address != ":" or (in_slurm and tasks > 1)):
            return None
        parts = [f"slurm {environ['SLURM_JOB_ID']}.{environ['SLURM_STEP_ID']}"] if in_slurm else []
        started, restarted = None, _restarted(environ)
        if elastic:
            # One agent a node keeps one folder of logs for its whole life. It tells two jobs of the default id "none"
            # apart, and when the job began; on several nodes only the id and the address are common knowledge.
            attempt = Path(environ.get("TORCHELASTIC_ERROR_FILE") or "-").parent.parent
            if _number(environ, "GROUP_WORLD_SIZE") == 1 and attempt.name.startswith("attempt_"):
                parts.append(f"torchelastic {elastic} {attempt.parent}")
                restarted = True  # no other job has this id; and a change of members is not counted as a restart
                try:
                    started = (attempt.parent / "attempt_0").stat().st_mtime
                except OSError:
                    started = None
            else:
                parts.append(f"torchelastic {elastic} {address}")
        elif address != ":":
            parts.append(f"address {address}")
        return cls(id=", ".join(parts), rank=rank, restarted=restarted, started=started)


@dataclass(frozen=True)
class Process:
    """What decides the place of one process."""

    launch: str
    """Who may share the run folder."""
    job: str
    """Who are ranks of one run."""
    rank: int
    restarted: bool
    """Whether, where its rank exists already, this is the same rank started again."""
    may_lead: bool
    """Whether it may be a rank of the run itself; otherwise its run is a child."""
    may_be_child: bool
    """Whether, where its rank exists and it is no restart, a child run is right; else that run is another job's."""


def is_the_program() -> bool:
    """Whether this process is the Python that `optrace record` became, as opposed to one below it."""
    text = os.environ.get(LAUNCH_VARIABLE)
    launch = None if text is None else Launch.from_json(text)
    return launch is not None and launch.is_python and launch.pid == os.getpid()


def note_member() -> None:
    """Remember in the environment which process its launcher meant by RANK: a child inherits the variables too."""
    if Job.of(os.environ) is not None:
        os.environ.setdefault(MEMBER_VARIABLE, str(os.getpid()))


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
        restarted = job.restarted if job is not None else _restarted(environ)
        if restarted or not _rank_folder(run, job.rank if job is not None else 0).exists():
            return
    if not run.is_dir() or any(run.iterdir()):
        _refuse(run, force)


def identify(settings: Settings) -> Process:
    """Who this process is among those that may write to the same run folder, judged at its first step."""
    above = Settings.from_environment()
    launch = None
    if LAUNCH_VARIABLE in os.environ and above is not None and above.output == settings.output:
        launch = Launch.from_json(os.environ[LAUNCH_VARIABLE])
    job = Job.of(os.environ)
    if launch is None:
        # Started in Python, not by `optrace record`: ranks of a job meet by its id, children by what they inherited.
        launch = Launch(job.id if job is not None else _THIS_TREE, _THIS_PID, is_python=True, shared=True)
    pid = os.getpid()
    restarted = job.restarted if job is not None else _restarted(os.environ)
    group_rank = _process_group_rank()
    if group_rank is not None:
        members = job.id if job is not None else f"{launch.id} group"
        return Process(launch.id, members, group_rank, restarted, may_lead=True, may_be_child=not launch.shared)
    if job is not None and os.environ.get(MEMBER_VARIABLE, str(pid)) == str(pid):
        return Process(launch.id, job.id, job.rank, restarted, may_lead=True, may_be_child=not launch.shared)
    if pid == launch.pid:
        return Process(launch.id, launch.id, 0, restarted, may_lead=True, may_be_child=not launch.shared)
    alone = f"{launch.id} process {pid} {time.time_ns()}"
    return Process(launch.id, alone, 0, False, may_lead=not launch.is_python and job is None, may_be_child=True)


def new_launch(environ: Mapping[str, str], is_python: bool) -> Launch:
    """The launch that this process is about to become: known by its job where it is one of several, else new."""
    job = Job.of(environ)
    shared = None
    if job is not None:
        shared = job.id
    elif "SLURM_JOB_ID" in environ:  # requeued, the same job comes again
        shared = f"slurm {environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', 'batch')}"
    return Launch(shared or os.urandom(8).hex(), os.getpid(), is_python=is_python, shared=shared is not None)


def _restarted(environ: Mapping[str, str]) -> bool:
    """Whether the job's launcher says that it has started this process again."""
    return any(_number(environ, name) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """An environment variable that holds a count; None where it does not."""
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        return None


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
        if job.restarted or not _rank_folder(Path(folder), job.rank).exists():
            return folder
        number += 1


def _program() -> str:
    """What the program is called in a run's name, for a recording that was started in Python."""
    if "ipykernel" in sys.modules:
        return "notebook"
    started_as = sys.argv[0] if sys.argv else ""
    return "" if started_as in ("-c", "-m") else Path(started_as).stem


def _process_group_rank() -> int | None:
    """The rank in torch.distributed's default group; None where there is none."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank())


def _enter(run: Path, process: Process, force: bool) -> Place:
    """The place of `process` in `run`, made."""
    for _ in range(100):
        run.mkdir(parents=True, exist_ok=True)
        try:
            inode = run.stat().st_ino
            place = _try_to_enter(run, process)
            if place is not None:
                return place
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
    """The folder of a rank, created by this call; None where it exists and the process is no restart."""
    folder = _rank_folder(run, process.rank)
    number = 0
    while True:
        candidate = folder if number == 0 else folder.with_name(f"{folder.name}.{number}")
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            if not process.restarted or _rank_info(candidate / "rank.json").get("pid") == os.getpid():
                return None
        number += 1


def _rank_folder(run: Path, rank: int) -> Path:
    return run / f"rank={rank:05d}"


def _is_run(folder: Path) -> bool:
    return (folder / ".launch").exists() or (folder / "trace.json").exists()


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
