"""One explanation of a difference: its code, what happened, what to do, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

CLASSES: Mapping[str, str] = {
    "param-dtype": "the precision",
    "state-dtype": "the precision",
    "param-shape": "the shapes",
    "param-frozen": "what is trained",
    "init": "the start values",
    "param-outside": "the parameters between steps",
    "lr-value": "the learning rate",
    "lr-shift": "the learning rate",
    "lr-rate": "the learning rate",
    "lr-frozen": "the learning rate",
    "lr-reset": "the learning rate",
    "group-option": "the hyper-parameters",
    "group-membership": "the groups",
    "param-missing": "the groups",
    "data-order": "the data",
    "data-content": "the data",
    "rng": "the random numbers",
    "grad-upstream": "the gradients",
    "grad-missing": "the gradients",
    "grad-scale": "the gradients",
    "grad-clip": "the gradients",
    "grad-accumulated": "the gradients",
    "grad-partial": "the gradients",
    "grad-nonfinite": "the gradients",
    "state-reset": "the state",
    "state-swapped": "the state",
    "state-value": "the state",
    "step-counter": "the state",
    "rule-nesterov": "the update rule",
    "rule-dampening": "the update rule",
    "rule-momentum-form": "the update rule",
    "rule-decay-coupling": "the update rule",
    "rule-decay-missing": "the update rule",
    "rule-decay-order": "the update rule",
    "rule-eps": "the update rule",
    "rule-bias-correction": "the update rule",
    "rule-betas": "the update rule",
    "rule-amsgrad": "the update rule",
    "rule-sign": "the update rule",
    "rule-none-grad": "the update rule",
    "rule-unknown": "the update rule",
    "update-skipped": "the update",
    "update-rounded": "the update",
    "update-partial": "the update",
    "replica-drift": "the ranks",
    "grad-unreduced": "the ranks",
    "steps-missing": "the steps",
    "noise": "floating-point noise",
    "logged-only": "what was logged",
}
"""Code -> the class of difference that it belongs to, as it follows `in`; the stable list of codes."""


@dataclass(frozen=True)
class Cause:
    """One explanation; `summary` and `fix` may name the sides as {A} and {B} until the report is made."""

    code: str
    summary: str
    """One sentence: what is the case."""
    fix: str = ""
    """What to change, in the imperative; with what was checked about it on the record, if it could be."""
    evidence: tuple[str, ...] = ()
    """What in the record shows it, in words and numbers."""
    score: float = 1.0
    """1: nothing else explains the record; less: a candidate among others, their scores adding up to 1 at most."""
    steps: tuple[int, ...] = ()
    """First and last step (A's numbers) at which it acts."""
    params: tuple[str, ...] = ()
    """Parameters that it acts on (A's names); empty for all."""
    independent_of: tuple[str, ...] = ()
    """Codes of the causes before it in the report that it does not follow from."""

    @property
    def cls(self) -> str:
        """The class of difference, as it follows `in`: `the update rule`."""
        return CLASSES[self.code]

    @property
    def claimed(self) -> bool:
        """Whether it is stated as the cause, not as one candidate among several."""
        return self.score >= 1.0

    def named(self, a: str, b: str) -> Cause:
        """The same with the names of the sides put in."""

        def put(text: str) -> str:
            return text.replace("{A}", a).replace("{B}", b)

        return replace(
            self, summary=put(self.summary), fix=put(self.fix), evidence=tuple(put(text) for text in self.evidence)
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as in the report's JSON."""
        data = asdict(self)
        ordered = {"code": data.pop("code"), "class": self.cls}
        return {
            **ordered,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in data.items()},
        }
