"""What gradients are computed from: the batches, their order, the random state; else model and kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from optrace.compare.causes.batches import accumulated_otherwise, of_batches
from optrace.compare.causes.case import Case
from optrace.compare.causes.cause import Cause
from optrace.compare.causes.gradient_rows import Gradients, gradients_at
from optrace.compare.causes.micro import parted_after
from optrace.compare.random_states import Generators, RandomStates
from optrace.compare.words import count_words

_SUMS = 64.0
"""Distance of gradients in eps that the order of sums may make."""
_HALF = (2.0**-13, 2.0**-5)
"""Relative distance of gradients that half precision leaves: 2^-12 to 2^-4 for four small nets under autocast, of which
the largest are left to speak for themselves."""


def upstream(case: Case) -> Iterator[Cause]:
    """The cause of unequal gradients from equal parameters, by what the table `steps` tells."""
    first = case.first
    assert first is not None
    step = first.step
    batches, prints = ([case.column(name, side) for side in (0, 1)] for name in ("batch", "rng"))
    equal_before = [s for s in case.steps if s < step]
    differ = _differs(batches, step)
    blameless = any(_differs(batches, s) for s in equal_before)
    if differ and not blameless:
        yield accumulated_otherwise(case, step) or of_batches(case, step, batches)
        return
    generators = Generators(prints)
    states = generators.at(step)
    before = any(past.matter for s in equal_before if (past := generators.at(s)) is not None)
    if states is not None and states.matter and not before and differ is False:
        yield _not_drawn(case, step, generators) or _drawn(case, step, states)
        return
    yield _unknown(case, step, differ, states)


def _not_drawn(case: Case, step: int, generators: Generators) -> Cause | None:
    """A side that draws no random number for a step though it did before, and the other side does: dropout is off."""
    past = max((s for s in case.steps if s < step), default=None)
    before = max((s for s in case.steps if past is not None and s < past), default=None)
    if past is None or before is None:
        return None
    now = [generators.torch_moved(side, past, step) for side in (0, 1)]
    earlier = [generators.torch_moved(side, before, past) for side in (0, 1)]
    if now not in ([True, False], [False, True]) or earlier != [True, True]:
        return None
    name, other = ("{B}", "{A}") if now[0] else ("{A}", "{B}")
    return Cause(
        "grad-upstream",
        f"{name} draws no random numbers for step {step}, as it did before and {other} still does: dropout and other"
        " random layers are off there, as in evaluation mode",
        f"in {name} call model.train() after evaluating" + ("" if now[0] else ", or leave it out in both"),
        (
            f"torch's generators are as they were at step {past} in {name} and have moved in {other}; equal parameters"
            " and batches",
        ),
        steps=(step, max(case.steps)),
    )


def _drawn(case: Case, step: int, states: RandomStates) -> Cause:
    evidence = [f"fingerprint of {states.words} at step {step} differs; equal parameters and batches"]
    if states.torch and not states.torch_rests:
        seed = "torch.manual_seed, and the device's generator"
        rest = "the same dropout and other random layers, in the same mode (train or eval)"
    else:
        agree = "nothing draws from torch's" if states.torch else "torch's generators agree"
        evidence.append(f"{agree}, and something draws from the others while training")
        seed = "random.seed and numpy.random.seed"
        rest = "augmentation, masking, sampling of negatives"
    return Cause(
        "rng",
        f"the random state differs when step {step} goes backward ({states.words}), the batches are the same: one side"
        " has drawn other numbers by then, or more of them",
        f"seed both alike ({seed}) right before training, and draw from that generator in both alike: {rest}",
        tuple(evidence),
        steps=(step, max(case.steps)),
    )


def batches_apart(case: Case) -> Iterator[Cause]:
    """Batches that differ, as a cause beside another."""
    batches = [case.column("batch", side) for side in (0, 1)]
    unequal = [s for s in case.steps if _differs(batches, s)]
    if unequal:
        yield of_batches(case, unequal[0], batches)


def _differs(sides: list[dict[int, int]], step: int) -> bool | None:
    """Whether a fingerprint differs at a step; None where a side does not tell it."""
    a, b = (side.get(step) for side in sides)
    return None if a is None or b is None else a != b


def _unknown(case: Case, step: int, batch: bool | None, states: RandomStates | None) -> Cause:
    told = []
    told.append(
        "the batches are the same"
        if batch is False
        else "the batches are not known (no DataLoader was seen)"
        if batch is None
        else "the batches are numbered otherwise, but that made no difference before"
    )
    told += _random_words(states, batch, step)
    told += parted_after(case)
    losses = [case.column("loss", side).get(step) for side in (0, 1)]
    if None not in losses:
        same = losses[0] == losses[1]
        told.append(
            f"the loss of step {step} is equal on both sides: look at the backward pass"
            if same
            else f"the loss of step {step} differs, too: look at the forward pass"
        )
    backwards = [case.column("n_backward", side).get(step) for side in (0, 1)]
    if None not in backwards and backwards[0] != backwards[1]:
        told.append(f"backward passes: {backwards[0]:g} in {{A}}, {backwards[1]:g} in {{B}}")
    orders = [_order(case, side, step) for side in (0, 1)]
    if orders[0] != orders[1]:
        told.append(f"before step {step} come {orders[0]} in {{A}}, {orders[1]} in {{B}}")
    found = gradients_at(case, step)
    unequal = [n for n, x, y in zip(found.names, found.a, found.b, strict=True) if x.fingerprint != y.fingerprint]
    told.append(f"{len(unequal)} of {count_words(len(found.names), 'gradient')} differ")
    told += _size_words(found)
    words = "the gradients differ from equal parameters"
    if batch is False:
        words += " and batches"
    return Cause(
        "grad-upstream",
        f"{words} at step {step}: the cause lies before the optimizer, in data, model, loss or kernels",
        "compare the loss, its reduction over micro-batches and tokens, and the model's modes (train or eval);"
        + (" load the data through a DataLoader, or" if batch is None else "")
        + " record with --micro to see each backward pass",
        tuple(told),
        steps=(step, max(case.steps)),
    )


def _random_words(states: RandomStates | None, batch: bool | None, step: int) -> Iterator[str]:
    """What is known of the generators where they are not the cause."""
    if states is None:
        return
    if not states.torch and not states.host:
        yield "so is the random state" if batch is False else "the random state is the same"
    elif not states.matter:
        agree = "" if states.torch else "; torch's agree"
        yield f"the random state differs ({states.words}), but nothing is seen to draw from it while training{agree}"
    else:
        yield f"the random state differs ({states.words})" + (", as it did before without effect" if step > 1 else "")


def _size_words(found: Gradients) -> Iterator[str]:
    """How far the gradients are apart, where that is as much as a rounding that is known."""
    a, b = found.flat(0), found.flat(1)
    known = np.isfinite(a) & np.isfinite(b)
    size = float(np.sqrt((a[known] ** 2).sum()))
    apart = float(np.sqrt(((a - b)[known] ** 2).sum())) / size if size else 0.0
    shown = f"they are apart by {apart:.1g} of their size"
    if 0 < apart <= _SUMS * found.eps:
        yield (
            f"{shown}, as other kernels or another order of sums make it: if the job does not repeat itself, record"
            " {A} twice and compare with --noise"
        )
    elif found.eps < _HALF[0] and _HALF[0] <= apart <= _HALF[1]:
        yield f"{shown}: half precision in the passes of one side (autocast, TF32), or a small term of its loss"


def _order(case: Case, side: int, step: int) -> str:
    """What was done to gradients since the step before, in order: `zero_grad, 4 backward, clip`."""
    kinds = [k for k in case.kinds_between(side, step) if k in ("zero_grad", "backward", "unscale", "clip")]
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(kinds)]
    return ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in runs) or "no events"
