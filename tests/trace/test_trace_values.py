"""Whole tensors: files that the safetensors package reads, and what comes back is what was handed over."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file
from storing import Story

import optrace
from optrace.errors import TraceError
from optrace.trace.reader import open_trace
from optrace.trace.values import ValuesFile, write_values

torch = pytest.importorskip("torch")
TORCH_DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8",
    "uint8", "uint16", "uint32", "uint64", "bool", "complex64", "complex128", "float8_e4m3fnuz", "float8_e5m2fnuz",
]  # fmt: skip


def tensor(dtype: str, shape: tuple[int, ...], seed: int = 0):
    """Every bit pattern may occur, among them NaN, infinities, subnormals."""
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, dtype)
    width = torch.empty(0, dtype=kind).element_size()
    if dtype == "bool":
        return torch.randint(0, 2, shape, generator=generator).bool()
    count = int(np.prod(shape)) * width
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(kind).reshape(shape)


def buffer(value) -> np.ndarray:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy()


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (7,), (3, 5), (256, 2)])
def test_every_dtype_and_shape_comes_back(tmp_path, dtype, shape):
    value = tensor(dtype, shape)
    write_values(tmp_path, 7, {"0/param/w": (dtype, shape, buffer(value))}, None)
    got = ValuesFile(tmp_path / "values" / "00000007.safetensors").read("0/param/w")
    wide = value.float() if dtype == "bfloat16" or dtype.startswith("float8") else value
    expected = wide.numpy()
    assert got.shape == shape and got.dtype == expected.dtype
    assert not got.flags.writeable
    if dtype == "bfloat16" or dtype.startswith("float8"):
        assert np.array_equal(got, expected, equal_nan=True)
        assert np.array_equal(np.signbit(got), np.signbit(expected)) or np.isnan(expected).any()
    else:
        assert got.tobytes() == expected.tobytes()


def test_the_safetensors_package_reads_our_files(tmp_path):
    values = {
        f"{k}/state.exp_avg/layer.{dtype}": (dtype, (3, 4), buffer(tensor(dtype, (3, 4), k)))
        for k in range(2)
        for dtype in TORCH_DTYPES
    }
    write_values(tmp_path, 3, values, None)
    path = tmp_path / "values" / "00000003.safetensors"
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == sorted(values)
        own = json.loads(file.metadata()["optrace.dtypes"])
        assert sorted(set(own.values())) == ["complex128", "complex64", "float8_e4m3fnuz", "float8_e5m2fnuz"]
        for key, (dtype, shape, data) in values.items():
            read = file.get_tensor(key)
            if key not in own:
                assert str(read.dtype) == f"torch.{dtype}" and tuple(read.shape) == shape
            assert read.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == data.tobytes()
    plain = {key: value for key, value in values.items() if value[0] in ("float64", "float32", "int16", "bool")}
    write_values(tmp_path, 4, plain, None)
    for key, array in load_file(tmp_path / "values" / "00000004.safetensors").items():
        assert array.tobytes() == plain[key][2].tobytes()


def test_every_tensor_starts_at_a_multiple_of_its_element_size(tmp_path):
    values = {f"0/param/{i}": ("bool" if i % 2 else "float64", (3,), bytes(3 if i % 2 else 24)) for i in range(9)}
    write_values(tmp_path, 1, values, None)
    file = ValuesFile(tmp_path / "values" / "00000001.safetensors")
    assert all(file.raw(key).flags.aligned for key in file.keys())


def test_two_optimizers_may_store_the_same_step(tmp_path):
    story = Story(tmp_path / "run", optimizers=2).tell(2)
    for optimizer in range(2):
        array = np.full((10, 1), optimizer, np.float32)
        story.writer.write_values(3, {f"{optimizer}/param/first.weight": ("float32", (10, 1), array)})
        story.tell_step(3, optimizer)
    trace = open_trace(tmp_path / "run")
    for optimizer in range(2):
        assert (trace.value(3, "first.weight", "param", optimizer=optimizer) == optimizer).all()
    story.writer.close()


def test_a_buffer_that_does_not_fit_leaves_no_file(tmp_path):
    for data in (np.zeros(3), np.zeros((4, 2))[:, 0], b"12345"):
        with pytest.raises(TraceError, match="'0/param/w'"):
            write_values(tmp_path, 1, {"0/param/w": ("float64", (4,), data)}, None)
    assert not (tmp_path / "values").exists() or not list((tmp_path / "values").iterdir())


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=10), st.integers(0, 3), max_size=5))
def test_any_key_comes_back(tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("rank")
    try:
        write_values(folder, 1, {key: ("int8", (size,), bytes(size)) for key, size in keys.items()}, None)
    except UnicodeEncodeError:
        return
    file = ValuesFile(folder / "values" / "00000001.safetensors")
    assert {key: file.read(key).size for key in file.keys()} == keys


HEADERS = {
    "no JSON": b"{",
    "a list": b"[]",
    "not UTF-8": b'{"\xff":1}',
    "an unknown dtype": b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,8]}}',
    "beyond the end": b'{"a":{"dtype":"F64","shape":[100],"data_offsets":[0,800]}}',
    "before the start": b'{"a":{"dtype":"F64","shape":[1],"data_offsets":[-8,0]}}',
    "another size": b'{"a":{"dtype":"F64","shape":[2],"data_offsets":[0,8]}}',
    "a huge shape": b'{"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,8]}}',
    "a float size": b'{"a":{"dtype":"F64","shape":[1.0],"data_offsets":[0,8]}}',
    "a missing field": b'{"a":{"dtype":"F64"}}',
    "deep nesting": b"[" * 100_000,
    "bad metadata": b'{"__metadata__":[1]}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_wrong_header_is_one_sentence(tmp_path, header):
    path = tmp_path / "00000001.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(TraceError, match="is damaged"):
        ValuesFile(path)


def test_a_truncated_or_absent_file_is_one_sentence(tmp_path):
    write_values(tmp_path, 1, {"0/param/w": ("float64", (4,), np.zeros(4))}, None)
    path = tmp_path / "values" / "00000001.safetensors"
    data = path.read_bytes()
    for size in (0, 5, 8, 20, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(TraceError, match="is damaged"):
            ValuesFile(path)
    path.unlink()
    with pytest.raises(TraceError, match="cannot read"):
        ValuesFile(path)


def test_values_come_from_the_file_the_sample_or_an_error_that_names_the_recording(tmp_path):
    story = Story(tmp_path / "run").tell(3)
    whole = np.arange(20, dtype=np.float32).reshape(2, 10)
    story.writer.write_values(4, {"0/param/second.weight": ("float32", (2, 10), whole)})
    story.tell(6, first=4)
    trace = open_trace(tmp_path / "run")
    assert np.array_equal(trace.value(4, "second.weight", "param"), whole)
    for name, shape in (("first.weight", (10, 1)), ("first.bias", (10,)), ("scale", ())):
        for quantity, dtype in (("param", "float32"), ("grad", "float32"), ("update", "float64")):
            value = trace.value(2, name, quantity)
            assert value.shape == shape and value.dtype == dtype
            assert value.tobytes() == story.arrays[2, 0, name, quantity].tobytes()
    assert trace.value(2, "first.weight", "state.momentum_buffer").shape == (10, 1)
    for arguments, words in {
        (2, "second.weight", "grad"): r"20 elements.*--values grad --steps 2 ",
        (2, "second.weight", "param"): r"--values full --steps 2 ",
        (3, "scale", "grad"): "was None at step 3",
        (2, "second.wait", "grad"): "no parameter 'second.wait'.*second.weight",
        (2, "scale", "state.exp_avg"): "it has grad, param, state.momentum_buffer, update",
        (7, "scale", "grad"): "finished steps 0 to 6, not 7",
        (-1, "scale", "grad"): "not -1",
        (2, "scale", "grad", 3): "no optimizer 3; it has 0 .SGD.",
    }.items():
        with pytest.raises(TraceError, match=words):
            trace.value(*arguments)
    with pytest.raises(TraceError, match="step '2' is no whole number"):
        trace.value("2", "scale", "grad")
    story.writer.close()


def test_a_parameter_of_another_optimizer_is_told_by_whom_it_is_held(tmp_path):
    weights = [torch.ones(2, requires_grad=True) for _ in range(2)]
    g, d = (torch.optim.SGD([(name, weight)], lr=0.1) for name, weight in zip("gd", weights, strict=True))
    with optrace.record(tmp_path / "run", quiet=True):
        for optimizer, weight in ((d, weights[1]), (g, weights[0])):
            weight.sum().backward()
            optimizer.step()
    with pytest.raises(TraceError, match=r"no parameter 'g' at step 1; there are d; 'g' is of optimizer 1: give optim"):
        optrace.value(tmp_path / "run", 1, "g", "grad")
    assert optrace.value(tmp_path / "run", 1, "g", "grad", optimizer=1).tolist() == [1, 1]


def test_stored_values_with_another_fingerprint_are_found_by_the_deep_check(tmp_path):
    story = Story(tmp_path / "run").tell(3)
    nan = story.arrays[3, 0, "first.bias", "update"]
    story.writer.write_values(3, {"0/update/first.bias": ("float64", (10,), nan)})
    story.writer.write_values(2, {"0/param/first.bias": ("float32", (10,), story.arrays[2, 0, "first.bias", "param"])})
    story.writer.write_values(1, {"0/param/first.bias": ("float32", (10,), np.zeros(10, np.float32))})
    story.writer.close()
    found = open_trace(tmp_path / "run").verify()
    assert found == [
        "rank=00000: values/00000001.safetensors: 0/param/first.bias does not have the fingerprint of its row"
    ]
