"""Under `optrace record` a program sees, prints and ends as it does under `python`, to the byte."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from launching import PROBE, RECORD, assert_same, both, environment, run, without_ours

from optrace.recorder.launch import AUTOSTART

ENDS = ["normal", "exit-3", "exit-text", "odd-exit", "exception", "chained", "import-error", "interrupt", "_exit-4"]
SIGNALS = ["SIGTERM", "SIGINT", "SIGKILL", "SIGABRT", "SIGPIPE", "SIGHUP"]


@pytest.fixture
def probe(tmp_path):
    return shutil.copy(PROBE, tmp_path / "probe.py") and "probe.py"


@pytest.mark.parametrize("how", [*ENDS, *SIGNALS])
def test_every_way_to_end_is_the_programs_own(probe, tmp_path, how):
    alone, recorded = both([probe, how], tmp_path)
    assert b"hooks" in alone.stdout
    assert_same(alone, recorded)


@pytest.mark.parametrize("how", ["normal", "exit-3", "exception", "_exit-4", "SIGINT", "SIGKILL"])
def test_ends_are_the_same_with_torch_and_the_recorder_loaded(probe, tmp_path, how):
    script = tmp_path / "with_torch.py"
    script.write_text(
        "import sys, os, signal, torch\n"
        "torch.set_num_threads(1)\n"
        "how = sys.argv[1]\n"
        "print(type(torch.__spec__), type(torch.__loader__), sorted(vars(torch.__loader__)), sys.path)\n"
        "print(type(torch).__name__, torch.__file__, sorted(vars(torch))[:50])\n"
        "print([signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], sys.excepthook)\n"
        "sys.stdout.flush()\n"
        "def train(p):\n    return torch.zeros(2) @ torch.zeros(3)\n"
        "if how == 'exit-3': sys.exit(3)\n"
        "if how == 'exception': train(1)\n"
        "if how == '_exit-4': os._exit(4)\n"
        "if how.startswith('SIG'): os.kill(os.getpid(), getattr(signal, how))\n"
    )
    assert_same(*both([script.name, how], tmp_path))


def test_pools_by_fork_spawn_and_forkserver_work_as_without_us(probe, tmp_path):
    alone, recorded = both([probe, "pools"], tmp_path)
    assert alone.returncode == 0 and b"forkserver" in alone.stdout
    assert_same(alone, recorded)


def test_our_lines_go_to_standard_error_only(probe, tmp_path):
    alone, recorded = both([probe, "exception"], tmp_path, record=())
    assert recorded.stdout == alone.stdout
    assert recorded.stderr != alone.stderr
    assert without_ours(recorded.stderr) == alone.stderr
    assert recorded.stderr.splitlines()[0].startswith(b"optrace: recording to optrace-runs/probe-")


def test_a_program_without_torch_writes_nothing(probe, tmp_path):
    both([probe], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["probe.py"]


ODD_ARGS = [b"", b"\xff\xfe", b"--values", b"full", b"-o", b"x y", b"--", b"-m", b"--help", b"-q", "é".encode(), b"*"]


@pytest.mark.parametrize("first", [b"-q", b"--", b"-o", b"-m", b"--help", b"\xff"])
def test_arguments_arrive_byte_for_byte_even_those_that_look_like_ours(probe, tmp_path, first):
    alone, recorded = both([probe, first, *ODD_ARGS], tmp_path)
    assert_same(alone, recorded)
    assert b"\\xff\\xfe" in recorded.stdout


def test_a_script_with_a_name_that_is_no_utf8_runs(tmp_path):
    name = b"pr\xffobe.py"
    shutil.copy(PROBE, os.path.join(os.fsencode(tmp_path), name))
    alone, recorded = both([b"./" + name], tmp_path)
    assert b"pr\\xffobe" in recorded.stdout
    assert_same(alone, recorded)


def test_standard_input_reaches_the_program(probe, tmp_path):
    alone, recorded = both([probe, "stdin"], tmp_path, input=b"line\n\x00\xff")
    assert b"line\\n\\x00\\xff" in recorded.stdout
    assert_same(alone, recorded)


def test_a_program_on_standard_input_runs(tmp_path):
    source = b"import sys; print(__name__, sys.argv, sys.path, globals().get('__file__'))"
    assert_same(*both(["-", "a", "-o"], tmp_path, input=source))


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_standard_streams_stay_closed(probe, tmp_path, closed):
    source = (
        "import os, sys\n"
        "def is_open(fd):\n"
        "    try:\n        os.fstat(fd)\n"
        "    except OSError:\n        return False\n"
        "    return True\n"
        "seen = [is_open(fd) for fd in range(3)], sys.stdin is None, sys.stdout is None, sys.stderr is None\n"
        "open('seen', 'w').write(repr(seen))\n"
    )
    (tmp_path / "closed.py").write_text(source)
    seen = []
    for prefix in ([], RECORD):
        done = run(["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, *prefix, "closed.py"], tmp_path)
        seen.append(((tmp_path / "seen").read_text(), done.returncode))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    "flags", [["-u"], ["-W", "error"], ["-X", "dev"], ["-B", "-s"], ["-OO"], ["-P"], ["-bb", "-X", "utf8"]]
)
def test_options_of_the_interpreter_reach_the_program(probe, tmp_path, flags):
    alone, recorded = both([probe, "exit-3"], tmp_path, flags=flags)
    assert_same(alone, recorded)


@pytest.mark.parametrize("flag", ["-I", "-E", "-S"])
def test_options_that_would_hide_the_recorder_are_refused_in_a_sentence(probe, tmp_path, flag):
    env = environment(PYTHONPATH=None)
    script = Path(sys.executable).with_name("optrace")
    paths = [str(Path(__file__).parents[2]), *sys.path]
    code = f"import sys; sys.path[:0] = {paths!r}; sys.argv[0] = 'optrace'; from optrace.cli.main import main; main()"
    done = run([sys.executable, flag, "-c", code, "record", probe], tmp_path, env)
    assert done.returncode == 2, (script, done.stderr)
    assert done.stderr.decode().strip().endswith(f"python {flag} hides the recorder from the program; "
                                                 "start optrace without that option")  # fmt: skip


@pytest.mark.parametrize("flag", ["-I", "-E", "-S"])
def test_a_command_whose_python_ignores_the_environment_simply_is_not_recorded(probe, tmp_path, flag):
    command = [sys.executable, flag, probe, "exit-3"]
    alone, recorded = run(command, tmp_path), run([sys.executable, *RECORD, "-q", "--", *command], tmp_path)
    if flag == "-S":  # reads PYTHONPATH, but runs no sitecustomize that could take the folder off again
        for entry in (f"'{AUTOSTART}', ", f", '{AUTOSTART}'"):
            recorded.stdout = recorded.stdout.replace(entry.encode(), b"")
    assert_same(alone, recorded)


@pytest.mark.parametrize(
    "changes",
    [
        {"PYTHONPATH": "lib"},
        {"PYTHONPATH": "lib:"},
        {"PYTHONPATH": ":lib"},
        {"PYTHONPATH": ""},
        {"PYTHONSAFEPATH": "1"},
        {"PYTHONSTARTUP": "startup.py"},
        {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"},
        {"PYTHONNOUSERSITE": "1", "PYTHONWARNINGS": "error"},
    ],
    ids=str,
)
def test_variables_of_python_keep_their_meaning(probe, tmp_path, changes):
    (tmp_path / "lib").mkdir()
    (tmp_path / "startup.py").write_text("print('never in a script')\n")
    assert_same(*both([probe, "exit-3"], tmp_path, env=environment(**changes)))


@pytest.mark.parametrize(
    "body",
    [
        "import sys; print('mine', __name__, __file__, __spec__.name, sys.path)",
        "raise RuntimeError('broken')",
        "import there_is_no_such_module",
        "import sys; sys.path.append('added'); del sys.modules['sitecustomize']",
    ],
)
def test_the_environments_own_sitecustomize_runs_as_without_us(probe, tmp_path, body):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "sitecustomize.py").write_text(body)
    env = environment(PYTHONPATH=str(tmp_path / "lib"))
    alone = run([sys.executable, probe], tmp_path, env)
    # optrace's own process would start under that sitecustomize, too: here only what it launches does
    code = (
        "import os\n"
        "from optrace.recorder.launch import environment\nfrom optrace.recorder.identity import new_launch\n"
        "from optrace.recorder.settings import Settings\n"
        f"os.environ['PYTHONPATH'] = {str(tmp_path / 'lib')!r}\n"
        "env = environment(Settings(output='x'), new_launch(os.environ, True))\n"
        f"os.execve({sys.executable!r}, [{sys.executable!r}, {probe!r}], env)\n"
    )
    recorded = run([sys.executable, "-c", code], tmp_path)
    assert_same(alone, recorded)


def test_usercustomize_and_another_python_run_as_without_us(probe, tmp_path):
    other = sys._base_executable
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "base" / "lib" / version / "site-packages"
    site.mkdir(parents=True)
    (site / "usercustomize.py").write_text("import sys; print('user', __file__, sys.path)\n")
    env = environment(PYTHONUSERBASE=str(tmp_path / "base"))
    alone = run([other, probe, "exit-3"], tmp_path, env)
    assert alone.stdout.startswith(b"user")
    assert_same(alone, run([sys.executable, *RECORD, "-q", "--", other, probe, "exit-3"], tmp_path, env))


def test_a_virtual_environment_below_stays_itself(probe, tmp_path):
    venv.create(tmp_path / "env", symlinks=True)
    python = str(tmp_path / "env" / "bin" / "python")
    alone = run([python, probe], tmp_path)
    assert str(tmp_path / "env").encode() in alone.stdout
    assert_same(alone, run([sys.executable, *RECORD, "-q", "--", python, probe], tmp_path))


def test_a_module_runs_as_a_module(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    for name in ("probe", "__main__"):
        shutil.copy(PROBE, tmp_path / "package" / f"{name}.py")
    assert_same(*both(["-m", "package.probe", "pools", "-m"], tmp_path))
    assert_same(*both(["-m", "package", "exit-3"], tmp_path))
    alone, recorded = both(["-mpackage", "exception"], tmp_path)
    assert (recorded.returncode, recorded.stderr) == (alone.returncode, alone.stderr)
    assert_same(*both(["-m", "there.is.none"], tmp_path))


def test_folders_zips_and_scripts_without_exec_bit_run(probe, tmp_path):
    (tmp_path / "folder").mkdir()
    shutil.copy(PROBE, tmp_path / "folder" / "__main__.py")
    shutil.make_archive(str(tmp_path / "program"), "zip", tmp_path / "folder")
    assert_same(*both(["folder", "exit-3"], tmp_path))
    assert_same(*both(["program.zip", "exception"], tmp_path))
    (tmp_path / "odd").write_text("#!/no/such/interpreter\nimport sys; print(sys.argv)\n")
    (tmp_path / "odd").chmod(0o444)
    assert_same(*both(["odd", "x"], tmp_path))


@pytest.mark.parametrize("name", ["missing.py", "broken.py", "folder"])
def test_what_python_cannot_run_fails_as_in_python(tmp_path, name):
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "folder").mkdir()
    alone, recorded = both([name], tmp_path)
    assert alone.returncode != 0
    assert_same(alone, recorded)


def test_commands_are_found_on_the_path_and_their_status_is_theirs(tmp_path):
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text('echo "$0" "$@"; exit 9\n')  # no shebang: sh runs it
    tool.chmod(0o755)
    env = environment(PATH=f"{tool.parent}:{os.environ['PATH']}")
    record = [sys.executable, *RECORD, "-q", "--"]
    done = run([*record, "tool", "a b", ""], tmp_path, env)
    assert (done.returncode, done.stdout.decode()) == (9, f"{tool} a b \n")
    assert run([*record, "sh", "-c", "kill -9 $$"], tmp_path).returncode == -signal.SIGKILL
    missing = run([*record, "no-such-tool"], tmp_path)
    assert (missing.returncode, missing.stderr) == (
        127,
        b"optrace: cannot run no-such-tool: No such file or directory\n",
    )
    tool.chmod(0o644)
    assert run([*record, str(tool)], tmp_path).returncode == 126


def test_a_shell_below_gets_the_signals_that_a_shell_expects(tmp_path):
    command = ["bash", "-c", "trap; yes | head -n 1; echo ${PIPESTATUS[@]}"]
    assert_same(run(command, tmp_path), run([sys.executable, *RECORD, "-q", "--", *command], tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside_reaches_the_program_itself(tmp_path, number):
    (tmp_path / "wait.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    ends = []
    for prefix in ([], [*RECORD, "-q"]):
        with subprocess.Popen([sys.executable, *prefix, "wait.py"], cwd=tmp_path, env=environment(),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.5)  # until it sleeps, so that both are interrupted in the same line
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
            ends.append((out, err, process.returncode))
    assert ends[0] == ends[1]
    assert ends[0][2] == -number


def test_the_shell_sees_the_same_status(probe, tmp_path):
    for how in ("SIGKILL", "SIGINT", "exit-3"):
        seen = [
            run(
                ["bash", "-c", '"$@" >/dev/null 2>&1; echo $?', "bash", sys.executable, *prefix, probe, how], tmp_path
            ).stdout
            for prefix in ([], RECORD)
        ]
        assert seen[0] == seen[1]
