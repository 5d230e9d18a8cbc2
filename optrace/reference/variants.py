"""What a wrong implementation most likely does: one table, from a variant of a rule to the code of its cause.

Each variant is the rule with one switch of its family thrown (see `families`), never a rule of its own. The words are
templates over the group's options; `{rest_momentum}` stands for 1 - momentum, likewise `{rest_beta1}`, `{rest_beta2}`.
"""

from __future__ import annotations

from typing import Any

from optrace.reference.variant import EPS_WORDS, Variant, common, decays, eps
from optrace.reference.variants_adam import ADAMAX, NADAM, RADAM
from optrace.reference.variants_other import ADADELTA, ADAFACTOR, LION, MUON, RPROP


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


def _adam(rule: str) -> tuple[Variant, ...]:
    corrected = "divides the first moment by 1 - beta1^t and the second by 1 - beta2^t"
    mend_bias = "divide m by (1 - {beta1}**t) and v by (1 - {beta2}**t)"

    def make(name: str, code: str, does: str, torch_does: str, mend: str, **switches: Any) -> Variant:
        return Variant(rule, name, code, does, torch_does, mend, switches)

    uses = "uses betas ({beta1}, {beta2}) for the gradient and its square"
    counts = "counts from 1 at the parameter's first step"
    return (
        eps(rule, "inside", "adds eps inside the root, sqrt(v_hat + eps)"),
        eps(
            rule, "inside-uncorrected", "adds eps inside the root before bias correction, sqrt((v + eps)/(1 - beta2^t))"
        ),
        eps(rule, "before-correction", "adds eps before bias correction, (sqrt(v) + eps)/sqrt(1 - beta2^t)"),
        eps(rule, "missing", "divides by sqrt(v_hat) alone"),
        eps(rule, "inside-squared", "adds eps*eps inside the root, sqrt(v_hat + eps^2)"),
        eps(rule, "least", "takes eps for a least divisor, max(sqrt(v_hat), eps)"),
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
        make(
            "second-correction-for-both",
            "rule-bias-correction",
            "divides both moments by 1 - beta2^t",
            corrected,
            mend_bias,
            bias="second-for-both",
        ),
        make(
            "corrected-after-the-root",
            "rule-bias-correction",
            "divides sqrt(v) by 1 - beta2^t, after the root",
            corrected,
            mend_bias,
            bias="unrooted",
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
        make(
            "corrected-kept",
            "rule-bias-correction",
            "keeps the corrected moments as its state, so that the next step averages and corrects them again",
            "keeps the uncorrected moments",
            "correct copies of m and v, and keep m and v as they are",
            kept="corrected",
        ),
        make(
            "starts-whole",
            "rule-bias-correction",
            "starts its averages with the first gradient and its square",
            "starts them at zero, which bias correction makes up for",
            "start both averages at zero, or leave bias correction out",
            starts="whole",
        ),
        make(
            "counter-stuck",
            "step-counter",
            "corrects the bias at every step as at the first, by 1 - beta1 and 1 - beta2",
            counts,
            "raise t at every step, and the betas to the power of t",
            counter="stuck",
        ),
        make(
            "second-summed",
            "rule-betas",
            "adds the whole square, v = {beta2}*v + g*g",
            "averages, v = {beta2}*v + {rest_beta2}*g*g",
            "multiply g*g by (1 - beta2)",
            sums="second",
        ),
        make(
            "first-summed",
            "rule-betas",
            "adds the whole gradient, m = {beta1}*m + g",
            "averages, m = {beta1}*m + {rest_beta1}*g",
            "multiply g by (1 - beta1)",
            sums="first",
        ),
        make(
            "looks-ahead",
            "rule-nesterov",
            "looks ahead, {beta1}*m + {rest_beta1}*g for m, as Nesterov's Adam does",
            "moves along m",
            "move along m, or use NAdam on both sides",
            nesterov="on",
        ),
        make("counter-ahead", "step-counter", "counts one step more", counts, "start t at 1, not 2", counter=1),
        make("counter-behind", "step-counter", "counts one step less", counts, "start t at 1, not 0", counter=-1),
        make(
            "no-root",
            "rule-unknown",
            "divides by v_hat, not by its root",
            EPS_WORDS,
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
        make(
            "square-of-average",
            "rule-unknown",
            "averages m*m instead of g*g",
            "averages g*g",
            "square the gradient, not its average",
            square="average",
        ),
        make(
            "deviation",
            "rule-unknown",
            "averages (g - m)*(g - m) instead of g*g, as AdaBelief does",
            "averages g*g",
            "square the gradient, not its distance from m",
            square="deviation",
        ),
    )


def _rmsprop() -> tuple[Variant, ...]:
    def make(name: str, code: str, does: str, torch_does: str, mend: str, **switches: Any) -> Variant:
        return Variant("rmsprop", name, code, does, torch_does, mend, switches)

    return (
        eps("rmsprop", "inside", "adds eps inside the root, sqrt(v + eps)"),
        eps("rmsprop", "missing", "divides by sqrt(v) alone"),
        make(
            "share-exchanged",
            "rule-betas",
            "keeps 1 - alpha of the old average",
            "keeps alpha={alpha} of it",
            "exchange alpha and 1 - alpha",
            share="exchanged",
        ),
        make(
            "summed",
            "rule-betas",
            "adds the whole square, v = {alpha}*v + g*g",
            "averages, v = {alpha}*v + (1 - {alpha})*g*g",
            "multiply g*g by (1 - alpha)",
            share="summed",
        ),
        make(
            "starts-at-one",
            "state-value",
            "starts the average of squares at 1, as TensorFlow does",
            "starts it at 0",
            "start square_avg at zero",
            starts="one",
        ),
        make(
            "average",
            "rule-momentum-form",
            "averages in the buffer, buf = {momentum}*buf + {rest_momentum}*d",
            "sums in it, buf = {momentum}*buf + d",
            "drop the factor (1 - momentum)",
            momentum="average",
        ),
        make(
            "no-root",
            "rule-unknown",
            "divides by v, not by its root",
            EPS_WORDS.replace("v_hat", "v"),
            "take the square root",
            root="missing",
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
        eps("adagrad", "inside", "adds eps inside the root, sqrt(sum + eps)"),
        eps("adagrad", "missing", "divides by sqrt(sum) alone"),
        make(
            "lr-decay-early", "divides lr by 1 + t*lr_decay", decays, "count lr_decay from t - 1", lr_decay="from-one"
        ),
        make("no-lr-decay", "does not decay lr", decays, "apply lr_decay={lr_decay}", lr_decay="missing"),
    )


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "sgd": (*_SGD, *decays("sgd", coupled=True), *common("sgd")),
    "adam": (*_adam("adam"), *decays("adam", coupled=True), *common("adam")),
    "adamw": (*_adam("adamw"), *decays("adamw", coupled=False), *common("adamw")),
    "adamax": (*ADAMAX, *decays("adamax", coupled=True), *common("adamax")),
    "nadam": (*NADAM, *decays("nadam", coupled=True), *common("nadam")),
    "radam": (*RADAM, *decays("radam", coupled=True), *common("radam")),
    "rmsprop": (*_rmsprop(), *decays("rmsprop", coupled=True), *common("rmsprop")),
    "adagrad": (*_adagrad(), *decays("adagrad", coupled=True), *common("adagrad")),
    "adadelta": (*ADADELTA, *decays("adadelta", coupled=True), *common("adadelta")),
    "rprop": (*RPROP, *common("rprop")[:2]),
    "adafactor": (*ADAFACTOR, *decays("adafactor", coupled=False), *common("adafactor")),
    "muon": (*MUON, *decays("muon", coupled=False), *common("muon")),
    "lion": (*LION, *decays("lion", coupled=False), *common("lion")),
}
"""rule -> its variants, the commonest mistakes first."""

__all__ = ["VARIANTS", "Variant"]
