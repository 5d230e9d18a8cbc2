"""What changed between two steps, told by fingerprints, and the rows that only such steps have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.recorder import whole
from optrace.recorder.jobs import Rows
from optrace.recorder.plans import Label
from optrace.recorder.tensors import Found, Kind

_NO_FINGERPRINTS: npt.NDArray[np.int64] = np.zeros(0, np.int64)


@dataclass
class Last:
    """Fingerprints in the last recorded rows, of parameters or of state: they tell what changed between two steps."""

    labels: Sequence[Any] = ()
    kinds: list[Kind] = field(default_factory=list)
    fingerprints: npt.NDArray[np.int64] = field(default_factory=lambda: _NO_FINGERPRINTS)

    def changed(self, labels: Sequence[Any], kinds: list[Kind], fingerprints: npt.NDArray[np.int64]) -> list[int]:
        """Positions of `labels` that were not there, or whose values or dtype are not what they were."""
        if labels == self.labels and kinds == self.kinds:
            same = fingerprints.tobytes() == self.fingerprints.tobytes()
            return [] if same else _where(fingerprints != self.fingerprints)
        now = zip(labels, kinds, fingerprints.tolist(), strict=True)
        known = dict(zip(self.labels, zip(self.kinds, self.fingerprints.tolist(), strict=True), strict=True))
        return [i for i, (label, kind, value) in enumerate(now) if known.get(label) != (kind, value)]

    def lost(self, labels: Sequence[Any]) -> list[Any]:
        """Labels that had values and have none."""
        if labels == self.labels:
            return []
        present = set(labels)
        return [label for label in self.labels if label not in present]


@dataclass
class Extra:
    """Rows that only some steps have: `param_in`, `state_in.<key>`, `grad_micro.<k>`."""

    labels: list[Label] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    values: whole.Values = field(default_factory=dict)
    rows: Rows | None = None


def _where(mask: npt.NDArray[np.bool_]) -> list[int]:
    positions: list[int] = np.flatnonzero(mask).tolist()
    return positions
