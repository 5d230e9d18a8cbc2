"""Which quantities and which steps a recording keeps."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from optrace.recorder.settings import Settings


class Quantities:
    """Chooses quantities by globs.

    Whoever keeps `param`, `state.x` or `grad` also keeps `param_in`, `state_in.x` or, with `--micro`, `grad_micro.1`...
    """

    def __init__(self, globs: Sequence[str]) -> None:
        """No glob chooses all."""
        self._globs = tuple(globs)
        self._known: dict[str, bool] = {}
        self.grad = self.has("grad")
        self.update = self.has("update")
        self.param = self.has("param")
        self.param_in = self.has("param_in")
        self.state = not self._globs or any(map(_may_be_state, self._globs))
        """Whether rows of some `state.<key>` may be kept."""

    def has(self, quantity: str) -> bool:
        """Whether rows of `quantity` are kept."""
        known = self._known.get(quantity)
        if known is None:
            known = self._known[quantity] = self._matches(quantity)
        return known

    def _matches(self, quantity: str) -> bool:
        names = [quantity]
        if quantity == "param_in":
            names.append("param")
        elif quantity.startswith("state_in."):
            names.append("state." + quantity.removeprefix("state_in."))
        elif quantity.startswith("grad_micro."):
            names.append("grad")
        return not self._globs or any(fnmatchcase(name, glob) for name in names for glob in self._globs)


def _may_be_state(glob: str) -> bool:
    """Whether a glob may match some name that begins with `state.`, judged by what stands before its first wildcard."""
    plain = min((glob.find(sign) for sign in "*?[" if sign in glob), default=len(glob))
    return glob[:plain][:6] == "state."[:plain]


def is_recorded(step: int, settings: Settings) -> bool:
    """Whether `step` (from 1) is one that the settings keep: step 1, each `every`-th, within `steps`."""
    first, last = settings.steps or (None, None)
    if (first is not None and step < first) or (last is not None and step > last):
        return False
    return step % settings.every == 0 or step == 1


def is_past(step: int, settings: Settings) -> bool:
    """Whether no step from `step` on will be kept."""
    return settings.steps is not None and settings.steps[1] is not None and step > settings.steps[1]
