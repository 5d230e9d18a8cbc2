"""Shows a hand-written optimizer over torch parameters the way torch's own look: `param_groups` and `state`."""

from __future__ import annotations

import weakref
from typing import Any

from optrace.recorder.attributes import matched, public, scalars
from optrace.recorder.parameters import find_parameters


class TorchView:
    """What the recorder of torch optimizers reads of an object: computed anew each time, nothing is kept."""

    def __init__(self, thing: Any) -> None:
        """Look at `thing`, without keeping it alive where it can be helped."""
        try:
            self._reference: Any = weakref.ref(thing)
        except TypeError:
            self._reference = lambda: thing

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The object's own groups; else one group of all its parameters with its public scalars as options."""
        thing = self._reference()
        if thing is None:
            return []
        found = find_parameters(thing)
        if found.holder is None:
            return [dict(group, params=list(group["params"])) for group in thing.param_groups]
        group: dict[str, Any] = {"params": [param for _, param in found.flat], **scalars(public(thing))}
        if any(not name.startswith("param") for name, _ in found.flat):
            group["param_names"] = [name for name, _ in found.flat]
        return [group]

    @property
    def state(self) -> dict[Any, Any]:
        """State by parameter: `state` where the object keeps one, and every attribute that fits the parameters."""
        thing = self._reference()
        result: dict[Any, Any] = {}
        if thing is None:
            return result
        found = find_parameters(thing)
        names, objects = [name for name, _ in found.flat], [param for _, param in found.flat]
        shapes = [param.shape for param in objects]
        for attribute, value in list(getattr(thing, "__dict__", {}).items()):
            if attribute in (found.holder, "param_groups", "grads"):
                continue
            for index, key, entry in matched(attribute.lstrip("_"), value, names, objects, shapes):
                result.setdefault(objects[index], {})[key] = entry
        return result


def view_of(thing: Any) -> TorchView:
    """A view whose class bears the name and the module of the object's, as reports show them."""
    kind = type(thing)
    made: TorchView = type(kind.__name__, (TorchView,), {"__module__": kind.__module__})(thing)
    return made
