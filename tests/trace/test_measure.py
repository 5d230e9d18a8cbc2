"""What measuring one tensor says: the design's fingerprints, statistics against exact sums, samples, widened floats."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from measuring import FLOATS, SPECIAL, job, raw_dtype, run, slow_fingerprint, sum_bound, tensor

from optrace.trace import measure as m
from optrace.trace.fingerprint import widen
from optrace.trace.jobs import NAMES


@pytest.fixture(params=["chosen", "numpy"])
def kernel(request: pytest.FixtureRequest) -> str:
    return request.param


def test_fingerprints_are_the_vectors_of_the_design():
    assert m.fingerprint(np.array([0x3F800000, 0x80000000, 0x7FC00000], dtype="u4").view("f4")) == 0xE3EDD74FEB8D7FC2
    assert m.fingerprint(np.array([1.5, 0, -2])) == 0x935295236A2712C0
    assert m.fingerprint(np.array([1 + 2j], dtype=np.complex64)) == 0x38DC5791B0C77860


@pytest.mark.parametrize("name", [name for name in NAMES if name == "bool" or raw_dtype(name) == name])
def test_fingerprint_is_the_formula_over_the_bits(name, kernel):
    values = tensor(name, 700)
    words = values.view(f"u{values.itemsize}")
    if name == "float16":
        words = widen(words, name)
    got = run(job(m.HASH, name, values), 1, kernel=kernel)["fingerprint"][0]
    assert int(got) % 2**64 == slow_fingerprint(words.tolist())


def test_order_position_and_sign_matter_and_zeros_do_not():
    values = np.array([1.0, 2.0, 0.0, 3.0])
    prints = [m.fingerprint(v) for v in (values, values[::-1], values[[1, 0, 2, 3]], -values, np.append(values, 0.0))]
    assert len(set(prints)) == 4
    assert prints[0] == prints[4]
    assert m.fingerprint(np.array([0.0])) == 0 != m.fingerprint(np.array([-0.0]))
    assert m.fingerprint(np.zeros(0)) == 0


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "int64", "uint8", "int16", "bool"])
@pytest.mark.parametrize("numel", [1, 17, 4099, 70_001])
def test_statistics_are_those_of_exact_sums(name, numel, kernel):
    values = tensor(name, numel)
    if name == "float64":
        values[np.abs(values) > 1e100] = 1e100
    row = run(job(m.STAT, name, values), 1, kernel=kernel)[0]
    exact = [float(v) for v in values.tolist()]
    finite = [v for v in exact if math.isfinite(v)]
    assert row["n_nan"] == sum(math.isnan(v) for v in exact)
    assert row["n_inf"] == sum(math.isinf(v) for v in exact)
    assert row["n_zero"] == sum(v == 0 for v in exact)
    assert (row["min"], row["max"]) == (min(finite), max(finite))
    bound, l1 = sum_bound(numel), math.fsum(map(abs, finite))
    assert abs(row["mean"] - math.fsum(finite) / len(finite)) <= bound * l1 / len(finite)
    assert abs(row["l1"] - l1) <= bound * l1
    l2 = math.sqrt(math.fsum(v * v for v in finite))
    assert abs(row["l2"] - l2) <= bound * l2


def test_float64_sums_hold_where_float32_sums_fail(kernel):
    values = np.full(3_000_000, 0.1, dtype=np.float32)
    row = run(job(m.STAT, "float32", values), 1, kernel=kernel)[0]
    exact = float(np.float32(0.1))
    assert row["mean"] == pytest.approx(exact, rel=1e-14)
    assert row["l2"] == pytest.approx(math.sqrt(3_000_000) * exact, rel=1e-14)


@pytest.mark.parametrize("size", [1e300, 1.7e308, 1e-200, 5e-324])
def test_norms_of_huge_and_tiny_values_neither_overflow_nor_vanish(size, kernel):
    values = np.array([size, -size, size, 0.0, np.inf])
    row = run(job(m.STAT, "float64", values), 1, kernel=kernel)[0]
    assert row["mean"] == pytest.approx(float(Fraction(size) / 4), rel=1e-15, abs=5e-324)
    assert row["l1"] == (float(3 * Fraction(size)) if size < 1e308 else math.inf)
    two = math.sqrt(3) * size if size < 1e308 else math.inf
    assert row["l2"] == pytest.approx(two, rel=1e-15, abs=5e-324)


def test_a_tensor_without_finite_values_has_nan_extrema_and_zero_norms(kernel):
    for values in (np.zeros(0), np.array([np.nan, np.inf, -np.inf])):
        row = run(job(m.STAT, "float64", values), 1, kernel=kernel)[0]
        assert np.isnan([row["mean"], row["min"], row["max"]]).all()
        assert (row["l1"], row["l2"], row["n_zero"]) == (0, 0, 0)
        assert (row["n_nan"], row["n_inf"]) == ((1, 2) if values.size else (0, 0))


def test_extrema_tell_no_sign_of_a_zero(kernel):
    row = run(job(m.STAT, "float64", np.array([-0.0, -0.0])), 1, kernel=kernel)[0]
    assert not np.signbit([row["min"], row["max"]]).any()
    assert row["n_zero"] == 2


@pytest.mark.parametrize("values", [[-3.0, -1.0], [2.0, 5.0], [-1.0, 7.0], [-7.0, 1.0], [-0.0, 4.0], [-4.0, 0.0]])
def test_extrema_of_every_mixture_of_signs(values, kernel):
    for name in ("float32", "float64", "float16"):
        row = run(job(m.STAT, name, np.array(values * 20, dtype=name)), 1, kernel=kernel)[0]
        assert (row["min"], row["max"]) == (min(values), max(values))


def test_sample_is_all_of_a_small_tensor_and_fixed_places_of_a_large_one(kernel):
    for numel in (0, 1, 16, 17, 1000, 99_991):
        values = np.arange(numel, dtype=np.float64)
        sample = run(job(m.STAT, "float64", values), 1, kernel=kernel)[0]["sample"]
        places = m.sample_indices(numel)
        assert sample[: len(places)].tolist() == places.tolist()
        assert np.isnan(sample[len(places) :]).all()
    assert m.sample_indices(1000).tolist()[:5] == [0, 999, 618, 236, 854]
    assert len(m.sample_indices(1000)) == 16


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "int32", "int64", "uint8"])
def test_update_is_the_float64_difference_and_the_statistics_are_of_after(name, kernel):
    after, before = tensor(name, 1300, seed=1), tensor(name, 1300, seed=2)
    if name == "float64":
        after[np.abs(after) > 1e100] = 1e100
        before[np.abs(before) > 1e100] = -1e100
    after[:200] = before[:200]
    rows = run(job(m.UPDATE, name, after, before, row=0, row2=1), 2, kernel=kernel)
    with np.errstate(invalid="ignore"):
        change = [float(a) - float(b) for a, b in zip(after.tolist(), before.tolist(), strict=True)]
    words = [0x7FF8000000000000 if math.isnan(c) else struct.unpack("<Q", struct.pack("<d", c))[0] for c in change]
    assert int(rows["fingerprint"][0]) % 2**64 == slow_fingerprint(words)
    finite = [c for c in change if math.isfinite(c)]
    assert (rows["min"][0], rows["max"][0]) == (min(finite), max(finite))
    assert rows["n_nan"][0] == sum(map(math.isnan, change))
    assert rows["n_zero"][0] == sum(c == 0 for c in change) >= 190
    assert rows["l1"][0] == pytest.approx(math.fsum(map(abs, finite)), rel=sum_bound(1300))
    np.testing.assert_array_equal(rows["sample"][0], np.array(change)[m.sample_indices(1300)])
    assert rows[1].tobytes() == run(job(m.STAT, name, after), 1, kernel=kernel)[0].tobytes()


def test_copy_copies_and_leaves_only_the_fingerprint(kernel):
    values, copy = tensor("float32", 40_000), np.zeros(40_000, dtype=np.float32)
    rows = np.full(2, 7, dtype=m.ROW)
    measured = run(job(m.COPY, "float32", values, copy), 1, kernel=kernel)
    assert copy.tobytes() == values.tobytes()
    m.measure(job(m.COPY, "float32", values, copy, row=1), rows)
    assert (
        int(rows["fingerprint"][1])
        == int(measured["fingerprint"][0])
        == run(job(m.STAT, "float32", values), 1)["fingerprint"][0]
    )
    assert rows["mean"].tolist() == rows["n_zero"].tolist() == [7, 7]
    assert rows["sample"].tolist() == [[7.0] * 16] * 2


@pytest.mark.parametrize("name", [name for name in FLOATS if name not in ("float64", "float32")])
def test_narrow_floats_measure_like_the_float32_that_torch_makes_of_them(name, kernel):
    narrow = torch.arange(256 if name.startswith("float8") else 65536)
    narrow = (
        narrow.to(torch.uint8).view(getattr(torch, name))
        if name.startswith("float8")
        else narrow.to(torch.uint16).view(getattr(torch, name))
    )
    wide = narrow.float()
    number = ~wide.isnan()
    raw = narrow.view(torch.uint8 if narrow.itemsize == 1 else torch.uint16).numpy()[number.numpy()].copy()
    single = wide[number].numpy()
    rows = run(job(m.STAT, name, raw), 1, kernel=kernel)
    expected = run(job(m.STAT, "float32", single), 1, kernel=kernel)
    assert rows.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("name", "bits", "expected"),
    [
        ("float16", 0x7C01, 0x7FC02000),
        ("float16", 0xFE12, 0xFFC24000),
        ("bfloat16", 0x7F81, 0x7F810000),
        ("float8_e4m3fn", 0xFF, 0xFFC00000),
        ("float8_e5m2", 0x7D, 0x7FE00000),
        ("float8_e4m3fnuz", 0x80, 0xFFC00000),
        ("float8_e5m2fnuz", 0x80, 0xFFC00000),
        ("float8_e8m0fnu", 0xFF, 0x7FC00000),
    ],
)
def test_narrow_nans_keep_sign_and_payload(name, bits, expected, kernel):
    values = np.full(40, bits, dtype=raw_dtype(name).str.replace("f", "u"))
    row = run(job(m.STAT, name, values), 1, kernel=kernel)[0]
    assert int(row["fingerprint"]) % 2**64 == slow_fingerprint([expected] * 40)
    assert row["n_nan"] == 40


def test_float32_and_narrow_copies_of_the_same_values_share_a_fingerprint():
    wide = torch.randint(-128, 128, (1000,)).float()
    bits = {"float16": wide.half().view(torch.uint16).numpy(), "bfloat16": wide.bfloat16().view(torch.uint16).numpy()}
    for name, narrow in bits.items():
        assert run(job(m.STAT, name, narrow), 1).tobytes() == run(job(m.STAT, "float32", wide.numpy()), 1).tobytes()


def test_arrays_are_measured_in_row_major_logical_order():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (base.T, base[::2, ::-1], base[:, 1:3], np.asfortranarray(base), base.astype(">f4")):
        expected = np.array(view.tolist(), dtype=np.float32)
        assert m.measure_array(view).tobytes() == m.measure_array(expected).tobytes()
    z = np.array([[1 + 2j, -0.0j]], dtype=np.complex128)
    assert m.measure_array(z).tobytes() == m.measure_array(np.array([1.0, 2.0, *z[0, 1:].view(float)])).tobytes()


def test_unknown_dtypes_are_named():
    with pytest.raises(TypeError, match="'str32'"):
        m.measure_array(np.array(["a"]))


def test_special_values_are_counted_one_by_one(kernel):
    for name, bits in SPECIAL.items():
        values = np.array(bits, dtype=f"u{raw_dtype(name).itemsize}").view(raw_dtype(name))
        row = run(job(m.STAT, name, values), 1, kernel=kernel)[0]
        assert (row["n_nan"], row["n_inf"], row["n_zero"]) == (3, 2, 2), name
