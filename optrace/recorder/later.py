"""What is known only when a device has come to it: numbers on their way, and steps that wait to be written for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

Tensors = tuple[Any, Any, Any]
"""TensorLayout, rows (dtype ROW) and which of them are present."""

MOST = 64
"""So many steps wait at most; torch itself lets the host run about a thousand kernels ahead of the device."""


class Slot:
    """A number that is on its way from a device."""

    shape = ()

    def __init__(self) -> None:
        self.value: float | None = None
        """None until it has arrived."""

    def item(self) -> float | None:
        """The number, as 0-d tensors and arrays give theirs."""
        return self.value


class Slots:
    """Numbers on a device that a step tells of (its loss, a total norm): they come with the step's results."""

    def __init__(self) -> None:
        self._taken: list[tuple[torch.Tensor, Slot]] = []

    def put(self, value: Any) -> Any:
        """Take a tensor of one element on a device, and return the slot that its value comes to; else the value."""
        if getattr(value, "is_cpu", True) or value.numel() != 1:
            return value
        slot = Slot()
        self._taken.append((value, slot))
        return slot

    def take(self) -> list[tuple[torch.Tensor, Slot]]:
        """The numbers put since the last take."""
        taken, self._taken = self._taken, []
        return taken


class Mean:
    """The mean of numbers of which some are on their way."""

    def __init__(self, total: float, count: int, late: list[Any]) -> None:
        """`total` and `count` are of those that are known; `late` are floats or slots."""
        self._total, self._count, self._late = total, count, late

    def item(self) -> float:
        """The mean, once all have arrived."""
        mean: float = (self._total + sum(map(arrived, self._late))) / (self._count + len(self._late))
        return mean


def arrived(value: Any) -> Any:
    """The number of a slot or mean; anything else as it is."""
    return value.item() if isinstance(value, Slot | Mean) else value


class Waiting(Protocol):
    """The rows of a step, on their way."""

    seconds: float
    """What the device took to measure them; 0 until they are complete."""

    def ready(self) -> bool:
        """Whether they have arrived; does not wait."""

    def complete(self) -> Tensors | None:
        """The rows; waits for them where they have not arrived. To be called once, in the order of the steps."""


class Later:
    """Steps that are over and not written yet, in order: each waits for its own rows and for the steps before it."""

    def __init__(self) -> None:
        self._steps: deque[tuple[Waiting | None, Callable[[Tensors | None], None]]] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def put(self, waiting: Waiting | None, write: Callable[[Tensors | None], None]) -> None:
        """Have a step written when its rows are there; None: it waits for the steps before it only."""
        self._steps.append((waiting, write))
        self.write(max(len(self._steps) - MOST, 0))

    def write(self, wait_for: int = 0) -> None:
        """Write the steps whose rows have arrived, and the first `wait_for` steps if they have not."""
        while self._steps:
            waiting, write = self._steps[0]
            if waiting is not None and wait_for <= 0 and not waiting.ready():
                return
            wait_for -= 1
            self._steps.popleft()
            write(None if waiting is None else waiting.complete())

    def write_all(self) -> None:
        """Write all steps; waits for the device."""
        self.write(len(self._steps))
