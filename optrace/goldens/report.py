"""What a golden check found: results by case, the first failure, what it looks like, and the text that says so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """The first number of a case that is further from torch's than a correct implementation can be."""

    step: int
    param: str
    quantity: str
    index: tuple[int, ...]
    """Of the worst element of that tensor; empty for a 0-d one."""
    got: float
    expected: float
    error: float
    """In eps of the dtype times the scale (see `tolerance`); inf where one side is no finite number."""
    tolerance: float

    def __str__(self) -> str:
        place = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        size = "not finite on one side" if self.error == float("inf") else f"{self.error:.2g} eps off"
        return (
            f"step {self.step}, {self.quantity} of {self.param}{place}: {size} (allowed {self.tolerance:g}): "
            f"got {self.got!r}, torch has {self.expected!r}"
        )


@dataclass(frozen=True)
class CaseResult:
    """How one case went."""

    case: str
    """`sgd/nesterov`, `sgd/nesterov-float32`."""
    failure: Failure | None = None
    raised: str | None = None
    """What the candidate raised, and at which step."""
    lacks: str | None = None
    """What it lacks; then the case was not judged."""
    worst: float = 0.0
    """The largest error of the parameters, in eps, up to the first failure."""
    tolerance: float = 0.0

    @property
    def verdict(self) -> str:
        """`same`, `differs` or `not covered`."""
        if self.lacks is not None:
            return "not covered"
        return "differs" if self.failure or self.raised else "same"


@dataclass(frozen=True)
class Look:
    """A known mistake that reproduces the candidate's numbers."""

    code: str
    """As in a diff: `rule-nesterov`, `lr-frozen`, ..."""
    variant: str
    summary: str
    """`MySGD averages ...; torch.optim.SGD sums ...`."""
    fix: str
    cases: tuple[str, ...]
    """The differing cases that it reproduces."""
    of: int
    """Of how many that it was compared with: those of the widest dtype in which the candidate raised nothing."""


@dataclass(frozen=True)
class GoldenReport:
    """What `check_golden` found; `str(report)` is the text that `optrace golden check` prints."""

    candidate: str
    rule: str
    cases: tuple[CaseResult, ...]
    looks: tuple[Look, ...] = ()
    """Mistakes that explain what differs, likeliest first: one alone that explains all is a claim, others a ranking."""
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether every case that could be judged agrees with torch."""
        return not self.differing

    @property
    def differing(self) -> tuple[CaseResult, ...]:
        """The cases that do not."""
        return tuple(result for result in self.cases if result.verdict == "differs")

    @property
    def agreeing(self) -> tuple[CaseResult, ...]:
        """The cases that do."""
        return tuple(result for result in self.cases if result.verdict == "same")

    @property
    def not_covered(self) -> tuple[CaseResult, ...]:
        """The cases that ask for something the candidate lacks."""
        return tuple(result for result in self.cases if result.verdict == "not covered")

    @property
    def lacks(self) -> tuple[str, ...]:
        """What it lacks, each once."""
        named = [result.lacks for result in self.cases if result.lacks is not None]
        return tuple(dict.fromkeys(part for text in named for part in text.split(", ")))

    @property
    def first(self) -> CaseResult | None:
        """The first case that differs."""
        return self.differing[0] if self.differing else None

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        judged = len(self.cases) - len(self.not_covered)
        if self.same:
            lines = [f"{self.candidate} is {self.rule}: {judged} of {judged} cases as torch computed them"]
            lines += self._worst()
        else:
            lines = [f"{self.candidate} differs from torch's {self.rule} in {len(self.differing)} of {judged} cases"]
            lines += self._why()
            lines += _entry("first", self._first())
            lines += _entry("differs", _list([result.case for result in self.differing]))
            if self.agreeing:
                lines += _entry("same", _list([result.case for result in self.agreeing]))
        if self.lacks:
            lines += _entry("not covered", f"{', '.join(self.lacks)} ({len(self.not_covered)} cases ask for them)")
        for note in self.notes:
            lines += _entry("note", note)
        if self.first is not None:
            lines += _entry("next", f"optrace golden show {self.first.case}")
        return lines

    def _worst(self) -> list[str]:
        worst = max(self.agreeing, key=lambda r: r.worst / max(r.tolerance, 1.0), default=None)
        if worst is None or worst.worst == 0:
            return _entry("worst", "every number equal, bit for bit") if worst else []
        text = f"{worst.case}: {worst.worst:.2g} eps off, {worst.tolerance:g} are allowed"
        return _entry("worst", text)

    def _why(self) -> list[str]:
        if not self.looks:
            return []
        look = self.looks[0]
        if len(self.looks) == 1 and len(look.cases) == look.of:
            how_far = f"gives its numbers in {len(look.cases)} of {look.of} cases"
            return _entry("cause", f"{look.code}: {look.summary}") + _entry("fix", f"{look.fix}   (checked: {how_far})")
        lines = []
        for look in self.looks:
            lines += _entry("perhaps", f"{look.code}: {look.summary} ({len(look.cases)} of {look.of} cases)")
        return lines

    def _first(self) -> str:
        assert self.first is not None
        return f"{self.first.case}, {self.first.failure or self.first.raised}"


def _entry(word: str, text: str) -> list[str]:
    return [f"  {word:<13}{text}"]


def _list(names: list[str], limit: int = 6) -> str:
    shown = ", ".join(name.partition("/")[2] for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
