"""How schedulers read and write the options of an optimizer's param groups."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, Protocol

from optrace.errors import OptionError


class HasGroups(Protocol):
    """All that a scheduler asks of an optimizer: a list of groups, each a dict with at least an `lr`.

    NumPy optimizers of this package, torch optimizers and hand-written ones fit alike. `CyclicLR` and `OneCycleLR`
    also look at `defaults` where there is one, to learn whether it is `momentum` or `betas` that they cycle.
    """

    @property
    def param_groups(self) -> Sequence[MutableMapping[str, Any]]:
        """The groups; looked up anew each time, since `load_state_dict` of an optimizer replaces the list."""


def groups_of(optimizer: HasGroups) -> Sequence[MutableMapping[str, Any]]:
    """Return the optimizer's groups; TypeError when the object has none."""
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, Sequence):
        kind = type(optimizer).__name__
        raise TypeError(f"a scheduler needs an optimizer with a list `param_groups`, and {kind} has none")
    return groups


def snapshot(value: Any) -> Any:
    """Return the value itself, or a copy of a value that changes in place (a torch Tensor used as lr)."""
    return value.clone() if hasattr(value, "clone") else value


def read(optimizer: HasGroups, key: str) -> list[Any]:
    """Return option `key` of every group, by value."""
    return [snapshot(group[key]) for group in groups_of(optimizer)]


def write(group: MutableMapping[str, Any], key: str, value: Any) -> None:
    """Set an option that the group already has; a Tensor stays the same object and is filled in place."""
    if hasattr(group[key], "fill_"):
        group[key].fill_(float(value))
    else:
        group[key] = value


def per_group(name: str, value: Any, optimizer: HasGroups) -> list[Any]:
    """Return one value a group from a list of them, or from one value for all; OptionError on a wrong length."""
    n_groups = len(groups_of(optimizer))
    if not isinstance(value, list | tuple):
        return [snapshot(value) for _ in range(n_groups)]
    if len(value) != n_groups:
        raise OptionError(f"{name} lists {len(value)} values for {n_groups} param groups; give one a group")
    return [snapshot(item) for item in value]


def uses_beta1(optimizer: HasGroups) -> bool:
    """Say where the optimizer keeps its momentum: True in `betas[0]`, False in `momentum`; OptionError if in neither.

    Only the name decides: SGD built with momentum=0 has the option, and a cycled schedule switches it on.
    """
    options = getattr(optimizer, "defaults", None) or groups_of(optimizer)[0]
    if "momentum" not in options and "betas" not in options:
        raise OptionError("this optimizer has neither momentum nor betas to cycle; pass cycle_momentum=False")
    return "betas" in options


def write_momentum(group: MutableMapping[str, Any], value: Any, use_beta1: bool) -> None:
    """Set the group's `momentum`, or the first of its `betas`."""
    if use_beta1:
        group["betas"] = (value, *group["betas"][1:])
    else:
        group["momentum"] = value


def begin_momentum_cycle(optimizer: HasGroups, base: Sequence[Any], top: Sequence[Any], use_beta1: bool) -> None:
    """Put every group at its highest momentum and note both ends of the cycle in it."""
    for group, base_momentum, max_momentum in zip(groups_of(optimizer), base, top, strict=True):
        write_momentum(group, max_momentum, use_beta1)
        group["max_momentum"] = max_momentum
        group["base_momentum"] = base_momentum
