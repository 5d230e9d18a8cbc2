"""Names on one side and their counterparts on the other: renaming rules, wrapper prefixes, synonyms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optrace.errors import CompareError

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module"}

SYNONYMS: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate", "eta", "step_size"),
    "alpha": ("rho", "decay_rate"),
    "momentum": ("mu", "rho"),
    "weight_decay": ("wd", "l2", "lambda_", "reg"),
    "betas.0": ("beta1", "b1", "beta_1"),
    "betas.1": ("beta2", "b2", "beta_2"),
    "eps": ("epsilon",),
}
"""Other words for torch's options, the likelier meaning first; for where one side lacks the one and has the other."""
_TORCHS = {other: name for name, others in SYNONYMS.items() for other in others}


@dataclass
class Renaming:
    """The user's `OLD=NEW` rules, from A's names to B's, and which of them ever fitted a name."""

    map: tuple[tuple[re.Pattern[str], str], ...] = ()
    state: tuple[tuple[str, str], ...] = ()
    used: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, map_rules: Sequence[str], state_rules: Sequence[str]) -> Renaming:
        """Rules as typed: `map_rules` are regular expressions, `state_rules` whole keys; CompareError if malformed."""
        return cls(tuple(_pattern(rule) for rule in map_rules), tuple(_halves(rule, "--state") for rule in state_rules))

    def name(self, name: str) -> str:
        """B's name for A's parameter, quantity or hyper-parameter, as far as the rules go."""
        for pattern, new in self.map:
            changed = pattern.sub(new, name)
            if changed != name or pattern.search(name):
                self.used.add(pattern.pattern)
            name = changed
        return name

    def quantity(self, name: str) -> str:
        """B's name for A's quantity: `--state` on keys of state, then `--map`."""
        kind, dot, key = name.partition(".")
        if dot and kind in ("state", "state_in"):
            for old, new in self.state:
                if key == old:
                    self.used.add(f"state:{old}")
                    return f"{kind}.{new}"
        return self.name(name)

    def refuse_unused(self, names_a: Iterable[str], names_b: Iterable[str]) -> None:
        """CompareError for a rule that fitted none of A's names: a misspelt rule must not pass in silence."""
        for pattern, new in self.map:
            if pattern.pattern not in self.used:
                back = sum(bool(pattern.search(name)) for name in names_b)
                hint = f"; it fits {back} names of B: write it the other way round" if back else ""
                raise CompareError(
                    f"--map {pattern.pattern}={new}: {pattern.pattern!r} fits no name of A, like {_some(names_a)}{hint}"
                )
        for old, new in self.state:
            if f"state:{old}" not in self.used:
                raise CompareError(f"--state {old}={new}: A has no state {old!r}; it has {_some(names_a)}")


def match_names(names_a: Sequence[str], names_b: Sequence[str], renaming: Renaming) -> dict[str, str]:
    """B's name for each of A's parameters that has one: equal after renaming, or after wrapper prefixes are stripped.

    Never by position. CompareError when the rules give two parameters of A one name.
    """
    renamed = {name: renaming.name(name) for name in names_a}
    twice = [name for name, count in Counter(renamed.values()).items() if count > 1]
    if twice and renaming.map:
        raise CompareError(f"--map gives two parameters of A the name {twice[0]!r}; make its pattern narrower")
    there = set(names_b)
    found = {a: b for a, b in renamed.items() if b in there}
    rest_a = [a for a in names_a if a not in found]
    taken = set(found.values())
    bare_b = _unique({b: bare(b) for b in names_b if b not in taken})
    bare_a = _unique({a: bare(renamed[a]) for a in rest_a})
    found.update({a: bare_b[key] for key, a in bare_a.items() if key in bare_b})
    return {a: found[a] for a in names_a if a in found}


def bare(name: str) -> str:
    """A parameter's name without the prefixes that DistributedDataParallel, torch.compile and FSDP put before it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    while len(parts) > 1 and parts[0] == "module":
        parts = parts[1:]
    return ".".join(parts)


def suggest_rule(names_a: Sequence[str], names_b: Sequence[str]) -> str | None:
    """A `--map` rule that would make A's names B's by exchanging a prefix; None if no single one does."""
    ends: Counter[tuple[str, str]] = Counter()
    by_last: dict[str, list[str]] = {}
    for b in names_b:
        by_last.setdefault(b.rsplit(".", 1)[-1], []).append(b)
    for a in names_a[:200]:
        for b in by_last.get(a.rsplit(".", 1)[-1], [])[:200]:
            ends[_prefixes(a, b)] += 1
    for (old, new), _ in ends.most_common(3):
        if {new + a.removeprefix(old) for a in names_a if a.startswith(old)} >= set(names_b):
            return f"--map '^{re.escape(old)}={new}'"
    return _without_starts(names_a, names_b)


def _without_starts(names_a: Sequence[str], names_b: Sequence[str]) -> str | None:
    """Rules that drop the first part of A's names, where just these names are B's, each once."""
    starts = dict.fromkeys(name.partition(".")[0] for name in names_a)
    rest = sorted(name.partition(".")[2] for name in names_a)
    if not 1 < len(starts) <= 4 or rest != sorted(names_b) or len(set(rest)) < len(rest):
        return None
    return " ".join(f"--map '^{re.escape(start)}\\.='" for start in starts)


def match_hyper(keys_a: set[str], keys_b: set[str], renaming: Renaming) -> dict[str, str]:
    """B's name for each of A's hyper-parameters that has one: the rules first, then synonyms."""
    found = {}
    for key in sorted(keys_a):
        new = renaming.name(key)
        if new in keys_b:
            found[key] = new
    for canon, others in SYNONYMS.items():
        words = (canon, *others)
        left = [word for word in words if word in keys_a and word not in found]
        right = [word for word in words if word in keys_b and word not in found.values()]
        if len(left) == 1 and len(right) == 1 and canon in (left[0], right[0]):
            found[left[0]] = right[0]
    return found


def _prefixes(a: str, b: str) -> tuple[str, str]:
    left, right = a.split("."), b.split(".")
    same = 0
    while same < min(len(left), len(right)) and left[-1 - same] == right[-1 - same]:
        same += 1
    old, new = ".".join(left[: len(left) - same]), ".".join(right[: len(right) - same])
    return old + "." if old else "", new + "." if new else ""


def _unique(keys: dict[str, str]) -> dict[str, str]:
    counts = Counter(keys.values())
    return {key: name for name, key in keys.items() if counts[key] == 1}


def _halves(rule: str, option: str) -> tuple[str, str]:
    old, equals, new = rule.partition("=")
    if not equals or not old:
        raise CompareError(f"{option} {rule!r} is no OLD=NEW; write A's name, =, B's name")
    return old, new


def _pattern(rule: str) -> tuple[re.Pattern[str], str]:
    old, new = _halves(rule, "--map")
    try:
        pattern = re.compile(old)
        pattern.sub(new, "")
        return pattern, new
    except (re.error, IndexError) as error:
        raise CompareError(f"--map {rule!r}: {error}; OLD is a regular expression, NEW its replacement") from None


def _some(names: Iterable[str]) -> str:
    listed = sorted(set(names))
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "") if listed else "none"


def in_torchs_words(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under torch's names: `learning_rate` is `lr`, `beta1` and `beta2` are `betas`."""
    named = {_TORCHS.get(key, key) if _TORCHS.get(key, key) not in options else key: v for key, v in options.items()}
    if "betas.0" in named and "betas.1" in named:
        named["betas"] = (named.pop("betas.0"), named.pop("betas.1"))
    return named
