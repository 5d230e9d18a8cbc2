"""Small runs written through the public writer, for the tests of files and readers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from optrace.trace.measure import ROW, measure_array
from optrace.trace.writer import Event, RankWriter, RunWriter, TensorLayout

PARAMS = {"first.weight": (10, 1), "first.bias": (10,), "second.weight": (2, 10), "scale": ()}
QUANTITIES = ("grad", "update", "param", "state.momentum_buffer")


@dataclass
class Story:
    """A run that tells the same numbers each time it is written: what was handed over is kept for comparison."""

    folder: Path
    optimizers: int = 1
    segment_bytes: int = 64 * 2**20
    max_bytes: int | None = None
    rank: str = "rank=00000"
    arrays: dict = field(default_factory=dict)  # (step, optimizer, param, quantity) -> array
    groups: dict = field(default_factory=dict)  # (step, optimizer, group) -> options
    steps: dict = field(default_factory=dict)  # (step, optimizer) -> row
    events: list = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run = RunWriter.create(self.folder, {"run": "story", "command": ["train.py"]})
        (self.folder / self.rank).mkdir()
        self.writer = RankWriter(self.folder / self.rank, self.max_bytes, segment_bytes=self.segment_bytes)
        self.writer.write_rank({"pid": 1, "host": "nowhere"})
        self.writer.write_params(
            [
                {
                    "optimizer": k,
                    "optimizer_class": "SGD" if k == 0 else "AdamW",
                    "group": 0 if name.startswith("first") else 1,
                    "index": 0,
                    "param": name,
                    "shape": list(shape),
                    "stride": [1] * len(shape),
                    "dtype": "float32",
                    "device": "cpu",
                    "numel": int(np.prod(shape)),
                    "placement": None,
                    "requires_grad": True,
                }
                for k in range(self.optimizers)
                for name, shape in PARAMS.items()
            ]
        )
        self._layouts = {}
        self._rows = {}
        self._present = {}
        self._last_groups = {}
        self.again = 0  # steps that were written as the one before
        self.seq = 0

    def event(self, step: int, kind: str, optimizer: int = -1, **data) -> Event:
        self.seq += 1
        event = Event(self.seq, step, kind, optimizer, data)
        self.events.append(event)
        return event

    def layout(self, optimizer: int, quantities: tuple[str, ...]) -> TensorLayout:
        key = (optimizer, quantities)
        if key not in self._layouts:
            names = [(name, quantity) for name in PARAMS for quantity in quantities]
            self._layouts[key] = TensorLayout(
                optimizer,
                [0 if name.startswith("first") else 1 for name, _ in names],
                [name for name, _ in names],
                [quantity for _, quantity in names],
                ["float64" if quantity == "update" else "float32" for _, quantity in names],
                [int(np.prod(PARAMS[name])) for name, _ in names],
            )
            self._rows[key] = np.zeros(len(names), ROW)
        return self._layouts[key]

    @staticmethod
    def arrays_of(step: int, optimizer: int) -> dict[tuple[str, str], np.ndarray | None]:
        """(param, quantity) to the values of a step; None for a gradient that was None."""
        random = np.random.default_rng((step, optimizer))
        arrays: dict[tuple[str, str], np.ndarray | None] = {}
        for name, shape in PARAMS.items():
            for quantity in QUANTITIES if step else ("param",):
                array = random.standard_normal(shape).astype(np.float64 if quantity == "update" else np.float32)
                if step == 5 and name == "first.bias":
                    array[:3] = [np.nan, np.inf, -0.0]
                missing = quantity == "grad" and name == "scale" and (step == 6 or step % 8 == 3)
                arrays[name, quantity] = None if missing else array
        return arrays

    def tell_step(self, step: int, optimizer: int = 0) -> None:
        arrays = self.arrays_of(step, optimizer)
        layout = self.layout(optimizer, QUANTITIES if step else ("param",))
        rows = self._rows[optimizer, QUANTITIES if step else ("param",)]
        there = tuple(array is not None for array in arrays.values())
        present = self._present.setdefault((optimizer, there), np.ones(len(layout), bool))
        for i, array in enumerate(arrays.values()):
            if array is None:
                present[i] = False
                array = np.zeros(0)
            rows[i] = measure_array(array)
        self.arrays.update({(step, optimizer, *key): array for key, array in arrays.items()})
        if step == 0:
            begin = self.event(0, "recorder", optimizer, what="begin")
            self.writer.write_step(0, optimizer, tensors=(layout, rows, present), events=[begin])
            return
        groups = [(g, {"lr": 0.1 / (g + 1) * 0.5 ** (step // 8), "momentum": 0.9, "nesterov": False}) for g in range(2)]
        groups[1][1].update(betas=(0.9, 0.999), foreach=None, name="second", weight_decay=0)
        row = {"loss": 1.0 / step, "n_backward": 1, "n_skipped": 0, "rng": step * 2**40, "seconds": 0.25}
        if step % 9 < 5:
            row["batch"] = -step
        last = self._last_groups.get(optimizer)
        groups = self._last_groups[optimizer] = last if last == groups else groups
        told = {"loss": 1.0 / step} if step % 7 == 1 else {}
        events = [
            self.event(step - 1, "zero_grad", optimizer),
            self.event(step - 1, "backward", -1, **told),
            self.event(step, "step", optimizer),
        ]
        for g, options in groups:
            self.groups[step, optimizer, g] = dict(options)
        self.steps[step, optimizer] = dict(row)
        tensors = (layout, rows, present)
        if self.writer.write_again(step, optimizer, groups, tensors, row, events):
            self.again += 1
        else:
            self.writer.write_step(step, optimizer, groups=groups, tensors=tensors, steps=row, events=events)

    def tell(self, last: int, first: int = 0) -> Story:
        for step in range(first, last + 1):
            for optimizer in range(self.optimizers):
                self.tell_step(step, optimizer)
        return self
