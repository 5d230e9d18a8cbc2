"""Which parameters of one optimizer are recorded: their names, groups and order, found again only when they change."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from optrace.recorder import fsdp1, zero
from optrace.recorder.names import ParamNames
from optrace.recorder.shards import Stretch
from optrace.recorder.tensors import dtype_name, placement_of
from optrace.recorder.zero import Flattened, Member


class Inventory:
    """The recorded parameters of an optimizer, each once, in the order of its groups; none is kept alive."""

    def __init__(self, optimizer: int, names: ParamNames, globs: Sequence[str]) -> None:
        """`optimizer` is its index; `globs` choose among the names (none: all)."""
        self.optimizer = optimizer
        self._all_names = names
        self._globs = tuple(globs)
        self._sizes: list[int] = []
        self._refs: list[weakref.ref[torch.Tensor]] = []
        self._chosen: list[int] = []
        self._all_chosen = True
        self._flags: list[bool] = []
        self._left_out: set[str] = set()
        self._rows: dict[str, dict[str, Any]] = {}
        """What the table `params` says of each parameter that was ever recorded, by name."""
        self._called: dict[str, weakref.ref[torch.Tensor]] = {}
        """What bore each name last, also after the groups let go of it."""
        self.names: tuple[str, ...] = ()
        """Name of each recorded parameter."""
        self.groups: tuple[int, ...] = ()
        """Group of each recorded parameter."""
        self.stretches: tuple[Stretch | None, ...] = ()
        """What each holds of a parameter of the model, where it is a part of a flattened one; empty: no one is."""
        self._indexes: tuple[int, ...] = ()

    def current(self, optimizer: Any) -> tuple[list[torch.Tensor], bool]:
        """The recorded parameters as they are now, and whether anything about the list has changed."""
        groups = optimizer.param_groups
        flat = [param for group in groups for param in group["params"]]
        refs = self._refs
        if (
            len(flat) == len(refs)
            and [len(group["params"]) for group in groups] == self._sizes
            and all([ref() is param for ref, param in zip(refs, flat, strict=True)])
        ):
            params = flat if self._all_chosen else [flat[i] for i in self._chosen]
            flags = [param.requires_grad for param in params]
            if flags == self._flags:
                return params, False
            self._flags = flags
            return params, True
        return self._renew(groups, flat), True

    def _renew(self, groups: Sequence[Any], flat: list[torch.Tensor]) -> list[torch.Tensor]:
        within = zero.members_of(flat) | fsdp1.members_of(flat)
        opened = [_opened(group, within) for group in groups] if within else groups
        inner = [param for group in opened for param in group["params"]]
        names = self._all_names.name(self.optimizer, opened, self._still_called(inner))
        self._refs = [weakref.ref(param) for param in flat]
        self._called |= {names[id(param)]: weakref.ref(param) for param in inner}
        self._sizes = [len(group["params"]) for group in groups]
        places = [(number, index) for number, size in enumerate(self._sizes) for index in range(size)]
        chosen: list[tuple[int, str, int, int, Stretch | None]] = []
        seen: set[int] = set()
        more = 0
        for position, param in enumerate(flat):
            if id(param) in seen:
                continue
            seen.add(id(param))
            group, index = places[position]
            more = more if index else 0
            if id(param) in within:
                members = within[id(param)].members
                held = [one for one in members if one.stretch is not None]
                at = index + more
                chosen += [(position, _name(one, param, names), group, at + one.index, one.stretch) for one in held]
                more += len(members) - 1
            else:
                chosen.append((position, names[id(param)], group, index + more, None))
        chosen = [one for one in chosen if self._is_chosen(one[1])]
        self._chosen = [one[0] for one in chosen]
        self.names = tuple(one[1] for one in chosen)
        self.groups = tuple(one[2] for one in chosen)
        self._indexes = tuple(one[3] for one in chosen)
        self.stretches = tuple(one[4] for one in chosen) if within else ()
        self._all_chosen = self._chosen == list(range(len(flat)))
        params = [flat[i] for i in self._chosen]
        self._flags = [param.requires_grad for param in params]
        return params

    def _still_called(self, flat: Sequence[torch.Tensor]) -> dict[int, str]:
        """The names that these parameters have, or had when the groups last held them, by `id`."""
        here = set(map(id, flat))
        bore = [(param, name) for name, ref in self._called.items() if (param := ref()) is not None]
        return {id(param): name for param, name in bore if id(param) in here}

    def _is_chosen(self, name: str) -> bool:
        wanted = not self._globs or any(fnmatchcase(name, glob) for glob in self._globs)
        return wanted and name not in self._left_out

    def leave_out(self, names: Iterable[str]) -> None:
        """Record these parameters no longer: their values are out of reach."""
        self._left_out.update(names)
        self._sizes = []  # have `current` look again

    def rows(self, optimizer_class: str) -> list[dict[str, Any]]:
        """The rows of the table `params`: the recorded parameters, then those that the groups hold no longer."""
        here = zip(self.names, self.groups, self._indexes, self._live(), strict=True)
        now = {
            name: {
                "group": group,
                "index": index,
                "param": name,
                "shape": list(param.shape),
                "stride": list(param.stride()) if param.layout is torch.strided else [],
                "dtype": dtype_name(param.dtype),
                "device": str(param.device),
                "numel": param.numel(),
                "placement": placement_of(param),
                "requires_grad": param.requires_grad,
            }
            for name, group, index, param in here
            if param is not None
        }
        self._rows |= now
        gone = [row for name, row in self._rows.items() if name not in now and name not in self._left_out]
        rows = [*now.values(), *gone]
        return [{"optimizer": self.optimizer, "optimizer_class": optimizer_class, **row} for row in rows]

    def _live(self) -> list[torch.Tensor | None]:
        return [self._refs[i]() for i in self._chosen]


def _name(member: Member, flat: torch.Tensor, names: Mapping[int, str]) -> str:
    """A member's own name, else its path in the module that has the flattened parameter."""
    if member.param is not None:
        return names[id(member.param)]
    prefix, dot, _ = names[id(flat)].rpartition(".")
    return prefix + dot + member.path


def _opened(group: Mapping[str, Any], within: Mapping[int, Flattened]) -> dict[str, Any]:
    """A group with the parameters of the model in the place of flattened ones."""
    params: list[torch.Tensor] = []
    for param in group["params"]:
        known = within.get(id(param))
        inner = [] if known is None else [one.param for one in known.members if one.param is not None]
        params += inner or [param]
    own = group.get("param_names")  # those that the group had before its parameters were flattened
    return {"params": params, "param_names": own if own and len(own) == len(params) else None}
