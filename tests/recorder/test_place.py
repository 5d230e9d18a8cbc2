"""Where files go: one run a job, a rank to each member, child runs for the rest, and nothing ever overwritten."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from launching import environment

from optrace.errors import RecordError
from optrace.recorder import identity, place
from optrace.recorder.settings import VARIABLE, Settings

CLAIM = """
import os, sys
from optrace.errors import RecordError
from optrace.recorder import identity, place
from optrace.recorder.settings import Settings
settings = Settings.from_environment() or Settings(output=os.environ.get("OUTPUT"), force="FORCE" in os.environ)
identity.note_member()
if sys.argv[1:] == ["wait"]:
    print("ready", flush=True)
    sys.stdin.readline()
try:
    found = place.claim(settings)
except RecordError as error:
    print("refused:", error)
else:
    print(found.run, found.rank.relative_to(found.run), found.rank_number)
"""


def claim(cwd, **variables):
    done = subprocess.run([sys.executable, "-c", CLAIM], cwd=cwd, env=environment(**variables), capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    run, _, rest = done.stdout.strip().partition(" ")
    return (os.path.relpath(run, cwd), *rest.split()) if run != "refused:" else ("refused", rest)


def claim_together(cwd, environments):
    """The same from several processes that all start at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, "wait"],
            cwd=cwd,
            env=environment(**variables),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for variables in environments
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=60)[0].strip().replace(f"{cwd}/", "") for process in processes]


def launched(output, launch="aaaa", pid=1, is_python=True, shared=False):
    """What `optrace record -o OUTPUT` puts into the environment."""
    return {VARIABLE: Settings(output=output).to_json(),
            identity.LAUNCH_VARIABLE: identity.Launch(launch, pid, is_python, shared).to_json()}  # fmt: skip


def torchrun(tmp_path, rank, restarts=0, agent="x1", nodes=1, run_id="none"):
    error_file = tmp_path / "logs" / agent / f"attempt_{restarts}" / str(rank) / "error.json"
    for each in range(4):  # torchrun makes the folders of all ranks before it starts any
        (error_file.parents[1] / str(each)).mkdir(parents=True, exist_ok=True)
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": str(nodes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_RESTART_COUNT": str(restarts), "TORCHELASTIC_ERROR_FILE": str(error_file),
    }  # fmt: skip


def test_a_run_without_a_name_gets_a_dated_folder_and_latest_points_to_it(tmp_path):
    before = time.strftime("%Y%m%d")
    run, rank, number = claim(tmp_path)
    assert re.fullmatch(rf"optrace-runs/python-{before}-\d{{6}}-[0-9a-f]{{4}}", run)
    assert (rank, number) == ("rank=00000", "0")
    assert (tmp_path / run / "rank=00000").is_dir()
    assert os.readlink(tmp_path / "optrace-runs" / "latest") == os.path.basename(run)
    again = claim(tmp_path)
    assert again[0] != run
    assert (tmp_path / "optrace-runs" / "latest").resolve() == (tmp_path / again[0]).resolve()


def test_latest_points_to_a_run_of_which_only_children_train(tmp_path):
    claim(tmp_path)
    run = tmp_path / "optrace-runs" / "hogwild"
    child, *_ = claim(tmp_path, **launched(str(run)))
    assert child == "optrace-runs/hogwild/child-1"
    assert (tmp_path / "optrace-runs" / "latest").resolve() == run


