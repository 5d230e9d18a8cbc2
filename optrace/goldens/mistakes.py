"""The mistakes that a candidate's numbers are compared with: the variants of its rule, and what goes wrong in any rule.

Each mistake is the right rule, driven wrongly or with one thing changed, never a rule of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optrace.goldens.drive import Array
from optrace.goldens.format import Golden
from optrace.goldens.mistaken_drivers import (
    AllWait,
    CountsParams,
    Forgetful,
    ForgetsCounter,
    ForgetsOptions,
    Frozen,
    LastGroup,
    Late,
    OneCounter,
    OneGroup,
    OnlyFirstGroup,
    SharedLr,
    StopsAtNone,
)
from optrace.goldens.rule_driver import PureStep, RuleDriver
from optrace.reference.families import FAMILIES
from optrace.reference.rule import RULES
from optrace.reference.variants import VARIANTS, Variant

MakeDriver = Callable[[Golden], RuleDriver]


@dataclass(frozen=True)
class Mistake:
    """One way to be wrong, and how to do it."""

    name: str
    code: str
    does: str
    torch_does: str
    mend: str
    driver: MakeDriver
    switches: Mapping[str, Any] | None = None
    """Of the rule's family, where it is a variant: such mistakes can be made two at a time."""

    def words(self, hyper: Mapping[str, Any]) -> tuple[str, str, str]:
        """`does`, `torch_does`, `mend`, with the options' numbers filled in for a variant."""
        return self.does, self.torch_does, self.mend


@dataclass(frozen=True)
class VariantMistake(Mistake):
    """A variant of the table in `optrace.reference.variants`."""

    variant: Variant | None = None

    def words(self, hyper: Mapping[str, Any]) -> tuple[str, str, str]:
        """The variant's words."""
        assert self.variant is not None
        return self.variant.words(hyper)


def right(rule: str) -> Mistake:
    """No mistake: torch's rule."""
    step = RULES[rule].step
    return Mistake("", "", "", "", "", lambda golden: RuleDriver(step, "sparse" in golden.notes))


def mistakes(rule: str) -> Iterator[Mistake]:
    """All that are known of a rule, the commonest first."""
    for variant in VARIANTS.get(rule, ()):
        yield _of_variant(variant)
    yield from _driven_wrongly(rule)
    yield from _counted_wrongly(rule)
    known = {variant.code for variant in VARIANTS.get(rule, ())}
    for mistake in _changed(rule):
        if mistake.code not in known or mistake.name.startswith("ignores-"):
            yield mistake


def pairs(rule: str) -> Iterator[Mistake]:
    """Two variants of the rule at once, where they throw different switches."""
    variants = VARIANTS.get(rule, ())
    for number, first in enumerate(variants):
        for second in variants[number + 1 :]:
            if set(first.switches) & set(second.switches):
                continue
            both = {**first.switches, **second.switches}
            code = first.code
            joined = Variant(
                rule,
                f"{first.name}+{second.name}",
                code,
                f"{first.does}, and {second.does}",
                f"{first.torch_does}, and {second.torch_does}",
                f"{first.mend}; {second.mend}",
                both,
            )
            yield _of_variant(joined)


def _of_variant(variant: Variant) -> Mistake:
    return VariantMistake(
        variant.name,
        variant.code,
        variant.does,
        variant.torch_does,
        variant.mend,
        lambda golden: RuleDriver(variant.step, "sparse" in golden.notes),
        variant.switches,
        variant,
    )


def _driven_wrongly(rule: str) -> Iterator[Mistake]:
    step = RULES[rule].step

    def make(name: str, code: str, does: str, torch_does: str, mend: str, driver: type[RuleDriver]) -> Mistake:
        return Mistake(name, code, does, torch_does, mend, lambda g: driver(step, "sparse" in g.notes))

    reads = "reads the options of the group at every step"
    keeps = "goes on with the loaded state"
    skips = "skips the parameter and updates the others"
    yield make(
        "lr-frozen",
        "lr-frozen",
        "keeps the options that it was built with",
        reads,
        "read lr and the other options from param_groups in step()",
        Frozen,
    )
    yield make(
        "lr-late",
        "lr-shift",
        "uses a changed option one step late",
        reads,
        "read the options at the start of step()",
        Late,
    )
    yield make(
        "state-reset", "state-reset", "starts anew when it is loaded", keeps, "save and load the state", Forgetful
    )
    yield make(
        "counter-reset",
        "step-counter",
        "counts steps from 0 again when it is loaded",
        keeps,
        "save and load the step counters",
        ForgetsCounter,
    )
    yield make(
        "options-reset",
        "lr-reset",
        "returns to the options of its constructor when it is loaded",
        "loads the options of the groups",
        "save and load the options of param_groups",
        ForgetsOptions,
    )
    yield make(
        "first-group",
        "group-option",
        "uses the first group's options for all parameters",
        "uses each group's own",
        "read the options inside the loop over the groups",
        OneGroup,
    )
    yield make(
        "last-group",
        "group-option",
        "uses the last group's options for all parameters",
        "uses each group's own",
        "read the options inside the loop over the groups",
        LastGroup,
    )
    yield make(
        "shared-lr",
        "group-option",
        "uses the first group's lr for all parameters",
        "uses each group's own",
        "read lr inside the loop over the groups",
        SharedLr,
    )
    yield make(
        "only-first-group",
        "param-missing",
        "updates the first group alone",
        "updates all groups",
        "loop over all param_groups",
        OnlyFirstGroup,
    )
    yield make(
        "all-wait",
        "rule-none-grad",
        "updates nothing while some gradient is None",
        skips,
        "use continue, not return, where a gradient is None",
        AllWait,
    )
    yield make(
        "stops-at-none",
        "rule-none-grad",
        "leaves the loop at the first gradient that is None",
        skips,
        "use continue, not break, where a gradient is None",
        StopsAtNone,
    )


