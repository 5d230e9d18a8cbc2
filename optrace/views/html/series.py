"""The norms of a run as dense arrays, parameter by step: what the page's charts are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.trace.reader import Trace

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """One optimizer's rows, dense: each array has the shape (parameters, steps), NaN where there is no row."""

    params: tuple[str, ...]
    steps: npt.NDArray[np.int64]
    l2: dict[str, Floats]
    """By quantity: `param`, `grad`, `update`, `state.<key>` of several elements; NaN, too, where none is finite."""
    n_zero: Floats
    """Zeros in `update`."""
    n_bad: Floats
    """NaN and inf in `param` and `grad` together."""
    absent: npt.NDArray[np.bool_]
    """Gradients that were None."""
    numel: npt.NDArray[np.int64]
    fingerprint: dict[str, npt.NDArray[np.int64]]
    sample: dict[str, Floats]
    """By quantity of `SAMPLED`: (parameters, steps, 16)."""
    not_finite: dict[str, Floats]
    """NaN and inf in each quantity of `SAMPLED`; with `compare` only, as the two before."""


SAMPLED = ("update", "param", "grad")
NOT_FINITE = 1e9
"""How far apart two tensors are told to be when one has more NaN and inf: more than any relative difference."""


def read_grid(
    trace: Trace, optimizer: int, params: Sequence[str], steps: npt.NDArray[np.int64], *, compare: bool
) -> Grid:
    """Rows of `params` at `steps` (sorted, from 1) of one optimizer; with `compare` also fingerprints and samples."""
    place = {name: i for i, name in enumerate(params)}
    columns = ["step", "param", "quantity", "numel", "l2", "n_zero", "n_nan", "n_inf", "present"]
    shape = (len(params), len(steps))
    l2: dict[str, Floats] = {}
    n_zero, n_bad = np.full(shape, np.nan), np.zeros(shape)
    absent, numel = np.zeros(shape, np.bool_), np.zeros(len(params), np.int64)
    fingerprint: dict[str, npt.NDArray[np.int64]] = {}
    sample: dict[str, Floats] = {}
    not_finite: dict[str, Floats] = {}
    last = int(steps[-1]) if len(steps) else 0
    for quantity in ("update", "param", "grad", "state.*"):
        full = compare and quantity in SAMPLED
        rows = trace.arrow(
            "tensors",
            step=(1, last),
            optimizer=optimizer,
            quantity=quantity,
            columns=[*columns, "fingerprint", "sample"] if full else columns,
        )
        step, named, kinds = rows.column("step").to_numpy(), *(_codes(rows, name) for name in ("param", "quantity"))
        where = np.searchsorted(steps, step)
        where[where == len(steps)] = 0
        of = np.array([place.get(name, -1) for name in named[1]], np.int64)[named[0]]
        keep = (of >= 0) & (steps[where] == step if len(steps) else False)
        values = {name: rows.column(name).to_numpy() for name in columns[3:]}
        for code, kind in enumerate(kinds[1]):
            chosen = keep & (kinds[0] == code)
            at = of[chosen], where[chosen]
            sizes = values["numel"][chosen]
            if kind.startswith("state."):
                if not len(sizes) or sizes.max() <= 1:
                    continue
            finite = (values["n_nan"] + values["n_inf"])[chosen] < np.maximum(sizes, 1)
            l2.setdefault(kind, np.full(shape, np.nan))[at] = np.where(finite, values["l2"][chosen], np.nan)
            if kind == "update":
                n_zero[at] = np.where(values["n_zero"][chosen] < 0, np.nan, values["n_zero"][chosen])
            if kind == "param":
                numel[at[0]] = sizes
            if kind in ("param", "grad"):
                np.add.at(n_bad, at, (values["n_nan"] + values["n_inf"])[chosen])
            if kind == "grad":
                none = ~np.asarray(values["present"][chosen], np.bool_)
                absent[at] = none
                l2[kind][at[0][none], at[1][none]] = np.nan
            if full:
                fingerprint[kind] = np.zeros(shape, np.int64)
                fingerprint[kind][at] = rows.column("fingerprint").to_numpy()[chosen]
                sample[kind] = np.full((*shape, 16), np.nan)
                sample[kind][at] = _samples(rows)[chosen]
                not_finite[kind] = np.full(shape, np.nan)
                not_finite[kind][at] = (values["n_nan"] + values["n_inf"])[chosen]
    return Grid(tuple(params), steps, l2, n_zero, n_bad, absent, numel, fingerprint, sample, not_finite)


def divergence(a: Grid, b: Grid, quantity: str) -> Floats:
    """How far apart the two sides are at each parameter and step: 0 where the bits are equal, NaN where one has no row.

    The larger of two relative differences: of the norms, and of the sampled elements (root mean square over the larger
    of the two), both of what is finite. Bits that differ while both agree give 1e-9; where one side has more NaN and
    inf than the other, it is `NOT_FINITE`.
    """
    left, right = a.l2.get(quantity), b.l2.get(quantity)
    if left is None or right is None:
        return np.full((len(a.params), len(a.steps)), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.abs(left - right) / np.maximum(left, right)
        x, y = (np.where(np.isfinite(grid.sample[quantity]), grid.sample[quantity], np.nan) for grid in (a, b))
        apart = np.sqrt(np.nansum((x - y) ** 2, axis=2))
        size = np.sqrt(np.maximum(np.nansum(x * x, axis=2), np.nansum(y * y, axis=2)))
        sampled = np.where(size > 0, apart / size, 0.0)
    far = np.fmax(np.nan_to_num(norms, nan=0.0), np.nan_to_num(sampled, nan=0.0))
    equal = a.fingerprint[quantity] == b.fingerprint[quantity]
    bad_a, bad_b = a.not_finite[quantity], b.not_finite[quantity]
    far = np.where(bad_a == bad_b, far, NOT_FINITE)
    result: Floats = np.where(equal, 0.0, np.maximum(far, 1e-9))
    return np.where(np.isnan(bad_a) | np.isnan(bad_b), np.nan, result)


def _codes(rows: Any, name: str) -> tuple[npt.NDArray[np.int64], list[str]]:
    encoded = rows.column(name).combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _samples(rows: Any) -> Floats:
    flat = rows.column("sample").combine_chunks().flatten()
    return np.asarray(flat.to_numpy(), np.float64).reshape(-1, 16)
