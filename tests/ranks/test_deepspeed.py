"""DeepSpeed ZeRO on two ranks: its flattened parameters read as those of the model, and compare with DDP's."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from transformer import make

import optrace
from optrace.trace.measure import fingerprint

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")

RUNS = "zero2-robin zero3-full zero0-groups zero1-groups zero3-groups-small zero1-bf16-accum zero0-bf16".split()


@pytest.fixture(scope="session")
def zero(launch, made_once):
    """A folder with the runs of RUNS."""

    def make(out):
        for run in RUNS:
            launch("deepspeed_zero", 2, out, 4, run)

    return made_once("zero", make)


@pytest.mark.parametrize("run", ["zero2-robin", "zero3-full"])
def test_partitioned_stages_are_data_parallel_to_the_bit(layouts, zero, run):
    report = optrace.diff(layouts / "ddp-2", zero / run)
    assert report.same and report.exact.same, str(report)
    assert report.extent.params == 30 and report.extent.steps == 4 and not report.only_in_a + report.only_in_b


@pytest.mark.parametrize("run", ["zero1-groups", "zero3-groups-small"])
def test_groups_that_are_stepped_one_after_the_other_are_one_step_as_in_stage_0(zero, run):
    report = optrace.diff(zero / "zero0-groups", zero / run)
    assert report.same and report.exact.same, str(report)
    assert report.extent.params == 30 and report.extent.steps == 4 and not report.only_in_a + report.only_in_b
    plain, trace = optrace.open(zero / "zero0-groups"), optrace.open(zero / run)
    assert trace.last_step() == 4 and trace.steps["loss"].tolist() == plain.steps["loss"].tolist()
    assert trace.groups[["step", "group", "lr", "weight_decay"]].equals(
        plain.groups[["step", "group", "lr", "weight_decay"]]
    )


@pytest.mark.parametrize("run", ["zero2-robin", "zero3-full", "zero1-groups", "zero3-groups-small"])
def test_each_rank_holds_a_part_and_all_together_the_whole(layouts, zero, run):
    trace, plain = optrace.open(zero / run), optrace.open(layouts / "single")
    assert trace.problems == [] and trace.drifts == [] and trace.verify() == []
    assert [name for _, name in trace.optimizers] == ["AdamW"]
    columns = ["param", "shape", "numel"]
    own, theirs = (one.params.sort_values("param")[columns].reset_index(drop=True) for one in (trace, plain))
    assert own.equals(theirs)
    held = [trace.rank(rank).table("tensors", step=1, quantity="update")["numel"].sum() for rank in trace.ranks]
    assert sum(held) == plain.params["numel"].sum() and min(held) > 0.4 * sum(held)


@pytest.mark.parametrize(("run", "steps"), [("zero1-bf16-accum", 4), ("zero0-bf16", 5)])
def test_the_float32_copies_of_a_16_bit_model_have_its_names(zero, run, steps):
    """Without partitions DeepSpeed begins with a step of its own, from zero gradients."""
    trace, model = optrace.open(zero / run), make()
    assert trace.problems == [] and trace.drifts == [] and trace.verify() == [] and trace.last_step() == steps
    assert set(trace.params["param"]) == {name for name, _ in model.named_parameters()}
    start = trace.table("tensors", step=0, quantity="param").set_index("param")
    for name, param in model.named_parameters():
        rounded = param.detach().bfloat16().float().numpy()
        assert start.loc[name, "fingerprint"] == np.int64(np.uint64(fingerprint(rounded) % 2**64)), name
        assert start.loc[name, "dtype"] == "float32" and start.loc[name, "numel"] == param.numel()
    assert trace.steps["n_backward"].tolist() == [0] * (steps - 4) + [1] * 4


def test_whole_values_are_put_together_from_flattened_parts(layouts, zero):
    parts, whole = optrace.open(zero / "zero3-full"), optrace.open(layouts / "single-full")
    for param in whole.params["param"]:
        assert np.array_equal(whole.value(0, param, "param"), parts.value(0, param, "param")), param
        one, other = whole.value(4, param, "state.exp_avg"), parts.value(4, param, "state.exp_avg")
        assert one.shape == other.shape and np.allclose(one, other, rtol=0, atol=1e-6), param
