"""Finds the goldens that ship with optrace, by names like `sgd/nesterov` and `adamw/eps-float32`."""

from __future__ import annotations

import difflib
import functools
from pathlib import Path

from optrace.errors import GoldenError
from optrace.goldens.format import Golden, read_golden


def golden_folder() -> Path:
    """The folder of the goldens: in the installed package, or `golden/` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_golden", package.parent / "golden"):
        if folder.is_dir():
            return folder
    raise GoldenError(f"the goldens are neither in {package / '_golden'} nor beside it; install torch-optrace again")


def rules() -> list[str]:
    """Every rule that has goldens, optimizers and schedulers."""
    return sorted(folder.name for folder in golden_folder().iterdir() if folder.is_dir() and folder.name != "wrong")


def case_names(rule: str | None = None) -> list[str]:
    """The names of all cases, or of one rule's: `sgd/plain`, `sgd/plain-float32`, ..."""
    if rule is not None:
        check_rule(rule)
    chosen = rules() if rule is None else [rule]
    stems = {name: {path.stem for path in (golden_folder() / name).glob("*.csv")} for name in chosen}
    return [f"{name}/{stem}" for name in chosen for stem in sorted(stems[name], key=_float64_first)]


def _float64_first(stem: str) -> tuple[str, bool]:
    plain = stem.removesuffix("-float32")
    return plain, plain != stem


def check_rule(rule: str) -> str:
    """The rule's name in lower case; GoldenError if it has no goldens."""
    if not isinstance(rule, str):
        raise GoldenError(f"rule is {rule!r}; give its name, like 'sgd'")
    known = rules()
    if rule.lower() not in known:
        near = difflib.get_close_matches(rule.rpartition(".")[2].lower(), known, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
        raise GoldenError(f"there are no goldens of a rule {rule!r}; {advice}")
    return rule.lower()


def path_of(name: str) -> Path:
    """The CSV file of a case (`golden:` before the name is allowed); GoldenError with the nearest names."""
    rule, _, case = name.removeprefix("golden:").partition("/")
    rule = check_rule(rule)
    path = golden_folder() / rule / f"{case}.csv"
    if "/" in case or not case or not path.is_file():
        known = case_names(rule)
        near = difflib.get_close_matches(f"{rule}/{case}", known, n=3, cutoff=0.4)
        raise GoldenError(f"there is no golden {name!r}; did you mean {' or '.join(near or known[:3])}?")
    return path


@functools.lru_cache(maxsize=128)
def load(name: str) -> Golden:
    """The golden of that name."""
    return read_golden(path_of(name))


def wrong_names() -> list[str]:
    """The outputs of wrong implementations: `wrong/sgd-average`, ..."""
    return [f"wrong/{path.stem}" for path in sorted((golden_folder() / "wrong").glob("*.csv"))]
