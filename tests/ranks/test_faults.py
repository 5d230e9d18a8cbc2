"""Faults of one rank, injected one at a time: the report names the cause, the step and the rank."""

from __future__ import annotations

import shutil

import pytest

import optrace

BITS = "blocks.0.attention.wq.weight"


@pytest.mark.parametrize(
    ("fault", "against", "code", "step", "words"),
    [
        (
            "missed-all-reduce",
            "ddp",
            "grad-unreduced",
            3,
            "all 30 params was not reduced at step 3: rank 1 used its own",
        ),
        (
            "layer-not-reduced",
            "ddp",
            "grad-unreduced",
            1,
            "w1.weight was not reduced at step 1: rank 1 and rank 0 used different ones",
        ),
        ("other-lr", "ddp", "replica-drift", 1, "lr is 0.003 on rank 0, 0.006 on rank 1"),
        ("bit-flip", "ddp", "replica-drift", 3, f"values of {BITS} since step 3"),
        ("older-step", "resumed", "replica-drift", 0, "step counter is 3 on rank 0, 2 on rank 1"),
        ("fsdp2-clip-local", "fsdp2-clip", "grad-clip", 1, "each rank clips by another total norm"),
        ("fsdp2-other-lr", "fsdp2", "replica-drift", 1, "lr is 0.003 on rank 0, 0.006 on rank 1 since step 1"),
        ("fsdp2-bit-flip", "fsdp2", "param-outside", 3, f"{BITS} changed outside the optimizer before step 3"),
    ],
)
def test_a_fault_of_one_rank_is_found_and_named(faults, fault, against, code, step, words):
    report = optrace.diff(faults / against, faults / fault)
    assert not report.same and report.first.step == step, str(report)
    assert report.causes[0].code == code and words in report.causes[0].summary, str(report)
    assert report.causes[0].fix
    if code in ("grad-unreduced", "replica-drift"):
        assert report.first.kind == "replica" and "rank 1" in report.first.b


def test_the_report_says_which_ranks_part_and_how_to_look_at_them(faults):
    report = optrace.diff(faults / "ddp", faults / "bit-flip")
    lines = str(report).splitlines()
    assert f"  first   step 3, optimizer 0 (AdamW), param_in of {BITS}: rank 1 apart from rank 0 in bit-flip" in lines
    assert "  same    start values, steps 1 to 2" in lines
    assert lines[-1] == f"  next    optrace diff {faults / 'bit-flip'}@rank=0 {faults / 'bit-flip'}@rank=1"
    of_ranks = optrace.diff(f"{faults / 'bit-flip'}@rank=0", f"{faults / 'bit-flip'}@rank=1")
    assert (of_ranks.first.step, of_ranks.first.quantity, of_ranks.first.param) == (3, "param_in", BITS)
    report = optrace.diff(faults / "other-lr", faults / "ddp")
    assert "all 30 params: rank 1 apart" not in str(report) and "in other-lr; the same at 29 other params" in str(
        report
    )


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("missed-all-reduce", "grad-unreduced", "was not reduced at step 3: rank 1 and rank 0 used different ones"),
        ("layer-not-reduced", "grad-unreduced", "the gradient of blocks.1.feed_forward.w1.weight was not reduced"),
        ("averaged", "grad-unreduced", "before step 4 the parameters are made equal again, as local SGD averages them"),
        ("other-lr", "replica-drift", "lr is 0.003 on rank 0, 0.006 on rank 1"),
        ("bit-flip", "replica-drift", "param changed between two steps on rank 1 alone"),
        ("older-step", "replica-drift", "the step counter is 3 on rank 0, 2 on rank 1"),
        ("fsdp2-other-lr", "replica-drift", "lr is 0.003 on rank 0, 0.006 on rank 1 since step 1"),
        ("fsdp2-clip-local", "clip-by-rank", "each rank clips the gradients of AdamW by another total norm"),
    ],
)
def test_the_linter_finds_a_fault_of_one_rank_without_another_run(faults, fault, code, words):
    report = optrace.lint(faults / fault)
    own = [finding for finding in report.findings if finding.code != "decay-on-norms"]  # 0.1 for all, here on purpose
    assert [finding.code for finding in own] == [code] and words in own[0].summary, str(report)


