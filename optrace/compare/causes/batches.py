"""Batches that differ: gone through again, in another order, ahead, in other numbers a step, or simply others."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from optrace.compare.causes.case import Case
from optrace.compare.causes.cause import Cause
from optrace.compare.words import count_words

Batches = Mapping[int, int]
"""Fingerprint of what the loaders gave for a step, by A's number of the step."""

_AHEAD = 64
"""Steps by which a run is looked for ahead of another."""


def of_batches(case: Case, step: int, batches: Sequence[Batches]) -> Cause:
    """What is the case with batches that differ since a step."""
    a, b = batches
    later = [s for s in case.steps if s >= step and s in b and s in a]
    known = set(a.values())
    found = [s for s in later if b[s] in known]
    if found and len(found) >= max(1, len(later) // 2):
        words, fix, evidence = _known_batches(a, b, step, later, found)
        return Cause("data-order", words, fix, evidence, steps=(step, max(case.steps)))
    occur = (
        f"{len(found)} of {{B}}'s {len(later)} batches since step {step} occur in {{A}}"
        if found
        else f"none of {{B}}'s {len(later)} batches since step {step} is among the {len(known)} of {{A}}"
    )
    period_a, period_b = _period(a), _period(b)
    repeats = f"the batches of {{B}} repeat every {period_b} steps, those of {{A}} do not: {{B}} does not shuffle"
    return Cause(
        "data-content",
        f"the batches differ since step {step}, and those of {{B}} do not occur in {{A}}",
        "compare the data sets, the preprocessing (tokenizer, augmentation, dtype), the batch sizes and the shuffling"
        " (another seed makes batches of other examples) of the two",
        (occur, repeats) if period_b and not period_a else (occur,),
        steps=(step, max(case.steps)),
    )


def _known_batches(
    a: Batches, b: Batches, step: int, later: Sequence[int], found: Sequence[int]
) -> tuple[str, str, tuple[str, ...]]:
    """Words, fix and evidence where most of B's batches are A's at other steps."""
    evidence = [f"{len(found)} of the {len(later)} batches of {{B}} since step {step} occur in {{A}}"]
    ahead = _ahead(a, b, later)
    if ahead:
        batches = "1 batch" if ahead == 1 else f"{ahead} batches"
        words = f"{{B}} passes over {batches} that {{A}} has: it is ahead from step {step} on"
        evidence.append(f"at step {step} it has the batch that {{A}} has {count_words(ahead, 'step')} later, and so on")
        return (
            words,
            "see in {B} what leaves batches out: drop_last, a filter, a loader that ends early",
            tuple(evidence),
        )
    where = {batch: s for s, batch in reversed(list(a.items()))}
    example = where[b[found[0]]]
    lag = {s - where[b[s]] for s in found}
    if len(lag) == 1 and (k := lag.pop()):
        evidence.append(f"each {abs(k)} steps {'later' if k > 0 else 'earlier'} than in {{A}}")
    own = min((s for s in b if s < step and b[s] == b[found[0]]), default=None)
    if own is not None:
        return (
            f"{{B}} goes through its batches again: at step {found[0]} it has that of its step {own}, {{A}} another",
            "in {B} shuffle anew each epoch: call sampler.set_epoch(epoch), and do not seed the loader again; after a"
            " resume skip the batches that were used (a stateful sampler, skip_first_batches)",
            tuple(evidence),
        )
    if example < step or where[b[found[0]]] < min(a, default=1) + step - 1:
        return (
            f"{{B}} goes through batches again: at step {found[0]} it has the batch that {{A}} had at step {example}",
            "in {B} skip the batches that were used before the resume (a stateful sampler, skip_first_batches), and"
            " restore the sampler's seed and epoch",
            tuple(evidence),
        )
    return (
        f"{{B}} has the batches of {{A}} in another order: at step {found[0]} that of step {example}",
        "in {B} give the loader's generator or sampler the same seed, and call set_epoch in both",
        tuple(evidence),
    )


def accumulated_otherwise(case: Case, step: int) -> Cause | None:
    """Other batches because one side takes another number of backward passes into a step, as it mostly does."""
    counts = [case.column("n_backward", side) for side in (0, 1)]
    usual = [Counter(int(side[s]) for s in case.steps if s in side).most_common(1) for side in counts]
    n_a, n_b = (int(side.get(step, 0)) for side in counts)
    if n_a == n_b or not n_a or not n_b or [n for most in usual for n, _ in most] != [n_a, n_b]:
        return None
    made = [sum(s >= step for s in side) for side in counts]
    return Cause(
        "grad-upstream",
        f"{{B}} steps after {_passes(n_b)}, {{A}} after {n_a}: their steps are made of other batches",
        f"in {{B}} accumulate as {{A}} does and step once in {_passes(n_a)}, or compare with a run that does",
        (
            f"so at most of the {count_words(len(case.steps), 'step')} that both have; from step {step} on {{A}} makes"
            f" {count_words(made[0], 'step')}, {{B}} {made[1]}",
        ),
        steps=(step, max(case.steps)),
    )


def _passes(n: int) -> str:
    return f"{n} backward {'pass' if n == 1 else 'passes'}"


def _ahead(a: Batches, b: Batches, later: Sequence[int]) -> int:
    """By how many steps B is ahead of A with the same batches from the first of these steps on; 0 where it is not.

    Three batches in a row show it. Where A's own batches repeat, being behind by fewer steps goes before.
    """
    for k in range(1, _AHEAD + 1):
        if _in_a_row(a, b, later, -k):
            return 0
        if _in_a_row(a, b, later, k):
            return k
    return 0


def _in_a_row(a: Batches, b: Batches, later: Sequence[int], k: int) -> bool:
    row = list(itertools.takewhile(lambda s: b[s] == a.get(s + k), later))
    return len({b[s] for s in row}) >= 3


def _period(batches: Batches) -> int:
    """After how many steps the batches of a run repeat throughout; 0 where they do not."""
    course = [batches[s] for s in sorted(batches)]
    at = next((k for k in range(1, len(course)) if course[k] == course[0]), 0)
    repeats = at > 1 and len(course) >= at + 3 and all(x == y for x, y in zip(course, course[at:], strict=False))
    return at if repeats else 0
