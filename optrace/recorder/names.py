"""Names parameters: as the model calls them, else as the program's variables do, and never two the same."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import FrameType, ModuleType
from typing import Any

import torch

from optrace.recorder.living import living

_OWN_ROOMS = ("torch", "optrace")
_WRAPPERS = {  # class name -> the path component under which it holds the module that the user wrote
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "OptimizedModule": "_orig_mod",
    "DeepSpeedEngine": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_offload_wrapped_module",
    "_FabricModule": "_forward_module",
}
_MAX_HELD = 10_000
"""Containers longer than this are not searched for parameters."""

Ref = weakref.ref


class ParamNames:
    """The names of the parameters of all live models, found by one scan and kept without keeping any model alive."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Ref[torch.Tensor], Ref[torch.nn.Module], str]] = {}
        self._lock = threading.Lock()
        """Held while the last scan is read or made anew: two optimizers may make their first steps at once."""

    def name(
        self, optimizer: int, groups: Sequence[Mapping[str, Any]], taken: Mapping[int, str] | None = None
    ) -> dict[int, str]:
        """One name for each parameter of `groups`, by `id`; `taken` are those that have one already (kept as they are).

        In this order: the group's own `param_names`; the qualified name in the live module that owns most of the
        parameters (of several such modules each name starts with the variable that holds its module, else with its
        class); the variable, container entry or attribute that holds the parameter; `optimizer0.group1.param3`. A name
        that comes twice gets `#2`, `#3`... in the order of the groups.
        """
        names: dict[int, str] = dict(taken or {})
        places: dict[int, str] = {}
        missing: list[torch.Tensor] = []
        used = set(names.values())
        for number, group in enumerate(groups):
            own = group.get("param_names")
            for index, param in enumerate(group["params"]):
                if id(param) in names or id(param) in places:
                    continue
                places[id(param)] = f"optimizer{optimizer}.group{number}.param{index}"
                if own and index < len(own) and isinstance(own[index], str):
                    names[id(param)] = _unused(own[index], used)
                else:
                    missing.append(param)
        if not missing:
            return names
        with self._lock:
            from_modules = self._qualified(missing)
        rest = [param for param in missing if id(param) not in from_modules]
        from_variables = _variables(rest) if rest else {}
        for param in missing:
            key = id(param)
            name = from_modules.get(key) or from_variables.get(key) or places[key]
            names[key] = _unused(name, used)
        return names

    def unheld(self, params: Sequence[torch.Tensor], held: Sequence[torch.Tensor]) -> list[str]:
        """Names of parameters that have a gradient and are not among `held`, in the models that `params` belong to.

        From the last scan: models that were made later are not looked at.
        """
        with self._lock:
            models = {id(self._found[id(param)][1]()) for param in params if self._known(param)}
            found = list(self._found.items())
        known = {id(param) for param in (*params, *held)}
        names = []
        for key, (reference, owner, name) in found:
            param, model = reference(), owner()
            if param is None or model is None or id(model) not in models or key in known:
                continue
            if param.requires_grad and param.is_leaf and param.grad is not None:
                names.append(name)
        return sorted(names)

    def _qualified(self, params: list[torch.Tensor]) -> dict[int, str]:
        """Qualified names of those parameters that live modules own."""
        if not all(self._known(param) for param in params):
            self._scan()
        owners: dict[int, list[torch.Tensor]] = {}
        roots: dict[int, torch.nn.Module] = {}
        for param in params:
            if self._known(param):
                root = self._found[id(param)][1]()
                if root is not None:
                    roots[id(root)] = root
                    owners.setdefault(id(root), []).append(param)
        if not owners:
            return {}
        prefixes = _prefixes([roots[key] for key in owners]) if len(owners) > 1 else [""]
        return {
            id(param): prefix + self._found[id(param)][2]
            for prefix, owned in zip(prefixes, owners.values(), strict=True)
            for param in owned
        }

    def _known(self, param: torch.Tensor) -> bool:
        entry = self._found.get(id(param))
        return entry is not None and entry[0]() is param and entry[1]() is not None

    def _scan(self) -> None:
        """Find every live module once; a parameter in several roots belongs to the one with the most parameters."""
        modules = list(_live_modules())
        inner = {id(child) for module in modules for child in module.__dict__["_modules"].values() if child is not None}
        found = [(module, *_inventory(module)) for module in modules if id(module) not in inner]
        reached = {key for _, _, visited in found for key in visited}
        while len(reached) < len(modules):  # modules that hold each other have no root: the largest stands for it
            rest = [(module, *_inventory(module)) for module in modules if id(module) not in reached]
            largest = min(rest, key=_rank)
            found.append(largest)
            reached |= largest[2]
        self._found.clear()
        for root, named, _ in sorted(found, key=_rank):
            for name, param in named:
                if not self._known(param):
                    self._found[id(param)] = (weakref.ref(param), weakref.ref(root), name)


def _rank(found: tuple[torch.nn.Module, list[tuple[str, torch.Tensor]], set[int]]) -> tuple[Any, ...]:
    """Most parameters first, then the shortest names; what the collector lists first does not matter."""
    root, named, _ = found
    return -len(named), sum(len(name) for name, _ in named), type(root).__qualname__, [name for name, _ in named]


def _live_modules() -> Iterator[torch.nn.Module]:
    """Every `nn.Module` that the garbage collector or a variable of the running program knows, once."""
    seen: set[int] = set()
    held = _held_by_frames() if gc.get_freeze_count() else ()
    for thing in chain(living(torch.nn.Module), (one for one in held if issubclass(type(one), torch.nn.Module))):
        if id(thing) not in seen and "_modules" in thing.__dict__ and "_parameters" in thing.__dict__:
            seen.add(id(thing))
            yield thing


