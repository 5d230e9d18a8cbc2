"""`optrace.identify`: from the record alone, which rule a run followed and with what numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optrace.errors import TraceError
from optrace.reference.families import FAMILIES
from optrace.reference.rule import RULES
from optrace.replayer.adaptive_guesses import adaptive_stages
from optrace.replayer.cubes import Cube, Member, cubes, members_of
from optrace.replayer.engine import Carried, Step, residuals
from optrace.replayer.guesses import Guess, Series, rate_of, series_of
from optrace.replayer.linear_guesses import linear_guesses
from optrace.replayer.options import options_by_step
from optrace.replayer.rule_guesses import rule_guesses
from optrace.replayer.single import entry_of, explains
from optrace.trace.reader import Trace, open_trace

STEPS = 64
"""Recorded steps that are looked at; an optimizer's rule shows in far fewer."""
FITS = 8.0
"""Eps within which a rule is said to explain every number."""


@dataclass(frozen=True)
class Identity:
    """The rule that explains a record best."""

    run: str
    optimizer: int
    optimizer_class: str
    rule: str | None
    """Name of the rule that explains every judged number; None: none of ours."""
    closest: str
    """The rule that comes closest."""
    numbers: tuple[tuple[str, float], ...]
    """Its hyper-parameters, as fitted or as recorded."""
    words: str
    """All of it in words."""
    residual_eps: float
    """The worst number's distance from the rule, in eps."""
    params: int
    steps: int
    note: str = ""
    """What else may explain the residual."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In IPython as `print` shows it."""
        printer.text(str(self))

    def __str__(self) -> str:
        who = f"{self.run}@{self.optimizer} ({self.optimizer_class})"
        if self.rule is not None:
            return f"{who}: {self.words}; residual {self.residual_eps:.3g} eps over {self.steps} steps"
        return f"{who}: none of ours; the closest is {self.words}, off by {self.residual_eps:.3g} eps" + (
            f" ({self.note})" if self.note else ""
        )


def identify(run: str | os.PathLike[str] | Trace, *, optimizer: int = 0) -> Identity:
    """Find the rule and its numbers that explain the recorded steps of an optimizer.

    SGD and its relatives are fitted: each update is a linear function of the last update, the gradients and the
    parameters, and its coefficients are the numbers. Adam's relatives, as torch has them and as people write them, are
    tried with the recorded numbers (under whatever names) and with those that people use, lr and weight decay fitted;
    torch's other rules with their recorded options. What is found is then run over the record, its state carried from
    step to step, and the residual is that of this run.

    Args:
        run: a run folder or an open trace, recorded from the first step with samples.
        optimizer: index of the optimizer.

    Raises:
        TraceError: the run is missing, or holds too few consecutive steps; or the optimizer is called like one whose
            rule samples cannot tell (LBFGS, Muon, Adafactor), and no other rule fits.
    """
    trace = run if isinstance(run, Trace) else open_trace(run)
    names = dict(trace.optimizers)
    if optimizer not in names:
        raise TraceError(f"{trace.path} has no optimizer {optimizer}; it has {', '.join(map(str, names)) or 'none'}")
    members = members_of(trace, optimizer)
    cube = _first_cube(trace, optimizer, members)
    groups = options_by_step(trace, optimizer, None, int(cube.steps[-1]))
    series = list(series_of(cube, groups))
    if not series or len(cube.steps) < 3:
        raise TraceError(
            f"{trace.path} has too few steps with samples of param and grad to tell a rule; record from step 1"
        )
    best: tuple[tuple[bool, int, float], Guess, float] | None = None
    for stage in _stages(names[optimizer], series):  # each much more work than the one before
        for guess in stage:
            worst = _try(guess, cube, groups)
            rank = (worst > FITS, guess.complexity if worst <= FITS else 0, worst)
            if best is None or rank < best[0]:
                best = rank, guess, worst
        if best is not None and best[2] <= FITS:
            break
    if best is None:
        raise TraceError(
            f"the steps of {trace.path} determine no rule: its gradients or updates are zero or not finite"
        )
    _, guess, worst = best
    own = RULES.get(names[optimizer].lower())
    if worst > FITS and own is not None and not own.elementwise:
        raise TraceError(
            f"{own.name} mixes the elements of a tensor, so samples cannot tell whether it was followed; the class"
            f" itself is checked by: optrace golden check MODULE:CLASS --rule {own.name}"
        )
    numbers = tuple(
        (k, float(v)) for k, v in guess.hyper.items() if isinstance(v, int | float) and not isinstance(v, bool)
    )
    return Identity(
        trace.path.name,
        optimizer,
        names[optimizer],
        guess.family if worst <= FITS else None,
        guess.family,
        numbers,
        guess.words,
        worst,
        len(members),
        len(cube.steps),
        explains(entry_of(trace, optimizer), worst) if worst > FITS else "",
    )


def _first_cube(trace: Trace, optimizer: int, members: Sequence[Member]) -> Cube:
    for cube in cubes(trace, optimizer, members):
        steps = cube.steps[:STEPS]
        last = int(np.argmax(np.diff(steps) != 1)) if (np.diff(steps) != 1).any() else len(steps) - 1
        for found in cubes(trace, optimizer, members, 1, int(steps[last])):
            return found
    raise TraceError(f"{trace.path} holds no step of optimizer {optimizer}")


def _stages(class_name: str, series: Sequence[Series]) -> Iterator[Iterable[Guess]]:
    adaptive = adaptive_stages(series)
    yield linear_guesses(series)
    yield next(adaptive)
    yield rule_guesses(class_name, series)
    yield from adaptive


# ---- trying a guess ----


def _try(guess: Guess, cube: Cube, groups: Mapping[int, Mapping[int, Mapping[str, Any]]]) -> float:
    """The worst residual of the guess over the record, state carried from the first step."""
    worst = 0.0
    by_decay: dict[float, list[int]] = {}
    for m, member in enumerate(cube.members):
        by_decay.setdefault(guess.decays.get(member.name, 0.0), []).append(m)
    for decay, chosen in by_decay.items():
        fixed = RULES[guess.family].defaults if guess.switches is None else {**guess.hyper, "weight_decay": decay}
        options = {
            step: {group: _options(guess, fixed, recorded) for group, recorded in of.items()}
            for step, of in groups.items()
        }
        rule = RULES[guess.family]
        part = _of(cube, chosen)
        found = residuals(_step_of(guess), rule.state_keys, part, options, Carried(), jumps=rule.jumps)
        judged = found.param[~np.isnan(found.param)]
        worst = max(worst, float(judged.max(initial=0.0)))
    return worst


def _step_of(guess: Guess) -> Step:
    switches = guess.switches
    if switches is None:
        return RULES[guess.family].step
    family = FAMILIES[guess.family]
    return lambda p, g, s, h: family(p, g, s, h, switches)


def _options(guess: Guess, fixed: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    if guess.switches is None:
        return {**fixed, **recorded}
    return {**fixed, "lr": guess.hyper["lr"] * rate_of(recorded)}


def _of(cube: Cube, chosen: list[int]) -> Cube:
    def cut(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {name: array[:, chosen] for name, array in arrays.items()}

    return Cube(
        cube.steps,
        [cube.members[m] for m in chosen],
        cut(cube.values),
        cut(cube.there),
        cut(cube.rows),
        cut(cube.before),
        cut(cube.known_before),
        cube.dtypes,
    )
