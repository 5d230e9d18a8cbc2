"""The reference rules all of whose options are recorded under torch's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optrace.reference.rule import RULES
from optrace.replayer.guesses import Guess, Series, decay_words, lr_words
from optrace.replayer.options import unlike

_DECOUPLED = ("adamw", "lion")
"""Rules whose weight decay never goes through the gradient."""
_SAID_APART = ("lr", "weight_decay", "decoupled_weight_decay")


def rule_guesses(class_name: str, series: Sequence[Series]) -> Iterator[Guess]:
    """Each elementwise rule that can be followed with the recorded options, that of the class's name first."""
    options = series[0].options
    able = [r for r in RULES.values() if r.elementwise and set(r.defaults) <= set(options)]
    able = [r for r in able if not any(unlike(one.options, r.defaults) for one in series)]
    for rule in sorted(able, key=lambda r: r.name != class_name.lower()):
        title = class_name if rule.name == class_name.lower() else rule.name
        decays = {one.member.name: float(one.options.get("weight_decay") or 0.0) for one in series}
        decays = {name: decay for name, decay in decays.items() if decay}
        decoupled = options.get("decoupled_weight_decay") or rule.name in _DECOUPLED
        numbers = {name: options[name] for name in rule.defaults if name not in _SAID_APART}
        words = "".join(map(_words, numbers, numbers.values()))
        words = f"{title}{words}, {lr_words(series)}"
        words += decay_words(decays, "decoupled" if decoupled else "coupled", len(series))
        yield Guess(rule.name, words, None, _flat({**numbers, "lr": options.get("lr")}), decays, 2)


def _words(name: str, value: Any) -> str:
    if isinstance(value, tuple):
        return f", {name} {' '.join(f'{part:g}' for part in value)}"
    if isinstance(value, bool):
        return f", {name}" if value else ""
    return f", {name} {value:g}" if isinstance(value, int | float) else ""


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= {f"{name}.{i}": part for i, part in enumerate(value)} if isinstance(value, tuple) else {name: value}
    return flat
