"""Properties of an optimizer over parameters of every dtype, shape and stride, and in its other implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optrace.goldens.tolerance import STEP
from optrace.testing.subject import (
    STEPS,
    Broken,
    NotApplicable,
    Subject,
    equal,
    failing_with,
    finite,
    new_params,
    one_step,
    train,
    values,
)


def _dtype(name: str) -> Callable[[Subject], None]:
    def check(subject: Subject) -> None:
        import torch

        params = new_params(subject.shapes, name)
        before = values(params)
        with failing_with(f"parameters in {name} raise"):
            train(subject, params, subject.make(params), 2)
        if any(p.dtype != getattr(torch, name) for p in params):
            raise Broken(f"a parameter in {name} has another dtype after the step")
        if not finite(params) or equal(params, before):
            raise Broken(f"parameters in {name} do not move, or are not finite")

    return check


float64, bfloat16, float16 = _dtype("float64"), _dtype("bfloat16"), _dtype("float16")
float64.__doc__ = "Scientific models train in float64."
bfloat16.__doc__ = "Models in pure bfloat16 train, and keep their dtype."
float16.__doc__ = "Models in pure float16 train, and an eps of 1e-8, zero in float16, divides nothing by zero."


def shape_grid(subject: Subject) -> None:
    """Scales, biases, kernels and empty shards: 0-d, one, odd, 4-d and empty parameters are stepped like any other."""
    for shape in ((), (1,), (7,), (2, 3, 2, 2), (0,)):
        params = new_params([*subject.shapes, shape])
        before = values(params)
        with failing_with(f"a parameter of shape {shape} raises"):
            train(subject, params, subject.make(params), 2)
        if not finite(params):
            raise Broken(f"with a parameter of shape {shape} a number is not finite")
        if params[-1].numel() and equal(params[-1:], before[-1:]):
            raise Broken(f"a parameter of shape {shape} does not move")


def strides(subject: Subject) -> None:
    """Transposed and channels_last weights are not contiguous: their numbers must be those of contiguous ones."""
    import torch

    plain, turned = new_params(subject.shapes), new_params(subject.shapes)
    turned = [torch.nn.Parameter(p.detach().t().contiguous().t()) if p.dim() == 2 else p for p in turned]
    train(subject, plain, subject.make(plain))
    with failing_with("a parameter that is not contiguous raises"):
        train(subject, turned, subject.make(turned))
    for n, (p, q) in enumerate(zip(plain, turned, strict=True)):
        _close(p, q, f"parameter {n} held column by column trains otherwise than a contiguous one")


def foreach(subject: Subject) -> None:
    """`foreach=True` is the default on GPUs: it must be the same rule as the plain loop."""
    _parity(subject, "foreach")


def fused(subject: Subject) -> None:
    """`fused=True` is a faster kernel, not another rule."""
    _parity(subject, "fused")


def _parity(subject: Subject, option: str) -> None:
    shapes = [*subject.shapes, *([(70,)] if any(len(s) != 2 for s in subject.shapes) else [])]
    plain, other = new_params(shapes), new_params(shapes)
    try:
        slow, fast = subject.make(plain, **{option: False}), subject.make(other, **{option: True})
    except (TypeError, RuntimeError) as error:
        raise NotApplicable(f"no option {option} here ({type(error).__name__})") from None
    for step in range(1, STEPS + 1):
        one_step(subject, plain, slow, step)
        with failing_with(f"{option}=True raises"):
            one_step(subject, other, fast, step)
        for n, (p, q) in enumerate(zip(plain, other, strict=True)):
            _close(p, q, f"step {step}: parameter {n} with {option}=True differs from the loop's", STEP * step)


def _close(a: Any, b: Any, words: str, eps: float = STEP * STEPS) -> None:
    import torch

    scale = torch.maximum(a.detach().abs(), b.detach().abs()) + 1.0
    error = (
        ((a.detach() - b.detach()).abs() / (scale * torch.finfo(a.dtype).eps)).max() if a.numel() else torch.zeros(())
    )
    if not bool(error <= eps):
        raise Broken(f"{words}: {float(error):.3g} eps")
