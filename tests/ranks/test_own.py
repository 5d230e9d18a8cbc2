"""Layers of the ranks' own under one name are read as such; what may be replicas that never agreed is said to be."""

from __future__ import annotations

import numpy as np
import pytest
from own import STEPS, whole

import optrace
from optrace.compare.source import open_source
from optrace.views.overview import overview

LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias")
CASES = "stages stages-named stages-unlike experts experts-other no-broadcast unreduced neither pipeline".split()
EXPERT = tuple(f"expert.{name}" for name in LAYERS)


@pytest.fixture(scope="session")
def own(launch, made_once):
    """A folder with a run for each case of the program `own`."""

    def make(out):
        launch("own", 2, out, *CASES)
        launch("own", 4, out, "stages-sharded", "stages-sharded-named")

    return made_once("own", make)


def rank_rows(trace, rank, param):
    """What one rank recorded of a parameter."""
    return trace.rank(rank).table("tensors", param=param).drop(columns="param")


@pytest.mark.parametrize(
    ("case", "names", "camps", "certain"),
    [
        ("stages", LAYERS, ((0,), (1,)), False),
        ("stages-unlike", LAYERS, ((0,), (1,)), True),
        ("experts", EXPERT, ((0,), (1,)), False),
        ("stages-sharded", LAYERS, ((0, 1), (2, 3)), False),
    ],
)
def test_each_ranks_own_parameters_are_all_in_the_run(own, case, names, camps, certain):
    trace = optrace.open(own / case)
    (found,) = trace.own
    assert (found.params, found.camps, found.certain) == (names, camps, certain)
    assert trace.drifts == [] and trace.problems == []
    lead = camps[1][0]
    for name in names:
        second = trace.table("tensors", param=f"{name}@rank{lead}").drop(columns="param")
        alone = rank_rows(trace, lead, name)
        if len(camps[0]) == 1:
            assert second.equals(alone) and len(second), name
        else:
            assert (second["numel"] >= alone["numel"]).all() and len(second) == len(alone), name
    params = trace.params.set_index("param")
    sizes = [
        int(np.prod(trace.rank(camp[0]).params.set_index("param").loc[name, "shape"]))
        for camp in camps
        for name in names
    ]
    mine = [name for name in params.index if name.split("@")[0] in names]
    assert sum(params.loc[mine, "numel"]) == sum(sizes) and len(mine) == 2 * len(names)


def test_what_ranks_share_beside_their_own_counts_once(own):
    trace = optrace.open(own / "experts")
    assert [name for name in trace.params["param"] if name.startswith("router")] == [f"router.{n}" for n in LAYERS]


@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("stages", "replica-drift", "rank 0 and rank 1 start from other values of all 4 params, and no gradient"),
        (
            "experts",
            "replica-drift",
            "either layers of the ranks' own under one name (stages of a pipeline, experts), or",
        ),
        ("neither", "replica-drift", "or a model that was neither broadcast nor reduced"),
        ("no-broadcast", "replica-drift", "rank 1 and rank 0 hold different values of"),
        ("unreduced", "grad-unreduced", "the gradient of all 8 params was not reduced at step 1"),
    ],
)
def test_what_may_be_drift_is_told_with_the_other_reading(own, case, code, words):
    (finding,) = [one for one in optrace.lint(own / case).findings if one.code != "decay-on-norms"]
    assert finding.code == code and words in finding.summary
    assert "where each rank has layers or experts of its own, give them names of their own" in finding.fix


@pytest.mark.parametrize("case", ["no-broadcast", "unreduced"])
def test_ranks_that_agree_in_anything_are_replicas(own, case):
    """A gradient that was reduced, or equal start values: what parts then is drift."""
    trace = optrace.open(own / case)
    assert trace.own == [] and len(trace.drifts) == 1 and len(trace.params) == 8


@pytest.mark.parametrize("case", ["stages-unlike", "stages-named", "stages-sharded-named"])
def test_layouts_and_names_that_leave_no_doubt_are_not_accused(own, case):
    assert [code for code in optrace.lint(own / case).codes if code != "decay-on-norms"] == []


def test_a_difference_in_another_ranks_own_layer_is_found(own):
    report = optrace.diff(own / "experts", own / "experts-other")
    assert not report.same and report.first.param == "expert.2.weight@rank1" and report.first.step == 0, str(report)
    assert optrace.diff(own / "experts", own / "experts").same


def test_a_forgotten_wrapper_is_a_difference_from_the_run_that_had_one(own):
    for one, other in (("unreduced", "neither"), ("neither", "unreduced")):
        report = optrace.diff(own / one, own / other)
        assert report.causes[0].code == "replica-drift" and "neither broadcast nor reduced" in report.causes[0].summary
        assert report.first.kind == "replica" and report.next.endswith("neither@rank=0 " + f"{own / 'neither'}@rank=1")


@pytest.mark.parametrize(("case", "lead"), [("stages", 1), ("stages-sharded", 2)])
def test_names_of_their_own_and_a_map_say_the_same(own, case, lead):
    rules = [f"^(\\d.*)@rank{lead}$=stage1.\\1", "^(\\d.*)=stage0.\\1"]
    report = optrace.diff(own / case, own / f"{case}-named", map=rules)
    assert report.same and report.exact.same and report.extent.params == 8, str(report)
    assert any(f"0.weight@rank{lead} is 0.weight of rank {lead}" in note for note in report.notes)


def test_a_pipeline_that_keeps_the_models_names_is_the_single_process_to_the_bit(own, tmp_path):
    whole(tmp_path / "whole")
    report = optrace.diff(tmp_path / "whole", own / "pipeline")
    assert report.same and report.exact.same and report.extent.params == 8, str(report)
    assert optrace.open(own / "pipeline").own == [] and "replica-drift" not in optrace.lint(own / "pipeline").codes


def test_the_overview_says_what_is_the_ranks_own(own):
    text = overview(open_source(str(own / "stages-unlike")))
    assert "own     4 params of ranks' own under one name: their layouts differ\n" in text
    assert "          0.weight@rank1 is 0.weight of rank 1\n" in text
    assert "no gradient agrees (see optrace lint)" in overview(open_source(str(own / "neither")))


def test_steps_of_a_run_are_those_that_every_owner_has(own):
    assert optrace.open(own / "stages").last_step() == STEPS
