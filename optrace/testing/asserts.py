"""`assert_traces_close` and `check_same`: two runs, or two optimizers, are the same, or the diff's report says why."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optrace.compare.run import diff
from optrace.errors import GoldenError
from optrace.goldens.format import Golden
from optrace.goldens.tolerance import STEP
from optrace.recorder.recording import record
from optrace.testing.driving import SHAPES, STEPS, Factory, Plan, Subject, drive, free_tolerance
from optrace.testing.judging import differences, listing


def assert_traces_close(a: Any, b: Any, *, exact: bool = False, **options: Any) -> None:
    """Raise AssertionError with the diff's report unless B is the same as A.

    Args:
        a: the reference: a Trace, a run folder, `RUN@SGD`, `golden:NAME`, ... as for `optrace.diff`.
        b: the candidate.
        exact: every bit; else each step within tolerance, also between runs of one machine.
        **options: as of `optrace.diff`: align, map, state, rtol, atol, eps.

    Raises:
        AssertionError: they differ.
        TraceError: a side is missing or unreadable.
        CompareError: the two have no parameter or step in common.
    """
    __tracebackhide__ = True
    report = diff(a, b, exact=exact, **options)
    if not (report.exact if exact else report.tolerance).same:
        raise AssertionError(str(report))


def check_same(
    mine: Factory,
    theirs: Factory,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    steps: int = STEPS,
    dtype: str = "float64",
    eps: float = STEP,
) -> None:
    """Drive two optimizers over the same gradients and raise AssertionError unless they compute the same.

    Where both keep state of the same names and shapes each step of mine starts from their numbers, and may be `eps`
    off. Else both run free, parameters are compared, and a drift counts that roundings of `eps` a step explain.

    Args:
        mine: from a list of torch parameters to my optimizer; a class with defaults will do.
        theirs: the same for the reference: the paper's code.
        shapes: of the parameters, by name; default w 2x3 and b 2.
        steps: how many.
        dtype: float64 or float32.
        eps: in eps of the dtype times the number's scale.

    Raises:
        AssertionError: they differ; the text is the diff's report with cause and fix.
        GoldenError: one of them cannot be driven.
    """
    __tracebackhide__ = True
    inputs = Plan(shapes or SHAPES, steps, dtype).inputs()
    reference = drive(theirs, inputs)
    own = drive(mine, inputs)
    forced = _state_names(own) == _state_names(reference)
    if forced:
        own = drive(mine, inputs, restore=reference)
        found = differences(_ungrouped(reference), _ungrouped(own), eps, per_step=True, states=True)
    else:
        allowed = free_tolerance(theirs, reference) * eps / STEP
        found = differences(_ungrouped(reference), _ungrouped(own), allowed, per_step=False, states=False)
    if found:
        folder = Path(tempfile.mkdtemp(prefix="optrace-same-"))
        report = report_of_two(folder / "theirs", theirs, folder / "mine", mine, inputs)
        found = [words.replace("stored is", "theirs is") for words in found]
        raise AssertionError("\n".join([*report, "by the numbers", listing(found)]))


def _state_names(golden: Golden) -> set[tuple[str, str, tuple[int, ...]]]:
    rows = [row for row in golden.rows if row.quantity.startswith("state.")]
    return {(row.param, row.quantity, row.values.shape) for row in rows}


def _ungrouped(golden: Golden) -> Golden:
    """Without what names differ in by right: groups, options, and scalars that a class writes into its group."""
    rows = tuple(replace(row, group=0) for row in golden.rows if not row.quantity.startswith("group."))
    return replace(golden, hyper=({},), rows=rows)


def report_of_two(path_a: Path, a: Factory, path_b: Path, b: Factory, inputs: Golden) -> list[str]:
    """The diff's report of two optimizers that are recorded over the same gradients, as lines; none if they agree."""
    record_driven(a, inputs, path_a)
    record_driven(b, inputs, path_b)
    return report_of(path_a, path_b)


def report_of(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> list[str]:
    """The diff's report as lines, without what only one side knows of itself; none where its tolerance lane is same."""
    report = diff(Path(a), Path(b))
    known = tuple(entry for entry in report.provenance if entry.a is not None and entry.b is not None)
    return [] if report.tolerance.same else str(replace(report, provenance=known)).splitlines()


def record_driven(factory: Factory, inputs: Golden, path: Path) -> None:
    """Record a run over stored gradients with every value, as far as it comes."""
    subject = Subject(factory, inputs)
    with record(path, values="full", quiet=True):
        try:
            for step in range(1, inputs.steps + 1):
                subject.step(step)
        except Exception as error:
            raise GoldenError(f"step {step} raised {type(error).__name__}: {error}") from error