def test_latest_is_a_text_file_where_links_are_not_allowed(tmp_path):
    (tmp_path / "optrace-runs" / "run_a").mkdir(parents=True)
    code = (
        "import pathlib, sys\n"
        "def refuse(event, args):\n"
        "    if event == 'os.symlink':\n        raise PermissionError('no links here')\n"
        "sys.addaudithook(refuse)\n"
        "from optrace.recorder.place import _point_latest\n"
        "_point_latest(pathlib.Path('optrace-runs/run_a').absolute())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "optrace-runs" / "latest").read_text() == "run_a\n"
    assert sorted(os.listdir(tmp_path / "optrace-runs")) == ["latest", "run_a"]


def test_a_second_run_of_the_same_name_is_refused_naming_both_ways_out(tmp_path):
    assert claim(tmp_path, OUTPUT="run_a") == ("run_a", "rank=00000", "0")
    kept = sorted(tmp_path.rglob("*"))
    outcome, reason = claim(tmp_path, OUTPUT="run_a")
    assert outcome == "refused" and "--force" in reason and "overwrite=True" in reason and "run_a~1" in reason
    assert sorted(tmp_path.rglob("*")) == kept


def test_force_moves_the_old_run_aside_and_never_deletes(tmp_path):
    for number in range(3):
        assert claim(tmp_path, OUTPUT="run_a", FORCE="1") == ("run_a", "rank=00000", "0")
        (tmp_path / "run_a" / "mark").write_text(str(number))
    assert [(tmp_path / name / "mark").read_text() for name in ("run_a~1", "run_a~2", "run_a")] == ["0", "1", "2"]


def test_a_run_that_is_being_recorded_is_not_moved_even_with_force(tmp_path):
    claim(tmp_path, OUTPUT="run_a")
    info = tmp_path / "run_a" / "rank=00000" / "rank.json"
    info.write_text(json.dumps({"pid": os.getpid()}))
    assert f"being recorded by process {os.getpid()}" in claim(tmp_path, OUTPUT="run_a", FORCE="1")[1]
    info.write_text(json.dumps({"pid": os.getpid(), "end": "clean"}))
    assert claim(tmp_path, OUTPUT="run_a", FORCE="1")[0] == "run_a"


def test_a_folder_of_other_things_is_refused_even_with_force_and_an_empty_one_is_used(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "train.py").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert "no run" in claim(tmp_path, OUTPUT="src", FORCE="1")[1]
    assert "file" in claim(tmp_path, OUTPUT="file", FORCE="1")[1]
    assert claim(tmp_path, OUTPUT="empty") == ("empty", "rank=00000", "0")
    assert os.listdir(tmp_path / "src") == ["train.py"]


def test_a_folder_that_cannot_be_made_is_said_in_a_sentence(tmp_path):
    assert "cannot make the run folder /proc/run_a: " in claim(tmp_path, OUTPUT="/proc/run_a")[1]


def test_a_path_through_a_file_is_said_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    outcome, reason = claim(tmp_path, OUTPUT="file/run_a")
    assert outcome == "refused" and f"cannot make the run folder {tmp_path}/file/run_a: Not a directory" in reason


def test_processes_of_one_torchrun_are_one_run_and_of_the_next_another(tmp_path):
    first = [claim(tmp_path, OUTPUT="run_a", **torchrun(tmp_path, rank)) for rank in (1, 0)]
    assert first == [("run_a", "rank=00001", "1"), ("run_a", "rank=00000", "0")]
    # the next torchrun: the same id "none" and address, another agent
    assert claim(tmp_path, OUTPUT="run_a", **torchrun(tmp_path, 0, agent="x2"))[0] == "refused"
    assert claim(tmp_path, OUTPUT="run_a", **torchrun(tmp_path, 3, agent="x2"))[0] == "refused"


def test_a_restarted_rank_keeps_what_was_there(tmp_path):
    for restarts in range(3):
        found = [claim(tmp_path, OUTPUT="run_a", **torchrun(tmp_path, rank, restarts)) for rank in (0, 1)]
        suffix = f".{restarts}" if restarts else ""
        assert found == [("run_a", f"rank=0000{rank}{suffix}", str(rank)) for rank in (0, 1)]


def test_ranks_started_again_without_a_count_as_after_a_change_of_members_are_restarts(tmp_path):
    found = [claim(tmp_path, OUTPUT="run_a", **torchrun(tmp_path, 1))[1] for _ in range(2)]
    assert found == ["rank=00001", "rank=00001.1"]


def test_a_job_whose_id_may_come_again_is_refused_unless_its_launcher_counts_a_restart(tmp_path):
    job = {**torchrun(tmp_path, 0, nodes=2), "OUTPUT": "run_a"}
    assert claim(tmp_path, **job)[1] == "rank=00000"
    assert claim(tmp_path, **job)[0] == "refused"
    assert claim(tmp_path, **{**job, "TORCHELASTIC_RESTART_COUNT": "1"})[1] == "rank=00000.1"


def elastic(tmp_path, rank, port, nodes, restarts=0, agent="x1"):
    """A rank of `torchrun --nnodes 1:2 --rdzv-id mine`: each time the ranks meet they do so at another port."""
    job = torchrun(tmp_path, rank, restarts, agent, nodes, run_id="mine")
    return {**job, "MASTER_PORT": str(port), "OUTPUT": "run_a"}


def test_a_job_that_loses_and_wins_nodes_is_one_run_and_each_start_of_it_has_one_number(tmp_path):
    first = [claim(tmp_path, **elastic(tmp_path, rank, 4001, 2)) for rank in (0, 1)]
    assert first == [("run_a", "rank=00000", "0"), ("run_a", "rank=00001", "1")]
    assert claim(tmp_path, **elastic(tmp_path, 0, 4002, 1, 1)) == ("run_a", "rank=00000.1", "0")
    # the second node is back, as another agent, which has counted no restart
    again = [claim(tmp_path, **elastic(tmp_path, rank, 4003, 2, agent=f"y{rank}")) for rank in (1, 0)]
    assert again == [("run_a", "rank=00001.2", "1"), ("run_a", "rank=00000.2", "0")]
    together = claim_together(tmp_path, [elastic(tmp_path, rank, 4004, 2) for rank in range(4)])
    assert sorted(together) == [f"run_a rank=0000{rank}.3 {rank}" for rank in range(4)]


def test_the_id_of_a_job_that_has_ended_cleanly_is_another_jobs_when_it_comes_again(tmp_path):
    for rank in (0, 1):
        claim(tmp_path, **elastic(tmp_path, rank, 4001, 2))
    (tmp_path / "run_a" / "rank=00000" / "rank.json").write_text(json.dumps({"pid": 1, "end": "clean"}))
    outcome, reason = claim(tmp_path, **elastic(tmp_path, 0, 4002, 2))
    assert outcome == "refused" and "--force" in reason
    environ = elastic(tmp_path, 0, 4002, 2)
    with pytest.raises(RecordError, match="--force"):
        place.check(str(tmp_path / "run_a"), False, identity.new_launch(environ, True), environ)
    assert claim(tmp_path, **elastic(tmp_path, 0, 4003, 2, restarts=1))[1] == "rank=00000.1"


def test_a_record_in_front_of_each_nodes_torchrun_is_told_to_stand_behind_it(tmp_path):
    """The two nodes' launches know nothing of each other: the second would be a run of its own in the same folder."""
    output = str(tmp_path / "run_a")
    for rank, launch in ((0, "aaaa"), (1, "bbbb")):
        env = launched(output, launch, is_python=False) | torchrun(tmp_path, rank, nodes=2, agent=launch)
        outcome = claim(tmp_path, **env)
    assert outcome[0] == "refused" and "put torchrun first (torchrun ... -m optrace record -o run_a ...)" in outcome[1]


def test_what_record_checks_lets_the_ranks_of_a_smaller_start_pass(tmp_path):
    for rank in (0, 1):
        claim(tmp_path, **elastic(tmp_path, rank, 4001, 2))
    environ = elastic(tmp_path, 0, 4002, 1)
    place.check(str(tmp_path / "run_a"), False, identity.new_launch(environ, True), environ)


def test_a_folder_called_latest_is_left_alone(tmp_path):
    (tmp_path / "optrace-runs" / "latest").mkdir(parents=True)
    run = claim(tmp_path)[0]
    assert sorted(os.listdir(tmp_path / "optrace-runs")) == sorted(["latest", os.path.basename(run)])


def test_ranks_of_a_job_agree_on_a_default_folder_and_the_next_job_on_another(tmp_path):
    first = [claim(tmp_path, **torchrun(tmp_path, rank))[0] for rank in (0, 1)]
    second = [claim(tmp_path, **torchrun(tmp_path, rank, agent="x2"))[0] for rank in (1, 0)]
    assert first[0] == first[1] and second[0] == second[1] and first[0] != second[0]
    assert re.fullmatch(r"optrace-runs/python-\d{8}-\d{6}-[0-9a-f]{4}", first[0])
    restarted = claim(tmp_path, **torchrun(tmp_path, 0, restarts=1))
    assert restarted[:2] == (first[0], "rank=00000.1")


def test_ranks_on_several_nodes_agree_without_a_common_clock(tmp_path):
    for _ in range(2):
        runs = [claim(tmp_path, **torchrun(tmp_path, rank, nodes=2, agent=f"node{rank}"))[0] for rank in (0, 1)]
        assert runs[0] == runs[1]
    assert re.fullmatch(r"optrace-runs/python-[0-9a-f]{8}-2", runs[0])


def test_tasks_of_a_slurm_step_are_one_run_and_a_requeue_adds_to_it(tmp_path):
    slurm = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
    for restarts, suffix in (("0", ""), ("1", ".1")):
        for rank in ("1", "0"):
            found = claim(tmp_path, OUTPUT="run_a", SLURM_PROCID=rank, SLURM_RESTART_COUNT=restarts, **slurm)
            assert found == ("run_a", f"rank=0000{rank}{suffix}", rank)
    assert claim(tmp_path, OUTPUT="run_a", SLURM_PROCID="0", **{**slurm, "SLURM_STEP_ID": "1"})[0] == "refused"


def test_processes_with_one_master_address_are_one_run(tmp_path):
    job = {"MASTER_ADDR": "n1", "MASTER_PORT": "1234", "WORLD_SIZE": "2"}
    assert [claim(tmp_path, OUTPUT="run_a", RANK=rank, **job)[1] for rank in "01"] == ["rank=00000", "rank=00001"]
    assert claim(tmp_path, OUTPUT="run_a", RANK="0", **job)[0] == "refused"


def test_under_one_record_the_script_leads_and_other_processes_are_children(tmp_path):
    output = str(tmp_path / "run_a")
    code = (
        "import os, subprocess, sys\n"
        f"os.environ.update({launched(output)!r})\n"
        "from optrace.recorder.identity import LAUNCH_VARIABLE, Launch\n"
        "os.environ[LAUNCH_VARIABLE] = Launch('aaaa', os.getpid(), True, False).to_json()\n"
        "child = [sys.executable, '-c', sys.argv[1]]\n"
        "subprocess.run(child)\n"
        "exec(sys.argv[1])\n"
        "sys.stdout.flush()\n"
        "subprocess.run(child)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    exec(sys.argv[1]); sys.stdout.flush(); os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, CLAIM], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.stdout.replace(f"{tmp_path}/", "").splitlines() == [
        "run_a/child-1 rank=00000 0",
        "run_a rank=00000 0",
        "run_a/child-2 rank=00000 0",
        "run_a/child-3 rank=00000 0",
    ], done.stderr


def test_under_a_recorded_command_the_first_that_steps_leads(tmp_path):
    env = launched(str(tmp_path / "run_a"), is_python=False)
    assert [claim(tmp_path, **env)[0] for _ in range(3)] == ["run_a", "run_a/child-1", "run_a/child-2"]


def test_under_a_recorded_command_each_further_job_is_one_child(tmp_path):
    env = launched(str(tmp_path / "run_a"), is_python=False)
    found = [
        claim(tmp_path, **env, **torchrun(tmp_path, rank, agent=agent))[:2] for agent in ("x1", "x2") for rank in (0, 1)
    ]
    assert found == [("run_a", "rank=00000"), ("run_a", "rank=00001"),
                     ("run_a/child-1", "rank=00000"), ("run_a/child-1", "rank=00001")]  # fmt: skip


def test_a_ranks_own_subprocess_is_a_child_though_it_inherits_its_rank(tmp_path):
    env = {**launched(str(tmp_path / "run_a"), is_python=False), **torchrun(tmp_path, 1)}
    code = (
        "import subprocess, sys\n"
        "from optrace.recorder import identity, place\n"
        "identity.note_member()\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1]])\n"
        "exec(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, CLAIM], cwd=tmp_path, env=environment(**env), capture_output=True, text=True
    )
    lines = done.stdout.replace(f"{tmp_path}/", "").splitlines()
    assert lines == ["run_a/child-1 rank=00000 0", "run_a rank=00001 1"], done.stderr


def test_processes_that_enter_at_the_same_moment_get_a_folder_each(tmp_path):
    env = launched(str(tmp_path / "run_a"), is_python=False)
    found = claim_together(tmp_path, [env] * 4)
    assert sorted(found) == ["run_a rank=00000 0", *(f"run_a/child-{n} rank=00000 0" for n in (1, 2, 3))]


def test_ranks_that_enter_at_the_same_moment_join_one_run(tmp_path):
    found = claim_together(tmp_path, [{"OUTPUT": "run_a", **torchrun(tmp_path, rank)} for rank in range(4)])
    assert sorted(found) == [f"run_a rank=0000{rank} {rank}" for rank in range(4)]


def test_of_two_launches_with_one_name_at_the_same_moment_one_is_refused(tmp_path):
    found = claim_together(tmp_path, [{"OUTPUT": "run_a"}] * 3)
    assert sum(line == "run_a rank=00000 0" for line in found) == 1
    assert sum(line.startswith("refused: ") for line in found) == 2


def test_ranks_of_a_new_job_force_an_old_run_aside_once(tmp_path):
    for rank in range(3):
        claim(tmp_path, OUTPUT="run_a", **torchrun(tmp_path, rank))
    (tmp_path / "run_a" / "mark").write_text("old")
    found = claim_together(
        tmp_path, [{"OUTPUT": "run_a", "FORCE": "1", **torchrun(tmp_path, r, agent="x2")} for r in range(3)]
    )
    assert sorted(found) == [f"run_a rank=0000{rank} {rank}" for rank in range(3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["logs", "run_a", "run_a~1"]
    assert (tmp_path / "run_a~1" / "mark").read_text() == "old"


def test_what_record_refuses_before_the_program_starts_is_what_its_first_step_would_be_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    me = identity.Launch("aaaa", 1, True, False)
    place.check("run_a", False, me, {})
    (tmp_path / "run_a").mkdir()
    place.check("run_a", False, me, {})
    claim(tmp_path, **launched(str(tmp_path / "run_a"), is_python=False))
    with pytest.raises(RecordError, match="--force"):
        place.check("run_a", False, me, {})
    place.check("run_a", True, me, {})
    claim(tmp_path, OUTPUT="run_b", **torchrun(tmp_path, 0))
    job = identity.new_launch(torchrun(tmp_path, 1), True)
    place.check("run_b", False, job, torchrun(tmp_path, 1))
    place.check("run_b", False, job, torchrun(tmp_path, 0, restarts=1))
    with pytest.raises(RecordError, match="--force"):
        place.check("run_b", False, replace(job, id="another"), torchrun(tmp_path, 1))


@pytest.mark.parametrize(
    ("program", "stem"),
    [
        ("train", "train"),
        ("pkg.train", "pkg.train"),
        ("a b/ü", "a_b__"),
        ("..", "python"),
        ("", "python"),
        ("x" * 300, "x" * 80),
    ],
)
def test_default_names_are_safe_file_names(program, stem):
    folder = place.default_output(program, {})
    assert re.fullmatch(rf"optrace-runs/{re.escape(stem)}-\d{{8}}-\d{{6}}-[0-9a-f]{{4}}", folder)
