"""Recorded programs of several processes: one run a job, child runs for other descendants, whatever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import DESCENT, RECORD, assert_same, both, environment, run, without_ours

TRAIN = f"""
import os, sys, torch
torch.set_num_threads(1)
{DESCENT}

def train(steps=2, distributed=False, kind=Descent):
    if distributed:
        torch.distributed.init_process_group("gloo")
    model = torch.nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1)
    for _ in range(steps):
        model.zero_grad()
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    if distributed:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def folders(root):
    """Every rank folder below `root` that holds steps, relative to it."""
    return sorted(str(path.parent.relative_to(root)) for path in Path(root).rglob("rank.json"))


def write(tmp_path, name, body):
    (tmp_path / "training.py").write_text(TRAIN)
    (tmp_path / name).write_text(f"from training import *\n{body}")


def record(tmp_path, *args, prefix=(sys.executable,), **variables):
    done = run([*prefix, *RECORD, *args], tmp_path, environment(**variables))
    assert done.returncode == 0, done.stderr.decode()
    return done


def test_a_script_is_rank_0_of_its_run(tmp_path):
    write(tmp_path, "train.py", "train()\nprint('trained')\n")
    done = record(tmp_path, "-o", "run_a", "train.py")
    assert folders(tmp_path) == ["run_a/rank=00000"]
    assert done.stdout == b"trained\n"
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "optrace: recording to run_a from the first optimizer step on"
    assert lines[-1].startswith("optrace: ") and "optrace show run_a" in lines[-1]


def test_a_program_that_changes_its_directory_is_recorded_where_it_was_started(tmp_path):
    write(tmp_path, "train.py", "os.chdir('/')\ntrain()\n")
    record(tmp_path, "train.py", "x")
    (latest,) = {path for path in folders(tmp_path)}
    assert latest.startswith("optrace-runs/train-")
    assert folders(tmp_path / "optrace-runs" / "latest") == ["rank=00000"]


@pytest.mark.parametrize("order", ["record first", "torchrun first"])
def test_torchrun_in_both_orders_is_one_run_of_two_ranks(tmp_path, order):
    write(tmp_path, "train.py", "train(distributed=True)\n")
    if order == "record first":
        done = record(tmp_path, "-o", "run_a", "--", sys.executable, *TORCHRUN, "train.py")
    else:
        done = run([sys.executable, *TORCHRUN, *RECORD, "-o", "run_a", "train.py"], tmp_path)
        assert done.returncode == 0, done.stderr.decode()
    assert folders(tmp_path) == ["run_a/rank=00000", "run_a/rank=00001"]
    assert done.stderr.count(b"optrace show run_a") == 1
    assert done.stderr.count(b"optrace: recording to run_a") == 1


@pytest.mark.slow
def test_torchrun_first_without_a_name_agrees_on_one_folder_and_the_next_on_another(tmp_path):
    write(tmp_path, "train.py", "train(distributed=True)\n")
    for number in (1, 2):
        done = run([sys.executable, *TORCHRUN, *RECORD, "train.py"], tmp_path)
        assert done.returncode == 0, done.stderr.decode()
        runs = {Path(folder).parent for folder in folders(tmp_path / "optrace-runs") if "latest" not in folder}
        assert len(runs) == number
    assert folders(tmp_path / "optrace-runs" / "latest") == ["rank=00000", "rank=00001"]


