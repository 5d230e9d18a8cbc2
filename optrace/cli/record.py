"""`optrace record`: run a program as it would run by itself, and have it record its optimizers."""

from __future__ import annotations

import os
import shutil
from difflib import get_close_matches

import click
from click.core import ParameterSource

from optrace.errors import RecordError
from optrace.recorder.settings import VALUES, Settings, parse_names, parse_size, parse_steps

OURS = {
    "-o": "output",
    "--values": "values",
    "--quantities": "quantities",
    "--micro": "micro",
    "--stop-after": "stop_after",
    "--max-size": "max_size",
}
"""Options that few programs have themselves, so that one behind the program was probably meant for us."""


class RecordCommand(click.Command):
    """A command whose options end where the program begins: nothing after that is read, or changed, by us."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options and leave the program, from `script`, `-m` or `--` on, in `ctx.args`."""
        end = self.end_of_options(ctx, args)
        super().parse_args(ctx, args[:end])
        ctx.args = args[end:]
        return ctx.args

    def end_of_options(self, ctx: click.Context, args: list[str]) -> int:
        """Where the program begins in `args`."""
        takes_value = {
            name: isinstance(option, click.Option) and not option.is_flag and not option.count
            for option in self.get_params(ctx)
            for name in option.opts
        }
        position = 0
        while position < len(args):
            arg = args[position]
            if arg in ("--", "-") or not arg.startswith("-") or (arg.startswith("-m") and arg != "--"):
                break
            if arg.startswith("--"):
                alone = takes_value.get(arg, False)
            else:
                # -qo RUN: flags, then at most one option whose value is the rest, or the next argument.
                letters = [f"-{letter}" for letter in arg[1:]]
                valued = next((number for number, name in enumerate(letters) if takes_value.get(name, False)), None)
                alone = valued == len(letters) - 1
            position += 2 if alone else 1
        return min(position, len(args))

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """The program's three forms, after the options."""
        return [*super().collect_usage_pieces(ctx), "{script.py | -m module | -- COMMAND} [ARGS]..."]


@click.command(
    cls=RecordCommand,
    name="record",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Standard output, exit status and tracebacks are the program's own. Our options end where it begins.",
)
@click.option("-o", "--output", metavar="RUN", help="Folder of the run [default: optrace-runs/<script>-<date>-...].")
@click.option(
    "--values",
    type=click.Choice(VALUES),
    default="sample",
    show_default=True,
    help="What of each tensor beside statistics and fingerprint: 16 elements, whole gradients, or everything.",
)
@click.option("--every", type=int, default=1, metavar="N", help="Record each N-th step (step 1 always).")
@click.option("--steps", metavar="A:B", help="Record steps A to B only, both included.")
@click.option("--params", metavar="GLOB", multiple=True, help="Record these parameters only; may be repeated.")
@click.option("--quantities", metavar="LIST", help="Record these only: param,grad,update,state.*")
@click.option("--micro", is_flag=True, help="Sample the gradients after each backward, too.")
@click.option("--stop-after", type=int, metavar="N", help="End the program cleanly after step N.")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Most memory the recorder may hold where the parameters are, like 64MB [default: the smaller of one copy of"
    " them and 5 % of the device].",
)
@click.option("--staging", metavar="SIZE", help="Most bytes of whole tensors that wait for the disk [default: 512MB].")
@click.option("--max-size", metavar="SIZE", help="Stop recording, saying so, at this size on disk, like 2GB.")
@click.option("--force", is_flag=True, help="Move a finished run of that name to RUN~1.")
@click.option("--strict", is_flag=True, help="Let a failure of the recorder end the program.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.pass_context
def command(
    ctx: click.Context,
    output: str | None,
    values: str,
    every: int,
    steps: str | None,
    params: tuple[str, ...],
    quantities: str | None,
    micro: bool,
    stop_after: int | None,
    memory: str | None,
    staging: str | None,
    max_size: str | None,
    force: bool,
    strict: bool,
    quiet: bool,
) -> None:
    """Run a program and record what its optimizers do.

    A script or a module runs with this Python; after `--`, any command does (torchrun, accelerate launch, srun, bash),
    and every Python below it records itself once it steps a torch optimizer.
    """
    if output == "":
        raise RecordError("-o is empty; name a folder, like -o run_a")
    if quantities is not None and not parse_names(quantities):
        raise RecordError("--quantities is empty; name some, like param,grad")
    settings = Settings(
        output=output,
        values=values,
        every=every,
        steps=parse_steps(steps) if steps is not None else None,
        params=params,
        quantities=parse_names(quantities or ""),
        micro=micro,
        stop_after=stop_after,
        memory=parse_size(memory) if memory is not None else None,
        staging=parse_size(staging) if staging is not None else None,
        max_size=parse_size(max_size) if max_size is not None else None,
        force=force,
        strict=strict,
        quiet=quiet,
    )
    from optrace.recorder.launch import Program, launch

    kind, args = _program(ctx)
    if not quiet and kind != "command":
        _tell_whose_option(ctx, args)
    launch(Program(kind, args), settings)


def _program(ctx: click.Context) -> tuple[str, tuple[str, ...]]:
    """The kind of the program on the command line, and its argv."""
    first, *rest = ctx.args or [""]
    if first == "--":
        kind, args = "command", rest
    elif first == "-m":
        kind, args = "module", rest
    elif first.startswith("-m"):
        kind, args = "module", [first[2:], *rest]
    else:
        kind, args = "script", ctx.args
    if not args or not args[0]:
        raise click.UsageError("name what to run: script.py, -m module, or -- COMMAND", ctx)
    mistake = _mistake(kind, args[0])
    if mistake:
        raise click.UsageError(mistake, ctx)
    return kind, tuple(args)


def _mistake(kind: str, name: str) -> str | None:
    """What is wrong with a program that cannot run as it is named but would under another name; None where it may."""
    if name.endswith(".ipynb") and kind != "module":
        return f"{name} is a notebook, which Python cannot run; record in it, with: with optrace.record('run_a'):"
    if kind == "command":
        if not name.endswith(".py") or shutil.which(name) or not os.path.isfile(name):
            return None
        return f"{name} is a Python script and no command; leave out --, or write -- python {name}"
    if kind != "script" or name == "-" or os.path.lexists(name) or shutil.which(name):
        return None
    words = name.split()
    if len(words) > 1 and os.path.isfile(words[0]):
        return f"there is no script {name!r}; leave out the quotes: optrace record {name}"
    folder, base = os.path.split(name)
    scripts = [entry for entry in _names(folder) if entry.endswith(".py")]
    near = get_close_matches(base, scripts, n=1, cutoff=0.75)
    return f"there is no script {name}; did you mean {os.path.join(folder, near[0])}?" if near else None


def _tell_whose_option(ctx: click.Context, args: tuple[str, ...]) -> None:
    """Say whose an option is that programs rarely have, where it stands behind the program and not before it."""
    from optrace.recorder.identity import Job

    job = Job.of(os.environ)
    if job is not None and job.rank != 0:
        return
    for arg in args[1:]:
        name = OURS.get(arg.partition("=")[0])
        if name is not None and ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
            click.echo(f"optrace: {arg} was given to {args[0]}; optrace's own options stand before it", err=True)
            return


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder or ".")
    except OSError:
        return []
