"""What a replay found: whether a run's steps are what its rule makes of their inputs, and where not."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Miss:
    """The first recorded number that the rule does not give."""

    step: int
    group: int
    param: str
    quantity: str
    recorded: float
    """Value of the worst sampled element after the step."""
    expected: float
    """What the rule gives for it."""
    before: float
    """Its value before the step."""
    eps: float
    """The difference in eps of the element's scale."""


@dataclass(frozen=True)
class Look:
    """A variant of the rule that gives the recorded numbers at every judged step."""

    name: str
    code: str
    does: str
    torch_does: str
    mend: str


@dataclass(frozen=True)
class ReplayReport:
    """One optimizer of one run, each step judged from its own recorded inputs."""

    run: str
    optimizer: int
    optimizer_class: str
    rule: str
    steps: tuple[int, int]
    """First and last step that was judged; (0, 0) if none was."""
    n_steps: int
    n_numbers: int
    """Sampled elements of parameters and state that were compared."""
    n_differing: int
    """Steps at which something is beyond tolerance."""
    tolerance: float
    """In eps."""
    worst_eps: float
    same: bool
    """Every judged number is within tolerance, and at least one was judged."""
    first: Miss | None
    looks_like: tuple[Look, ...]
    whole: bool
    """Whether every element was judged; else the samples."""
    notes: tuple[str, ...] = ()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In IPython as `print` shows it."""
        printer.text(str(self))

    def __str__(self) -> str:
        lines = [self._verdict()]
        if self.first is not None:
            miss = self.first
            lines += [
                f"  first    step {miss.step}, group {miss.group}, {miss.quantity} of {miss.param}:",
                f"           recorded {miss.recorded!r}, {self.rule} gives {miss.expected!r}"
                f" (before: {miss.before!r}), {miss.eps:.3g} eps apart",
                f"  extent   {self.n_differing} of {self.n_steps} steps differ,"
                f" the worst number by {self.worst_eps:.3g} eps",
            ]
        for look in self.looks_like:
            lines += [f"  cause    {look.code}: it {look.does}; torch {look.torch_does}", f"  fix      {look.mend}"]
        if self.n_steps:
            part = "every element" if self.whole else "the sampled elements (at most 16 a tensor)"
            lines.append(f"  judged   {part}, {self.n_numbers} numbers, tolerance {self.tolerance:g} eps a step")
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join(lines)

    def _verdict(self) -> str:
        who = f"{self.run}@{self.optimizer} ({self.optimizer_class})"
        if not self.n_steps:
            return f"{who}: no step could be judged"
        if self.same:
            return f"{who} follows {self.rule} in all {self.n_steps} steps, within {self.worst_eps:.3g} eps"
        assert self.first is not None
        return f"{who} leaves {self.rule} at step {self.first.step}"

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, non-finite numbers as the strings `nan`, `inf` and `-inf`."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not float("-inf") < value < float("inf"):
        return repr(value)
    return value
