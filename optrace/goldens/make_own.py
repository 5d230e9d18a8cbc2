"""`optrace golden make`: what a candidate makes of the inputs of a rule's cases, as golden files of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from optrace.errors import GoldenError
from optrace.goldens.adapters import adapt
from optrace.goldens.candidate import load as load_candidate
from optrace.goldens.candidate import recognise
from optrace.goldens.check import chosen_cases
from optrace.goldens.closures import ClosureDriver
from optrace.goldens.drive import NotCovered, with_outputs
from optrace.goldens.format import write_csv, write_safetensors
from optrace.goldens.library import check_rule, load
from optrace.reference.rule import RULES


def make_goldens(
    candidate: Any, rule: str, folder: Path, options: Mapping[str, Any] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Write a CSV and a safetensors file a case into a new folder.

    Args:
        candidate: as for `check_golden`; of an optimizer rule.
        rule: whose inputs.
        folder: must not hold anything yet.
        options: given to the candidate's constructor.

    Returns:
        The names of the cases written, and why others were not.

    Raises:
        GoldenError: the folder is not empty, or the candidate cannot be run.
    """
    rule = check_rule(rule)
    if rule not in RULES or rule == "lbfgs":
        raise GoldenError(f"golden make takes the rules of optimizers that are fed gradients, not {rule}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GoldenError(f"{folder} is not an empty folder; goldens are written into a new one")
    recognised = recognise(load_candidate(candidate) if isinstance(candidate, str) else candidate, options)
    written: list[str] = []
    left_out: dict[str, str] = {}
    for dtype in ("float64", "float32"):
        driver_of = adapt(recognised, rule, RULES[rule].defaults, dtype)
        for name in chosen_cases(rule, dtype, None):
            golden = load(name)
            try:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")
                    driver = driver_of(golden)
                    assert not isinstance(driver, ClosureDriver)
                    own = with_outputs(golden, driver)
            except NotCovered as lacking:
                left_out[name] = f"it lacks {lacking}"
                continue
            except Exception as error:
                left_out[name] = f"it raised {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                continue
            notes = {k: v for k, v in golden.notes.items() if k not in ("made_with", "arithmetic")}
            own = replace(own, notes={**notes, "made_with": recognised.name})
            folder.mkdir(parents=True, exist_ok=True)
            stem = name.partition("/")[2]
            (folder / f"{stem}.csv").write_text(write_csv(own), encoding="utf-8", newline="\n")
            (folder / f"{stem}.safetensors").write_bytes(write_safetensors(own))
            written.append(name)
    if not written:
        raise GoldenError(f"{recognised.name} ran through no case of {rule}: {next(iter(left_out.values()))}")
    return written, left_out
