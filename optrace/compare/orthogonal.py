"""Whether two sides follow one Muon: read off whole tensors in the singular directions where rounding hardly shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.columns import Numbering, Side
from optrace.compare.match import Cell
from optrace.compare.names import in_torchs_words
from optrace.replayer.options import options_by_step
from optrace.replayer.spectral import LARGEST, Form, Iteration, Matrix, form_of

Floats = NDArray[np.float64]

_STEPS = 12
"""Steps of which the form is read: the first half of them in a row, the others spread over the run."""
_MATRICES = 12
"""Matrices of a step that are looked at, of every shape some."""
_BUFFER = "state.momentum_buffer"
_COEFFICIENTS = ((3.4445, -4.775, 2.0315), (2.0, -1.5, 0.5), (3.0, -3.2, 1.2), (1.5, -0.5, 0.0))
"""Coefficients that are tried beside those of the group: of Jordan et al. (2024), and others that reach 1."""


class Orthogonal:
    """The forms of Muon that the sides of each pair of optimizers follow, found when they are first asked for."""

    def __init__(self, sides: tuple[Side, Side], numbering: Numbering, steps: Sequence[int]) -> None:
        """`steps`: A's numbers of the steps that both sides may have, in order."""
        self._sides, self._numbering = sides, numbering
        self._steps = [step for step in steps if step > 0]
        self._forms: dict[int, tuple[Form, Form] | None] = {}
        self._options: dict[tuple[bool, int], Mapping[int, Mapping[int, Mapping[str, Any]]]] = {}

    @cached_property
    def matters(self) -> bool:
        """Whether any pair of optimizers is concerned."""
        return any(map(self.concerns, range(len(self._numbering.matching.pairs))))

    def concerns(self, pair: int) -> bool:
        """Whether an optimizer of a pair is called Muon."""
        matched = self._numbering.matching.pairs[pair]
        return "muon" in matched.class_a.lower() or "muon" in matched.class_b.lower()

    def forms(self, pair: int) -> tuple[Form, Form] | None:
        """What both sides follow; None where no Muon is concerned or no whole tensors tell it."""
        if pair not in self._forms:
            self._forms[pair] = self._find(pair) if self.concerns(pair) else None
        return self._forms[pair]

    def agree(self, pair: int) -> bool:
        """Whether both sides are known to follow one form, so that what is left between them is rounding."""
        forms = self.forms(pair)
        return forms is not None and not differences(*forms) and bool(forms[0].ways and forms[1].ways)

    def fits(self, step: int, cell: int) -> bool:
        """Whether one parameter's step is known to be given by that form on both sides."""
        return self._judged(step, cell) is True

    def misses(self, step: int, cell: int) -> bool:
        """Whether it is known not to be, where both sides follow one form elsewhere."""
        return self._judged(step, cell) is False

    def _judged(self, step: int, cell: int) -> bool | None:
        pair = self._numbering.cells[cell].pair
        forms = self.forms(pair) if self.agree(pair) else None
        if forms is None:
            return None
        matrices = [self._matrix(side, cell, step) for side in self._sides]
        if None in matrices:
            return None
        return all(form.gives(matrix) for form, matrix in zip(forms, matrices, strict=True) if matrix is not None)

    def _find(self, pair: int) -> tuple[Form, Form] | None:
        cells = self._chosen(pair)
        found: list[Form] = []
        for side in self._sides:
            matrices = []
            for step in self._looks():
                own = [matrix for cell in cells if (matrix := self._matrix(side, cell, step)) is not None]
                matrices += own
                if not own and not matrices:
                    return None
            found.append(form_of(matrices, self._iterations(pair)))
        return found[0], found[1]

    def _looks(self) -> list[int]:
        half = _STEPS // 2
        rest = self._steps[half:]
        spread = [rest[i] for i in np.unique(np.linspace(0, len(rest) - 1, half).astype(int))] if rest else []
        return [*self._steps[:half], *spread]

    def _chosen(self, pair: int) -> list[int]:
        """Cells of matrices, of every shape some."""
        by_shape: dict[Any, list[int]] = {}
        for number, cell in enumerate(self._numbering.matching.cells):
            if cell.pair == pair and _is_matrix(cell):
                by_shape.setdefault(cell.shape_a, []).append(number)
        each = max(_MATRICES // max(len(by_shape), 1), 1)
        return [number for cells in by_shape.values() for number in cells[:each]][:_MATRICES]

    def _iterations(self, pair: int) -> list[Iteration]:
        given = {
            Iteration(tuple(float(c) for c in options["ns_coefficients"]), int(options["ns_steps"]))  # type: ignore[arg-type]
            for is_a in (True, False)
            for groups in self._groups(is_a, pair).values()
            for options in groups.values()
            if len(options["ns_coefficients"]) == 3
        }
        tried = {Iteration(own.coefficients, max(own.steps + k, 1)) for own in given for k in range(-3, 4)}
        tried |= {Iteration(other, own.steps) for own in given for other in _COEFFICIENTS}
        return sorted(given | tried)

    def _groups(self, is_a: bool, pair: int) -> Mapping[int, Mapping[int, Mapping[str, Any]]]:
        """Options by A's step and the side's own group, in torch's words; what it lacks is the other side's."""
        key = is_a, pair
        if key not in self._options:
            from optrace.replayer.known import RULES  # loads every rule

            own, other = (self._recorded(side, pair) for side in ((is_a, not is_a)))
            partner = dict((p if is_a else p[::-1]) for p in reversed(self._numbering.matching.groups(pair)))
            self._options[key] = {
                step: {
                    group: {
                        **RULES["muon"].defaults,
                        **other.get(step, {}).get(partner.get(group, group), {}),
                        **options,
                    }
                    for group, options in groups.items()
                }
                for step, groups in own.items()
            }
        return self._options[key]

    def _recorded(self, is_a: bool, pair: int) -> dict[int, dict[int, dict[str, Any]]]:
        side, matched = self._sides[0 if is_a else 1], self._numbering.matching.pairs[pair]
        found = options_by_step(side.source.trace, matched.a if is_a else matched.b)  # type: ignore[arg-type]
        shift = side.offsets[pair]
        return {
            step + shift: {group: in_torchs_words(options) for group, options in groups.items()}
            for step, groups in found.items()
        }

    def _matrix(self, side: Side, number: int, step: int) -> Matrix | None:
        """A parameter's step of one side; None where not all of it is stored whole."""
        cell = self._numbering.cells[number]
        if not _is_matrix(cell):
            return None
        group = cell.group_a if side.is_a else cell.group_b
        options = self._groups(side.is_a, cell.pair).get(step, {}).get(group)
        grad, after = self._whole(side, cell, step, "grad"), self._whole(side, cell, step, "param")
        buffer, name = self._buffer(side, cell, step)
        if options is None or grad is None or after is None or buffer is None or not options["lr"]:
            return None
        before = self._before(side, cell, step, "param")
        buffer_before = self._before(side, cell, step, name)
        if before is None:
            return None
        if buffer_before is None:
            buffer_before = np.zeros_like(buffer)
        values = (grad, buffer_before, buffer, before, after)
        if any(value.shape != grad.shape or value.ndim != 2 or not np.isfinite(value).all() for value in values):
            return None
        lr, decay, momentum = (float(options[key]) for key in ("lr", "weight_decay", "momentum"))
        return Matrix(cell.param_a, lr, decay, momentum, *values)

    def _before(self, side: Side, cell: Cell, step: int, name: str) -> Floats | None:
        kind, dot, key = name.partition(".")
        told = self._whole(side, cell, step, f"{kind}_in{dot}{key}")
        return told if told is not None else self._whole(side, cell, step - 1, name)

    def _buffer(self, side: Side, cell: Cell, step: int) -> tuple[Floats | None, str]:
        """The momentum after a step, and what this side calls it: by its name, else the only state there is."""
        names = self._numbering.quantities
        own = [_BUFFER]
        if not side.is_a and _BUFFER in names:
            own = [self._numbering.name_in_b(names.index(_BUFFER))]
        states = [name for name in names if name.startswith("state.")]
        for name in (*own, *(states if len(states) == 1 else ())):
            found = self._whole(side, cell, step, name)
            if found is not None:
                return found, name
        return None, ""

    def _whole(self, side: Side, cell: Cell, step: int, quantity: str) -> Floats | None:
        read: Any = getattr(side.source.trace, "value_in_files", None)
        own = step - side.offsets[cell.pair]
        matched = self._numbering.matching.pairs[cell.pair]
        index, param = (matched.a, cell.param_a) if side.is_a else (matched.b, cell.param_b)
        found = read(own, param, quantity, index) if read is not None and own >= 0 else None
        return None if found is None else np.asarray(found, np.float64)


def differences(a: Form, b: Form) -> list[str]:
    """In what two forms are known to differ: `share`, `way`, `scale`, `decay`."""
    found = []
    if None not in (a.share, b.share) and a.share != b.share:
        found.append("share")
    if a.ways and b.ways:
        if not a.meant() & b.meant():
            found.append("way")
        if not a.like_scales(b):
            found.append("scale")
        if not a.decays & b.decays:
            found.append("decay")
    return found


def _is_matrix(cell: Cell) -> bool:
    shape = cell.shape_a
    return (
        shape is not None
        and shape == cell.shape_b
        and len(shape) == 2
        and 1 < min(shape) <= LARGEST
        and {cell.dtype_a, cell.dtype_b} <= {"float32", "float64"}
    )
