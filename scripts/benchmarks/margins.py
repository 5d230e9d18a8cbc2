"""What rounding really does to gradients and updates of real programs, against what the diff forgives."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Report, Row

sys.path.insert(0, str(Path(__file__).parents[2]))  # the programs of the fault bench


@dataclass
class Needs:
    """The largest that any tensor of a program needed."""

    share: float = 0.0
    """Of the largest gradient's rms: as how large a gradient must count that differs by more than its own rounding."""
    factor: float = 0.0
    """By how many times the relative error of its inputs an update differed, beyond its own rounding."""
    n_cancelled: int = 0
    n_amplified: int = 0


def cases() -> tuple[str, ...]:
    """What `--only` may name: the programs."""
    return tuple(_programs())


def run(quick: bool, rounds: int | None, only: tuple[str, ...]) -> Report:
    """Measure every program under every other way to compute it; quick: only on other threads."""
    import torch

    from optrace.compare.amplified import FACTOR
    from optrace.compare.cancelled import SHARE

    report = Report(
        "margins",
        f"Each program twice, with other kernels. A gradient that cancels counts as {SHARE:g} of the largest, an update"
        f" may differ by {FACTOR:g} times the relative error of its inputs: what they needed.",
    )
    threads = torch.get_num_threads()
    worst = Needs()
    try:
        for name, recipe in _programs().items():
            if only and name not in only:
                continue
            for way, other in _ways(recipe, quick):
                with tempfile.TemporaryDirectory(prefix="optrace-bench-") as folder:
                    needs = _measure(Path(folder), recipe, other)
                worst.share, worst.factor = max(worst.share, needs.share), max(worst.factor, needs.factor)
                report.rows.append(_row(name, way, needs, SHARE, FACTOR, judged=False))
    finally:
        torch.set_num_threads(threads)
    report.rows.append(_row("all", "the largest", worst, SHARE, FACTOR, judged=True))
    return report


def _row(case: str, what: str, needs: Needs, share: float, factor: float, *, judged: bool) -> Row:
    cells = {
        "share needed": f"{needs.share:.2g}" + (f" of {needs.n_cancelled}" if needs.n_cancelled else ""),
        "margin": f"{share / needs.share:.2g} times" if needs.share else "-",
        "factor needed": f"{needs.factor:.2g}" + (f" of {needs.n_amplified}" if needs.n_amplified else ""),
        "margin ": f"{factor / needs.factor:.2g} times" if needs.factor else "-",
    }
    met = needs.share <= share and needs.factor <= factor * (1 + 1e-9) if judged else None
    return Row(case, what, cells, needs.__dict__ | {"allowed": [share, factor]}, "within both" if judged else "", met)


# ---- programs, and other ways to compute them ----


def _programs() -> dict[str, Any]:
    import torch

    from tests.faults.other_nets import ATTENTION, AUTOENCODER, CONVOLUTION, RECURRENT
    from tests.faults.programs import DIGITS, TRANSFORMER, Digits

    def adaptive(kind: Any, **options: Any) -> Callable[[Any], Any]:
        return lambda net: kind(net.parameters(), lr=1e-2, **options)

    return {
        "convolution, Adam": CONVOLUTION.but(optimizer=adaptive(torch.optim.Adam)),
        "convolution, RMSprop": CONVOLUTION.but(optimizer=adaptive(torch.optim.RMSprop)),
        "attention, Adam": ATTENTION.but(optimizer=adaptive(torch.optim.Adam)),
        "attention, Adagrad": ATTENTION.but(optimizer=adaptive(torch.optim.Adagrad)),
        "attention, NAdam": ATTENTION.but(optimizer=adaptive(torch.optim.NAdam)),
        "transformer, AdamW": TRANSFORMER,
        "recurrent, Adamax": RECURRENT.but(optimizer=adaptive(torch.optim.Adamax)),
        "digits, AdamW": DIGITS.but(net=lambda: Digits(dropout=0.0)),
        "autoencoder, Rprop": AUTOENCODER.but(optimizer=adaptive(torch.optim.Rprop)),
    }