@pytest.mark.slow
def test_a_restart_by_torchrun_keeps_what_was_there(tmp_path):
    body = "train(1)\nif os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n    sys.exit(1)\n"
    write(tmp_path, "train.py", body)
    restarting = [sys.executable, *TORCHRUN[:-1], "1", "--max-restarts", "1"]
    record(tmp_path, "-o", "run_a", "--", *restarting, "train.py")
    assert folders(tmp_path) == ["run_a/rank=00000", "run_a/rank=00000.1"]
    done = run([*restarting, *RECORD, "-o", "run_b", "train.py"], tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert folders(tmp_path / "run_b") == ["rank=00000", "rank=00000.1"]


SRUN = """#!/bin/bash
# What Slurm's own does: as many copies as -n says, side by side, each with its variables; one that fails fails it.
shift; tasks=$1; shift
step=$(cat "$TMPDIR/step" 2>/dev/null || echo 0); echo $((step + 1)) > "$TMPDIR/step"
for ((task = 0; task < tasks; task++)); do
  SLURM_JOB_ID=77 SLURM_STEP_ID=$step SLURM_NTASKS=$tasks SLURM_STEP_NUM_TASKS=$tasks SLURM_PROCID=$task \\
    SLURM_LOCALID=$task SLURM_NODEID=0 SLURM_STEP_NODELIST=localhost "$@" &
  running+=($!)
done
status=0
for task in "${running[@]}"; do wait "$task" || status=$?; done
exit $status
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["record first", "srun first"])
def test_srun_is_one_run_a_job_step_with_a_rank_a_task(tmp_path, order):
    write(tmp_path, "train.py", "train()\n")
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    variables = environment(TMPDIR=str(tmp_path), PATH=f"{tmp_path}:{os.environ['PATH']}")
    names = ("run_a", "run_b") if order == "record first" else ("run_a",)  # two steps of one job
    for name in names:
        ours = [sys.executable, *RECORD, "-o", name]
        srun = ["srun", "-n", "2"]
        started = [*ours, "--", *srun, sys.executable] if order == "record first" else [*srun, *ours]
        done = run([*started, "train.py"], tmp_path, variables)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr.count(f"optrace: recording to {name}".encode()) == 1
        assert done.stderr.count(f"optrace show {name}".encode()) == 1
    expected = [f"{name}/rank={rank:05d}" for name in names for rank in range(2)]
    assert folders(tmp_path) == expected


@pytest.mark.slow
def test_mp_spawn_of_a_process_group_is_one_run(tmp_path):
    body = (
        "def worker(rank, port):\n"
        "    os.environ.update(MASTER_ADDR='localhost', MASTER_PORT=str(port))\n"
        "    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)\n"
        "    train()\n"
        "    torch.distributed.barrier()\n"
        "    torch.distributed.destroy_process_group()\n"
        "if __name__ == '__main__':\n"
        "    import socket\n"
        "    with socket.socket() as s:\n"
        "        s.bind(('localhost', 0))\n"
        "        port = s.getsockname()[1]\n"
        "    torch.multiprocessing.spawn(worker, (port,), nprocs=2)\n"
    )
    write(tmp_path, "train.py", body)
    record(tmp_path, "-o", "run_a", "train.py")
    assert folders(tmp_path) == ["run_a/rank=00000", "run_a/rank=00001"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_that_train_are_child_runs_and_end_clean(tmp_path, method):
    body = (
        "if __name__ == '__main__':\n"
        "    import multiprocessing\n"
        "    train(1)\n"
        f"    context = multiprocessing.get_context('{method}')\n"
        "    children = [context.Process(target=train) for _ in range(2)]\n"
        "    [child.start() for child in children]\n"
        "    [child.join() for child in children]\n"
        "    train(1)\n"
    )
    write(tmp_path, "train.py", body)
    record(tmp_path, "-o", "run_a", "train.py")
    assert folders(tmp_path) == ["run_a/child-1/rank=00000", "run_a/child-2/rank=00000", "run_a/rank=00000"]
    for file in tmp_path.rglob("rank.json"):
        assert '"clean"' in file.read_text(), file


def test_subprocesses_and_forks_that_train_are_child_runs(tmp_path):
    body = (
        "import subprocess\n"
        "subprocess.run([sys.executable, '-c', 'from training import *; train()'], check=True)\n"
        "train()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    train()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    write(tmp_path, "train.py", body)
    record(tmp_path, "-o", "run_a", "train.py")
    assert folders(tmp_path) == ["run_a/child-1/rank=00000", "run_a/child-2/rank=00000", "run_a/rank=00000"]


def test_a_shell_script_that_trains_twice_is_a_run_and_a_child(tmp_path):
    write(tmp_path, "train.py", "train()\n")
    (tmp_path / "run.sh").write_text(f"set -e\n{sys.executable} train.py\n{sys.executable} train.py\necho ok\n")
    assert record(tmp_path, "-o", "run_a", "--", "bash", "run.sh").stdout == b"ok\n"
    assert folders(tmp_path) == ["run_a/child-1/rank=00000", "run_a/rank=00000"]


def test_workers_that_do_not_step_write_nothing(tmp_path):
    body = (
        "import torch.utils.data as data\n"
        "if __name__ == '__main__':\n"
        "    set_ = data.TensorDataset(torch.ones(4, 3))\n"
        "    for method in ('fork', 'spawn'):\n"
        "        list(data.DataLoader(set_, num_workers=1, multiprocessing_context=method))\n"
        "    train()\n"
    )
    write(tmp_path, "train.py", body)
    done = record(tmp_path, "-o", "run_a", "train.py")
    assert folders(tmp_path) == ["run_a/rank=00000"]
    assert without_ours(done.stderr) == b""
    assert done.stderr.count(b"optrace: recording") == 1


def test_two_records_at_once_with_one_name_never_mix(tmp_path):
    write(tmp_path, "train.py", "train(5)\nprint('trained')\n")
    command = [sys.executable, *RECORD, "-o", "run_a", "train.py"]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    ends = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert folders(tmp_path) == ["run_a/rank=00000"]
    # whoever came second trained all the same, or was refused before it began
    assert sorted(end[2] for end in ends) in ([0, 0], [0, 2])
    assert sum(b"run_a holds a run already" in end[1] or b"is being recorded" in end[1] for end in ends) == 1
    assert all((end[0] == b"trained\n") == (end[2] == 0) for end in ends)


ENDINGS = {
    "normal": ("", 0),
    "exit-3": ("sys.exit(3)", 3),
    "text": ("sys.exit('some text')", 1),
    "exception": ("[][1]", 1),
    "interrupt": ("raise KeyboardInterrupt", None),  # 1 where an import of torch's at exit makes CPython forget it
    "SIGINT": ("import signal; os.kill(os.getpid(), signal.SIGINT)", None),
    "_exit": ("os._exit(4)", 4),
    "SIGTERM": ("import signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "SIGKILL": ("import signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_however_a_training_ends_its_output_and_status_are_its_own_and_the_steps_are_there(tmp_path, how):
    source, status = ENDINGS[how]
    kind = "Descent" if how in ("_exit", "SIGTERM", "SIGKILL") else "torch.optim.SGD"  # no handler of torch's runs then
    body = f"train(3, kind={kind})\nprint('trained', flush=True)\ndef end():\n    {source or 'pass'}\nend()\n"
    write(tmp_path, "train.py", body)
    alone, recorded = both(["train.py"], tmp_path, record=("-q", "-o", "run_a"))
    assert status is None or alone.returncode == status
    assert_same(alone, recorded)
    assert folders(tmp_path) == ["run_a/rank=00000"]
    import optrace

    assert optrace.open(tmp_path / "run_a").last_step(0) == 3


def test_ending_a_recording_executes_no_source_text_so_that_ctrl_c_keeps_its_status(tmp_path):
    body = (
        "def watch(event, args):\n"
        "    if event == 'compile' and ended and args[1] == '<string>':\n"
        "        frame = sys._getframe()\n"
        "        while frame:\n"
        "            print(frame.f_code.co_filename) if 'optrace' in frame.f_code.co_filename else None\n"
        "            frame = frame.f_back\n"
        "ended = []\n"
        "sys.addaudithook(watch)\n"
        "train(3)\n"
        "import atexit\n"
        "atexit.register(ended.append, True)\n"
    )
    write(tmp_path, "train.py", body)
    assert record(tmp_path, "-o", "run_a", "train.py").stdout == b""


def test_training_without_backwards_and_optimizers_is_told_that_nothing_was_recorded(tmp_path):
    body = "w = torch.ones(3)\nfor _ in range(3):\n    w = w - 0.1 * torch.func.grad(lambda w: (w * w).sum())(w)\n"
    write(tmp_path, "train.py", body)
    done = run([sys.executable, *RECORD, "train.py"], tmp_path)
    assert b"optrace: no optimizer step seen: nothing was recorded" in done.stderr.splitlines()[-1]
    assert folders(tmp_path) == []


def test_what_the_program_redirects_stays_its_own(tmp_path):
    body = (
        "import contextlib, io\n"
        "text = io.StringIO()\n"
        "with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):\n"
        "    train(3)\n"
        "print(repr(text.getvalue()))\n"
        "sys.stderr = open('log.txt', 'w')\n"
    )
    write(tmp_path, "train.py", body)
    done = record(tmp_path, "-o", "run_a", "train.py")
    assert done.stdout == b"''\n" and (tmp_path / "log.txt").read_text() == ""
    assert [line.split()[1] for line in done.stderr.splitlines()] == [b"recording", b"a", b"3"]


@pytest.mark.parametrize("end", ["pass", "raise ValueError('on purpose')", "sys.exit(3)"])
def test_training_that_never_stepped_an_optimizer_ends_with_a_line_that_says_so(tmp_path, end):
    body = (
        "w = torch.ones(3, requires_grad=True)\n"
        "for _ in range(3):\n"
        "    (w * w).sum().backward()\n"
        "    w.data -= 0.1 * w.grad\n"
        "    w.grad = None\n"
        f"{end}\n"
    )
    write(tmp_path, "train.py", body)
    done = run([sys.executable, *RECORD, "train.py"], tmp_path)
    assert b"optrace: no optimizer step seen" in done.stderr.splitlines()[-1]
    assert folders(tmp_path) == []


def test_stop_after_ends_the_program_cleanly(tmp_path):
    body = "import atexit\natexit.register(print, 'at exit')\ntrain(50, kind=torch.optim.SGD)\nprint('never')\n"
    write(tmp_path, "train.py", body)
    done = record(tmp_path, "-q", "-o", "run_a", "--stop-after", "3", "train.py")
    assert done.stdout == b"at exit\n"
    import optrace

    assert optrace.open(tmp_path / "run_a").last_step(0) == 3


@pytest.mark.slow
def test_accelerate_launches_one_recorded_process(tmp_path):
    pytest.importorskip("accelerate")
    write(tmp_path, "train.py", "train()\n")
    command = [os.path.join(os.path.dirname(sys.executable), "accelerate"), "launch", "--cpu", "--num_processes", "1"]
    record(tmp_path, "-o", "run_a", "--", *command, "train.py", HF_HOME=str(tmp_path / "hf"))
    assert folders(tmp_path) == ["run_a/rank=00000"]


@pytest.mark.parametrize("name", ["'run_a'", "None"])
def test_a_recording_started_in_python_stays_where_it_was_started_and_its_forks_are_children(tmp_path, name):
    body = (
        "import optrace\n"
        f"with optrace.record({name}):\n"
        "    os.chdir('/')\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        train()\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "    train()\n"
    )
    write(tmp_path, "train.py", body)
    done = run([sys.executable, "train.py"], tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    root = tmp_path / "run_a" if name == "'run_a'" else (tmp_path / "optrace-runs" / "latest").resolve()
    assert folders(root) == ["child-1/rank=00000", "rank=00000"]
