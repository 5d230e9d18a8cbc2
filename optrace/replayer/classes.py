"""A rule made of a class in torch's manner, so that a run can be replayed with somebody's own implementation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optrace.errors import OptraceError
from optrace.reference.rule import Rule


def rule_of_class(kind: Callable[..., Any], state_keys: Sequence[str]) -> Rule:
    """The rule that `kind(params, **options)` with `step()` computes; it needs torch.

    Every call makes a new optimizer over the parameter, gives it the recorded state (`optimizer.state[p]`) and steps
    once. Options that the constructor does not take are written into its group. The class must treat every element for
    itself, as the samples of a tensor are handed over in place of the tensor.

    Raises:
        OptraceError: torch is not installed, or the class cannot be made or stepped in this way.
    """
    name = getattr(kind, "__name__", str(kind))
    try:
        import torch
    except ImportError:
        raise OptraceError(f"replaying with {name} needs torch; pip install torch-optrace[torch]") from None
    accepted, takes_all = _options(kind)

    def step(param: Any, grad: Any, state: Mapping[str, Any], hyper: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        tensor = torch.from_numpy(np.array(param)).requires_grad_()
        tensor.grad = None if grad is None else torch.from_numpy(np.array(grad))
        options = {key: value for key, value in hyper.items() if takes_all or key in accepted}
        try:
            optimizer = kind([tensor], **options)
            optimizer.param_groups[0].update({key: value for key, value in hyper.items() if key not in options})
            if state:
                optimizer.state[tensor] = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
            optimizer.step()
            after = dict(optimizer.state.get(tensor) or {}) if hasattr(optimizer.state, "get") else {}
        except Exception as error:
            raise OptraceError(
                f"{name} could not make the recorded step: {type(error).__name__}: {error}; replay drives classes of"
                " torch's shape, C(params, lr=...) with step() and state[p]"
            ) from error
        made = {
            key: np.array(value.detach().numpy()) if hasattr(value, "detach") else np.array(float(value))
            for key, value in after.items()
            if hasattr(value, "detach") or (isinstance(value, int | float) and not isinstance(value, bool))
        }
        return tensor.detach().numpy(), made

    return Rule(name=name, defaults={}, state_keys=tuple(state_keys), elementwise=True, step=step)


def _options(kind: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """Names that the constructor takes, and whether it takes any."""
    try:
        parameters = list(inspect.signature(kind).parameters.values())[1:]
    except (TypeError, ValueError):
        return frozenset(), True
    named = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return named, any(p.kind is p.VAR_KEYWORD for p in parameters)