def _ways(recipe: Any, quick: bool) -> Iterator[tuple[str, Any]]:
    """The same program with its sums taken in another order."""
    import torch

    yield "on 2 threads", recipe.but(threads=2)
    if quick:
        return

    def backwards(examples: int, count: int) -> list[list[int]]:
        from tests.faults.programs import shuffled

        return [batch[::-1] for batch in shuffled(examples, count, recipe.batch)]

    yield "batches the other way round", recipe.but(order=backwards)

    def by_columns(state: Any) -> None:
        """Every weight stored in other strides, so that other kernels are chosen."""
        for p in state.net.parameters():
            if p.ndim > 1:
                p.data = p.data.transpose(0, 1).contiguous().transpose(0, 1)

    yield "weights stored by columns", recipe.but(built=by_columns)

    def without(state: Any) -> None:
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]

    yield "without oneDNN", recipe.but(built=without)


# ---- what rounding did ----


def _measure(folder: Path, recipe: Any, other: Any) -> Needs:
    import torch

    from tests.faults.programs import run as train

    needs = Needs()
    still = {"optimizer": lambda net: torch.optim.SGD(net.parameters(), lr=0.0), "schedule": None}
    enabled = torch.backends.mkldnn.enabled
    for name, parts in (("still", still), ("moving", {})):
        pair = []
        for side, program in (("a", recipe), ("b", other)):
            pair.append(train(folder / f"{name}-{side}", program.but(**parts)))
            torch.backends.mkldnn.enabled = enabled
        if name == "still":
            _cancelled(*pair, needs)
        else:
            _amplified(*pair, needs)
    return needs


def _samples(path: Path, quantity: str) -> dict[tuple[int, str], Any]:
    import optrace

    table = optrace.open(path).table("tensors", quantity=quantity)
    return {(row.step, row.param): row for row in table.itertuples()}


def _cancelled(a: Path, b: Path, needs: Needs) -> None:
    """Gradients of equal parameters: what the largest of the step must lend to those that cancel."""
    from optrace.compare.tolerance import GRAD_EPS

    rows_a, rows_b = _samples(a, "grad"), _samples(b, "grad")
    largest: dict[int, float] = {}
    for (step, _), row in rows_a.items():
        largest[step] = max(largest.get(step, 0.0), row.l2 / row.numel**0.5)
    for place in rows_a.keys() & rows_b.keys():
        one, two = np.asarray(rows_a[place].sample), np.asarray(rows_b[place].sample)
        rms = max(rows.l2 for rows in (rows_a[place], rows_b[place])) / rows_a[place].numel ** 0.5
        own = np.nan_to_num(np.abs(one - two) - GRAD_EPS * 2.0**-23 * (np.fmax(np.abs(one), np.abs(two)) + rms))
        if own.max() > 0:
            needs.n_cancelled += 1
            gap = float(np.nanmax(np.abs(one - two)))
            needs.share = max(needs.share, gap / (GRAD_EPS * 2.0**-23 * largest[place[0]]))


def _amplified(a: Path, b: Path, needs: Needs) -> None:
    """Updates of programs that move: by how much more than the relative error of their inputs they differ."""
    from optrace.compare.amplified import FACTOR, explained
    from optrace.compare.columns import KEYS, Numbering, Side
    from optrace.compare.match import match_sources
    from optrace.compare.names import Renaming
    from optrace.compare.source import open_source
    from optrace.compare.tolerance import STEP_EPS

    sources = open_source(a), open_source(b)
    renaming = Renaming.parse((), ())
    matching = match_sources(*sources, renaming)
    numbering = Numbering(matching, renaming)
    zeros = [0] * len(matching.pairs)
    sides = Side(sources[0], numbering, zeros, is_a=True), Side(sources[1], numbering, zeros, is_a=False)
    for side in sides:
        side.load(0, 1, KEYS)  # tells which quantities there are
    updates = _samples(a, "update"), _samples(b, "update")
    names = {cell.param_a: number for number, cell in enumerate(matching.cells)}
    for step in sorted({step for step, _ in updates[0]}):
        params = sorted(param for s, param in updates[0] if s == step and (s, param) in updates[1])
        parts = explained(sides, numbering, step, [(names[param], "update") for param in params])
        for param, (allowed, size) in zip(params, parts, strict=True):
            rows = [table[step, param] for table in updates]
            one, two = (np.asarray(row.sample) for row in rows)
            rms = max(row.l2 for row in rows) / rows[0].numel ** 0.5
            beyond = np.abs(one - two) - STEP_EPS * 2.0**-23 * (size + rms)
            there = np.isfinite(beyond) & (beyond > 0) & (allowed > 0)
            if there.any():
                needs.n_amplified += 1
                needs.factor = max(needs.factor, float((FACTOR * beyond[there] / allowed[there]).max()))
