"""What a wrong implementation most likely does: one table, from a variant of a rule to the code of its cause.

Each variant is the rule with one switch of its family thrown (see `families`), never a rule of its own. The words are
templates over the group's options; `{rest_momentum}` stands for 1 - momentum, likewise `{rest_beta1}`, `{rest_beta2}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optrace.reference.arithmetic import Array
from optrace.reference.families import FAMILIES


@dataclass(frozen=True)
class Variant:
    """One mistake in one rule."""

    rule: str
    name: str
    code: str
    """Of the cause, `rule-...` or `step-counter`."""
    does: str
    """What the implementation does; follows its name: `averages the gradient, buf = ...`."""
    torch_does: str
    """What torch does; follows torch's name."""
    mend: str
    """What to change in the implementation."""
    switches: Mapping[str, Any]

    def step(
        self, param: Array, grad: Array | None, state: Mapping[str, Any], hyper: Mapping[str, Any]
    ) -> tuple[Array, dict[str, Any]]:
        """One step of the mistaken rule; shapes and dtypes as in `Rule.step`."""
        return FAMILIES[self.rule](param, grad, state, hyper, self.switches)

    def words(self, hyper: Mapping[str, Any]) -> tuple[str, str, str]:
        """`does`, `torch_does` and `mend` with the options' numbers filled in."""
        numbers = _numbers(hyper)
        return self.does.format_map(numbers), self.torch_does.format_map(numbers), self.mend.format_map(numbers)


