"""What one recorded step consists of when it goes to the writer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from optrace.trace.writer import TensorLayout

if TYPE_CHECKING:
    from optrace.recorder.later import Waiting

Rows = npt.NDArray[np.void]
Present = npt.NDArray[np.bool_]


@dataclass
class Finished:
    """One step, ready to be written."""

    groups: list[tuple[int, dict[str, Any]]]
    tensors: tuple[TensorLayout, Rows, Present] | None
    values: dict[str, Any] = field(default_factory=dict)
    keep: list[Any] = field(default_factory=list)
    """What the values lie in."""
    waiting: Waiting | None = None
    """Where the tensors come from once a device has measured them; None: `tensors` are all."""
