"""Takes a scheduler through the stored life of a case and reads what it leaves in the groups."""

from __future__ import annotations

import copy
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from optrace.goldens.drive import NotCovered
from optrace.goldens.format import Golden, Row

OUTPUTS = ("lr", "momentum", "betas")


class Table:
    """A function of the epoch, given by its values."""

    def __init__(self, values: Sequence[float]) -> None:
        """`values[e]` is the value at epoch e."""
        self.values = list(values)

    def __call__(self, epoch: float) -> float:
        """The value at an epoch."""
        return self.values[int(epoch)]


def as_options(value: Any, build: Callable[[str, Mapping[str, Any]], Any]) -> Any:
    """JSON options as a constructor takes them; `build(class name, options)` makes an inner scheduler."""
    if isinstance(value, list):
        return [as_options(item, build) for item in value]
    if isinstance(value, dict):
        if set(value) == {"table"}:
            return Table(value["table"])
        if set(value) == {"class", "options"}:
            return build(value["class"], as_options(value["options"], build))
        return {key: as_options(item, build) for key, item in value.items()}
    return value


def plain_optimizer(groups: Sequence[Mapping[str, Any]]) -> Any:
    """An optimizer of torch's with one parameter a group where torch is there, else an object with `param_groups`."""
    options = [{k: tuple(v) if isinstance(v, list) else v for k, v in group.items()} for group in groups]
    try:
        import torch
    except ImportError:
        return SimpleNamespace(
            param_groups=[{"params": [], **group} for group in options],
            defaults=dict(options[0]),
            state={},
            step=lambda *_: None,
        )
    kind = torch.optim.Adam if "betas" in options[0] else torch.optim.SGD
    return kind([{"params": [torch.zeros(1, requires_grad=True)], **group} for group in options], lr=0.5)


class ScheduleDriver:
    """One scheduler over an optimizer with `param_groups`."""

    def __init__(self, make: Callable[..., Any], golden: Golden) -> None:
        """`make(optimizer, **options)` builds it, `make(schedulers)` a chain; NotCovered where it lacks an option."""
        self._make, self._golden = make, golden
        self._options: dict[str, Any] = json.loads(golden.notes["options"])
        self._check_options()
        self._build()

    def _check_options(self) -> None:
        parameters = inspect.signature(self._make).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return
        lacking = [name for name in self._options if name not in {p.name for p in parameters}]
        if lacking:
            raise NotCovered(", ".join(lacking))

    def _build(self) -> None:
        self.optimizer = plain_optimizer(self._golden.hyper)

        def inner(name: str, options: Mapping[str, Any]) -> Any:
            return sibling(self._make, name)(self.optimizer, **options)

        options = as_options(copy.deepcopy(self._options), inner)
        if self._golden.rule == "chainedscheduler":
            self.scheduler = self._make(options["schedulers"])
        else:
            self.scheduler = self._make(self.optimizer, **options)

    def edit(self, group: int, name: str, value: float) -> None:
        """Somebody writes into a group."""
        self.optimizer.param_groups[group][name] = value

    def step(self, argument: float | None, what: str) -> None:
        """One step; `argument` is a metric or an epoch."""
        self.optimizer.step()
        if argument is None:
            self.scheduler.step()
            return
        required = list(inspect.signature(self.scheduler.step).parameters.values())
        if not required:
            raise NotCovered(f"step({what})")
        self.scheduler.step(argument)

    def save_and_load(self) -> None:
        """A new optimizer and scheduler, made as at first, load what the old ones saved."""
        for method in ("state_dict", "load_state_dict"):
            if not callable(getattr(self.scheduler, method, None)):
                raise NotCovered(method)
        saved = copy.deepcopy(self.scheduler.state_dict())
        groups = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        self._build()
        for group, options in zip(self.optimizer.param_groups, groups, strict=True):
            params = group["params"]
            group.clear()
            group.update({"params": params, **options})
        self.scheduler.load_state_dict(saved)

    def outputs(self) -> Iterator[tuple[int, str, Any]]:
        """(group, option, value) of all groups; momenta only where the schedule's kind moves them."""
        for number, group in enumerate(self.optimizer.param_groups):
            for name in OUTPUTS:
                if name in self._golden.hyper[number]:
                    yield (
                        number,
                        name,
                        np.asarray([float(x) for x in np.atleast_1d(_plain(group[name]))]).reshape(
                            np.shape(_plain(group[name]))
                        ),
                    )


def _plain(value: Any) -> Any:
    return value.detach().numpy() if hasattr(value, "detach") else value


def sibling(make: Any, name: str) -> Any:
    """The scheduler class of that name from the same library as `make`: its module, its package, torch, or ours."""
    module = sys.modules.get(getattr(make, "__module__", "") or "")
    package = sys.modules.get(module.__name__.rpartition(".")[0]) if module is not None else None
    for place in (module, package):
        found = getattr(place, name, None)
        if isinstance(found, type):
            return found
    try:
        from torch.optim import lr_scheduler
    except ImportError:
        from optrace.reference import schedulers

        return getattr(schedulers, name)
    return getattr(lr_scheduler, name)


def drive_schedule(golden: Golden, make: Callable[..., Any]) -> Iterator[tuple[int, list[Row]]]:
    """Yield (step, rows of what stands in the groups) after construction (0) and after each step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        driver = ScheduleDriver(make, golden)
    resume = golden.notes.get("resume")
    last = int(golden.notes["steps"])
    for step in range(last + 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if step:
                for row in golden.rows_at(step, "edit"):
                    driver.edit(row.group, row.param, float(row.values))
                driver.step(*_argument(golden, step))
        yield step, [Row(step, group, name, "hyper", value) for group, name, value in driver.outputs()]
        if resume is not None and step == int(resume):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                driver.save_and_load()


def _argument(golden: Golden, step: int) -> tuple[float | None, str]:
    for what in ("metric", "epoch"):
        for row in golden.rows_at(step, what):
            value = float(row.values)
            return (int(value) if what == "epoch" and value.is_integer() else value), what
    return None, ""


def with_schedule_outputs(golden: Golden, make: Callable[..., Any]) -> Golden:
    """The golden that a scheduler makes of the inputs of a case."""
    from dataclasses import replace

    rows: list[Row] = []
    for step, outputs in drive_schedule(golden, make):
        rows += [row for what in ("edit", "metric", "epoch") for row in golden.rows_at(step, what)] + outputs
    return replace(golden, rows=tuple(rows))
