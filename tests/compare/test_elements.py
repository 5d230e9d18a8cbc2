"""Whole tensors compared by the C kernel and by NumPy: the same, whatever is in them; and what is found is right."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from optrace.compare import elements
from optrace.compare.elements import Flat, Tensors, difference
from optrace.compare.tolerance import Tolerance
from optrace.trace.dtypes import eps_of, tiny_of
from optrace.trace.jobs import ITEMSIZE, NAMES

kernel = pytest.mark.skipif(elements._kernel is None, reason="no C kernel here")
LENGTHS = [0, 1, 15, 16, 17, 1023, 1024, 1025, 32769, 70_000]
ODD = [0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1e-310, 2.0**-126, 1e-40, 3e38, 1.7e308, -1.7e308]


def tensor(name: str, n: int, seed: int) -> Flat:
    """Random elements of a dtype, odd ones among them."""
    rng = np.random.default_rng([seed, n])
    if name.startswith(("float8", "bfloat16")) or "int" in name:
        dtype = np.dtype(name if "int" in name else f"u{ITEMSIZE[NAMES.index(name)]}")
        return Flat(rng.integers(0, 256, n * dtype.itemsize, dtype=np.uint8).view(dtype), name)
    if name == "bool":
        return Flat(rng.random(n) < 0.5, name)
    values = rng.standard_normal(n) * 10.0 ** rng.integers(-6, 6, n)
    at = rng.random(n) < 0.05
    values[at] = rng.choice(ODD, int(at.sum()))
    with np.errstate(over="ignore", invalid="ignore"):
        return Flat(values.astype(name), name)


def nudged(flat: Flat, seed: int) -> Flat:
    """The same elements with one bit in ten of them turned: a few are equal for long stretches."""
    rng = np.random.default_rng(seed)
    changed = flat.elements.copy()
    changed.flags.writeable = True
    at = np.flatnonzero(rng.random(changed.size) < 0.1)
    at = at[at % 4096 > 2048]
    if flat.dtype == "bool":
        changed[at] = ~changed[at]
    else:
        changed.view(np.uint8).reshape(-1, changed.itemsize)[at, 0] ^= 1
    return Flat(changed, flat.dtype)


def asked(name: str, **more) -> dict:
    return {"eps": eps_of(name), "tiny": tiny_of(name), "rms": 0.25, **more}


def both(monkeypatch, a, b, **options):
    """What the kernel and what NumPy find."""
    found = difference(a, b, **options)
    with monkeypatch.context() as patched:
        patched.setattr(elements, "_kernel", None)
        return found, difference(a, b, **options)


@kernel
@pytest.mark.parametrize("name", NAMES)
def test_kernel_and_numpy_find_the_same_in_every_dtype(name, monkeypatch):
    for n in LENGTHS:
        a = tensor(name, n, 1)
        for b in (tensor(name, n, 2), nudged(a, 3), a):
            found, expected = both(monkeypatch, Tensors(a), Tensors(b), **asked(name))
            assert found == expected
            assert (found.n_different == 0) == (a.elements.tobytes() == b.elements.tobytes())


@kernel
@pytest.mark.parametrize("names", list(itertools.permutations(("float64", "float32", "bfloat16"), 2)), ids="-".join)
def test_kernel_and_numpy_find_the_same_in_tensors_of_two_dtypes(names, monkeypatch):
    for n in (1, 1030, 33_000):
        a, b = (tensor(name, n, seed) for seed, name in enumerate(names))
        found, expected = both(monkeypatch, Tensors(a), Tensors(b), **asked(max(names, key=eps_of)))
        assert found == expected
    wide = Flat(elements.widened(a, slice(None)), "float64")
    assert difference(Tensors(a), Tensors(wide), **asked(a.dtype)).n_different == 0


@kernel
@pytest.mark.parametrize("is_state", [False, True])
@pytest.mark.parametrize("tolerance", [Tolerance(), Tolerance(1e-3, 1e-5)], ids=["plain", "tolerant"])
@pytest.mark.parametrize("rms", [0.0, 1e-3, math.inf, math.nan])
def test_kernel_and_numpy_take_the_scale_from_the_same(is_state, tolerance, rms, monkeypatch):
    name, n = "float32", 40_000
    parts = [tensor(name, n, seed) for seed in range(4)]
    others = [nudged(part, seed) for seed, part in enumerate(parts)]
    for known_a, known_b in (
        ((1, 1, 1, 1),) * 2,
        ((1, 0, 0, 1),) * 2,
        ((1, 1, 0, 1), (1, 0, 1, 0)),
        ((1, 0, 0, 0), (1, 0, 0, 1)),
    ):
        a, b = (
            Tensors(*(part if known else None for part, known in zip(own, which, strict=True)))
            for own, which in ((parts, known_a), (others, known_b))
        )
        options = asked(name, rms=rms, tolerance=tolerance, is_state=is_state)
        found, expected = both(monkeypatch, a, b, **options)
        assert found == expected and found.n_different


@kernel
def test_any_address_any_threads_and_any_instructions_find_the_same():
    from optrace.trace import _kernel

    a = tensor("float32", 300_001, 1)
    b = nudged(a, 2)
    expected = difference(Tensors(a), Tensors(b), **asked("float32"), threads=1)
    assert {difference(Tensors(a), Tensors(b), **asked("float32"), threads=t) for t in (2, 3, 7, 1000)} == {expected}
    store = np.zeros(2 * a.elements.nbytes + 64, np.uint8)
    for offset in (1, 3):
        moved = []
        for start, flat in ((offset, a), (offset + a.elements.nbytes + 5, b)):
            part = store[start:][: flat.elements.nbytes]
            part[:] = flat.elements.view(np.uint8)
            moved.append(Tensors(Flat(part.view("f4"), "float32")))
        assert difference(*moved, **asked("float32")) == expected
    names = ["plain", "avx2", "avx512"]
    try:
        for name in names[: names.index(_kernel.instructions()) + 1]:
            _kernel.instructions(name)
            assert difference(Tensors(a), Tensors(b), **asked("float32")) == expected
    finally:
        _kernel.instructions()


@kernel
@pytest.mark.parametrize("eps", [2.0**-52, 0.0])
def test_errors_that_grow_that_repeat_and_that_are_subnormal_are_told_apart(eps, monkeypatch):
    grid = np.arange(1, 5001) * 5e-324
    ones = np.ones(5000)
    for a, b in (
        (grid, np.roll(grid, 3)),
        (ones, ones + 2.0**-52 * np.sort(np.random.default_rng(1).integers(0, 90, 5000))),
        (ones, np.tile([1.0, 1 + 2.0**-40, 1 + 2.0**-41], 1667)[:5000]),
        (1e-310 * ones, 1e-310 * ones + 7 * grid),
    ):
        sides = Tensors(Flat(a, "float64")), Tensors(Flat(b, "float64"))
        for tiny in (0.0, 2.0**-1022):
            found, expected = both(monkeypatch, *sides, eps=eps, tiny=tiny)
            assert found == expected


def test_counts_places_and_largest_difference_are_those_of_torch():
    torch.manual_seed(1)
    a = torch.randn(50_000)
    b = a.clone()
    b[777] += 0.5
    b[41_000:] *= 1 + 1e-5
    b[49_999] = math.nan
    found = difference(Tensors(Flat(a.numpy(), "float32")), Tensors(Flat(b.numpy(), "float32")), **asked("float32"))
    unequal = (a != b).nonzero().flatten()
    assert (found.n_different, found.first, found.worst) == (len(unequal), int(unequal[0]), 49_999)
    assert found.raw == found.net == found.step == found.gap == math.inf
    b[49_999] = a[49_999]
    found = difference(Tensors(Flat(a.numpy(), "float32")), Tensors(Flat(b.numpy(), "float32")), **asked("float32"))
    apart = (a.double() - b.double()).abs()
    assert found.gap == float(apart.max()) and found.worst == 777
    scale = max(abs(float(a[777])), abs(float(b[777]))) + 0.25
    assert found.raw == float(apart[777]) / (2.0**-23 * scale)


def test_what_is_unequal_in_bits_only_has_no_error():
    for one, other in ((0.0, -0.0), (math.nan, -math.nan), (math.inf, math.inf)):
        a, b = (Flat(np.array([1.0, value], "f4"), "float32") for value in (one, other))
        found = difference(Tensors(a), Tensors(b), **asked("float32"))
        assert (found.raw, found.gap) == (0.0, 0.0)
        assert found.n_different == (a.elements.tobytes() != b.elements.tobytes())


def test_flushed_subnormals_are_compared_all_the_same():
    a = (np.arange(1, 2000, dtype=np.int32)).view("f4")
    b = np.roll(a, 1)
    options = {"eps": 2.0**-23, "tiny": 2.0**-126}
    expected = difference(Tensors(Flat(a, "float32")), Tensors(Flat(b, "float32")), **options)
    assert expected.gap == 1998 * 2.0**-149
    if elements._kernel is None or not torch.set_flush_denormal(True):
        pytest.skip("no C kernel, or a processor that cannot flush subnormals")
    try:
        found = difference(Tensors(Flat(a, "float32")), Tensors(Flat(b, "float32")), **options)
    finally:
        torch.set_flush_denormal(False)
    assert found == expected


def test_tensors_of_other_sizes_and_strided_ones_are_refused():
    a, b = Tensors(Flat(np.zeros(3), "float64")), Tensors(Flat(np.zeros(4), "float64"))
    with pytest.raises(ValueError, match="3 elements cannot be compared"):
        difference(a, b, **asked("float64"))
    with pytest.raises(ValueError, match="not dense"):
        difference(a, Tensors(Flat(np.zeros(6)[::2], "float64")), **asked("float64"))
