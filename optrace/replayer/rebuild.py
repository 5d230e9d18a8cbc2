"""`optrace.value`: a whole tensor of any step, rebuilt by running the recorded optimizer on the recorded gradients.

A recording with `--values grad` holds the world before step 1, every gradient, what changed between two steps, and
parameters and state each 1,000 steps. The same implementation makes of it the same numbers, bit for bit; that it did is
checked at every step against the recorded fingerprints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.replayer.options import options_by_step
from optrace.replayer.recorded import Fingerprint, RecordedSteps, fingerprint_of
from optrace.trace.reader import Trace, open_trace

Make = Callable[..., Any]


@dataclass(frozen=True)
class Missed:
    """Where a rebuilt tensor is not the recorded one."""

    step: int
    param: str
    quantity: str
    certified: int | None
    """The last step of which every recorded fingerprint was met; None when the first one missed."""

    def __str__(self) -> str:
        so_far = "no step is" if self.certified is None else f"certified up to step {self.certified}: that one is"
        return (
            f"the replay of step {self.step} gives another {self.quantity} of {self.param!r} than was recorded;"
            f" {so_far} as it was. Another version or build of torch, or another implementation, rounds otherwise"
        )


@dataclass(frozen=True)
class Certificate:
    """How far the recorded optimizer, run again, gives what was recorded."""

    first: int
    """The step that the replay began after (0, or a keyframe)."""
    last: int
    """The last certified step."""
    n_fingerprints: int
    """Recorded fingerprints that were met."""
    missed: Missed | None

    @property
    def same(self) -> bool:
        """Whether every recorded fingerprint was met."""
        return self.missed is None


def value(
    run: str | os.PathLike[str] | Trace,
    step: int,
    param: str,
    quantity: str,
    *,
    optimizer: int = 0,
    as_class: Make | None = None,
) -> npt.NDArray[Any]:
    """Return a whole tensor of a step: as it was stored, else rebuilt by replaying the recorded optimizer.

    Args:
        run: a run folder or an open trace.
        step: the step's number; 0 is the world before step 1.
        param: the parameter's name.
        quantity: `param`, `grad`, `update`, `state.<key>`, `param_in`, `state_in.<key>`.
        optimizer: index of the optimizer.
        as_class: the class to replay with, where the recorded one is not of torch.optim.

    Returns the tensor, read-only; bf16 as float32, `update` as float64. Rebuilding needs torch and a recording with
    `--values grad` (or full) of every step since the last keyframe.

    Raises:
        TraceError: it was not stored and cannot be rebuilt, or the replay misses a recorded fingerprint before.
    """
    trace = run if isinstance(run, Trace) else open_trace(run)
    try:
        return trace.value(step, param, quantity, optimizer)
    except TraceError as error:
        not_stored = error
    trace.last_step(optimizer)
    steps = RecordedSteps(trace, optimizer)
    if not steps.has_gradients:
        raise not_stored
    if not steps.has_row(step, param, quantity):
        raise not_stored
    replayed = _Replay(trace, optimizer, steps, step, as_class)
    before: dict[str, Any] = {}
    for number in replayed.steps():
        if number == step:
            before = {name: _copy(tensor) for name, tensor in replayed.params.items() if name == param}
        missed = replayed.run(number)
        if missed is not None:
            raise TraceError(f"{trace.path}: {missed}")
    return replayed.read(step, param, quantity, before)


def certify(
    run: str | os.PathLike[str] | Trace, *, optimizer: int = 0, last: int | None = None, as_class: Make | None = None
) -> Certificate:
    """Replay a recording with `--values grad` from its start and check every recorded fingerprint of what comes out.

    Args as `value`; `last` is the last step to replay. TraceError where it cannot be replayed.
    """
    trace = run if isinstance(run, Trace) else open_trace(run)
    end = trace.last_step(optimizer) if last is None else last
    replayed = _Replay(trace, optimizer, RecordedSteps(trace, optimizer), end, as_class, from_start=True)
    for number in replayed.steps():
        missed = replayed.run(number)
        if missed is not None:
            return Certificate(replayed.base, missed.certified or 0, replayed.n_met, missed)
    return Certificate(replayed.base, end, replayed.n_met, None)


@dataclass
class _Replay:
    """The recorded optimizer, made anew from the state of a base step, and run up to a step."""

    trace: Trace
    index: int
    recorded: RecordedSteps
    last: int
    as_class: Make | None
    from_start: bool = False
    n_met: int = 0
    certified: int | None = None
    params: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base = self.recorded.base(0 if self.from_start else self.last)
        self._facts = _facts(self.trace, self.index)
        self._kind = self.as_class or _class_of(self._facts)
        self._options = options_by_step(self.trace, self.index, self.base + 1, self.last)
        self._members = self.recorded.members()
        whole = self.recorded.values(self.base)
        for name, (_, shape, dtype) in self._members.items():
            self.params[name] = _tensor(whole.get(("param", name)), shape, dtype).requires_grad_(_can_learn(dtype))
        self._optimizer: Any = None
        self._begin = {key: entry for key, entry in whole.items() if key[0].startswith("state.")}

    def steps(self) -> Iterator[int]:
        """The steps to replay, in order."""
        return iter(range(self.base + 1, self.last + 1))

    def run(self, step: int) -> Missed | None:
        """Replay one step and compare what comes out; what it misses, None if nothing."""
        groups = self._options.get(step)
        gradients = self.recorded.gradients(step)
        if groups is None or gradients is None:
            raise TraceError(
                f"step {step} of {self.trace.path} was not recorded with its whole gradients, so nothing after it can"
                " be rebuilt; record every step with --values grad"
            )
        self._prepare(groups)
        for (quantity, name), entry in self.recorded.edits(step).items():
            self._edit(quantity, name, entry)
        for name, param in self.params.items():
            given = gradients.get(name)
            param.grad = None if given is None else _tensor(given, self._members[name][1], None)
        self._optimizer.step()
        missed = self._certify(step)
        if missed is None:
            self.certified = step
        return missed

    def _prepare(self, groups: Mapping[int, Mapping[str, Any]]) -> None:
        """Make the optimizer, or bring its groups' options to those of the step."""
        wanted = [
            {"params": [self.params[n] for n, (group, *_) in self._members.items() if group == number], **options}
            for number, options in sorted(groups.items())
        ]
        if self._facts.get("lr") == "Tensor":
            wanted = [{**group, "lr": _scalar_tensor(group["lr"])} for group in wanted]
        if self._optimizer is None:
            try:
                self._optimizer = self._kind(wanted)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TraceError(
                    f"{self._facts.get('class')} cannot be made from its recorded groups: {error}"
                ) from error
            for (quantity, name), entry in self._begin.items():
                self._edit(quantity.replace("state.", "state_in.", 1), name, entry)
        for number, group in enumerate(wanted):
            if number >= len(self._optimizer.param_groups):
                self._optimizer.add_param_group(group)
            else:
                self._optimizer.param_groups[number].update({k: v for k, v in group.items() if k != "params"})

    def _edit(self, quantity: str, name: str, entry: Any) -> None:
        """Put what the record says was there before the step."""
        import torch

        if name not in self.params:
            return
        param = self.params[name]
        if quantity == "param_in":
            with torch.no_grad():
                param.copy_(_tensor(entry, tuple(param.shape), None))
        elif quantity.startswith("state_in."):
            key = quantity.removeprefix("state_in.")
            tensor = _tensor(entry, None, None)
            whole_number = tensor.dim() == 0 and tensor.dtype == torch.int64
            self._optimizer.state[param][key] = int(tensor) if whole_number else tensor

    def _certify(self, step: int) -> Missed | None:
        """Compare fingerprints of all parameters and state that were recorded."""
        for (name, quantity), expected in self.recorded.fingerprints(step).items():
            found = self._now(name, quantity)
            if found is not None and _fingerprint(found) != expected:
                return Missed(step, name, quantity, self.certified if self.certified is not None else None)
            self.n_met += found is not None
        return None

    def _now(self, name: str, quantity: str) -> Any:
        param = self.params.get(name)
        if param is None:
            return None
        if quantity == "param":
            return param
        key = quantity.removeprefix("state.")
        return self._optimizer.state[param].get(key) if param in self._optimizer.state else None

    def read(self, step: int, name: str, quantity: str, before: Mapping[str, Any]) -> npt.NDArray[Any]:
        """The asked-for tensor, after the last step was run."""
        import torch

        thing = self._now(name, quantity) if quantity != "update" else self.params.get(name)
        if thing is None:
            raise TraceError(f"{quantity} of {name!r} at step {step} cannot be rebuilt by a replay")
        if not isinstance(thing, torch.Tensor):
            thing = torch.tensor(thing)
        if quantity == "update":
            wide = torch.complex128 if thing.is_complex() else torch.float64
            thing = thing.detach().to(wide) - before[name].to(wide)
        thing = thing.detach()
        array: npt.NDArray[Any] = (thing.float() if thing.dtype == torch.bfloat16 else thing).numpy().copy()
        array.flags.writeable = False
        return array