def _counted_wrongly(rule: str) -> Iterator[Mistake]:
    family = FAMILIES.get(rule)
    if family is None or "step" not in RULES[rule].state_keys:
        return

    def plain(param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        return family(param, grad, state, hyper, {})

    counts = "counts each parameter's own gradients"
    yield Mistake(
        "one-counter",
        "step-counter",
        "counts steps for all parameters together, also while a gradient is None",
        counts,
        "keep t in the state of each parameter",
        lambda golden: OneCounter(plain),
    )
    yield Mistake(
        "counts-parameters",
        "step-counter",
        "counts up once a parameter, not once a step",
        counts,
        "keep t in the state of each parameter, or count outside the loop over them",
        lambda golden: CountsParams(plain),
    )


_CODES = {
    "weight_decay": "rule-decay-missing",
    "nesterov": "rule-nesterov",
    "dampening": "rule-dampening",
    "momentum": "rule-momentum-form",
    "eps": "rule-eps",
    "betas": "rule-betas",
    "amsgrad": "rule-amsgrad",
    "maximize": "rule-sign",
    "decoupled_weight_decay": "rule-decay-coupling",
}


def _changed(rule: str) -> Iterator[Mistake]:
    """The rule with its arguments changed on the way in or its result on the way out."""
    step, defaults = RULES[rule].step, RULES[rule].defaults

    def make(name: str, code: str, does: str, torch_does: str, mend: str, changed: PureStep) -> Mistake:
        return Mistake(name, code, does, torch_does, mend, lambda g: RuleDriver(changed, "sparse" in g.notes))

    def ascends(param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        return step(param, None if grad is None else -grad, state, hyper)

    def zeros(param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        return step(param, np.zeros_like(param) if grad is None else grad, state, hyper)

    if rule != "sparseadam":
        yield make(
            "ascends",
            "rule-sign",
            "uses the gradient with the other sign",
            "moves against the gradient (with it if maximize)",
            "change the sign of the gradient",
            ascends,
        )
        yield make(
            "none-as-zero",
            "rule-none-grad",
            "treats a gradient that is None as zeros",
            "skips the parameter",
            "skip parameters whose grad is None",
            zeros,
        )
    for option in defaults:
        if option != "lr":
            yield make(
                f"ignores-{option}",
                _CODES.get(option, "rule-unknown"),
                f"ignores {option}",
                "applies it",
                f"apply {option}",
                _ignoring(step, option, 0.0 if option == "weight_decay" else defaults[option]),
            )
    if isinstance(defaults.get("eps"), float):
        words = ("leaves eps out", "adds it", "add eps where torch does")
        yield make("no-eps", "rule-eps", *words, _ignoring(step, "eps", 0.0))
    if "weight_decay" in defaults:
        yield from (make(*words, changed) for words, changed in _decays(rule, step))


def _ignoring(step: PureStep, option: str, neutral: Any) -> PureStep:
    def changed(param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        return step(param, grad, state, {**hyper, option: neutral})

    return changed


def _decays(rule: str, step: PureStep) -> Iterator[tuple[tuple[str, str, str, str, str], PureStep]]:
    coupled = rule not in ("adafactor", "muon", "adamw")
    right = "adds it to the gradient" if coupled else "shrinks the parameter by lr*weight_decay before the update"
    mend = "add weight_decay*p to the gradient" if coupled else "shrink the parameter first"

    def undecayed(param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        return step(param, grad, state, {**hyper, "weight_decay": 0.0})

    def shrinks(param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        if grad is None:
            return param, state
        small = param * param.dtype.type(1 - hyper["lr"] * hyper["weight_decay"])
        return undecayed(small, grad, state, hyper)

    def after(param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        new, kept = undecayed(param, grad, state, hyper)
        if grad is None:
            return new, kept
        return new * param.dtype.type(1 - hyper["lr"] * hyper["weight_decay"]), kept

    def adds(param: Array, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, Any]:
        if grad is None:
            return param, state
        sign = -1 if hyper.get("maximize") else 1
        return undecayed(param, grad + param * param.dtype.type(sign * hyper["weight_decay"]), state, hyper)

    if coupled:
        yield ("decoupled", "rule-decay-coupling", "shrinks the parameter by lr*weight_decay", right, mend), shrinks
    else:
        yield ("coupled", "rule-decay-coupling", "adds weight decay to the gradient", right, mend), adds
    yield ("decay-after-update", "rule-decay-order", "decays the parameter after the update", right, mend), after
