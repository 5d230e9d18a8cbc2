"""Every operation of optrace.reference.arithmetic against ATen's, and fma against exact rationals."""

import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optrace.reference import arithmetic
from optrace.reference.arithmetic import rounding

from .twins import FUSED

DTYPES = [np.float32, np.float64]


def numbers(dtype, size, seed):
    """Values of many magnitudes and both signs, with a few zeros of both signs."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size) * 10.0 ** rng.uniform(-3, 3, size)
    values[rng.random(size) < 0.02] = 0.0
    values[rng.random(size) < 0.02] = -0.0
    return values.astype(dtype)


def same_bits(ours, theirs):
    theirs = theirs.numpy()
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    assert np.array_equal(ours[~nan].view(np.uint8), theirs[~nan].view(np.uint8))


SCALARS = [1, -1, 0.1, -0.001, 0.5, 0.49999, 0.999, 1 - 0.9, -3.7, 2]
OPERATIONS = {
    "add": (lambda a, b, c, s: arithmetic.add(a, b, alpha=s), lambda a, b, c, s: a.add(b, alpha=s)),
    "addcmul": (
        lambda a, b, c, s: arithmetic.addcmul(a, b, c, value=s),
        lambda a, b, c, s: a.addcmul(b, c, value=s),
    ),
    "addcdiv": (
        lambda a, b, c, s: arithmetic.addcdiv(a, b, c, value=s),
        lambda a, b, c, s: a.addcdiv(b, c, value=s),
    ),
    "lerp": (lambda a, b, c, s: arithmetic.lerp(a, b, abs(s) % 1), lambda a, b, c, s: a.lerp(b, abs(s) % 1)),
    "mul scalar": (lambda a, b, c, s: arithmetic.mul(a, s), lambda a, b, c, s: a.mul(s)),
    "mul": (lambda a, b, c, s: arithmetic.mul(a, b), lambda a, b, c, s: a.mul(b)),
    "div scalar": (lambda a, b, c, s: arithmetic.div(a, s), lambda a, b, c, s: a.div(s)),
    "div": (lambda a, b, c, s: arithmetic.div(a, b), lambda a, b, c, s: a.div(b)),
    "scalar / tensor": (lambda a, b, c, s: arithmetic.scalar_div(a, s), lambda a, b, c, s: s / a),
    "add scalar": (lambda a, b, c, s: arithmetic.add_scalar(a, s), lambda a, b, c, s: a.add(s)),
    "neg": (lambda a, b, c, s: arithmetic.neg(a), lambda a, b, c, s: -a),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_rounds_as_aten_does(name, dtype):
    ours, theirs = OPERATIONS[name]
    for size in (0, 1, 7, 16, 33, 100, 1517):
        a, b, c = (numbers(dtype, size, seed + size) for seed in range(3))
        for s in SCALARS:
            same_bits(ours(a, b, c, s), theirs(*map(torch.from_numpy, (a, b, c)), s))
    a, b, c = (numbers(dtype, (41, 37), seed) for seed in range(3))  # strided, and 0-d
    same_bits(ours(a.T[::2], b.T[::2], c.T[::2], 0.3), theirs(*(torch.from_numpy(x).T[::2] for x in (a, b, c)), 0.3))
    a, b, c = (np.asarray(x[3, 5]) for x in (a, b, c))
    same_bits(ours(a, b, c, 0.3), theirs(*map(torch.from_numpy, (a, b, c)), 0.3))


@pytest.mark.parametrize("name", OPERATIONS)
def test_half_precision_rounds_as_atens_vectors_do(name):
    ours, theirs = OPERATIONS[name]
    a, b, c = (numbers(np.float16, 64 * 20, seed) for seed in range(3))
    for s in SCALARS:
        same_bits(ours(a, b, c, s), theirs(*map(torch.from_numpy, (a, b, c)), s))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("name", ["add", "mul scalar", "neg"])
def test_complex_operation_rounds_as_aten_does(name, dtype):
    ours, theirs = OPERATIONS[name]
    for size in (1, 7, 16, 33, 100):
        a, b = (numbers(dtype, size, seed) + 1j * numbers(dtype, size, seed + 9).astype(dtype) for seed in (1, 2))
        for s in SCALARS:
            result = ours(a, b, None, s), theirs(torch.from_numpy(a), torch.from_numpy(b), None, s)
            if name == "neg":  # ATen's complex vectors compute 0 - z: the sign of a zero depends on its position
                np.testing.assert_array_equal(*result)
            else:
                same_bits(*result)


def exact_fma(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c
    try:
        return float(exact)
    except OverflowError:
        return np.inf if exact > 0 else -np.inf


doubles = st.floats(allow_nan=False, allow_infinity=False)
floats = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=400, deadline=None)
@given(doubles, doubles, doubles)
def test_double_fma_rounds_once(a, b, c):
    result = arithmetic.fma(np.float64(a), np.float64(b), np.float64(c))
    assert result.tobytes() == np.float64(exact_fma(a, b, c)).tobytes()


@settings(max_examples=400, deadline=None)
@given(doubles, doubles, st.integers(-3, 3), st.floats(-2, 2))
def test_double_fma_survives_cancellation(a, b, steps, factor):
    with np.errstate(all="ignore"):
        c = -(np.float64(a) * np.float64(b))
    if not np.isfinite(c):
        return
    for _ in range(abs(steps)):
        c = np.nextafter(c, np.inf if steps > 0 else -np.inf)
    for addend in filter(math.isfinite, (float(c), float(c) * factor)):
        result = arithmetic.fma(np.float64(a), np.float64(b), np.float64(addend))
        assert result.tobytes() == np.float64(exact_fma(a, b, addend)).tobytes()


@settings(max_examples=400, deadline=None)
@given(floats, floats, floats)
def test_single_fma_is_not_rounded_twice(a, b, c):
    result = arithmetic.fma(np.float32(a), np.float32(b), np.float32(c))
    assert result.dtype == np.float32
    with np.errstate(all="ignore"):
        if result.size and np.isinf(result):
            assert abs(Fraction(a) * Fraction(b) + Fraction(c)) >= Fraction(2) ** 128 * (1 - Fraction(1, 2**25))
            return
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        assert result.tobytes() == np.float32(np.float32(a) * np.float32(b) + np.float32(c)).tobytes()
        return
    with np.errstate(over="ignore"):
        neighbours = [result, np.nextafter(result, np.float32(np.inf)), np.nextafter(result, np.float32(-np.inf))]
    errors = [abs(Fraction(float(x)) - exact) for x in neighbours if np.isfinite(x)]
    assert errors[0] == min(errors)
    if errors.count(errors[0]) > 1:
        assert int(result.view(np.uint32)) % 2 == 0


def test_single_fma_where_rounding_to_double_first_goes_wrong():
    a, b, c = np.float32(1 + 2**-12), np.float32(1 + 2**-12), np.float32(2.0**-60)
    # a*b = 1 + 2^-11 + 2^-24 is halfway between two float32; c decides upwards, but is lost in a double sum
    assert arithmetic.fma(a, b, c) == np.float32(1 + 2**-11 + 2**-23)
    assert arithmetic.fma(a, b, -c) == np.float32(1 + 2**-11)


def test_infinities_and_nan_come_out_as_from_the_plain_expression():
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1.0, -1.0, 1e300, 5e-324])
    for dtype in (np.float64, np.float32):
        with np.errstate(all="ignore"):
            values = special.astype(dtype)
        a, b, c = np.meshgrid(values, values, values, indexing="ij")
        ours = arithmetic.fma(a, b, c)
        wide = [torch.from_numpy(np.tile(x.ravel(), 3)) for x in (a, b, c)]
        if FUSED:  # addcmul with value 1 is one hardware fma an element
            same_bits(np.tile(ours.ravel(), 3), wide[2].addcmul(wide[0], wide[1]))


def test_context_chooses_fused_or_plain_and_the_square_root():
    a, b = np.array([1.0]), np.array([1 / 3])
    assert arithmetic.add(a, b, alpha=0.1).dtype == np.float64
    with rounding(fma=False):
        plain = arithmetic.add(numbers(np.float64, 500, 1), numbers(np.float64, 500, 2), alpha=0.1)
        with rounding(sqrt=lambda x: x * 0 + 7):
            assert not arithmetic.current().fma
            assert arithmetic.sqrt(a) == 7
    with rounding(fma=True):
        fused = arithmetic.add(numbers(np.float64, 500, 1), numbers(np.float64, 500, 2), alpha=0.1)
    assert (plain != fused).any()
    np.testing.assert_allclose(plain, fused, rtol=1e-10)


def test_default_follows_the_machine_and_atens_switch(monkeypatch):
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert arithmetic.current().fma == arithmetic.machine_has_fma()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert not arithmetic.current().fma


def test_overflow_and_division_by_zero_are_silent():
    tiny = np.array([0.0, 1e-300])
    assert np.isinf(arithmetic.scalar_div(tiny, 1e300)).all()
    assert np.isnan(arithmetic.sqrt(np.array(-1.0)))


@pytest.mark.skipif(not FUSED, reason="the plain kernels are the only ones on this machine")
def test_plain_kernels_round_as_the_unfused_column_says():
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            __file__,
            "-k",
            "aten_does or default_follows",
        ],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
