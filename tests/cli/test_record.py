"""`optrace record`'s own command line: what becomes settings, what is refused, and where the program begins."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from in_process import said

from optrace.recorder.settings import VARIABLE, Settings

SHOW = "import os, sys; print(sys.argv[1:]); print(os.environ['OPTRACE_SETTINGS'])\n"


@pytest.fixture
def record(tmp_path):
    (tmp_path / "show.py").write_text(SHOW)

    def run(*args):
        env = {key: value for key, value in os.environ.items() if not key.startswith("OPTRACE_")}
        return subprocess.run([sys.executable, "-m", "optrace", "record", *args], cwd=tmp_path, env=env,
                              capture_output=True, text=True, timeout=60)  # fmt: skip

    return run


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {}),
        (["--values", "grad"], {"values": "grad"}),
        (["--values=full", "--every", "5"], {"values": "full", "every": 5}),
        (["--steps", "5:20"], {"steps": (5, 20)}),
        (["--steps", ":7"], {"steps": (None, 7)}),
        (["--params", "fc*", "--params=*.bias"], {"params": ("fc*", "*.bias")}),
        (["--quantities", "param, grad,state.*,group.d"], {"quantities": ("param", "grad", "state.*", "group.d")}),
        (["--quantities", "*"], {"quantities": ("*",)}),
        (["--quantities", "st*,g*"], {"quantities": ("st*", "g*")}),
        (["--micro", "--stop-after", "3"], {"micro": True, "stop_after": 3}),
        (["--memory", "64MB", "--max-size", "2GiB"], {"memory": 64 * 2**20, "max_size": 2 * 2**30}),
        (["--force", "--strict", "-q"], {"force": True, "strict": True, "quiet": True}),
        (["-qo", "run_q"], {"quiet": True, "output": "run_q"}),
        (["-orun_q"], {"output": "run_q"}),
        (["-o", "-q"], {"output": "-q"}),
    ],
    ids=str,
)
def test_options_become_settings_and_the_arguments_stay(record, tmp_path, options, expected):
    done = record("-o", "run_a", *options, "show.py", "-o", "--values", "x", "--", "-q")
    assert done.returncode == 0, done.stderr
    argv, settings = done.stdout.splitlines()
    assert argv == str(["-o", "--values", "x", "--", "-q"])
    expected = {"output": "run_a", **expected}
    expected["output"] = str(tmp_path / expected["output"])
    assert Settings.from_json(settings) == Settings(**expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--every", "0"], "--every is 0; it counts steps from 1"),
        (["--stop-after", "-1"], "--stop-after is -1"),
        (["--steps", "9:3"], "--steps 9:3 holds no step"),
        (["--steps", "a:b"], "'a:b' is no range of steps"),
        (["--memory", "lots"], "'lots' is no size"),
        (["--max-size", "-1"], "'-1' is no size"),
        (["--quantities", "grads"], "--quantities 'grads' matches no quantity"),
        (["--quantities", "param,momentum_buffer"], "'momentum_buffer' matches no quantity"),
        (["--quantities", "x*"], "'x*' matches no quantity"),
        (["--quantities", " ,"], "--quantities is empty"),
        (["--params", "fc*", "--params", ""], "--params is empty"),
        (["--values", "all"], "'all' is not one of"),
        (["--every", "x"], "'x' is not a valid integer"),
        (["-o", ""], "-o is empty"),
        (["-o", "show.py"], "is a file"),
        (["-o", "."], "holds files that are no run"),
        (["--nonsense"], "No such option"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_the_program_starts(record, options, message):
    done = record(*options, "show.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [[], ["-q"], ["--"], ["-m"], ["-o", "run_a"], [""]])
def test_without_a_program_it_says_what_to_name(record, args):
    done = record(*args)
    assert done.returncode == 2
    assert "name what to run" in done.stderr


def test_the_first_line_says_where_and_quiet_silences_it(record, tmp_path):
    done = record("-o", "runs/a", "show.py")
    assert done.stderr == "optrace: recording to runs/a from the first optimizer step on\n"
    assert record("-q", "show.py").stderr == ""
    done = record("--", sys.executable, "show.py")
    assert re.match(r"optrace: recording to optrace-runs/show-\d{8}-\d{6}-[0-9a-f]{4} from", done.stderr)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["show.py"]


def test_a_command_without_its_dashes_gets_a_hint_and_pythons_own_error(record):
    done = record("sh", "run.sh")
    hint, error = done.stderr.splitlines()[1:]
    assert hint == "optrace: there is no script sh; to run the command: optrace record -- sh ..."
    assert "can't open file" in error and done.returncode == 2


def test_a_shell_script_gets_a_hint_and_pythons_own_error(record, tmp_path):
    (tmp_path / "run.sh").write_text("python train.py\n")
    done = record("run.sh")
    assert done.stderr.splitlines()[1] == (
        "optrace: run.sh is run by Python; to run a shell script: optrace record -- bash run.sh ..."
    )
    assert "SyntaxError" in done.stderr and done.returncode == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--", "gan.py"], "gan.py is a Python script and no command; leave out --, or write -- python gan.py"),
        (["--", "./gan.py", "-n"], "./gan.py is a Python script and no command; leave out --, or write -- python"),
        (["gan.py --epochs 3"], "there is no script 'gan.py --epochs 3'; leave out the quotes: optrace record gan.py"),
        (["gna.py"], "there is no script gna.py; did you mean gan.py?"),
        (["sub/trian.py"], "there is no script sub/trian.py; did you mean sub/train.py?"),
        (["a.ipynb"], "a.ipynb is a notebook, which Python cannot run; record in it, with: with optrace.record("),
        (["--", "a.ipynb"], "a.ipynb is a notebook"),
    ],
    ids=str,
)
def test_a_program_that_is_nearly_named_is_told_its_name(tmp_path, monkeypatch, capsys, args, words):
    (tmp_path / "sub").mkdir()
    for name in ("gan.py", "sub/train.py", "a.ipynb"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    done = said(capsys, "record", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


@pytest.mark.parametrize(("before", "told"), [((), "-o"), (("-o", "run_b"), "--values=grad"), (("-q",), None)], ids=str)
def test_an_option_of_ours_behind_the_script_is_the_scripts_and_that_is_said(record, before, told):
    done = record(*before, "show.py", "-o", "run_a", "--values=grad")
    assert done.stdout.startswith("['-o', 'run_a', '--values=grad']\n")
    words = f"optrace: {told} was given to show.py; optrace's own options stand before it"
    assert done.stderr.splitlines()[:1] == ([words] if told else [])


def test_a_run_that_is_there_is_refused_before_the_program_starts(record, tmp_path):
    (tmp_path / "run_a").mkdir()
    (tmp_path / "run_a" / "trace.json").write_text("{}")
    done = record("-o", "run_a", "show.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "--force" in done.stderr and "overwrite=True" in done.stderr
    assert record("-o", "run_a", "--force", "show.py").returncode == 0
    assert (tmp_path / "run_a" / "trace.json").exists()  # moved at the first step, and there was none


def test_one_rank_speaks_for_its_job(record, tmp_path, monkeypatch):
    for name, value in {"RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert record("show.py").stderr == ""
    monkeypatch.setenv("RANK", "0")
    assert record("show.py").stderr.startswith("optrace: recording to optrace-runs/show-")


def test_record_below_record_takes_over(record, tmp_path):
    inner = [sys.executable, "-m", "optrace", "record", "-q", "-o", "inner", "show.py"]
    done = record("-q", "-o", "outer", "--", *inner)
    assert Settings.from_json(done.stdout.splitlines()[1]).output == str(tmp_path / "inner")
    code = "import os; print(os.environ['PYTHONPATH'].count('autostart'))"
    done = record("-q", "--", sys.executable, "-m", "optrace", "record", "-q", "--", sys.executable, "-c", code)
    assert done.stdout == "1\n"


def test_settings_travel_in_one_variable(record):
    assert VARIABLE == "OPTRACE_SETTINGS"
    assert Settings.from_json(record("-q", "--params", "\udcff*", "show.py").stdout.splitlines()[1]).params == (
        "\udcff*",
    )