def _held_by_frames() -> Iterator[Any]:
    """What variables hold, and their attributes: after `gc.freeze()` the collector no longer lists older objects."""
    for variables in _scopes():
        for value in list(variables.values()):
            yield value
            inside = getattr(value, "__dict__", None)
            if isinstance(inside, dict):
                yield from list(inside.values())
            if isinstance(value, torch.nn.Module):
                yield from value.modules()


def _inventory(root: torch.nn.Module) -> tuple[list[tuple[str, torch.Tensor]], set[int]]:
    """Qualified names of a root's parameters, and the ids of all modules below it.

    Wrappers' own path components (`module.`, `_orig_mod.`) are left out where names stay unique.
    """
    full: list[tuple[str, torch.Tensor]] = []
    short: list[str] = []
    seen: set[int] = set()
    stack: list[tuple[str, str, torch.nn.Module]] = [("", "", root)]
    visited: set[int] = set()
    while stack:
        prefix, plain, module = stack.pop()
        if id(module) in visited:
            continue
        visited.add(id(module))
        for name, param in module.__dict__["_parameters"].items():
            if param is not None and id(param) not in seen:
                seen.add(id(param))
                full.append((prefix + name, param))
                short.append(plain + name)
        skip = next((_WRAPPERS[base.__name__] for base in type(module).__mro__ if base.__name__ in _WRAPPERS), None)
        children = [
            (f"{prefix}{name}.", plain if name == skip else f"{plain}{name}.", child)
            for name, child in module.__dict__["_modules"].items()
            if child is not None and "_modules" in child.__dict__
        ]
        stack.extend(reversed(children))
    if len(set(short)) == len(short):
        full = [(name, param) for name, (_, param) in zip(short, full, strict=True)]
    return full, visited


def _prefixes(roots: list[torch.nn.Module]) -> list[str]:
    """One different prefix for each of several models: its variable, else its class, numbered where needed."""
    held = _variables(roots)
    wanted = [held.get(id(root)) or type(root).__name__ for root in roots]
    counts = {name: wanted.count(name) for name in wanted}
    used: dict[str, int] = {}
    prefixes = []
    for name in wanted:
        number = used[name] = used.get(name, -1) + 1
        prefixes.append(f"{name}{number}." if counts[name] > 1 else f"{name}.")
    return prefixes


def _variables(things: Sequence[Any]) -> dict[int, str]:
    """The variables that hold `things`: the one container that holds them all, else each its own.

    A variable of its own beats an entry of a container (`w` rather than `params.0`), but only when every one of the
    things has one and no two share it: the loop variable of `for p in params` would name but the last.
    """
    wanted = {id(thing): thing for thing in things}
    direct: dict[int, str] = {}
    inside: dict[int, str] = {}
    for variables in _scopes():
        for name, value in list(variables.items()):
            if name.startswith("__") and name.endswith("__"):
                continue
            if id(value) in wanted:
                direct.setdefault(id(value), name)
                continue
            for key, item in _entries(value):
                if id(item) in wanted:
                    inside.setdefault(id(item), f"{name}.{key}" if name != "self" else str(key))
                else:
                    for nested, thing in _entries(item) if isinstance(item, dict | list | tuple) else ():
                        if id(thing) in wanted:
                            inside.setdefault(
                                id(thing), f"{name}.{key}.{nested}" if name != "self" else f"{key}.{nested}"
                            )
    if len(direct) == len(wanted):
        return direct
    return {**direct, **inside}


def _entries(value: Any) -> Iterator[tuple[Any, Any]]:
    """The keys and values of a container; the attributes of a plain object."""
    if isinstance(value, dict):
        if len(value) <= _MAX_HELD:
            yield from [(key, item) for key, item in list(value.items()) if isinstance(key, str | int)]
    elif isinstance(value, list | tuple):
        if len(value) <= _MAX_HELD:
            yield from enumerate(value)
    elif not isinstance(value, type | ModuleType | torch.Tensor | torch.optim.Optimizer):
        try:
            inside = object.__getattribute__(value, "__dict__")
        except AttributeError:
            return
        if isinstance(inside, dict):
            yield from [(key, item) for key, item in list(inside.items()) if isinstance(key, str)]


def _scopes() -> Iterator[dict[str, Any]]:
    """The variables of the program's own running functions, innermost first, then of their modules."""
    frame: FrameType | None = sys._getframe(1)
    modules: dict[int, dict[str, Any]] = {}
    while frame is not None:
        room = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if room not in _OWN_ROOMS:
            modules.setdefault(id(frame.f_globals), frame.f_globals)
            if frame.f_locals is not frame.f_globals:
                yield _locals_of(frame)
        frame = frame.f_back
    yield from modules.values()


def _locals_of(frame: FrameType) -> dict[str, Any]:
    """A function's variables, without keeping them alive.

    Before Python 3.13 a frame keeps the dict that `f_locals` gave, and with it every batch and activation that was in a
    variable then, for as long as the function runs. It is emptied unless the program holds it (from `locals()`).
    """
    variables = frame.f_locals
    found = dict(variables)
    of_the_frame_alone = 3  # the frame's reference, ours, and getrefcount's
    if (
        sys.version_info < (3, 13)
        and frame.f_code.co_flags & inspect.CO_OPTIMIZED
        and sys.getrefcount(variables) == of_the_frame_alone
    ):
        variables.clear()
    return found


def _unused(name: str, used: set[str]) -> str:
    """`name`, or `name#2`, `name#3`... when it is taken; marks it as taken."""
    number, free = 1, name
    while free in used:
        number += 1
        free = f"{name}#{number}"
    used.add(free)
    return free