def test_the_odd_rank_is_found_without_another_run(faults):
    (drift,) = optrace.open(faults / "bit-flip").drifts
    assert (drift.step, drift.quantity, drift.params, drift.ranks, drift.others) == (3, "param_in", (BITS,), (1,), (0,))
    (drift,) = optrace.open(faults / "other-lr").drifts
    assert (drift.step, drift.quantity, len(drift.params)) == (1, "update", 30)


def test_of_many_ranks_the_one_that_differs_from_most_is_named(layouts, faults, tmp_path):
    run = shutil.copytree(layouts / "ddp-4", tmp_path / "run")
    shutil.rmtree(run / "rank=00002")
    shutil.copytree(faults / "other-lr" / "rank=00001", run / "rank=00002")  # it saw other halves of the batches
    (drift,) = optrace.open(run).drifts
    assert (drift.step, drift.quantity, drift.ranks, drift.others) == (1, "grad", (2,), (0, 1, 3))
    report = optrace.diff(layouts / "ddp-4", run)
    assert report.causes[0].code == "grad-unreduced", str(report)
    assert "was not reduced at step 1: rank 2 used its own" in report.causes[0].summary
    assert f"optrace diff {run}@rank=0 {run}@rank=2" in str(report)


def test_what_was_edited_in_one_shard_stands_beside_what_the_others_had(faults):
    """`param_in` is written by the rank that edited; the whole holds the other rank's values of the step before."""
    trace = optrace.open(faults / "fsdp2-bit-flip")
    row = trace.table("tensors", step=3, param=BITS, quantity="param_in").iloc[0]
    before, shard = (
        one.table("tensors", step=2, param=BITS, quantity="param").iloc[0] for one in (trace, trace.rank(1))
    )
    edited = trace.rank(1).table("tensors", step=3, param=BITS, quantity="param_in").iloc[0]
    assert trace.rank(0).table("tensors", step=3, quantity="param_in").empty and trace.incomplete == {}
    whole, own = (int(a["fingerprint"]) - int(b["fingerprint"]) for a, b in ((row, before), (edited, shard)))
    assert row["numel"] == 256 and (whole - own) % 2**64 == 0
    (drift,) = optrace.open(faults / "fsdp2-other-lr").drifts
    assert (drift.step, drift.quantity, drift.ranks, drift.others) == (1, "hyper.lr", (1,), (0,))


@pytest.mark.parametrize("sound", ["ddp", "by-hand", "resumed", "fsdp2-clip", "fsdp2"])
def test_ranks_that_agree_are_not_accused(faults, sound):
    assert optrace.open(faults / sound).drifts == []
    assert set(optrace.lint(faults / sound).codes) <= {"decay-on-norms"}


def test_gradients_reduced_by_hand_are_those_of_ddp(faults):
    report = optrace.diff(faults / "ddp", faults / "by-hand")
    assert report.same and report.exact.same, str(report)


def test_a_fault_in_both_runs_is_no_difference(faults):
    assert optrace.diff(faults / "bit-flip", faults / "bit-flip").same


def test_a_killed_rank_leaves_every_finished_step_readable(killed, faults):
    trace = optrace.open(killed)
    assert trace.rank(0).last_step() == 3 and trace.rank(1).last_step() == 2
    assert trace.last_step() == 3  # with DDP rank 0 holds all of it
    assert set(trace.rank(1).tensors["step"]) == {0, 1, 2}
    told = [problem for problem in trace.problems if problem.startswith("rank 1 stops after step 2")]
    assert told and "others go on to step 3" in told[0]
    report = optrace.diff(faults / "ddp", killed)
    assert report.same and report.extent.steps == 3
    assert any("rank 1 stops after step 2" in note for note in report.notes)
