"""Who a process is among those of its job: its launch, its rank, and whether it was started again."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from optrace.recorder.settings import Settings

LAUNCH_VARIABLE = "OPTRACE_LAUNCH"
MEMBER_VARIABLE = "OPTRACE_MEMBER"

_THIS_TREE = os.urandom(8).hex()  # shared with children by fork: what a recording started in Python is known by
_THIS_PID = os.getpid()


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
    sure: bool
    """Whether that is so however the run ended. Else, where a rank ended cleanly, the job's id has come again."""
    start: str
    """What the processes of one start have in common, and those that are started again have not."""
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
        started, sure = None, was_restarted(environ)
        restarted = sure
        start = [address, environ.get("SLURM_RESTART_COUNT", "")]
        if elastic:
            # One agent a node keeps one folder of logs for its whole life. It tells two jobs of the default id "none"
            # apart, and when the job began; on several nodes only the id and the address are common knowledge. A job
            # that may lose and win nodes has another address each time, and another number of nodes: only its id stays.
            attempt = Path(environ.get("TORCHELASTIC_ERROR_FILE") or "-").parent.parent
            alone = _number(environ, "GROUP_WORLD_SIZE") == 1 and attempt.name.startswith("attempt_")
            if alone:
                start.append(environ.get("TORCHELASTIC_RESTART_COUNT", ""))  # several nodes may count differently
            if elastic != "none":
                parts.append(f"torchelastic {elastic}")
            else:
                parts.append(f"torchelastic {elastic} {attempt.parent if alone else address}")
            if alone and (elastic == "none" or _is_random(elastic)):
                sure = True  # no other job has this id
                try:
                    started = (attempt.parent / "attempt_0").stat().st_mtime
                except OSError:
                    started = None
            restarted = sure or elastic != "none"  # a change of members is not counted as a restart
        elif address != ":":
            parts.append(f"address {address}")
        return cls(", ".join(parts), rank, restarted, sure, " ".join(start), started)


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
    sure: bool
    """Whether that is so even where the run has ended cleanly."""
    start: str
    """What the ranks of one start have in common; empty where there is but one."""
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
    restarted = job.restarted if job is not None else was_restarted(os.environ)
    again = (restarted, restarted if job is None else job.sure, "" if job is None else job.start)
    group_rank = _process_group_rank()
    if group_rank is not None:
        members = job.id if job is not None else f"{launch.id} group"
        return Process(launch.id, members, group_rank, *again, may_lead=True, may_be_child=not launch.shared)
    if job is not None and os.environ.get(MEMBER_VARIABLE, str(pid)) == str(pid):
        return Process(launch.id, job.id, job.rank, *again, may_lead=True, may_be_child=not launch.shared)
    if pid == launch.pid:
        return Process(launch.id, launch.id, 0, *again, may_lead=True, may_be_child=not launch.shared)
    alone = f"{launch.id} process {pid} {time.time_ns()}"
    leads = not launch.is_python and job is None
    return Process(launch.id, alone, 0, False, False, "", may_lead=leads, may_be_child=True)


def new_launch(environ: Mapping[str, str], is_python: bool) -> Launch:
    """The launch that this process is about to become: known by its job where it is one of several, else new."""
    job = Job.of(environ)
    shared = None
    if job is not None:
        shared = job.id
    elif "SLURM_JOB_ID" in environ:  # requeued, the same job comes again
        shared = f"slurm {environ['SLURM_JOB_ID']}.{environ.get('SLURM_STEP_ID', 'batch')}"
    return Launch(shared or os.urandom(8).hex(), os.getpid(), is_python=is_python, shared=shared is not None)


def was_restarted(environ: Mapping[str, str]) -> bool:
    """Whether the job's launcher says that it has started this process again."""
    return any(_number(environ, name) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _is_random(run_id: str) -> bool:
    """Whether a job's id is one that torchrun makes itself, for one node (`--standalone`)."""
    try:
        return str(uuid.UUID(run_id)) == run_id
    except ValueError:
        return False


def _process_group_rank() -> int | None:
    """The rank in torch.distributed's default group; None where there is none."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return int(distributed.get_rank())


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """An environment variable that holds a count; None where it does not."""
    try:
        return int(environ[name])
    except (KeyError, ValueError):
        return None
