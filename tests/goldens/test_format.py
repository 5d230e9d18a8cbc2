"""A golden survives CSV and safetensors bit for bit, ten lines can read it, and a hostile file is an error in words."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from optrace.errors import GoldenError
from optrace.goldens.format import (
    Golden,
    Row,
    parse_csv,
    parse_safetensors,
    read_golden,
    write_csv,
    write_number,
    write_safetensors,
)
from optrace.goldens.library import case_names, golden_folder, load, path_of

NAMES = st.text("abcxyz._0123456789é-", min_size=1, max_size=8)
DTYPES = st.sampled_from(["float64", "float32"])


def bits(values):
    values = np.ascontiguousarray(values)
    return np.where(np.isnan(values), np.nan, values).tobytes(), values.shape, values.dtype


@st.composite
def goldens(draw):
    dtype = draw(DTYPES)
    rows = {}
    for step in range(draw(st.integers(1, 3))):
        for param in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
            for quantity in ("param", "grad", "state.momentum_buffer", "hyper"):
                kind = np.float64 if quantity == "hyper" else np.dtype(dtype)
                values = draw(hnp.arrays(kind, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)))
                row = Row(step, 0 if quantity != "hyper" else step % 2, param, quantity, values)
                rows[row.key] = row
    notes = draw(st.dictionaries(st.text("abc_", min_size=1, max_size=5), NAMES, max_size=3))
    hyper = ({"lr": 0.1, "betas": [0.9, 0.999], "eps": None}, {"lr": 1e-3})
    return Golden("sgd", "drawn", dtype, hyper, 4.0, 36.0, tuple(rows.values()), notes)


@settings(max_examples=60, deadline=None)
@given(goldens())
def test_csv_and_safetensors_keep_every_bit(golden):
    text = write_csv(golden)
    back = parse_csv(text, "x")
    assert [(r.step, r.group, r.param, r.quantity) for r in back.rows] == [
        (r.step, r.group, r.param, r.quantity) for r in golden.rows
    ]
    for old, new in zip(golden.rows, back.rows, strict=True):
        assert bits(old.values) == bits(new.values)
    assert (back.hyper, back.dtype, dict(back.notes)) == (golden.hyper, golden.dtype, dict(golden.notes))
    assert write_csv(back) == text

    packed = parse_safetensors(write_safetensors(golden), "x")
    assert [row.step for row in packed.rows] == sorted(row.step for row in golden.rows)
    of_key = {row.key: row for row in packed.rows}
    assert len(of_key) == len(golden.rows)
    for row in golden.rows:
        assert bits(of_key[row.key].values) == bits(row.values)
        assert of_key[row.key].group == row.group


@settings(max_examples=300, deadline=None)
@given(st.floats(width=32), st.floats())
def test_numbers_are_short_and_read_back_to_the_same_bits(single, double):
    for value in (np.float32(single), np.float64(double)):
        text = write_number(value)
        assert len(text) <= 24
        back = type(value)(float(text))
        assert back.tobytes() == value.tobytes() or (np.isnan(back) and np.isnan(value))


def test_words_for_special_numbers():
    assert [write_number(np.float64(v)) for v in (np.nan, np.inf, -np.inf, -0.0, 0.1, 1e-9)] == [
        "nan",
        "inf",
        "-inf",
        "-0.0",
        "0.1",
        "1.0e-9",
    ]


def read_in_ten_lines(path):
    header, rows = {}, []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            key, _, value = line[2:].partition(": ")
            header[key] = value
        elif not line.startswith("step,"):
            step, group, param, quantity, shape, values = line.split(",")
            rows.append((int(step), int(group), param, quantity, shape, [float(v) for v in values.split()]))
    return header, rows


@pytest.mark.parametrize("name", case_names()[::17])
def test_a_reader_of_ten_lines_gets_the_same(name):
    golden = load(name)
    header, rows = read_in_ten_lines(path_of(name))
    assert header["rule"] == golden.rule
    assert json.loads(header["hyper"]) == [dict(group) for group in golden.hyper]
    assert len(rows) == len(golden.rows)
    for (step, group, param, quantity, shape, values), row in zip(rows, golden.rows, strict=True):
        assert (step, group, param, quantity) == (row.step, row.group, row.param, row.quantity)
        assert shape == "x".join(map(str, row.values.shape))
        assert bits(np.array(values).astype(row.values.dtype).reshape(row.values.shape)) == bits(row.values)


@pytest.mark.parametrize("name", case_names()[::23])
def test_the_safetensors_package_reads_the_same_numbers(name):
    from safetensors.numpy import load_file

    golden = load(name)
    tensors = load_file(path_of(name).with_suffix(".safetensors"))
    assert set(tensors) == {row.key for row in golden.rows}
    for row in golden.rows:
        assert bits(tensors[row.key].reshape(row.values.shape)) == bits(row.values)


GOOD = write_csv(
    Golden("sgd", "x", "float64", ({"lr": 0.1},), 4.0, 8.0, (Row(0, 0, "w", "param", np.array([1.0, 2.0])),))
)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0,0,w,param,2,1.0 2.0", "0,0,w,param,3,1.0 2.0", "2 values for the shape"),
        ("0,0,w,param,2,1.0 2.0", "0,0,w,param,2,1.0 two", "could not convert"),
        ("0,0,w,param,2,1.0 2.0", "zero,0,w,param,2,1.0 2.0", "x.csv:"),
        ("0,0,w,param,2,1.0 2.0", "0,0,w,param,2", "5 columns"),
        ("0,0,w,param,2,1.0 2.0", "0,0,w,param,-2,1.0 2.0", "shape"),
        ("0,0,w,param,2,1.0 2.0", "-1,0,w,param,2,1.0 2.0", "negative"),
        ("0,0,w,param,2,1.0 2.0", "999999999,0,w,param,2,1.0 2.0", "steps are missing"),
        ("0,0,w,param,2,1.0 2.0", "0,7,w,param,2,1.0 2.0", "group 7"),
        ("0,0,w,param,2,1.0 2.0", "0,0,w,param,99999999x99999999x99999999,1.0", "values for the shape"),
        ("# format: 1", "# format: 2", "format '2'"),
        ("# format: 1", "# format: " + "9" * 5000, "format '999"),
        ("# format: 1", "# format: ²", "format '²'"),
        ("# dtype: float64", "# dtype: object", "dtype 'object'"),
        ("# dtype: float64", "# dtype: complex64", "dtype 'complex64'"),
        ('# hyper: [{"lr": 0.1}]', '# hyper: [{{"lr": 0.1}]', "does not parse"),
        ('# hyper: [{"lr": 0.1}]', "# hyper: " + "[" * 100_000, "does not parse"),
        ('# hyper: [{"lr": 0.1}]', "# hyper: {}", "JSON list"),
        ("# tolerance_free: 8.0", "# tolerance_free: some", "does not parse"),
        ("# rule: sgd\n", "", "lacks the header lines rule"),
        ("# rule: sgd", "# rule", "not `# key: value`"),
        ("step,group,param,quantity,shape,values", "step,group", "expected the column names"),
        (
            "step,group,param,quantity,shape,values",
            "step;group;param;quantity;shape;values",
            "expected the column names",
        ),
        (GOOD, "", "no line of column names"),
        ("step,group,param,quantity,shape,values\n0,0,w,param,2,1.0 2.0\n", "", "no line of column names"),
    ],
)
def test_a_damaged_csv_is_an_error_that_says_where(old, new, said):
    assert old in GOOD
    with pytest.raises(GoldenError, match=said.replace("[", r"\[")):
        parse_csv(GOOD.replace(old, new), "x.csv")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_any_bytes_as_safetensors_are_refused_in_words(body, length):
    with pytest.raises(GoldenError):
        parse_safetensors(struct.pack("<Q", length) + body, "x")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_safetensors_file_with_one_byte_changed_is_read_or_refused(data):
    packed = bytearray(path_of("sgd/plain-float32").with_suffix(".safetensors").read_bytes())
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_safetensors(bytes(packed), "x")
    except GoldenError as error:
        assert str(error).startswith("x")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_csv_with_one_character_changed_is_read_or_refused(data):
    text = list(GOOD)
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.characters())
    try:
        parse_csv("".join(text), "x")
    except GoldenError as error:
        assert str(error).startswith("x")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8), st.sampled_from([".csv", ".safetensors"]))
def test_a_shipped_file_with_some_bytes_overwritten_is_read_or_refused(place, junk, suffix):
    whole = path_of("sgd/plain-float32").with_suffix(suffix).read_bytes()
    at = place % len(whole)
    data = whole[:at] + junk + whole[at + len(junk) :]
    try:
        if suffix == ".csv":
            parse_csv(data.decode(errors="replace"), "damaged")
        else:
            parse_safetensors(data, "damaged")
    except GoldenError as error:
        assert str(error).startswith("damaged")


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(GoldenError, match="cannot read"):
        read_golden(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GoldenError, match="no text"):
        read_golden(tmp_path / "bad.csv")


@pytest.mark.parametrize("name", ["a,b", "a\nb", " a", 'a"'])
def test_names_that_csv_cannot_hold_are_refused(name):
    golden = Golden("sgd", "x", "float64", ({},), 4.0, 8.0, (Row(0, 0, name, "param", np.zeros(1)),))
    with pytest.raises(GoldenError, match="cannot hold the name"):
        write_csv(golden)


def test_every_shipped_file_is_read_and_both_forms_agree():
    paths = sorted(golden_folder().glob("*/*.csv"))
    assert len(paths) > 500
    for path in paths:
        assert b"\r" not in path.read_bytes()
        golden = read_golden(path)
        assert golden.rows
        other = path.with_suffix(".safetensors")
        assert other.exists() == (path.parent.name != "wrong")
        if other.exists():
            twin = read_golden(other)
            packed = {row.key: row for row in twin.rows}
            assert (twin.name, packed.keys()) == (golden.name, {row.key for row in golden.rows})
            assert all(bits(packed[row.key].values) == bits(row.values) for row in golden.rows)


def test_all_of_it_stays_small():
    total = sum(path.stat().st_size for path in golden_folder().rglob("*") if path.is_file())
    assert total < 14_000_000
