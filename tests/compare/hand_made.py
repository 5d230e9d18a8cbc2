"""Real traces for the tests of comparing: torch optimizers, captured here by hand and written with the trace writer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optrace.trace.jobs import ROW
from optrace.trace.measure import measure_array
from optrace.trace.writer import Event, RankWriter, RunWriter, TensorLayout

ENVIRONMENT = {
    "host": "here",
    "python": {"version": "3.11.0"},
    "cpu": {"architecture": "x86_64", "fma": True},
    "torch": {"version": "2.13.0", "variant": "cpu"},
    "cpu_capability": "AVX2",
    "threads": {"intra": 1, "inter": 1},
    "distributed": None,
    "distributions": {"numpy": "2.0"},
}


def array_of(tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    """dtype name and elements of a tensor; bf16 as its fp32 values, whose fingerprint is the same."""
    name = str(tensor.dtype).removeprefix("torch.")
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if name == "bfloat16":
        tensor = tensor.float()
    return name, tensor.contiguous().numpy().copy()


class Hand:
    """Writes one optimizer's steps as the design says, from copies taken before and after each step."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
        values: bool = False,
        samples: bool = True,
    ) -> None:
        self.folder = folder
        self.settings = {"values": "full" if values else "sample", "every": 1, "steps": None, **(settings or {})}
        RunWriter.create(folder, {"command": ["python", "train.py"], "settings": self.settings, **(info or {})})
        rank = folder / "rank=00000"
        rank.mkdir()
        self.writer = RankWriter(rank)
        self.environment = dict(ENVIRONMENT if environment is None else environment)
        self.values = values
        self.samples = samples
        self.seq = 0
        self.known: dict[int, dict[str, Any]] = {}
        self.params: list[dict[str, Any]] = []
        self.last: dict[tuple[int, str, str], int] = {}

    def optimizer(
        self,
        index: int,
        class_name: str,
        groups: list[list[tuple[str, torch.Tensor]]],
        implementation: str = "for-loop",
    ) -> None:
        """Announce an optimizer; `groups` holds (name, tensor) of each."""
        self.known[index] = {"groups": groups, "step": 0, "class": class_name, "implementation": implementation}
        for number, group in enumerate(groups):
            for position, (name, tensor) in enumerate(group):
                self.params.append(
                    {
                        "optimizer": index,
                        "optimizer_class": class_name,
                        "group": number,
                        "index": position,
                        "param": name,
                        "shape": list(tensor.shape),
                        "stride": list(tensor.stride()),
                        "dtype": str(tensor.dtype).removeprefix("torch."),
                        "device": "cpu",
                        "numel": tensor.numel(),
                        "placement": None,
                        "requires_grad": True,
                    }
                )
        self.writer.write_params(self.params)
        optimizers = [
            {
                "index": i,
                "class": known["class"],
                "module": f"torch.optim.{known['class'].lower()}",
                "source": "5" * 64,
                "implementation": known["implementation"],
            }
            for i, known in self.known.items()
        ]
        self.writer.write_rank({**self.environment, "pid": 1, "optimizers": optimizers})

    def write(
        self,
        index: int,
        step: int,
        rows: list[tuple[int, str, str, str, np.ndarray | None]],
        hyper: list[dict[str, Any]] | None = None,
        steps: dict[str, Any] | None = None,
    ) -> None:
        """Rows are (group, param, quantity, dtype, elements or None)."""
        measured = np.zeros(len(rows), ROW)
        present = np.array([elements is not None for *_, elements in rows], bool)
        for place, (*_, elements) in enumerate(rows):
            if elements is not None:
                measured[place] = measure_array(elements)
                if not self.samples:
                    measured[place]["sample"] = np.nan
            else:
                measured[place]["sample"] = np.nan
        numel = [0 if e is None else e.size for *_, e in rows]
        layout = TensorLayout(index, *([row[k] for row in rows] for k in range(4)), numel)
        if self.values:
            values = {}
            for _, param, quantity, dtype, elements in rows:
                if elements is not None:
                    stored = "float32" if dtype == "bfloat16" else str(elements.dtype)
                    values[f"{index}/{quantity}/{param}"] = (stored, elements.shape, np.ascontiguousarray(elements))
            self.writer.write_values(step, values)
        self.seq += 1
        kind, data = ("step", {}) if step else ("recorder", {"what": "begin"})
        self.writer.write_step(
            step,
            index,
            groups=list(enumerate(hyper or [])),
            tensors=(layout, measured, present) if rows else None,
            steps=steps,
            events=[Event(self.seq, step, kind, index, data)],
        )

    def close(self, end: str = "clean") -> Path:
        """End the recording."""
        self.writer.close(end)
        return self.folder


def hyper_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The groups' options."""
    return [{k: v for k, v in group.items() if k not in ("params", "param_names")} for group in optimizer.param_groups]


