"""An optimizer under test, and how it is trained over fixed numbers: what the properties of conformance share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from optrace.goldens.grid import numbers


class Broken(AssertionError):
    """The property does not hold; the message says where it was seen."""


class NotApplicable(Exception):
    """The optimizer has no such option."""


class Subject(Protocol):
    """An optimizer and how it is used."""

    shapes: Sequence[tuple[int, ...]]

    def make(self, params: Any, **options: Any) -> Any:
        """A new optimizer."""

    def before_step(self, optimizer: Any) -> None:
        """Called before each step."""

    def backward(self, params: list[Any], step: int) -> Callable[[], Any] | None:
        """Set the gradients; return a closure if `step` needs one."""


Edit = Callable[[list[Any], int], None]
STEPS = 4


def new_params(shapes: Sequence[tuple[int, ...]], dtype: str = "float32") -> list[Any]:
    """Parameters with fixed start values in (-1, 1)."""
    import torch

    values = [torch.from_numpy(numbers("start", f"p{n}", 0, tuple(s))) for n, s in enumerate(shapes)]
    return [torch.nn.Parameter(value.to(getattr(torch, dtype))) for value in values]


def set_grads(params: list[Any], step: int, scale: float = 0.1) -> None:
    """Fixed gradients in (-scale, scale), other ones each step."""
    import torch

    for n, p in enumerate(params):
        if p.requires_grad:
            p.grad = (torch.from_numpy(numbers("grad", f"p{n}", step, tuple(p.shape))) * scale).to(p.dtype)


def train(
    subject: Subject, params: list[Any], optimizer: Any, steps: int = STEPS, first: int = 1, edit: Any = None
) -> None:
    """Make steps `first` ..., with gradients as `edit` leaves them."""
    for step in range(first, first + steps):
        one_step(subject, params, optimizer, step, edit)


def one_step(subject: Subject, params: list[Any], optimizer: Any, step: int, edit: Edit | None = None) -> Any:
    """Make one step and return what `step()` returns."""
    closure = subject.backward(params, step)
    if edit is not None:
        edit(params, step)
    subject.before_step(optimizer)
    if closure is None:
        return optimizer.step()

    def edited() -> Any:
        loss = closure()
        if edit is not None:
            edit(params, step)
        return loss

    return optimizer.step(edited)


def trained(subject: Subject, steps: int = STEPS, **options: Any) -> tuple[list[Any], Any]:
    """Parameters after some steps, and their optimizer."""
    params = new_params(subject.shapes)
    optimizer = subject.make(params, **options)
    train(subject, params, optimizer, steps)
    return params, optimizer


def values(params: list[Any]) -> list[Any]:
    """Copies of the parameters."""
    return [p.detach().clone() for p in params]


def equal(a: list[Any], b: list[Any]) -> bool:
    """Whether two lists of tensors are equal bit for bit (NaN equal to NaN)."""
    import torch

    def plain(x: Any) -> Any:
        x = x.detach()
        return torch.nan_to_num(x.to_dense() if x.is_sparse else x)

    return all(torch.equal(plain(x), plain(y)) for x, y in zip(a, b, strict=True))


def finite(params: list[Any]) -> bool:
    """Whether no element is NaN or infinite."""
    return all(bool(p.detach().isfinite().all()) for p in params)


@contextmanager
def failing_with(words: str) -> Iterator[None]:
    """What is raised inside breaks the property."""
    try:
        yield
    except (Broken, NotApplicable):
        raise
    except Exception as error:
        raise Broken(f"{words}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
