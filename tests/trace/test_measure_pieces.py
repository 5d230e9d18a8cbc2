"""Pieces of a tensor: shards add up to the whole, and memory in another order gives the logical fingerprint."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measuring import job, run, slow_fingerprint, tensor

from optrace.trace import measure as m

KERNELS = ["chosen", "numpy"]


def layout_of(sizes: list[int], strides: list[int]) -> np.ndarray:
    return np.array([len(sizes), *sizes, *strides], dtype=np.int64)


def row_major(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[d + 1 :], dtype=np.int64)) for d in range(len(shape))]


def sum_of_prints(rows: np.ndarray) -> int:
    return sum(int(f) for f in rows["fingerprint"]) % 2**64


def joined_samples(rows: np.ndarray) -> np.ndarray:
    """One sample from the pieces' samples, after a look that each slot has one owner."""
    held = ~np.isnan(rows["sample"])
    assert held.sum(axis=0).max() <= 1
    return np.where(held.any(axis=0), np.nansum(rows["sample"], axis=0), np.nan)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64", "int16"])
def test_flat_shards_add_up_to_the_whole(name, kernel):
    values = tensor(name, 70_000)
    whole = run(job(m.STAT, name, values), 1, kernel=kernel)[0]
    cuts = [0, 1, 17, 513, 33_000, 33_000, 70_000]
    pieces = [values[low:high] for low, high in itertools.pairwise(cuts)]
    rows = run(
        np.concatenate(
            [
                job(m.STAT, name, piece, row=k, index_base=cuts[k], global_numel=values.size)
                for k, piece in enumerate(pieces)
            ]
        ),
        len(pieces),
        kernel=kernel,
    )
    assert sum_of_prints(rows) == int(whole["fingerprint"]) % 2**64
    for field in ("n_nan", "n_inf", "n_zero"):
        assert rows[field].sum() == whole[field]
    np.testing.assert_array_equal(joined_samples(rows), whole["sample"])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(6, 8), (12, 10, 4), (300, 400), (5, 3, 4, 2)])
def test_box_shards_add_up_to_the_whole(shape, kernel):
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    whole = run(job(m.STAT, "float32", values.reshape(-1)), 1, kernel=kernel)[0]
    halves = [(slice(0, size // 3), slice(size // 3, size)) for size in shape]
    keep, jobs = [], []
    for box in itertools.product(*halves):
        piece = np.ascontiguousarray(values[box])
        strides = row_major(shape)
        layout = layout_of(list(piece.shape), strides)
        base = sum(part.start * stride for part, stride in zip(box, strides, strict=True))
        keep += [piece, layout]
        jobs.append(
            job(
                m.STAT,
                "float32",
                piece.reshape(-1),
                row=len(jobs),
                index_base=base,
                global_numel=values.size,
                layout=layout.ctypes.data,
            )
        )
    rows = run(np.concatenate(jobs), len(jobs), kernel=kernel)
    assert sum_of_prints(rows) == int(whole["fingerprint"]) % 2**64
    np.testing.assert_array_equal(joined_samples(rows), whole["sample"])
    assert (np.nanmin(rows["min"]), np.nanmax(rows["max"])) == (whole["min"], whole["max"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 6), min_size=0, max_size=5).flatmap(
        lambda shape: st.tuples(st.just(tuple(shape)), st.permutations(range(len(shape))))
    ),
    st.sampled_from(["float32", "float64", "uint8"]),
)
def test_dense_memory_in_any_order_of_dimensions_gives_the_logical_row(case, name):
    shape, order = case
    logical = np.arange(1, 1 + int(np.prod(shape, dtype=np.int64))).reshape(shape).astype(name)
    memory = np.ascontiguousarray(logical.transpose(order))
    strides = row_major(shape)
    layout = layout_of(list(memory.shape), [strides[d] for d in order])
    rows = [
        run(job(m.STAT, name, memory.reshape(-1), layout=layout.ctypes.data), 1, kernel=kernel)[0] for kernel in KERNELS
    ]
    expected = m.measure_array(logical)
    for row in rows:
        for field in m.ROW.names:
            if field not in ("mean", "l1", "l2"):
                assert row[field].tobytes() == expected[field].tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
def test_updates_and_copies_follow_the_layout(kernel):
    shape = (40, 70, 30)
    after, before = (np.random.default_rng(s).standard_normal(shape) for s in (1, 2))
    moved = [np.ascontiguousarray(x.transpose(0, 2, 1)) for x in (after, before)]
    layout, copy = layout_of([40, 30, 70], [2100, 1, 30]), np.zeros(after.size)
    pair = [x.reshape(-1) for x in moved]
    jobs = np.concatenate(
        [
            job(m.UPDATE, "float64", *pair, row=0, row2=1, layout=layout.ctypes.data),
            job(m.COPY, "float64", pair[0], copy, row=2, layout=layout.ctypes.data),
        ]
    )
    rows = run(jobs, 3, kernel=kernel)
    assert int(rows["fingerprint"][0]) % 2**64 == m.fingerprint(after - before)
    assert int(rows["fingerprint"][1]) % 2**64 == int(rows["fingerprint"][2]) % 2**64 == m.fingerprint(after)
    assert copy.tobytes() == moved[0].tobytes()
    np.testing.assert_array_equal(rows["sample"][0], (after - before).reshape(-1)[m.sample_indices(after.size)])


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_of_a_sparse_gradient_hash_like_the_dense_one(kernel):
    dense = np.zeros((50, 12), dtype=np.float32)
    held = [3, 17, 49]
    dense[held] = np.random.default_rng(0).standard_normal((3, 12))
    pieces = [dense[r].copy() for r in held]
    rows = run(
        np.concatenate([job(m.HASH, "float32", p, row=k, index_base=12 * held[k]) for k, p in enumerate(pieces)]),
        3,
        kernel=kernel,
    )
    assert sum_of_prints(rows) == m.fingerprint(dense) == slow_fingerprint(dense.reshape(-1).view(np.uint32).tolist())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", [[2, 3, 5, 5, 1], [1, 12, 0], [1, 12, -1], [65], [-1]])
def test_a_layout_that_does_not_fit_is_refused(layout, kernel):
    values, words = np.ones(12), np.array(layout + [1] * (131 - len(layout)), dtype=np.int64)
    with pytest.raises(ValueError, match="layout"):
        run(job(m.STAT, "float64", values, layout=words.ctypes.data), 1, kernel=kernel)
