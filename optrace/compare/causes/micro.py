"""What a gradient holds of each micro-batch, told by the gradients after each backward (`grad_micro.<k>`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from optrace.compare.causes.case import Case, close, figure
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.gradient_rows import Gradients, common_factor, gradients_at

Floats = NDArray[np.float64]

_ALL_SUBSETS = 8
"""Micro-batches up to which every choice of them is tried; beyond it: the first, the last, single ones, all but one."""


def partial(case: Case) -> Iterator[Cause]:
    """A gradient that is the sum of some of the other side's micro-batches, and not of all."""
    first = case.first
    assert first is not None
    step = first.step
    found = gradients_at(case, step)
    for side, name in ((1, "{B}"), (0, "{A}")):
        other = ("{B}", "{A}")[side]
        parts = contributions(case, 1 - side, step, found)
        own, whole = found.flat(side), found.flat(1 - side)
        if len(parts) < 2:
            continue
        scale = np.abs(np.array(parts)).sum(axis=0)
        if not close(sum(parts), whole, scale=scale, eps=found.eps) or (scale > 0).sum() < 3:
            continue
        fitting = [
            (chosen, factor)
            for chosen in _choices(len(parts))
            for factor in (1.0, len(parts) / len(chosen))
            if close(factor * np.array([parts[k] for k in chosen]).sum(axis=0), own, scale=scale, eps=found.eps)
        ]
        if len(fitting) != 1:
            continue
        chosen, factor = fitting[0]
        lost = [k + 1 for k in range(len(parts)) if k not in chosen]
        times = "" if factor == 1.0 else f", times {factor:g}"
        yield Cause(
            "grad-partial",
            f"the gradient of {name} at step {step} holds {_numbered([k + 1 for k in chosen])} of {len(parts)}"
            f" micro-batches{times}: {_numbered(lost)} {'is' if len(lost) == 1 else 'are'} lost",
            f"in {name} add up the gradients of all backward passes of a step: look for a zero_grad between them, a"
            " copy that is taken before the last of them, or a reduction that comes too early",
            (
                f"gradients of {other} after each of its {len(parts)} backward passes (--micro), at"
                f" {len(own)} sampled elements",
            ),
            steps=(step, max(case.steps)),
        )
        return


def scaled(case: Case) -> Iterator[Cause]:
    """Single micro-batches whose gradients are the other side's times a factor."""
    first = case.first
    assert first is not None
    found = gradients_at(case, first.step)
    parts_a, parts_b = (contributions(case, side, first.step, found) for side in (0, 1))
    if len(parts_a) != len(parts_b) or len(parts_a) < 2:
        return
    factors = {}
    sums = [np.abs(np.array(parts)).sum(axis=0) for parts in (parts_a, parts_b)]  # the parts are differences of sums
    for k, (a, b) in enumerate(zip(parts_a, parts_b, strict=True), 1):
        if close(a, b, scale=np.fmax(*sums), eps=found.eps):
            continue
        factor = common_factor(a, b, found.eps)
        if factor is None:
            return
        factors[k] = factor
    if not factors or len(factors) == len(parts_a):
        return
    words = ", ".join(f"{figure(factor)} for number {k}" for k, factor in factors.items())
    yield Cause(
        "grad-scale",
        f"of the {len(parts_a)} micro-batches of step {first.step} {_numbered(list(factors))}"
        f" {'counts' if len(factors) == 1 else 'count'} otherwise in {{B}} than in {{A}}: a factor of {words}",
        "look in {B} for what weighs the losses of a step's micro-batches: a division that one of them does not get",
        ("gradients after each backward pass (--micro); those of the other micro-batches agree",),
        steps=(first.step, max(case.steps)),
    )


def parted_after(case: Case) -> Iterator[str]:
    """After which backward the gradients differ first, in words."""
    first = case.first
    if first is not None and first.quantity.startswith("grad_micro."):
        number = int(first.quantity.partition(".")[2])
        agree = f"agree until backward pass {number - 1} of the step, and " if number > 1 else ""
        yield f"the gradients {agree}differ after backward pass {number}"


def contributions(case: Case, side: int, step: int, found: Gradients) -> list[Floats]:
    """What each backward of a step added to the gradients of `found`, flat over the sampled elements."""
    rows = case.at(step)[side]
    cells = {cell.param_a: number for number, cell in case.cells()}
    flats: list[Floats] = []
    for k in itertools.count(1):
        parts = [rows.get((cells[name], f"grad_micro.{k}")) for name in found.names]
        if any(part is None for part in parts):
            break
        flats.append(
            np.concatenate(
                [
                    part.used if part.present else np.zeros(len(whole.used))
                    for part, whole in zip(parts, (found.a, found.b)[side], strict=True)
                    if part is not None
                ]
            )
        )
    return [after - before for before, after in itertools.pairwise([np.zeros_like(flats[0]), *flats])] if flats else []


def _choices(n: int) -> Iterator[tuple[int, ...]]:
    """Some of n micro-batches, by their index: not none, and not all."""
    if n <= _ALL_SUBSETS:
        for size in range(1, n):
            yield from itertools.combinations(range(n), size)
        return
    several = [tuple(range(k)) for k in range(1, n)] + [tuple(range(k, n)) for k in range(1, n)]
    several += [(k,) for k in range(n)] + [tuple(j for j in range(n) if j != k) for k in range(n)]
    yield from dict.fromkeys(several)


def _numbered(numbers: list[int]) -> str:
    """`number 1`, `numbers 1 and 3`, `numbers 1 to 5`."""
    if len(numbers) == 1:
        return f"number {numbers[0]}"
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"numbers {numbers[0]} to {numbers[-1]}"
    return f"numbers {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
