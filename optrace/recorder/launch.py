"""Launch a program as if nobody watched: set the environment in which Python starts recording itself, then exec it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from optrace.errors import RecordError
from optrace.recorder import identity, place
from optrace.recorder.attach import say
from optrace.recorder.settings import VARIABLE, Settings

AUTOSTART = str(Path(__file__).with_name("autostart"))


@dataclass(frozen=True)
class Program:
    """What to run: a script or a module with this interpreter, or any command.

    `kind` is "script", "module" or "command"; `args` starts with the script, the module's name or the command.
    """

    kind: str
    args: tuple[str, ...]

    @property
    def name(self) -> str:
        """What a run of it is called by default: the script's stem, the module, the first script of a command."""
        if self.kind == "module":
            return self.args[0]
        if self.args[0] == "-":
            return "stdin"
        scripts = [arg for arg in self.args if arg.endswith((".py", ".sh"))] if self.kind == "command" else []
        return Path(scripts[0] if scripts else self.args[0]).stem

    def command(self, interpreter_options: Sequence[str] = ()) -> list[str]:
        """The whole argv, with the options of the interpreter that runs optrace for a script or a module."""
        if self.kind == "command":
            return list(self.args)
        return [sys.executable, *interpreter_options, *(["-m"] if self.kind == "module" else []), *self.args]


def launch(program: Program, settings: Settings) -> NoReturn:
    """Become `program`, recorded as `settings` say: this function does not return.

    Raises:
        RecordError: the output folder is refused, or Python was started so that nothing below it could be recorded.
        SystemExit: with 127 or 126, as a shell, where a command is not found or cannot be run.
    """
    options = _interpreter_options() if program.kind != "command" else []
    above = identity.new_launch(os.environ, is_python=program.kind != "command")
    shown = settings.output or place.default_output(program.name, os.environ)
    settings = replace(settings, output=os.path.abspath(shown))
    place.check(shown, settings.force, above, os.environ)
    if not settings.quiet and _speaks_for_its_job():
        say(f"recording to {shown} from the first optimizer step on")
        if program.kind == "script" and not os.path.lexists(program.args[0]) and shutil.which(program.args[0]):
            say(f"there is no script {program.args[0]}; to run the command: optrace record -- {program.args[0]} ...")
        if program.kind == "script" and program.args[0].endswith((".sh", ".bash")):
            script = program.args[0]
            say(f"{script} is run by Python; to run a shell script: optrace record -- bash {script} ...")
    _become(program.command(options), environment(settings, above))


def environment(settings: Settings, above: identity.Launch) -> dict[str, str]:
    """This process's environment, changed so that every Python started in it records itself."""
    environ = dict(os.environ)
    environ.pop(identity.MEMBER_VARIABLE, None)
    environ[VARIABLE] = settings.to_json()
    environ[identity.LAUNCH_VARIABLE] = above.to_json()
    kept = environ.get("PYTHONPATH", "")
    if kept.split(os.pathsep)[0] != AUTOSTART:
        # No separator without something behind it: an empty entry would put the working directory on sys.path.
        environ["PYTHONPATH"] = f"{AUTOSTART}{os.pathsep}{kept}" if kept else AUTOSTART
    return environ


def _speaks_for_its_job() -> bool:
    job = identity.Job.of(os.environ)
    return job is None or job.rank == 0


def _interpreter_options() -> list[str]:
    """The options that this interpreter was started with (`-u`, `-W error`, `-X dev`): the program's, too.

    Raises:
        RecordError: one of them keeps Python from importing `sitecustomize` from PYTHONPATH.
    """
    for letter, meant in (("I", sys.flags.isolated), ("E", sys.flags.ignore_environment), ("S", sys.flags.no_site)):
        if meant:
            raise RecordError(
                f"python -{letter} hides the recorder from the program; start optrace without that option"
            )
    own_args = len(sys.argv) - 1
    options = sys.orig_argv[1 : len(sys.orig_argv) - own_args]
    if options[-2:] == ["-m", "optrace"]:
        return options[:-2]
    return options[:-1]  # the path of the console script, or -moptrace


def _become(command: list[str], environ: dict[str, str]) -> NoReturn:
    """Replace this process by `command`, found on PATH as a shell finds it."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    # Python ignores these; the command is to start with what a shell would have given it.
    for name in ("SIGPIPE", "SIGXFSZ"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environ)
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            os.execve("/bin/sh", ["/bin/sh", shutil.which(command[0]) or command[0], *command[1:]], environ)
        found = error.errno not in (errno.ENOENT, errno.ENOTDIR)
        say(f"cannot run {command[0]}: {error.strerror}")
        sys.exit(126 if found else 127)
