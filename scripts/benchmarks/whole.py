"""Whole tensors compared element by element, against the speed of reading them and against what else there is."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.figures import Report, Row, spread
from optrace.compare import elements
from optrace.compare.elements import Flat, Tensors, difference
from optrace.compare.threads import cores
from optrace.trace.values import ValuesFile, values_folder, values_name, write_values

NUMEL = 17_200_000
"""Elements of one tensor, 69 MB of float32: far more than any cache holds."""

PIECE = 2_150_000
_POOL = ThreadPoolExecutor(cores())

EPS, TINY = 2.0**-23, 2.0**-126

Pair = tuple[torch.Tensor, torch.Tensor]
Way = tuple[int, Callable[[Pair], object]]
"""Of how many of the pairs it is measured at most, and how one is compared."""


def _sides(pair: Pair) -> tuple[Tensors, Tensors]:
    a, b = (Tensors(Flat(tensor.numpy(), "float32")) for tensor in pair)
    return a, b


def _read(pair: Pair) -> None:
    for tensor in pair:
        torch.sum(tensor)


def _read_in_pieces(pair: Pair) -> None:
    """The same without a barrier: where other programs hold a core, the rest do not wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        list(_POOL.map(torch.sum, [piece for tensor in pair for piece in tensor.split(PIECE)]))
    finally:
        torch.set_num_threads(threads)


def _ours(pair: Pair) -> None:
    difference(*_sides(pair), rms=1.0, eps=EPS, tiny=TINY)


def _by_numpy(pair: Pair) -> None:
    elements._difference(*_sides(pair), (1.0, EPS, TINY, 0.0, 0.0), False)


def _allclose(pair: Pair) -> None:
    assert np.allclose(pair[0].numpy(), pair[1].numpy(), rtol=1e-3)


def _assert_close(pair: Pair) -> None:
    torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-3)


WAYS: dict[str, Way] = {
    "reading both: torch.sum": (99, _read),
    "reading both: torch.sum of pieces": (99, _read_in_pieces),
    "optrace": (99, _ours),
    "np.allclose": (4, _allclose),
    "torch.testing.assert_close": (4, _assert_close),
    "NumPy, the same figures": (1, _by_numpy),
}
OURS, THEIRS = "optrace", "torch.testing.assert_close"
LIMITS = tuple(WAYS)[:2]
"""Of each turn the faster one is the read limit."""


def _speed(way: Way, pairs: list[Pair]) -> float:
    """Bytes a second."""
    own = pairs[: way[0]]
    start = perf_counter()
    for pair in own:
        way[1](pair)
    return sum(tensor.nbytes for pair in own for tensor in pair) / (perf_counter() - start)


def _mapped(folder: Path, names: tuple[str, str], pairs: list[Pair]) -> float:
    """The same of values files, as `optrace.diff` reads them: mapped, and in the page cache already."""
    files = [ValuesFile(values_folder(folder / name) / values_name(1)) for name in names]
    start = perf_counter()
    for key in files[0].keys():
        a, b = (Tensors(Flat(file.raw(key).reshape(-1), file.dtype(key))) for file in files)
        difference(a, b, rms=1.0, eps=EPS, tiny=TINY)
    return sum(tensor.nbytes for pair in pairs for tensor in pair) / (perf_counter() - start)


def _write(folder: Path, tensors: list[torch.Tensor]) -> None:
    folder.mkdir()
    values = {f"0/param/{n}": ("float32", tuple(t.shape), t.numpy()) for n, t in enumerate(tensors)}
    write_values(folder, 1, values, None)


def compare_whole(quick: bool, rounds: int, report: Report) -> None:
    """Measure tensors of 1.1 GB a side, quick of 0.3 GB, that are equal, and that differ in nearly every element."""
    count = 4 if quick else 16
    ones = [torch.randn(NUMEL) for _ in range(count)]
    size = sum(tensor.nbytes for tensor in ones) / 1e9
    goals = {"equal": 0.8, "different": 0.4}
    with tempfile.TemporaryDirectory(prefix="optrace-bench-") as temporary:
        folder = Path(temporary)
        _write(folder / "a", ones)
        for kind, goal in goals.items():
            others = [one.clone() if kind == "equal" else one * (1 + 1e-5 * torch.randn(NUMEL)) for one in ones]
            _write(folder / kind, others)
            pairs = list(zip(ones, others, strict=True))
            found: dict[str, list[float]] = {name: [] for name in (*WAYS, "optrace, of mapped files")}
            for _ in range(rounds):
                for name, way in WAYS.items():
                    found[name].append(_speed(way, pairs))
                found["optrace, of mapped files"].append(_mapped(folder, ("a", kind), pairs))
            limits = [max(turn) for turn in zip(*(found[name] for name in LIMITS), strict=True)]
            for name, speeds in found.items():
                share = spread([one / limit for one, limit in zip(speeds, limits, strict=True)])
                slower = spread([one / other for one, other in zip(speeds, found[THEIRS], strict=True)])
                cells = {
                    "GB/s": spread([one / 1e9 for one in speeds]).text(1),
                    "of the read limit": share.text(2),
                    "against assert_close": slower.text(1),
                }
                numbers = {"gb_s": spread(speeds).__dict__, "share": share.__dict__, "assert_close": slower.__dict__}
                text, met = "", None
                if name == OURS:
                    text = f">= {goal}, >= 10"
                    met = share.median >= goal and slower.median >= 10
                report.rows.append(Row(f"tensors of 2 x {size:.1f} GB, {kind}", name, cells, numbers, text, met))
            del others, pairs
