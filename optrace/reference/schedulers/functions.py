"""LambdaLR and MultiplicativeLR: the user's own function of the epoch."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from optrace.errors import OptionError
from optrace.reference.schedulers.base import LRScheduler
from optrace.reference.schedulers.groups import HasGroups, groups_of

Factor = Callable[[int], float]


class _FromFunctions(LRScheduler):
    """One function a group, kept out of `state_dict`, which holds only what a callable *object* stores."""

    def __init__(self, optimizer: HasGroups, lr_lambda: Factor | list[Factor], last_epoch: int = -1) -> None:
        n_groups = len(groups_of(optimizer))
        if not isinstance(lr_lambda, list | tuple):
            self.lr_lambdas = [lr_lambda] * n_groups
        elif len(lr_lambda) == n_groups:
            self.lr_lambdas = list(lr_lambda)
        else:
            raise OptionError(
                f"lr_lambda lists {len(lr_lambda)} functions for {n_groups} param groups; give one a group"
            )
        super().__init__(optimizer, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; a plain function is stored as None and must be given again to the constructor."""
        state = super().state_dict()
        state["lr_lambdas"] = [stored_callable(function) for function in self.lr_lambdas]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; callable objects get their attributes back, functions stay as constructed."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "lr_lambdas"})
        for index, stored in enumerate(state_dict["lr_lambdas"]):
            if stored is not None:
                self.lr_lambdas[index].__dict__.update(stored)


def stored_callable(function: object) -> dict[str, Any] | None:
    """Return the attributes of a callable object, or None for a function, which a state cannot hold as data."""
    if isinstance(function, types.FunctionType) or not hasattr(function, "__dict__"):
        return None
    return dict(function.__dict__)


class LambdaLR(_FromFunctions):
    """The initial lr times a function of the epoch.

        lr(e) = lr_initial * f(e)

    This is a closed form already: edits of `group["lr"]` from outside last until the next step.

    Traps: f gives a *factor*, not the lr. f(0) applies from construction on. The number of groups is fixed: a group
    added later makes the next step fail (ValueError). Functions are not part of `state_dict`.

    Args:
        optimizer: see `LRScheduler`.
        lr_lambda: a function epoch -> factor, or a list of one a group.
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
    >>> scheduler = LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    >>> scheduler.step(); optimizer.param_groups
    [{'lr': 0.25, 'initial_lr': 0.5}]

    Source: torch 2.13, torch/optim/lr_scheduler.py, LambdaLR.
    """

    def get_lr(self) -> list[float]:
        """Return the initial lr of each group times its function of the epoch."""
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base_lr * function(self.last_epoch) for base_lr, function in pairs]


class MultiplicativeLR(_FromFunctions):
    """The current lr times a function of the epoch, each epoch.

        lr(e) = lr(e - 1) * f(e)   for e >= 1;   lr(0) = the initial lr

    There is no closed form: it would be lr_initial * f(1) * f(2) * ... * f(e).

    Traps: f is not applied at epoch 0. `step(epoch)` has no closed form to use and multiplies by f(epoch) once.
    Functions are not part of `state_dict`.

    Args:
        optimizer: see `LRScheduler`.
        lr_lambda: a function epoch -> factor, or a list of one a group (TypeError if not callable).
        last_epoch: see `LRScheduler`.

    >>> from types import SimpleNamespace
    >>> optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
    >>> scheduler = MultiplicativeLR(optimizer, lambda epoch: 0.5)
    >>> scheduler.step(); scheduler.get_last_lr()
    [0.25]

    Source: torch 2.13, torch/optim/lr_scheduler.py, MultiplicativeLR.
    """

    def __init__(self, optimizer: HasGroups, lr_lambda: Factor | list[Factor], last_epoch: int = -1) -> None:
        for function in lr_lambda if isinstance(lr_lambda, list | tuple) else [lr_lambda]:
            if not callable(function):
                raise TypeError(f"lr_lambda must be a function of the epoch, not {type(function).__name__}")
        super().__init__(optimizer, lr_lambda, last_epoch)

    def get_lr(self) -> list[float]:
        """Return the current lr of each group times its function of the epoch."""
        if self._is_initial:
            return self._kept()
        pairs = zip(groups_of(self.optimizer), self.lr_lambdas, strict=True)
        return [group["lr"] * function(self.last_epoch) for group, function in pairs]
