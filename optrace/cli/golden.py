"""`optrace golden`: list, show, check, make and export golden traces."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import click

from optrace.errors import GoldenError

HELP = {"help_option_names": ["-h", "--help"]}
LANGUAGES = ("rust", "c", "swift", "json")


@click.group(name="golden", context_settings=HELP)
def command() -> None:
    """Numbers that torch computed, step by step, and whether your optimizer or scheduler computes them too."""


@command.command(name="list", context_settings=HELP)
@click.argument("rule", required=False)
def list_cases(rule: str | None) -> int:
    """List the rules that have goldens, or the cases of one RULE with what each is for."""
    from optrace.goldens.catalogue import list_text

    click.echo(list_text(rule))
    return 0


@command.command(name="show", context_settings=HELP)
@click.argument("case")
@click.option("--step", type=click.IntRange(min=0), metavar="N", help="Only the rows of step N.")
def show(case: str, step: int | None) -> int:
    """Print a CASE, `sgd/nesterov`: its header and its rows, as they stand in the file."""
    from optrace.goldens.catalogue import show_text

    click.echo(show_text(case, step))
    return 0


@command.command(
    name="check",
    context_settings=HELP,
    epilog="Exit status: 0 same, 1 differ, 2 trouble. What the candidate lacks is listed and does not count.",
)
@click.argument("candidate")
@click.option("--rule", required=True, metavar="RULE", help="torch's class name in lower case: sgd, adamw, steplr, ...")
@click.option("--dtype", metavar="D", help="float64, float32, bfloat16 or float16 [default: float64 and float32].")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Given to the constructor: fused=True. An option of the rule itself chooses the cases that have it.",
)
@click.option("--case", "cases", multiple=True, metavar="GLOB", help="Only these cases.")
@click.option(
    "--format", "form", type=click.Choice(("text", "json"), case_sensitive=False), default="text", help="text or json."
)
def check(
    candidate: str, rule: str, dtype: str | None, options: tuple[str, ...], cases: tuple[str, ...], form: str
) -> int:
    """Drive CANDIDATE, module:Class or path.py:Class, through every golden case of a rule.

    A candidate is a class like torch's, a NumPy class with update(params, grads), a function f(w, dw, config) or a pure
    rule (param, grad, state, hyper); for a schedule, a class over an optimizer with param_groups.
    """
    from optrace.goldens.check import check_golden

    report = check_golden(candidate, rule, dtype, dict(map(_option, options)), cases or None)
    if form == "json":
        from optrace.goldens.catalogue import report_json

        click.echo(report_json(report))
    else:
        click.echo(str(report))
    return 0 if report.same else 1


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise GoldenError(f"--option {text!r} is no NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@command.command(name="make", context_settings=HELP)
@click.argument("candidate")
@click.option("--rule", required=True, metavar="RULE", help="Whose inputs: sgd, adamw, steplr, ...")
@click.option("-o", "--output", required=True, metavar="DIR", help="A new folder.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Given to the constructor.")
def make(candidate: str, rule: str, output: str, options: tuple[str, ...]) -> int:
    """Write what CANDIDATE, module:Class, makes of the inputs of a rule's cases, as goldens of your own."""
    from optrace.goldens.make_own import make_goldens

    written, left_out = make_goldens(candidate, rule, Path(output), dict(map(_option, options)))
    click.echo(f"{len(written)} cases in {output}")
    for case, why in left_out.items():
        click.echo(f"  without {case}: {why}")
    return 0


@command.command(name="export", context_settings=HELP)
@click.argument("case")
@click.option("--as", "language", required=True, type=click.Choice(LANGUAGES), help="rust, c, swift or json.")
def export(case: str, language: str) -> int:
    """Print a CASE as literals for a test file of another language."""
    from optrace.goldens.export import export_text
    from optrace.goldens.library import load

    click.echo(export_text(load(case), language), nl=False)
    return 0
