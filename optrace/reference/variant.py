"""One mistake in one rule: its family with switches thrown, a code, and words; and mistakes that any rule may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optrace.reference.arithmetic import Array
from optrace.reference.families import FAMILIES

Line = tuple[str, str, str, str, str, Mapping[str, Any]]
"""name, code, does, torch_does, mend, switches of a `Variant`."""


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


def table(rule: str, lines: Sequence[Line]) -> tuple[Variant, ...]:
    """The variants of one rule."""
    return tuple(Variant(rule, *line) for line in lines)


def decays(rule: str, coupled: bool) -> tuple[Variant, ...]:
    """Weight decay missing, in other places, and in the other form than the rule's."""
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
        (
            "decay-both",
            "rule-decay-coupling",
            "decays in both ways, g = g + {weight_decay}*p and p = p*(1 - lr*{weight_decay})",
            "both",
            "leave out the decay of the parameter" if coupled else "leave weight_decay*p out of the gradient",
        ),
        (
            "decay-absolute",
            "rule-decay-coupling",
            "adds the sign of the parameter to the gradient, g = g + {weight_decay}*sign(p), which is the L1 penalty's",
            "absolute",
            "add weight_decay*p to the gradient" if coupled else "shrink the parameter by lr*weight_decay",
        ),
    ]
    if coupled:
        kinds += [
            ("decoupled", "rule-decay-coupling", decoupled_words, "decoupled", "add weight_decay*p to the gradient"),
            (
                "decay-by-lr",
                "rule-decay-coupling",
                "multiplies the decay by lr twice, g = g + lr*{weight_decay}*p",
                "coupled-by-lr",
                "add weight_decay*p to the gradient, without lr",
            ),
        ]
    else:
        kinds += [
            ("coupled", "rule-decay-coupling", coupled_words, "coupled", "shrink the parameter by lr*weight_decay"),
            (
                "decay-by-lr-twice",
                "rule-decay-coupling",
                "multiplies the decay by lr twice, p = p*(1 - lr*lr*{weight_decay})",
                "lr-twice",
                "multiply the decay by lr once",
            ),
            (
                "decay-grows",
                "rule-sign",
                "lets the parameter grow, p = p*(1 + lr*{weight_decay})",
                "grows",
                "shrink the parameter by lr*weight_decay",
            ),
        ]
    return tuple(
        Variant(rule, name, code, does, torch_does, mend, {"decay": switch}) for name, code, does, switch, mend in kinds
    )


def common(rule: str) -> tuple[Variant, ...]:
    """The other sign, and what is done with a gradient that is None."""
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


EPS_WORDS = "adds eps after the root, sqrt(v_hat) + eps"


def eps(rule: str, name: str, does: str) -> Variant:
    """Another place of eps in a rule that adds it to the root."""
    return Variant(
        rule, f"eps-{name}", "rule-eps", does, EPS_WORDS, "use sqrt(v_hat) + eps as the divisor", {"eps": name}
    )
