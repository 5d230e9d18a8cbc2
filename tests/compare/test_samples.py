"""Samples compared by the C kernel and by NumPy: the same bits, whatever is in them."""

from __future__ import annotations

import numpy as np
import pytest

from optrace.compare import samples

kernel = pytest.mark.skipif(samples._kernel is None, reason="no C kernel here")
ODD = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1e-310, 1.0, -1.0, 1e308, -1e308, 2.0**-126])


def rows(seed, n=500):
    """Samples of both sides with odd values, places with gaps, flags of every kind, limits with odd ones."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((300, 16)) * 10.0 ** rng.integers(-12, 12, (300, 1))
    b = np.where(rng.random((300, 16)) < 0.5, a, a * (1 + 1e-7 * rng.standard_normal((300, 16))))
    for side in (a, b):
        at = rng.random(side.shape) < 0.05
        side[at] = rng.choice(ODD, at.sum())
    places = rng.integers(-1, 300, (n, 8)).astype(np.int32)
    places[:, 4:] = np.where(rng.random((n, 1)) < 0.8, places[:, :4], places[:, 4:])
    flags = rng.integers(0, 4, n).astype(np.uint8)
    numel = rng.choice([0.0, 1.0, 7.0, 16.0, 1000.0, np.nan], (n, 2))
    limits = np.column_stack(
        [
            rng.choice([0.0, 1e-3, 1.0, np.inf, np.nan], n),
            rng.choice([2.0**-23, 2.0**-52, 2.0**-7, 0.0], n),
            rng.choice([2.0**-126, 2.0**-1022, 0.0], n),
            rng.choice([0.0, 1e-6], n),
            rng.choice([0.0, 1e-3], n),
            numel,
            rng.choice([0.0, 2.0, -1.0], (n, 2)),
        ]
    )
    return a, b, places, flags, limits


@kernel
@pytest.mark.parametrize("seed", range(8))
def test_kernel_and_numpy_give_the_same_bits(seed, monkeypatch):
    a, b, places, flags, limits = rows(seed)
    with np.errstate(all="ignore"):
        found = samples.apart(a, b, places, flags, limits), samples.moments(a, places[:, :4], flags)
        monkeypatch.setattr(samples, "_kernel", None)
        expected = samples.apart(a, b, places, flags, limits), samples.moments(a, places[:, :4], flags)
    for one, other in zip(found, expected, strict=True):
        for name, x, y in zip(one._fields, one, other, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)


@kernel
def test_every_instruction_set_gives_the_same_bits():
    from optrace.trace import _kernel

    names = ["plain", "avx2", "avx512"]
    found = set()
    try:
        for name in names[: names.index(_kernel.instructions()) + 1]:
            _kernel.instructions(name)
            parts = []
            for seed in range(3):
                a, b, places, flags, limits = rows(seed)
                parts += [*samples.apart(a, b, places, flags, limits), *samples.moments(a, places[:, :4], flags)]
            found.add(b"".join(np.where(part == part, part, np.nan).tobytes() for part in parts))
    finally:
        _kernel.instructions()
    assert len(found) == 1


@kernel
def test_kernel_refuses_rows_outside_of_the_samples_and_arrays_that_do_not_fit():
    a, b, places, flags, limits = rows(1)
    for change in (
        lambda: samples.apart(a[:10], b, places, flags, limits),
        lambda: samples.apart(a, b, places[:5], flags, limits),
        lambda: samples.apart(a, b, places, flags, limits[:, :8]),
        lambda: samples.moments(a[:10], places[:, :4], flags),
    ):
        with pytest.raises(ValueError, match="do not fit each other"):
            change()


def test_largest_error_is_that_of_plain_arithmetic():
    a = np.zeros((1, 16))
    a[0, :3] = 1.0, 2.0, -4.0
    b = a.copy()
    b[0, 2] -= 2.0**-20
    places = np.array([[0, 0, -1, -1, 0, 0, -1, -1]], np.int32)
    limits = np.array([[0.5, 2.0**-23, 2.0**-126, 0.0, 0.0, 3.0, 3.0, 0.0, 0.0]])
    found = samples.apart(a, b, places, np.zeros(1, np.uint8), limits)
    assert found.slot[0] == 2 and found.n_valid[0] == 3
    assert found.raw[0] == 2.0**-20 / (2.0**-23 * (4.0 + 2.0**-20 + 0.5)) == found.net[0] == found.step[0]
    assert (found.a[0], found.b[0], found.gap[0]) == (-4.0, -4.0 - 2.0**-20, 2.0**-20)
