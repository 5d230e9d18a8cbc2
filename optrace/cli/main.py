"""The command `optrace`: its subcommands, loaded when used, and how their failures end."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from optrace import __version__
from optrace.errors import OptraceError

COMMANDS = {
    "record": ("optrace.cli.record", "Run a program and record what its optimizers do."),
    "show": ("optrace.cli.show", "Look at a recorded run: an overview, or one of its tables."),
    "diff": ("optrace.cli.diff", "Say where two runs part, since when, and in what."),
    "identify": ("optrace.cli.identify", "Say which rule a run followed, and with what numbers."),
    "repro": ("optrace.cli.repro", "Print a script that shows where two runs part."),
    "replay": ("optrace.cli.replay", "Recompute a run's steps from their own inputs, by the rule."),
    "lint": ("optrace.cli.lint", "Look at one run for what quietly spoils training."),
    "report": ("optrace.cli.report", "Write a page about a run, or about where two runs part."),
    "golden": ("optrace.cli.golden", "Check an optimizer or scheduler against numbers that torch computed."),
}
"""Each subcommand's module, which holds a click command `command`, and what it is for."""

TROUBLE = 2
INTERRUPTED = 130
NOBODY_READS = 141
"""As a shell reports a program that SIGPIPE ended: the reader of our output has gone."""


class Commands(click.Group):
    """A group that imports a subcommand's module only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the subcommands that are there."""
        return [name for name, (module, _) in COMMANDS.items() if importlib.util.find_spec(module) is not None]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The subcommand of that name, imported; None where there is none."""
        if name not in self.list_commands(ctx):
            return None
        command = importlib.import_module(COMMANDS[name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand that the arguments name; UsageError, with those of a similar name, where there is none."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            from difflib import get_close_matches

            names = self.list_commands(ctx)
            near = get_close_matches(name, names, n=1) or [known for known in names if known.startswith(name)][:1]
            if name in ("help", "version"):
                advice = f"did you mean --{name}?"
            elif os.path.isfile(name):
                advice = f"to record it: optrace record {name}"
            elif os.path.isfile(os.path.join(name, "trace.json")):
                advice = f"to see that run: optrace show {name}"
            elif near:
                advice = f"did you mean {near[0]}?"
            elif shutil.which(name):
                advice = f"to record it: optrace record -- {name} ..."
            else:
                advice = f"there are {', '.join(names)}"
            raise click.UsageError(f"there is no command {name!r}; {advice}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands for `--help` without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def _print_version(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    from optrace.trace.measure import kernel_name

    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "torch not installed"
    click.echo(f"optrace {__version__} ({kernel_name()} kernel), {torch}, Python {sys.version.split()[0]}")
    ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the versions of optrace, its kernel, torch and Python.",
)
def cli() -> None:
    """Record what an optimizer really did, step by step, and say where and why two runs part."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run `optrace` and exit: 0 or 1 as the subcommand says, 2 for any trouble, never 1 for an error.

    With OPTRACE_DEBUG=1 in the environment, trouble shows its traceback.
    """
    try:
        status = _run(sys.argv[1:] if args is None else args)
    except click.exceptions.Exit as error:
        status = error.exit_code
    except click.ClickException as error:
        _debug()
        error.show()
        status = TROUBLE
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        status = INTERRUPTED
    except BrokenPipeError:
        _leave_the_pipe()
        status = NOBODY_READS
    except OptraceError as error:
        _debug()
        _say(str(error))
        status = error.exit_status
    except Exception as error:
        _debug()
        what = " ".join(f"{type(error).__name__}: {error}".split())
        _say(f"internal error: {what} (please report it; with OPTRACE_DEBUG=1 it shows where)")
        status = TROUBLE
    sys.exit(status if isinstance(status, int) else 0)


def _run(args: Sequence[str]) -> object:
    """What the subcommand returns; without `cli.main`, whose exit(1) for a closed pipe would mean "differ" here."""
    shell = os.environ.get("_OPTRACE_COMPLETE")
    if shell:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "optrace", "_OPTRACE_COMPLETE", shell)
    try:
        with cli.make_context("optrace", list(args)) as context:
            return cli.invoke(context)
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()


def _leave_the_pipe() -> None:
    """Give what is still buffered for a closed pipe somewhere to go when Python ends."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _debug() -> None:
    if os.environ.get("OPTRACE_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exc()


def _say(line: str) -> None:
    if sys.stderr is not None:
        click.echo(f"optrace: {line}", err=True)
