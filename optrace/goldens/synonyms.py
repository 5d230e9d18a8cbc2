"""Which of a candidate's names mean which of torch's options: `learning_rate` lr, `beta1` betas[0], `l2` decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

WORDS: dict[str, tuple[str, ...]] = {
    "lr": ("lr", "learning_rate", "learningrate", "eta", "step_size", "lrate", "rate", "learn_rate", "alpha"),
    "momentum": ("momentum", "mu", "rho", "beta", "gamma", "momentum_factor", "mom", "beta1", "momentum_coefficient"),
    "dampening": ("dampening", "damping", "damp", "tau"),
    "weight_decay": ("weight_decay", "wd", "l2", "decay", "weightdecay", "l2_reg", "reg", "lambda_", "lamb", "lambda"),
    "nesterov": ("nesterov", "use_nesterov", "is_nesterov"),
    "maximize": ("maximize", "maximise", "ascent"),
    "betas": ("betas", "beta"),
    "eps": ("eps", "epsilon", "delta"),
    "amsgrad": ("amsgrad", "ams_grad", "use_amsgrad", "ams"),
    "alpha": ("alpha", "decay_rate", "rho", "smoothing", "beta", "beta2", "gamma", "decay"),
    "centered": ("centered", "centred"),
    "rho": ("rho", "decay_rate", "gamma", "beta", "decay"),
    "lr_decay": ("lr_decay", "learning_rate_decay", "decay_lr"),
    "initial_accumulator_value": ("initial_accumulator_value", "initial_accumulator", "init_acc"),
    "decoupled_weight_decay": ("decoupled_weight_decay", "decoupled", "decouple", "decoupled_decay", "weight_decouple"),
    "momentum_decay": ("momentum_decay", "schedule_decay", "psi"),
    "etas": ("etas",),
    "step_sizes": ("step_sizes",),
    "lambd": ("lambd", "lambda_", "lamb", "decay_term"),
    "t0": ("t0",),
}
"""torch's option -> the names it goes by, likeliest first; compared without case and underscores."""

PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "betas": (("beta1", "beta2"), ("beta_1", "beta_2"), ("b1", "b2"), ("rho1", "rho2"), ("decay1", "decay2")),
    "etas": (("etaminus", "etaplus"), ("eta_minus", "eta_plus"), ("eta1", "eta2")),
    "step_sizes": (("step_size_min", "step_size_max"), ("min_step", "max_step"), ("delta_min", "delta_max")),
}
"""Options of two numbers -> the names of the two."""


@dataclass(frozen=True)
class Names:
    """How a candidate calls the options of a rule: option -> its name, or the names of its two numbers."""

    of: Mapping[str, tuple[str, ...]]

    def has(self, option: str) -> bool:
        """Whether the candidate has the option at all."""
        return option in self.of

    def given(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that the candidate has, under its own names."""
        found: dict[str, Any] = {}
        for option, names in self.of.items():
            if option in options:
                found.update(spelled(names, options[option]))
        return found


def spelled(names: tuple[str, ...], value: Any) -> dict[str, Any]:
    """One option under its name, or two numbers under theirs."""
    return {names[0]: value} if len(names) == 1 else dict(zip(names, value, strict=True))


def understand(rule_options: Iterable[str], names: Iterable[str]) -> Names:
    """Match a candidate's parameter names to a rule's options; each name is used once, exact ones first."""
    free = {_plain(name): name for name in names}
    found: dict[str, tuple[str, ...]] = {}
    options = list(rule_options)
    for option in options:
        if _plain(option) in free:
            found[option] = (free.pop(_plain(option)),)
    for option in options:
        if option in found:
            continue
        for pair in PAIRS.get(option, ()):
            if all(_plain(name) in free for name in pair):
                found[option] = tuple(free.pop(_plain(name)) for name in pair)
                break
        else:
            word = next((w for w in WORDS.get(option, ()) if _plain(w) in free), None)
            if word is not None:
                found[option] = (free.pop(_plain(word)),)
    return Names(found)


def every_name(option: str, rule_options: Iterable[str]) -> list[tuple[str, ...]]:
    """All names under which a config might hold an option of this rule, except those that are another option's."""
    taken = {_plain(other) for other in rule_options if other != option}
    words = [(word,) for word in WORDS.get(option, (option,)) if _plain(word) not in taken]
    return words + [pair for pair in PAIRS.get(option, ()) if not {_plain(n) for n in pair} & taken]


def _plain(name: str) -> str:
    return name.lower().replace("_", "")