class TorchHand(Hand):
    """Captures torch optimizers."""

    def begin(
        self, index: int, optimizer: Any, names: Mapping[int, str], class_name: str | None = None, **more: Any
    ) -> None:
        groups = [[(names[id(p)], p) for p in group["params"]] for group in optimizer.param_groups]
        self.optimizer(index, class_name or type(optimizer).__name__, groups, **more)
        self.write(index, 0, [*self.param_rows(index), *self.state_rows(index, optimizer)])

    def param_rows(self, index: int) -> list[Any]:
        rows = []
        for number, group in enumerate(self.known[index]["groups"]):
            rows += [(number, name, "param", *array_of(tensor)) for name, tensor in group]
        return rows

    def state_rows(self, index: int, optimizer: Any) -> list[Any]:
        rows = []
        for number, group in enumerate(self.known[index]["groups"]):
            for name, tensor in group:
                for key, value in (optimizer.state.get(tensor) or {}).items():
                    if isinstance(value, torch.Tensor):
                        rows.append((number, name, f"state.{key}", *array_of(value)))
        return rows

    def step(
        self,
        index: int,
        optimizer: Any,
        tamper: Callable[[], None] | None = None,
        record: bool = True,
        extra: Sequence[Any] = (),
        **steps: Any,
    ) -> None:
        """Take one step of an optimizer and record it with `extra` rows; `tamper` acts right after the step."""
        known = self.known[index]
        known["step"] += 1
        hyper = hyper_of(optimizer)
        before = {name: array_of(tensor) for group in known["groups"] for name, tensor in group}
        rows: list[Any] = list(extra)
        for number, group in enumerate(known["groups"]):
            for name, tensor in group:
                grad = tensor.grad
                rows.append(
                    (number, name, "grad", *((str(tensor.dtype)[6:], None) if grad is None else array_of(grad)))
                )
        optimizer.step()
        if tamper is not None:
            tamper()
        for number, group in enumerate(known["groups"]):
            for name, tensor in group:
                dtype, after = array_of(tensor)
                with np.errstate(invalid="ignore"):  # inf before and after
                    rows.append((number, name, "update", dtype, after.astype(np.float64) - before[name][1]))
        rows += self.param_rows(index) + self.state_rows(index, optimizer)
        if record:
            self.write(index, known["step"], rows, hyper, {"n_backward": 1, "n_skipped": 0, **steps})


def model(
    seed: int = 0, sizes: tuple[int, ...] = (5, 20, 3), dtype: torch.dtype = torch.float32
) -> torch.nn.Sequential:
    """A small network with fixed start values."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[torch.nn.Module] = []
    for number, (inside, outside) in enumerate(itertools.pairwise(sizes)):
        layer = torch.nn.Linear(inside, outside)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        layers += [layer, torch.nn.Tanh()] if number < len(sizes) - 2 else [layer]
    return torch.nn.Sequential(*layers).to(dtype)


def names_of(net: torch.nn.Module, prefix: str = "") -> dict[int, str]:
    return {id(p): prefix + name for name, p in net.named_parameters()}


def train(
    folder: Path,
    make: Callable[[torch.nn.Module], torch.optim.Optimizer],
    steps: int = 8,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: tuple[int, ...] = (5, 20, 3),
    change: Callable[[int, torch.nn.Module, torch.optim.Optimizer], None] | None = None,
    tamper: Callable[[int, torch.nn.Module, torch.optim.Optimizer], None] | None = None,
    record: Callable[[int], bool] = lambda step: True,
    prefix: str = "",
    class_name: str | None = None,
    implementation: str = "for-loop",
    end: str = "clean",
    batch: Callable[[int], int] = lambda step: step,
    **hand: Any,
) -> Path:
    """Train a small network and record it; `change` acts between backward and step, `tamper` right after the step."""
    torch.set_num_threads(1)
    net = model(sizes=sizes, dtype=dtype)
    optimizer = make(net)
    recording = TorchHand(folder, **hand)
    recording.begin(0, optimizer, names_of(net, prefix), class_name, implementation=implementation)
    for step in range(1, steps + 1):
        generator = torch.Generator().manual_seed(100 + batch(step))
        x = torch.randn(6, sizes[0], generator=generator).to(dtype)
        y = torch.randn(6, sizes[-1], generator=generator).to(dtype)
        optimizer.zero_grad()
        loss = ((net(x) - y) ** 2).mean()
        loss.backward()
        if change is not None:
            change(step, net, optimizer)
        recording.step(
            0,
            optimizer,
            None if tamper is None else lambda step=step: tamper(step, net, optimizer),
            record(step),
            loss=loss.item(),
            batch=batch(step),
        )
    return recording.close(end)


def sgd(**options: Any) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    """A maker of SGD with two groups, one for each layer."""

    def make(net: torch.nn.Module) -> torch.optim.Optimizer:
        layers = [layer for layer in net if isinstance(layer, torch.nn.Linear)]
        groups = [{"params": list(layer.parameters())} for layer in layers]
        return torch.optim.SGD(groups, **{"lr": 0.05, "momentum": 0.9, "foreach": False, **options})

    return make


def adamw(**options: Any) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    """A maker of AdamW."""
    return lambda net: torch.optim.AdamW(net.parameters(), **{"lr": 1e-2, "foreach": False, **options})
