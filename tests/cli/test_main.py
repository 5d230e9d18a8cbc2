"""The command itself: light to start, versions, and trouble that always exits 2, never 1."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import optrace
from optrace.cli.main import main

HEAVY = ("torch", "pandas", "pyarrow", "numpy", "rich")

BOOM = """
import click, sys
from optrace.errors import TraceError

@click.command()
@click.argument("how")
def command(how):
    if how == "bug":
        {}["no such key"]
    if how == "trouble":
        raise TraceError("run_x is no run; name one")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "file":
        raise click.FileError("data.csv", "is a folder")
    if how == "many":
        for _ in range(100_000):
            click.echo("a line that nobody reads")
    return int(how) if how.isdigit() else None
"""


def optrace_command(*args, cwd=None, **variables):
    env = {**os.environ, "PYTHONWARNINGS": "error", **variables}
    return subprocess.run([sys.executable, "-m", "optrace", *args], cwd=cwd, env=env, capture_output=True, text=True)


@pytest.fixture
def boom(tmp_path):
    """Run a command of our own making through the real `main`."""
    (tmp_path / "boom.py").write_text(BOOM)
    start = [sys.executable, "-c", "import sys; from optrace.cli import main as m\n"
             "m.COMMANDS['boom'] = ('boom', 'Goes wrong.'); m.main(['boom', *sys.argv[1:]])"]  # fmt: skip

    def run(*args, **variables):
        return subprocess.run(
            [*start, *args], cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True
        )

    run.start = start
    return run


def test_help_lists_the_commands_that_are_there_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom optrace.cli import main as m\n"
        "m.COMMANDS['later'] = ('optrace.cli.there_is_no_such_module', 'Not there yet.')\n"
        "try:\n    m.main(['--help'])\nfinally:\n"
        f"    print('loaded', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "record" in done.stdout and "later" not in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_help_of_record_imports_nothing_heavy():
    code = (
        "import sys\nfrom optrace.cli.main import main\n"
        "try:\n    main(['record', '--help'])\nfinally:\n"
        f"    print('loaded', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_version_names_optrace_its_kernel_torch_and_python_without_importing_torch():
    from importlib.metadata import version

    from optrace.trace.measure import kernel_name

    done = optrace_command("--version")
    assert done.stdout == (
        f"optrace {optrace.__version__} ({kernel_name()} kernel), torch {version('torch')}, "
        f"Python {sys.version.split()[0]}\n"
    )
    code = (
        "import sys\nfrom optrace.cli.main import main\n"
        "try:\n    main(['--version'])\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    "args", [["nonsense"], ["--nonsense"], ["record", "--nonsense", "x.py"], ["record", "--every"]]
)
def test_what_cannot_be_understood_exits_2(args):
    done = optrace_command(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("recrod", "there is no command 'recrod'; did you mean record?"),
        ("ident", "there is no command 'ident'; did you mean identify?"),
        ("train.py", "there is no command 'train.py'; to record it: optrace record train.py"),
        ("zzz", "there is no command 'zzz'; there are record, show, diff,"),
        ("help", "there is no command 'help'; did you mean --help?"),
        ("version", "there is no command 'version'; did you mean --version?"),
        ("run_a", "there is no command 'run_a'; to see that run: optrace show run_a"),
        ("bash", "there is no command 'bash'; to record it: optrace record -- bash ..."),
    ],
)
def test_a_mistyped_command_is_told_the_right_one(tmp_path, monkeypatch, capsys, name, words):
    (tmp_path / "train.py").touch()
    (tmp_path / "run_a").mkdir()
    (tmp_path / "run_a" / "trace.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([name])
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_a_bug_of_ours_is_one_line_and_exits_2_and_shows_its_traceback_when_asked(boom):
    done = boom("bug")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("optrace: internal error: KeyError: 'no such key' "
                           "(please report it; with OPTRACE_DEBUG=1 it shows where)\n")  # fmt: skip
    assert "Traceback" in boom("bug", OPTRACE_DEBUG="1").stderr


def test_trouble_is_its_own_sentence_and_exits_2(boom):
    done = boom("trouble")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "optrace: run_x is no run; name one\n")
    assert (boom("file").returncode, boom("file").stdout) == (2, "")


@pytest.mark.parametrize(("how", "status"), [("0", 0), ("1", 1), ("none", 0), ("interrupt", 130)])
def test_other_ends_keep_their_status(boom, how, status):
    assert boom(how).returncode == status


def test_a_reader_that_goes_away_is_no_difference(boom, tmp_path):
    with subprocess.Popen(
        [*boom.start, "many"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_shells_can_complete_the_commands():
    done = optrace_command(_OPTRACE_COMPLETE="bash_complete", COMP_WORDS="optrace rec", COMP_CWORD="1")
    assert "record" in done.stdout


def test_the_console_script_and_the_module_are_the_same_command():
    script = os.path.join(os.path.dirname(sys.executable), "optrace")
    help_of_both = [
        subprocess.run([*start, "--help"], capture_output=True).stdout
        for start in ([script], [sys.executable, "-m", "optrace"])
    ]
    assert help_of_both[0] == help_of_both[1]
