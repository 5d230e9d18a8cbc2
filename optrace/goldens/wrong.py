"""Outputs of wrong implementations, labelled, so that a port can prove that its own test fails on them.

Each is a golden's inputs with the outputs of one known mistake, in golden format. The header line `wrong` says what is
wrong, `code` is the cause's code, and `golden` the case whose numbers are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from optrace.goldens.drive import with_outputs
from optrace.goldens.format import Golden
from optrace.goldens.library import load
from optrace.goldens.mistakes import mistakes
from optrace.goldens.schedule_driver import with_schedule_outputs
from optrace.reference.arithmetic import rounding

CHOSEN = {
    "sgd/momentum": ("average", "nesterov", "ascends"),
    "sgd/dampening": ("first-dampened", "no-dampening"),
    "sgd/nesterov": ("no-nesterov", "nesterov-twice"),
    "sgd/momentum-decay": ("decoupled", "decay-missing", "decay-after-update"),
    "sgd/lr-change": ("lr-inside", "lr-frozen", "lr-late"),
    "sgd/none-grad": ("none-as-zero", "stops-at-none"),
    "sgd/groups": ("first-group",),
    "sgd/resume": ("state-reset",),
    "adam/plain": ("eps-before-correction", "no-correction", "counter-ahead", "betas-swapped"),
    "adam/eps": ("eps-inside",),
    "adam/amsgrad": ("no-amsgrad", "amsgrad-corrected"),
    "adam/none-grad": ("one-counter",),
    "adamw/weight-decay": ("coupled", "decay-after-update", "decay-without-lr"),
    "rmsprop/eps": ("eps-inside",),
    "rmsprop/centered": ("not-centered",),
    "adagrad/lr-decay": ("lr-decay-early",),
    "rprop/plain": ("ascends",),
}
"""case -> mistakes, by their names in the table of variants and in `mistakes`."""


def wrong_goldens() -> Iterator[tuple[str, Golden]]:
    """(file stem, golden) of every wrong output."""
    for name, chosen in CHOSEN.items():
        golden = load(name)
        known = {mistake.name: mistake for mistake in mistakes(golden.rule)}
        for mistake_name in chosen:
            mistake = known[mistake_name]
            does = mistake.words(golden.hyper[0])[0]
            with rounding(fma=False):
                wrong = with_outputs(golden, mistake.driver(golden))
            yield _labelled(golden, wrong, mistake_name, does, mistake.code)
    yield from _schedules()


def _schedules() -> Iterator[tuple[str, Golden]]:
    from optrace.reference.schedulers import CosineAnnealingLR, StepLR

    class Late(StepLR):
        def get_lr(self) -> list[float]:
            drops = self.last_epoch > 1 and (self.last_epoch - 1) % self.step_size == 0
            return self._times(self.gamma) if drops else self._kept()

    class Clamped(CosineAnnealingLR):
        def get_lr(self) -> list[float]:
            return self._kept() if self.last_epoch > self.T_max else super().get_lr()

    class Closed(StepLR):
        def get_lr(self) -> list[float]:
            return self._get_closed_form_lr()

    table: tuple[tuple[str, str, str, str, Callable[..., object]], ...] = (
        ("steplr/plain", "late", "drops lr one epoch late", "lr-shift", Late),
        ("steplr/edited", "closed-form", "computes lr from the initial lr, so edits are lost", "lr-value", Closed),
        ("cosineannealinglr/plain", "clamped", "stays at the bottom after T_max", "lr-value", Clamped),
    )
    for name, mistake, does, code, make in table:
        golden = load(name)
        yield _labelled(golden, with_schedule_outputs(golden, make), mistake, does, code)


def _labelled(golden: Golden, wrong: Golden, name: str, does: str, code: str) -> tuple[str, Golden]:
    stem = f"{golden.rule}-{golden.case}-{name}"
    notes = {k: v for k, v in golden.notes.items() if k not in ("made_with", "arithmetic")}
    notes |= {"file": stem, "wrong": does, "code": code, "golden": golden.name, "made_with": "optrace, a wrong rule"}
    return stem, replace(wrong, notes=notes)
