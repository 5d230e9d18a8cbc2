"""What a recording was asked to keep, as one frozen value that travels through the environment to every process."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from optrace.errors import RecordError

VARIABLE = "OPTRACE_SETTINGS"
VALUES = ("none", "sample", "grad", "full")
QUANTITIES = ("param", "grad", "update", "param_in")
FAMILIES = ("state.", "state_in.", "group.", "grad_micro.")


@dataclass(frozen=True)
class Settings:
    """One recording's options; the defaults are those of `optrace record` and `optrace.record`."""

    output: str | None = None
    """Run folder; None makes one under ./optrace-runs/."""
    values: str = "sample"
    """none: statistics and fingerprints; sample: and 16 elements a tensor; grad, full: whole tensors too."""
    every: int = 1
    """Record each n-th step (step 1 is always recorded)."""
    steps: tuple[int | None, int | None] | None = None
    """First and last step to record, both included; None leaves a side open."""
    params: tuple[str, ...] = ()
    """Globs of parameter names; none means all."""
    quantities: tuple[str, ...] = ()
    """Quantities or globs of them (`param`, `grad`, `state.*`); none means all."""
    micro: bool = False
    """Sample the gradients after each backward."""
    stop_after: int | None = None
    """End the process cleanly after this step."""
    memory: int | None = None
    """Bytes that the recorder may hold on the device; None: the smaller of one copy of the parameters and 5 % of it."""
    staging: int | None = None
    """Bytes of whole tensors that may wait for the disk before training does; None: 512 MB."""
    max_size: int | None = None
    """Bytes on disk after which recording stops, saying so."""
    force: bool = False
    """Move a finished run of that name out of the way."""
    strict: bool = False
    """A recorder's failure raises instead of printing one line."""
    quiet: bool = False
    """Print nothing but errors."""

    def __post_init__(self) -> None:
        if self.values not in VALUES:
            raise RecordError(f"--values {self.values!r} is not one of {', '.join(VALUES)}")
        for name in ("every", "stop_after"):
            number = getattr(self, name)
            if number is not None and not _counts(number, 1):
                raise RecordError(f"--{name.replace('_', '-')} is {number!r}; it counts steps from 1")
        for name in ("memory", "staging", "max_size"):
            number = getattr(self, name)
            if number is not None and not _counts(number, 0):
                raise RecordError(f"--{name.replace('_', '-')} is {number!r}; write bytes, or a size like '64MB'")
        for name in ("params", "quantities"):
            for pattern in getattr(self, name):
                if not isinstance(pattern, str):
                    raise RecordError(f"--{name} holds {pattern!r}; it takes names and globs, like '*.weight'")
        if not all(pattern.strip() for pattern in self.params):
            raise RecordError("--params is empty; give a name or a glob, like '*.weight'")
        for pattern in self.quantities:
            if not _may_match(pattern):
                raise RecordError(
                    f"--quantities {pattern!r} matches no quantity; choose among param, grad, update, param_in, "
                    "state.KEY, state_in.KEY, group.KEY, or a glob like 'state.*'"
                )
        if self.steps is not None:
            first, last = self.steps
            if not all(side is None or _counts(side, 0) for side in (first, last)):
                raise RecordError(f"--steps {first!r}:{last!r} is no range of steps; write FIRST:LAST, like 100:200")
            if first is not None and last is not None and first > last:
                raise RecordError(f"--steps {first}:{last} holds no step; write FIRST:LAST")

    def to_json(self) -> str:
        """The settings as one line of JSON."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Read what `to_json` wrote; unknown keys are refused."""
        data: dict[str, Any] = json.loads(text)
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        if unknown:
            names = ", ".join(unknown)
            raise RecordError(f"{VARIABLE} holds unknown settings {names}; were two versions of optrace mixed?")
        for name in ("steps", "params", "quantities"):
            if data.get(name) is not None:
                data[name] = tuple(data[name])
        return cls(**data)

    @classmethod
    def from_environment(cls) -> Settings | None:
        """The settings of the `optrace record` above this process, or None."""
        text = os.environ.get(VARIABLE)
        return cls.from_json(text) if text else None


def _counts(value: object, least: int) -> bool:
    """Whether a value is a whole number from `least` on; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _may_match(pattern: str) -> bool:
    """Whether there can be a quantity that this glob chooses."""
    if any(fnmatchcase(name, pattern) for name in QUANTITIES):
        return True
    literal = pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))]
    wild = literal != pattern
    return any(literal.startswith(family) or (wild and family.startswith(literal)) for family in FAMILIES)


def parse_names(text: str) -> tuple[str, ...]:
    """The parts of `param, state.*`, without spaces and empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_size(text: str) -> int:
    """Bytes of `500000`, `64MB`, `2GiB`, `1.5g` (powers of 1024); RecordError for anything else."""
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    stripped = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = stripped[-1:] if stripped[-1:] in units and not stripped[-1:].isdigit() else ""
    try:
        number = float(stripped.removesuffix(unit) if unit else stripped)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise RecordError(f"{text!r} is no size; write bytes, or a number with K, M, G or T, like 64MB")
    return int(number * units[unit])


def parse_steps(text: str) -> tuple[int | None, int | None]:
    """First and last step of `5:20`, `:20`, `5:` or `7`; RecordError for anything else."""
    first, colon, last = text.partition(":")
    try:
        lower = int(first) if first.strip() else None
        upper = (int(last) if last.strip() else None) if colon else lower
    except ValueError:
        raise RecordError(f"{text!r} is no range of steps; write FIRST:LAST, like 100:200") from None
    if not colon and lower is None:
        raise RecordError("--steps is empty; write FIRST:LAST, like 100:200")
    return lower, upper
