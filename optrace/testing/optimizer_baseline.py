"""The baseline of an optimizer: one text file of gradients and what they made, judged step by step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from optrace.errors import GoldenError, OptraceError
from optrace.goldens.format import Golden, read_golden, write_csv
from optrace.testing.asserts import record_driven, report_of
from optrace.testing.driving import SHAPES, STEPS, Factory, Plan, drive, free_tolerance, shapes_of
from optrace.testing.judging import differences, listing


@dataclass
class OptimizerBaseline:
    """What a factory's optimizer does over stored gradients, beside what is stored of it."""

    factory: Factory
    path: Path
    shapes: Mapping[str, tuple[int, ...]] | None = None
    steps: int | None = None
    dtype: str | None = None
    eps: float = 4.0
    free_running: bool = False
    _made: Golden | None = field(default=None, init=False)

    def exists(self) -> bool:
        """Whether something is stored."""
        return self.path.is_file()

    def write(self) -> None:
        """Store what the optimizer does now, over the asked-for inputs, by rename."""
        shapes = self.shapes
        steps, dtype = self.steps, self.dtype
        if self.exists():
            try:
                old = read_golden(self.path)
                shapes, steps, dtype = shapes or shapes_of(old), steps or old.steps, dtype or old.dtype
            except GoldenError:
                pass
        inputs = Plan(shapes or SHAPES, steps or STEPS, dtype or "float32").inputs()
        made = drive(self.factory, inputs)
        name = str(made.notes["optimizer_class"]).lower()
        made = replace(made, rule=name, case=self.path.stem, tolerance_free=free_tolerance(self.factory, made))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(write_csv(made), encoding="utf-8", newline="\n")
        os.replace(temporary, self.path)

    def changed(self) -> bool:
        """Whether any number of a passing baseline differs at all from what the optimizer does now."""
        stored = read_golden(self.path)
        got = drive(self.factory, stored)
        return bool(differences(stored, got, 0.0, per_step=False))

    def compare(self, folder: Path) -> str | None:
        """Why what is stored and what is done now differ, None where they do not.

        The actual run is kept in `folder` where they do.
        """
        try:
            stored = read_golden(self.path)
        except GoldenError as error:
            return f"the baseline cannot be read: {error}"
        wanted = self._other_inputs(stored)
        if wanted:
            return wanted
        try:
            got = drive(self.factory, stored, restore=None if self.free_running else stored)
        except GoldenError as error:
            return str(error)
        allowed = self.eps if not self.free_running else stored.tolerance_free * self.eps / 4.0
        found = differences(stored, got, allowed, per_step=not self.free_running)
        return self._failure(stored, found, folder) if found else None

    def _other_inputs(self, stored: Golden) -> str | None:
        for word, asked, there in (
            ("shapes", dict(self.shapes) if self.shapes else None, shapes_of(stored)),
            ("steps", self.steps, stored.steps),
            ("dtype", self.dtype, stored.dtype),
        ):
            if asked is not None and asked != there:
                return f"the baseline was made with {word} {there!r}, the test asks for {asked!r}"
        return None

    def _failure(self, stored: Golden, found: list[str], folder: Path) -> str:
        lines: list[str] = []
        try:
            record_driven(self.factory, stored, folder)
            lines = report_of(self.path, folder)
        except OptraceError as error:
            lines = [f"the optimizer's own run could not be compared as a whole: {error}"]
        mode = "free-running" if self.free_running else "each step from the stored numbers"
        return "\n".join([*lines, f"by the numbers, {mode}:", listing(found)])