class _Numbers(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return key


def _numbers(hyper: Mapping[str, Any]) -> _Numbers:
    numbers = _Numbers({k: f"{v:.10g}" if isinstance(v, int | float) else str(v) for k, v in hyper.items()})
    if isinstance(hyper.get("momentum"), int | float):
        numbers["rest_momentum"] = f"{1 - hyper['momentum']:.10g}"
    for i, beta in enumerate(hyper.get("betas") or (), 1):
        numbers[f"beta{i}"], numbers[f"rest_beta{i}"] = f"{beta:.10g}", f"{1 - beta:.10g}"
    return numbers


def _sgd(name: str, code: str, does: str, torch_does: str, mend: str, **switches: Any) -> Variant:
    return Variant("sgd", name, code, does, torch_does, mend, switches)


_SUMS = "sums it, buf = {momentum}*buf + g"
_SGD = (
    _sgd(
        "average",
        "rule-momentum-form",
        "averages the gradient, buf = {momentum}*buf + {rest_momentum}*g",
        _SUMS,
        "drop the factor (1 - momentum)",
        momentum="average",
    ),
    _sgd(
        "lr-inside",
        "rule-momentum-form",
        "puts lr inside the buffer, buf = {momentum}*buf + lr*g; p = p - buf",
        "keeps lr outside, buf = {momentum}*buf + g; p = p - lr*buf",
        "multiply by lr when the parameter moves, not when the buffer is filled",
        momentum="lr-inside",
    ),
    _sgd(
        "first-dampened",
        "rule-dampening",
        "dampens the first gradient too, buf = (1 - {dampening})*g",
        "starts with the whole gradient, buf = g",
        "set the buffer to g itself at the parameter's first step",
        first="dampened",
    ),
    _sgd(
        "no-dampening",
        "rule-dampening",
        "leaves dampening out, buf = {momentum}*buf + g",
        "dampens, buf = {momentum}*buf + (1 - {dampening})*g",
        "multiply the gradient by (1 - dampening) from the second step on",
        dampening=0.0,
    ),
    _sgd(
        "no-nesterov",
        "rule-nesterov",
        "moves along the buffer, p = p - lr*buf",
        "looks ahead, p = p - lr*(g + {momentum}*buf)",
        "move along g + momentum*buf",
        nesterov="off",
    ),
    _sgd(
        "nesterov",
        "rule-nesterov",
        "looks ahead, p = p - lr*(g + {momentum}*buf)",
        "moves along the buffer, p = p - lr*buf",
        "move along buf, or set nesterov=True in torch",
        nesterov="on",
    ),
    _sgd(
        "nesterov-minus",
        "rule-nesterov",
        "subtracts the look-ahead, p = p - lr*(g - {momentum}*buf)",
        "adds it, p = p - lr*(g + {momentum}*buf)",
        "change the sign before momentum*buf",
        nesterov="minus",
    ),
    _sgd(
        "nesterov-twice",
        "rule-nesterov",
        "looks ahead from the buffer, p = p - lr*(buf + {momentum}*buf)",
        "looks ahead from the gradient, p = p - lr*(g + {momentum}*buf)",
        "replace the first buf of the direction by g",
        nesterov="twice",
    ),
)


def _decays(rule: str, coupled: bool) -> tuple[Variant, ...]:
    coupled_words = "adds it to the gradient, g = g + {weight_decay}*p"
    decoupled_words = "shrinks the parameter, p = p*(1 - lr*{weight_decay})"
    torch_does = coupled_words if coupled else decoupled_words
    kinds = [
        (
            "decay-missing",
            "rule-decay-missing",
            "applies no weight decay",
            "missing",
            "apply weight_decay={weight_decay}",
        ),
        (
            "decay-after-update",
            "rule-decay-order",
            "decays the parameter after the update",
            "after-update",
            "apply weight decay before the update",
        ),
        (
            "decay-without-lr",
            "rule-decay-coupling",
            "shrinks the parameter without lr, p = p*(1 - {weight_decay})",
            "without-lr",
            "multiply the decay by lr" if not coupled else "add weight_decay*p to the gradient",
        ),
        (
            "decay-wrong-sign",
            "rule-sign",
            "subtracts the decay from the gradient, g = g - {weight_decay}*p",
            "wrong-sign",
            "add weight_decay*p to the gradient" if coupled else "shrink the parameter by lr*weight_decay",
        ),
    ]
    if coupled:
        kinds += [
            ("decoupled", "rule-decay-coupling", decoupled_words, "decoupled", "add weight_decay*p to the gradient"),
        ]
    else:
        kinds += [
            ("coupled", "rule-decay-coupling", coupled_words, "coupled", "shrink the parameter by lr*weight_decay"),
        ]
    return tuple(
        Variant(rule, name, code, does, torch_does, mend, {"decay": switch}) for name, code, does, switch, mend in kinds
    )


def _common(rule: str) -> tuple[Variant, ...]:
    return (
        Variant(
            rule,
            "ascends",
            "rule-sign",
            "uses the gradient with the other sign",
            "moves against the gradient (with it if maximize)",
            "change the sign of the gradient",
            {"sign": -1.0},
        ),
        Variant(
            rule,
            "none-as-zero",
            "rule-none-grad",
            "treats a gradient that is None as zeros, so that decay and momentum still act",
            "skips the parameter",
            "skip parameters whose grad is None",
            {"none_grad": "zero"},
        ),
        Variant(
            rule,
            "none-decays",
            "rule-none-grad",
            "decays parameters whose gradient is None",
            "skips them",
            "skip parameters whose grad is None, weight decay and all",
            {"none_grad": "decay"},
        ),
    )


_EPS_WORDS = "adds eps after the root, sqrt(v_hat) + eps"


def _eps(rule: str, name: str, does: str) -> Variant:
    return Variant(
        rule, f"eps-{name}", "rule-eps", does, _EPS_WORDS, "use sqrt(v_hat) + eps as the divisor", {"eps": name}
    )


def _adam(rule: str) -> tuple[Variant, ...]:
    corrected = "divides the first moment by 1 - beta1^t and the second by 1 - beta2^t"
    mend_bias = "divide m by (1 - {beta1}**t) and v by (1 - {beta2}**t)"

    def make(name: str, code: str, does: str, torch_does: str, mend: str, **switches: Any) -> Variant:
        return Variant(rule, name, code, does, torch_does, mend, switches)

    uses = "uses betas ({beta1}, {beta2}) for the gradient and its square"
    counts = "counts from 1 at the parameter's first step"
    return (
        _eps(rule, "inside", "adds eps inside the root, sqrt(v_hat + eps)"),
        _eps(
            rule, "inside-uncorrected", "adds eps inside the root before bias correction, sqrt((v + eps)/(1 - beta2^t))"
        ),
        _eps(rule, "before-correction", "adds eps before bias correction, (sqrt(v) + eps)/sqrt(1 - beta2^t)"),
        _eps(rule, "missing", "divides by sqrt(v_hat) alone"),
        make("no-correction", "rule-bias-correction", "corrects no bias", corrected, mend_bias, bias="none"),
        make(
            "first-corrected",
            "rule-bias-correction",
            "corrects only the first moment",
            corrected,
            mend_bias,
            bias="first",
        ),
        make(
            "second-corrected",
            "rule-bias-correction",
            "corrects only the second moment",
            corrected,
            mend_bias,
            bias="second",
        ),
        make("betas-swapped", "rule-betas", "exchanges the two betas", uses, "exchange the betas", betas="swapped"),
        make(
            "beta1-for-both", "rule-betas", "uses beta1 twice", uses, "use beta2 for the square", betas="first-for-both"
        ),
        make(
            "beta2-for-both",
            "rule-betas",
            "uses beta2 twice",
            uses,
            "use beta1 for the gradient",
            betas="second-for-both",
        ),
        make(
            "shares-exchanged",
            "rule-betas",
            "exchanges beta and 1 - beta",
            "keeps beta of the old moment and takes 1 - beta of the new",
            "use m = beta1*m + (1 - beta1)*g, likewise v",
            betas="exchanged-shares",
        ),
        make(
            "amsgrad",
            "rule-amsgrad",
            "uses the largest v so far",
            "uses the present v",
            "drop the maximum",
            amsgrad="on",
        ),
        make(
            "no-amsgrad",
            "rule-amsgrad",
            "uses the present v",
            "uses the largest v so far",
            "keep max(v)",
            amsgrad="off",
        ),
        make(
            "amsgrad-corrected",
            "rule-amsgrad",
            "takes the maximum after bias correction",
            "takes it before",
            "take the maximum of v, then correct its bias",
            amsgrad="corrected",
        ),
        make("counter-ahead", "step-counter", "counts one step more", counts, "start t at 1, not 2", counter=1),
        make("counter-behind", "step-counter", "counts one step less", counts, "start t at 1, not 0", counter=-1),
        make(
            "no-root",
            "rule-unknown",
            "divides by v_hat, not by its root",
            _EPS_WORDS,
            "take the square root",
            root="missing",
        ),
        make(
            "absolute",
            "rule-unknown",
            "averages |g| instead of g*g",
            "averages g*g",
            "square the gradient",
            square="absolute",
        ),
    )


def _rmsprop() -> tuple[Variant, ...]:
    def make(name: str, code: str, does: str, torch_does: str, mend: str, **switches: Any) -> Variant:
        return Variant("rmsprop", name, code, does, torch_does, mend, switches)

    return (
        _eps("rmsprop", "inside", "adds eps inside the root, sqrt(v + eps)"),
        _eps("rmsprop", "missing", "divides by sqrt(v) alone"),
        make(
            "share-exchanged",
            "rule-betas",
            "keeps 1 - alpha of the old average",
            "keeps alpha={alpha} of it",
            "exchange alpha and 1 - alpha",
            share="exchanged",
        ),
        make(
            "lr-inside",
            "rule-momentum-form",
            "puts lr inside the buffer",
            "keeps lr outside, p = p - lr*buf",
            "multiply by lr when the parameter moves",
            momentum="lr-inside",
        ),
        make(
            "no-momentum", "rule-momentum-form", "has no momentum", "has", "apply momentum={momentum}", momentum="off"
        ),
        make(
            "not-centered",
            "rule-unknown",
            "does not subtract the mean gradient",
            "does",
            "centre the average",
            centered="off",
        ),
    )


def _adagrad() -> tuple[Variant, ...]:
    def make(name: str, does: str, torch_does: str, mend: str, **switches: Any) -> Variant:
        return Variant("adagrad", name, "rule-unknown", does, torch_does, mend, switches)

    decays = "divides lr by 1 + (t - 1)*lr_decay"
    return (
        _eps("adagrad", "inside", "adds eps inside the root, sqrt(sum + eps)"),
        _eps("adagrad", "missing", "divides by sqrt(sum) alone"),
        make(
            "lr-decay-early", "divides lr by 1 + t*lr_decay", decays, "count lr_decay from t - 1", lr_decay="from-one"
        ),
        make("no-lr-decay", "does not decay lr", decays, "apply lr_decay={lr_decay}", lr_decay="missing"),
    )


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "sgd": (*_SGD, *_decays("sgd", coupled=True), *_common("sgd")),
    "adam": (*_adam("adam"), *_decays("adam", coupled=True), *_common("adam")),
    "adamw": (*_adam("adamw"), *_decays("adamw", coupled=False), *_common("adamw")),
    "rmsprop": (*_rmsprop(), *_decays("rmsprop", coupled=True), *_common("rmsprop")),
    "adagrad": (*_adagrad(), *_decays("adagrad", coupled=True), *_common("adagrad")),
}
"""rule -> its variants, the commonest mistakes first."""