def _facts(trace: Trace, optimizer: int) -> dict[str, Any]:
    for entry in trace.rank_info.get("optimizers", ()):
        if isinstance(entry, dict) and entry.get("index") == optimizer:
            return entry
    raise TraceError(f"rank.json of {trace.path} does not say what optimizer {optimizer} was")


def _class_of(facts: Mapping[str, Any]) -> Make:
    """The recorded class, if it is one of torch.optim: a trace never makes us import anything else."""
    name, module = str(facts.get("class")), str(facts.get("module"))
    if module.split(".")[:2] != ["torch", "optim"]:
        raise TraceError(
            f"the recorded optimizer is {module}.{name}, which is none of torch.optim; to rebuild its tensors give the"
            " class yourself: optrace.value(..., as_class=...)"
        )
    try:
        import torch
    except ImportError:
        raise TraceError("rebuilding a tensor needs torch; pip install torch-optrace[torch]") from None
    kind = getattr(torch.optim, name, None)
    if not isinstance(kind, type) or name in ("LBFGS", "SparseAdam"):
        raise TraceError(f"a step of {name} cannot be replayed from one whole gradient")
    return kind


def _can_learn(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "complex"))


def _tensor(entry: Any, shape: tuple[int, ...] | None, dtype: str | None) -> Any:
    """A torch tensor of its own from stored bytes (dtype, shape, bytes); zeros where nothing is stored yet."""
    import torch

    if entry is None:
        return torch.zeros(shape or (), dtype=getattr(torch, dtype or "float32"))
    stored, own, data = entry
    kind = getattr(torch, stored)
    tensor = torch.frombuffer(bytearray(data), dtype=kind) if data else torch.empty(0, dtype=kind)
    return tensor.reshape(own if shape is None else shape).clone()


def _copy(tensor: Any) -> Any:
    return tensor.detach().clone()


def _scalar_tensor(number: Any) -> Any:
    import torch

    return torch.tensor(number, dtype=torch.float32)


def _fingerprint(thing: Any) -> Fingerprint | None:
    """The fingerprint of a tensor or a number; None where there is none to compare."""
    import torch

    if isinstance(thing, bool | int):
        thing = torch.tensor(int(thing), dtype=torch.int64)
    elif isinstance(thing, float):
        thing = torch.tensor(thing, dtype=torch.float64)
    dense = thing.detach().contiguous().resolve_conj().resolve_neg()
    if dense.is_complex():
        dense = torch.view_as_real(dense)
    name = str(dense.dtype).removeprefix("torch.")
    found = fingerprint_of(dense.data_ptr(), dense.numel(), name)
    return np.int64(found)
