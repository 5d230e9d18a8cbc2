"""One training in many layouts reads as one run: equal in bits where the sums are, within rounding where not."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from partial import local_gradient

import optrace
from optrace.compare.source import open_source
from optrace.trace.measure import fingerprint
from optrace.views.overview import overview

ALL = ["ddp-2", "fsdp2-2", "tp-2", "fsdp1-2", "fsdp1-flat-2", "ddp-4", "fsdp2-4", "both-4", "hsdp-4"]


@pytest.mark.parametrize("layout", ALL)
def test_every_layout_is_the_same_as_the_single_process_within_rounding(layouts, layout):
    report = optrace.diff(layouts / "single", layouts / layout)
    assert report.same and report.lane == "tolerance" and not report.exact.same, str(report)
    assert report.extent.params == 30 and report.extent.steps == 4 and not report.only_in_a + report.only_in_b
    assert any("other layout" in note for note in report.notes)
    assert report.tolerance.max_eps < 16


def test_the_same_sums_in_another_layout_are_the_same_to_the_bit(layouts):
    for one, other in (("ddp-2", "fsdp2-2"), ("ddp-2", "fsdp1-2"), ("ddp-2", "fsdp1-flat-2")):
        report = optrace.diff(layouts / one, layouts / other)
        assert report.same and report.exact.same, str(report)


@pytest.mark.parametrize("pair", [("ddp-4", "fsdp2-4"), ("fsdp2-4", "hsdp-4"), ("tp-2", "both-4"), ("ddp-2", "ddp-4")])
def test_two_layouts_are_the_same_within_rounding(layouts, pair):
    report = optrace.diff(layouts / pair[0], layouts / pair[1])
    assert report.same, str(report)


@pytest.mark.parametrize("layout", ALL)
def test_start_values_have_the_fingerprints_of_the_single_process(layouts, layout):
    """No arithmetic lies before step 0: shards must add up to the same bits."""
    one, other = (optrace.open(layouts / name).table("tensors", step=0) for name in ("single", layout))
    columns = ["param", "quantity", "numel", "n_zero", "min", "max", "fingerprint"]
    one, other = (frame.sort_values(["param", "quantity"])[columns].reset_index(drop=True) for frame in (one, other))
    assert one.equals(other)


@pytest.mark.parametrize("layout", ALL)
def test_ranks_agree_on_names_steps_and_events(layouts, layout):
    trace = optrace.open(layouts / layout)
    assert trace.ranks == list(range(int(layout[-1]))) and trace.problems == [] and trace.drifts == []
    assert trace.last_step() == 4 and trace.rank_info["end"] == "clean" and trace.verify() == []
    kinds = [list(trace.rank(n).events["kind"]) for n in trace.ranks]
    assert all(one == kinds[0] for one in kinds)
    order = sorted if "flat" in layout else list  # each module's flat parameter comes after those around it
    own, theirs = (
        order(zip(one.params["param"], map(tuple, one.params["shape"]), strict=True))
        for one in (trace, optrace.open(layouts / "single"))
    )
    assert own == theirs


def test_statistics_of_shards_are_those_of_the_whole(layouts):
    trace = optrace.open(layouts / "fsdp2-full-2")
    frame = trace.table("tensors", step=3, param="embedding.weight").set_index("quantity")
    for quantity in ("param", "grad", "state.exp_avg"):
        value = trace.value(3, "embedding.weight", quantity).astype(np.float64)
        row = frame.loc[quantity]
        assert value.shape == (24, 16) and row["numel"] == value.size
        assert row["fingerprint"] == np.int64(np.uint64(fingerprint(value.astype(np.float32)) % 2**64))
        assert np.isclose(row["mean"], value.mean(), rtol=1e-12, atol=1e-18)
        assert np.isclose(row["l1"], np.abs(value).sum(), rtol=1e-12)
        assert np.isclose(row["l2"], np.sqrt((value**2).sum()), rtol=1e-12)
        assert (row["min"], row["max"]) == (value.min(), value.max())
        assert row["n_zero"] == (value == 0).sum()
        assert row["sample"][0] == value.flat[0] and row["sample"][1] == value.flat[-1]


def test_whole_values_are_put_together_from_the_shards(layouts):
    whole, parts = optrace.open(layouts / "single-full"), optrace.open(layouts / "fsdp2-full-2")
    for param in whole.params["param"]:
        assert np.array_equal(whole.value(0, param, "param"), parts.value(0, param, "param")), param
        one, other = whole.value(4, param, "param"), parts.value(4, param, "param")
        assert one.shape == other.shape and np.allclose(one, other, rtol=0, atol=1e-5), param
    assert parts.rank(0).value(4, "head.weight", "param").shape == (4, 16)  # 7 rows over 2 ranks
    assert parts.rank(1).value(4, "head.weight", "param").shape == (3, 16)


def test_ranks_that_hold_nothing_of_a_parameter_are_normal(layouts):
    trace, single = (optrace.open(layouts / name) for name in ("fsdp2-4", "single"))
    for quantity in ("param", "grad", "state.exp_avg"):
        selection = {"step": 1, "param": "temperature", "quantity": quantity}
        row, own = (one.table("tensors", **selection).iloc[0] for one in (trace, single))
        assert row["numel"] == own["numel"] == 1 and np.isclose(row["l2"], own["l2"], rtol=1e-5), quantity
    held = [trace.rank(n).table("tensors", step=0, param="temperature")["numel"].tolist() for n in trace.ranks]
    assert held == [[1], [0], [0], [0]]


def test_what_was_not_stored_whole_names_the_recording_that_would_have_it(layouts):
    with pytest.raises(optrace.errors.TraceError, match="--values full --steps 2 would have it"):
        optrace.open(layouts / "fsdp2-2").value(2, "embedding.weight", "param")


def test_zero_redundancy_partitions_read_as_one_optimizer(layouts):
    """The wrapper is an optimizer of its own; the one within it holds on each rank another part of the params."""
    trace = optrace.open(layouts / "zero-2")
    inner = next(index for index, name in trace.optimizers if name == "AdamW")
    held = [set(trace.rank(n).table("params", optimizer=inner)["param"]) for n in trace.ranks]
    assert not held[0] & held[1] and len(held[0] | held[1]) == 30
    for one, other in (("ddp-2@AdamW", "zero-2@AdamW"), ("ddp-2", "zero-2"), ("zero-2", "ddp-2")):
        report = optrace.diff(layouts / one, layouts / other)
        assert report.same and report.exact.same and report.extent.params == 30, str(report)
    assert any("ZeroRedundancyOptimizer hands its steps on" in note for note in report.notes)


def test_losses_are_the_mean_over_the_ranks(layouts):
    one, other = (optrace.open(layouts / name).steps["loss"] for name in ("single", "ddp-2"))
    assert np.allclose(one, other, rtol=1e-6)
    own = [optrace.open(layouts / "ddp-2").rank(n).steps["loss"] for n in (0, 1)]
    assert np.allclose(other, (own[0] + own[1]) / 2, rtol=1e-15)


def test_a_run_that_was_started_again_reads_as_one_run_each_time(layouts, tmp_path):
    run = shutil.copytree(layouts / "ddp-2", tmp_path / "run")
    for rank in ("rank=00000", "rank=00001"):
        shutil.copytree(layouts / "fsdp2-2" / rank, run / f"{rank}.1")
    trace = optrace.open(run)
    assert trace.problems == ["ranks 0, 1 were started again: run@restart=1 is what they recorded then"]
    assert optrace.diff(layouts / "ddp-2", run).exact.same
    again, own = trace.restart(1), optrace.open(layouts / "fsdp2-2")
    assert again.ranks == [0, 1] and again.problems == [] and again.verify() == []
    for table in ("params", "groups", "steps", "tensors", "events"):
        assert again.table(table).equals(own.table(table)), table
    report = optrace.diff(layouts / "fsdp2-2", f"{run}@restart=1")
    assert report.same and report.exact.same, str(report)
    assert optrace.diff(f"{layouts / 'fsdp2-2'}@rank=1", f"{run}@restart=1@rank=1").exact.same
    assert again.rank(1).rank_path == run / "rank=00001.1"
    with pytest.raises(optrace.errors.TraceError, match="was not started again 2 times; it was 1 times"):
        optrace.diff(run, f"{run}@restart=2")
    shutil.copytree(run / "rank=00001", run / "rank=00002.1")  # a rank that the first start had not
    assert optrace.open(run).problems == ["ranks 0, 1, 2 were started again: run@restart=1 is what they recorded then"]
    shutil.copytree(run / "rank=00000", run / "rank=00000.2")  # and a start with one rank alone
    assert "ranks   " not in overview(open_source(f"{run}@restart=2"))


def test_gradients_that_are_sums_over_ranks_read_as_their_sum(partial):
    trace = optrace.open(partial / "partial-2")
    assert trace.drifts == [] and trace.problems == []
    for step in (1, 2, 3):
        row = trace.table("tensors", step=step, param="w", quantity="grad").iloc[0]
        summed = (local_gradient(step, 0) + local_gradient(step, 1)).double().numpy().ravel()
        assert row["numel"] == 18 and np.isclose(row["mean"], summed.mean(), rtol=0, atol=1e-7)
        assert row["sample"][0] == pytest.approx(summed[0], abs=1e-7)
        assert row["sample"][1] == pytest.approx(summed[-1], abs=1e-7)
        assert np.isnan(row["l2"]) and np.isnan(row["min"]), "a norm of a sum does not follow from those of its parts"
    report = optrace.diff(partial / "partial-1", partial / "partial-2")
    assert report.same, str(report)
    updates = [optrace.open(partial / name).table("tensors", quantity="update") for name in ("partial-1", "partial-2")]
    assert updates[0]["fingerprint"].tolist() == updates[1]["fingerprint"].tolist()


def test_the_overview_says_whether_it_shows_the_run_or_a_rank(layouts):
    run = str(layouts / "ddp-2")
    whole, alone = overview(open_source(run)), overview(open_source(f"{run}@rank=1"))
    assert f"ranks   2, read as one run; one of them alone is {run}@rank=1" in whole
    assert "          ranks 0-1  4 steps, 4,856 elements, ended cleanly\n" in whole
    assert f"optrace lint {run}   (do the ranks agree?)" in whole
    assert "rank    1 alone, of 2" in alone and "agree" not in alone and "ranks 0-1" not in alone


def test_the_overview_says_which_rank_holds_how_much_and_where_it_stops(layouts, killed):
    sharded, torn = (overview(open_source(str(path))) for path in (layouts / "fsdp2-2", killed))
    elements = [optrace.open(layouts / "fsdp2-2").rank(n).table("tensors", step=0)["numel"] for n in (0, 1)]
    for rank, held in enumerate(elements):
        assert f"rank {rank}  4 steps, {held.sum():,} elements, ended cleanly\n" in sharded
    assert "rank 0  3 steps, 4,856 elements" in torn
    assert "rank 1  2 steps, 4,856 elements, not ended: running, or killed\n" in torn


def test_a_rank_can_be_compared_alone(layouts):
    report = optrace.diff(f"{layouts / 'ddp-2'}@rank=0", f"{layouts / 'ddp-2'}@rank=1")
    assert report.same and report.exact.same
