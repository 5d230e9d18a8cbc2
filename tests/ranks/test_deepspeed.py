"""DeepSpeed ZeRO on two ranks, where DeepSpeed is installed: what needs no names of parameters is exact."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import optrace

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")


@pytest.fixture(scope="module")
def zero(launch, tmp_path_factory):
    """A folder with `ddp-2` and `zero0` to `zero3`."""
    out = tmp_path_factory.mktemp("zero")
    launch("layouts", 2, out, 4, "ddp")
    for stage in range(4):
        launch("deepspeed_zero", 2, out, 4, stage)
    return out


def test_stage_0_is_data_parallel_to_the_bit(zero):
    report = optrace.diff(zero / "ddp-2", zero / "zero0")
    assert report.same and report.exact.same and report.extent.params == 30, str(report)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_partitions_of_flat_parameters_add_up(zero, stage):
    trace, plain = optrace.open(zero / f"zero{stage}"), optrace.open(zero / "ddp-2")
    assert trace.problems == [] and trace.drifts == []
    assert [name for _, name in trace.optimizers] == ["AdamW"] and trace.last_step() == 4
    assert trace.steps["loss"].tolist() == plain.steps["loss"].tolist()
    assert trace.groups[["lr", "betas.0", "weight_decay"]].equals(plain.groups[["lr", "betas.0", "weight_decay"]])
    (held,) = {trace.rank(rank).table("tensors", step=1, quantity="grad")["numel"].item() for rank in trace.ranks}
    assert trace.params["numel"].item() == 2 * held >= plain.params["numel"].sum()  # padded to equal parts
    for quantity in ("grad", "update", "param", "state.exp_avg"):
        own = trace.table("tensors", step=(1, None), quantity=quantity).groupby("step")["l2"].sum()
        norms = plain.table("tensors", step=(1, None), quantity=quantity).groupby("step")["l2"].agg(np.linalg.norm)
        assert np.allclose(own, norms, rtol=1e-12, atol=0), quantity


def test_stages_1_and_2_are_the_same_to_the_bit(zero):
    assert optrace.diff(zero / "zero1", zero / "zero2").exact.same
