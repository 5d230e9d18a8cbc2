"""Golden files read back to the same bits, in ten lines of anything, and hostile ones are refused in a sentence."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optrace.errors import GoldenError
from optrace.goldens.format import Golden, Row, parse_csv, parse_safetensors, read_golden, write_csv, write_safetensors
from optrace.goldens.library import golden_folder

GOLDENS = sorted(golden_folder().glob("*/*.csv"))
ONE = (golden_folder() / "sgd" / "momentum.csv").read_text()

shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def rows(dtype):
    return st.builds(
        Row,
        st.integers(0, 20),
        st.integers(0, 3),
        st.sampled_from(["w", "layer.0.bias", "x-y"]),
        st.sampled_from(["param", "grad", "state.exp_avg"]),
        arrays.arrays(np.dtype(dtype), shapes, elements=arrays.from_dtype(np.dtype(dtype))),
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_value_reads_back_to_the_same_bits(dtype, data):
    made = data.draw(st.lists(rows(dtype), max_size=6, unique_by=lambda row: row.key))
    made = [Row(i, 0, row.param, row.quantity, row.values) for i, row in enumerate(made)]  # no step is missing
    golden = Golden("sgd", "drawn", dtype, ({"lr": 0.1},), 4.0, 8.0, tuple(made))
    for back in (
        parse_csv(write_csv(golden), "drawn"),
        parse_safetensors(write_safetensors(golden), "drawn"),
    ):
        assert [(r.step, r.group, r.param, r.quantity) for r in back.rows] == [
            (r.step, r.group, r.param, r.quantity) for r in made
        ]
        for one, other in zip(back.rows, made, strict=True):
            assert one.values.shape == other.values.shape
            assert one.values.dtype == other.values.dtype
            nan = np.isnan(other.values)
            assert (np.isnan(one.values) == nan).all()
            assert one.values[~nan].tobytes() == other.values[~nan].tobytes()


def read_in_ten_lines(text):
    """What a port in another language would write."""
    header, table = {}, {}
    for line in text.splitlines():
        if line.startswith("#"):
            key, _, value = line[2:].partition(": ")
            header[key] = value
        elif not line.startswith("step,"):
            step, _, param, quantity, shape, values = line.split(",")
            sizes = [int(n) for n in shape.split("x")] if shape else []
            table[int(step), param, quantity] = (sizes, [float(v) for v in values.split()])
    return header, table


def test_ten_lines_read_what_the_reader_reads():
    header, table = read_in_ten_lines(ONE)
    golden = parse_csv(ONE, "momentum")
    assert (header["rule"], header["dtype"]) == (golden.rule, golden.dtype)
    assert len(table) == len(golden.rows)
    for row in golden.rows:
        sizes, values = table[row.step, row.param, row.quantity]
        assert tuple(sizes) == row.values.shape
        assert values == row.values.ravel().tolist()


def test_both_files_of_every_case_hold_the_same():
    assert len(GOLDENS) > 300
    for path in GOLDENS[::7]:
        other = path.with_suffix(".safetensors")
        if other.exists():
            one, two = read_golden(path), read_golden(other)
            assert one.name == two.name
            assert sorted(row.key for row in one.rows) == sorted(row.key for row in two.rows)
            by_key = {row.key: row.values for row in two.rows}
            assert all(row.values.tobytes() == by_key[row.key].tobytes() for row in one.rows)


def test_the_shipped_goldens_stay_small_and_lf():
    size = sum(path.stat().st_size for path in golden_folder().rglob("*") if path.is_file())
    assert size <= 15_000_000
    assert all(b"\r" not in path.read_bytes() for path in GOLDENS[::5])


def test_a_momentum_golden_is_what_torch_computes_now():
    torch = pytest.importorskip("torch")
    golden = parse_csv(ONE, "momentum")
    torch.set_num_threads(1)
    start = golden.at(0, "param")
    params = {name: torch.tensor(values, requires_grad=True) for name, values in start.items()}
    options = {k: v for k, v in golden.hyper[0].items()}
    optimizer = torch.optim.SGD(params.values(), foreach=False, **options)
    for step in range(1, golden.steps + 1):
        for name, grad in golden.at(step, "grad").items():
            params[name].grad = torch.tensor(grad)
        optimizer.step()
        for name, values in golden.at(step, "param").items():
            np.testing.assert_array_almost_equal_nulp(params[name].detach().numpy(), values, nulp=16)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "", "column names"),
        (lambda text: text.replace("# format: 1", "# format: 99"), "format"),
        (lambda text: text.replace("# dtype: float64", "# dtype: complex64"), "dtype"),
        (lambda text: text.replace("# hyper: [", "# hyper: ["[:-1] + "{"), "hyper|header"),
        (lambda text: text.replace("0,0,w,param,2x3,", "0,0,w,param,2x4,"), "momentum"),
        (lambda text: text.replace("0,0,w,param,2x3,", "zero,0,w,param,2x3,"), "momentum"),
        (lambda text: text.replace("0.8093", "eight"), "eight|float"),
        (lambda text: text.replace("step,group,param", "step;group;param"), "column"),
        (lambda text: text.replace("# rule: sgd\n", ""), "rule"),
    ],
)
def test_hostile_files_are_refused_in_a_sentence(damage, words):
    with pytest.raises(GoldenError, match=words):
        parse_csv(damage(ONE), "momentum")


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=8), st.booleans())
def test_damaged_files_raise_nothing_but_golden_errors(place, junk, binary):
    whole = write_safetensors(parse_csv(ONE, "momentum")) if binary else ONE.encode()
    at = place % len(whole)
    data = whole[:at] + junk + whole[at + len(junk) :]
    try:
        if binary:
            parse_safetensors(data, "damaged")
        else:
            parse_csv(data.decode(errors="replace"), "damaged")
    except GoldenError:
        pass
