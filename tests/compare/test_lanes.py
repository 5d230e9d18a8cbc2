"""Exact or within tolerance: which lane decides, what evidence proves, and what rounding is forgiven."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hand_made import ENVIRONMENT, TorchHand, adamw, sgd

import optrace
from optrace.compare.run import diff
from optrace.trace.fingerprint import sample_indices

pytestmark = pytest.mark.usefixtures("only_what_is_new")

OTHER_THREADS = {**ENVIRONMENT, "threads": {"intra": 2, "inter": 1}}


def first(net):
    return next(net.parameters())


def one_ulp(step, net, optimizer):
    if step == 3:
        with torch.no_grad():
            weight = first(net)
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))


def test_one_ulp_differs_between_runs_that_nothing_can_have_rounded_otherwise(runs):
    report = diff(runs("a"), runs("b", tamper=one_ulp))
    assert (report.lane, report.verdict, report.evidence) == ("exact", "differ", "bitwise")
    assert report.exact.first.step == 3 and not report.exact.same and report.tolerance.same
    assert any("it is the bits that differ" in note for note in report.notes)


def test_one_ulp_is_noise_between_runs_of_different_threads(runs):
    report = diff(runs("a"), runs("b", tamper=one_ulp, environment=OTHER_THREADS))
    assert (report.lane, report.verdict) == ("tolerance", "same")
    assert not report.exact.same and report.tolerance.same
    assert "threads (1, 2)" in " ".join(report.notes)
    assert [(d.key, d.a, d.b) for d in report.provenance] == [("threads.intra", 1, 2)]


def test_exact_judges_by_bits_whatever_ran(runs):
    a, b = runs("a"), runs("b", tamper=one_ulp, environment=OTHER_THREADS)
    report = diff(a, b, exact=True)
    assert (report.lane, report.verdict) == ("exact", "differ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("torch", {"version": "2.12.0", "variant": "cpu"}),
        ("cpu_capability", "AVX512"),
        ("cpu_capability", None),
        ("distributed", {"world_size": 2}),
    ],
)
def test_anything_that_rounds_otherwise_or_is_unknown_gives_the_tolerance_lane(runs, key, value):
    report = diff(runs("a"), runs("b", environment={**ENVIRONMENT, key: value}))
    assert report.lane == "tolerance" and report.same


def test_hand_written_optimizer_is_another_implementation_than_torchs(runs):
    report = diff(runs("a"), runs("b", class_name="MySGD"))
    assert report.lane == "tolerance" and report.same
    assert not report.only_in_a and any("MySGD" in note for note in report.notes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "maker", [sgd, adamw, lambda **o: lambda net: torch.optim.NAdam(net.parameters(), lr=1e-2, **o)]
)
@pytest.mark.parametrize("kind", ["foreach", "fused"])
def test_torchs_implementations_are_the_same_within_tolerance(runs, dtype, maker, kind):
    if kind == "fused" and maker is sgd and dtype == torch.bfloat16:
        pytest.skip("torch's fused SGD is wrong there; see the next test")
    options = {"foreach": True} if kind == "foreach" else {"foreach": None, "fused": True}
    try:
        other = maker(**options)
        b = runs("b", other, dtype=dtype, steps=30, implementation=kind)
    except TypeError:
        pytest.skip("has no fused implementation")
    report = diff(runs("a", maker(foreach=False), dtype=dtype, steps=30), b)
    assert report.same, str(report)
    assert report.tolerance.max_eps < 4


@pytest.mark.parametrize(
    ("optimizer", "options", "dtype"),
    [
        (torch.optim.RMSprop, {"centered": True}, torch.float16),
        (torch.optim.RMSprop, {"momentum": 0.9}, torch.bfloat16),
        (torch.optim.ASGD, {"lambd": 0.1, "weight_decay": 0.1}, torch.float32),
        (torch.optim.ASGD, {"lambd": 0.1, "weight_decay": 0.1}, torch.bfloat16),
        (torch.optim.Adadelta, {}, torch.float16),
    ],
)
def test_rounding_that_is_brought_along_is_no_new_difference(tmp_path, optimizer, options, dtype):
    torch.set_num_threads(1)

    def record(name, foreach):
        generator = torch.Generator().manual_seed(0)
        shapes = [(), (7,), (64,), (13, 11), (1,)]
        params = [torch.nn.Parameter((torch.randn(shape, generator=generator) * 0.3).to(dtype)) for shape in shapes]
        made = optimizer(params, foreach=foreach, **options)
        hand = TorchHand(tmp_path / name)
        implementation = "foreach" if foreach else "for-loop"
        hand.begin(0, made, {id(p): f"p{i}" for i, p in enumerate(params)}, implementation=implementation)
        for _ in range(30):
            for p in params:  # from 0.01 to 10: parameters pass through zero with what they have gathered
                size = 10 ** (torch.rand(1, generator=generator).item() * 3 - 2)
                p.grad = (torch.randn(p.shape, generator=generator) * size).to(dtype)
            hand.step(0, made)
        return str(hand.close())

    report = diff(record("for-loop", False), record("foreach", True))
    assert report.same and not report.exact.same, str(report)


def test_fused_sgd_that_leaves_low_precision_parameters_where_they_are_is_found(runs):
    a = runs("a", sgd(foreach=False), dtype=torch.bfloat16, steps=2)
    b = runs("b", sgd(foreach=None, fused=True), dtype=torch.bfloat16, steps=2, implementation="fused")
    report = diff(a, b)
    if report.same:
        pytest.skip(f"torch {torch.__version__} has mended its fused SGD on CPU")
    assert (report.first.step, report.first.quantity, report.first.b) == (1, "update", 0.0)
    assert "state momentum_buffer of step 1" in str(report)


def test_small_wrong_update_is_found_though_everything_after_it_is_forgiven(runs):
    def nudge(step, net, optimizer):
        if step == 10:
            with torch.no_grad():
                first(net)[0, 0] *= 1 + 2e-5  # 170 eps of fp32

    fused = {"implementation": "fused", "steps": 30}
    a = runs("a", adamw(), steps=30)
    report = diff(a, runs("b", adamw(foreach=None, fused=True), tamper=nudge, **fused))
    assert (report.first.step, report.first.quantity, report.first.param) == (10, "update", "0.weight")
    assert diff(a, runs("c", adamw(foreach=None, fused=True), **fused)).same


def test_tolerance_that_would_have_passed_passes_and_less_does_not(runs):
    def nudge(step, net, optimizer):
        if step == 4:
            first(net).grad[0, 0] *= 1.001

    a, b = runs("a"), runs("b", change=nudge, environment=OTHER_THREADS)
    passes = diff(a, b).tolerance.would_pass_at
    assert passes is not None and passes > 64
    assert diff(a, b, eps=passes).same
    assert not diff(a, b, eps=passes * 0.98).same


def test_rtol_and_atol_widen_the_tolerance(runs):
    def nudge(step, net, optimizer):
        if step == 4:
            first(net).grad[0, 0] *= 1.001

    a, b = runs("a"), runs("b", change=nudge, environment=OTHER_THREADS)
    assert not diff(a, b).same
    assert diff(a, b, rtol=1e-2).same
    assert diff(a, b, atol=1e-1).same


def test_gradients_get_64_eps_where_other_kernels_may_have_summed_them(runs):
    def by(eps):
        def change(step, net, optimizer):
            if step == 1:
                grad = first(net).grad
                grad.add_(eps * 2.0**-23 * (grad.abs() + grad.square().mean().sqrt()))

        return change

    a = runs("a", steps=1)
    assert diff(a, runs("b", steps=1, change=by(40), environment=OTHER_THREADS)).same
    report = diff(a, runs("c", steps=1, change=by(90), environment=OTHER_THREADS))
    assert not report.same and report.first.quantity == "grad"


def test_state_that_only_whole_values_tell_apart(runs):
    def swap(step, net, optimizer):
        if step == 3:
            assert not {4, 5} & set(sample_indices(100).tolist())
            flat = optimizer.state[first(net)]["momentum_buffer"].view(-1)
            flat[[4, 5]] = flat[[5, 4]]  # no sampled index of 100, and no statistic sees it

    other = {"environment": OTHER_THREADS, "steps": 3, "tamper": swap}
    sampled = diff(runs("a", steps=3), runs("b", **other))
    assert sampled.same and sampled.n_unproven == 1
    assert any("--values full" in note for note in sampled.notes)
    whole = diff(runs("c", steps=3, values=True), runs("d", values=True, **other))
    assert not whole.same and whole.n_unproven == 0
    assert (whole.first.step, whole.first.quantity, whole.first.evidence) == (3, "state.momentum_buffer", "values")
    assert whole.first.index in ((0, 4), (1, 0)), "the worst element, not one of the sample"
    assert whole.first.a != whole.first.b


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_recorded_whole_values_of_every_dtype_are_compared(tmp_path, dtype):
    def record(name, swapped=False, threads=1):
        torch.manual_seed(1)
        param = torch.nn.Parameter(torch.randn(100, dtype=dtype))
        optimizer = torch.optim.SGD([param], lr=0.1, momentum=0.9)
        torch.set_num_threads(threads)
        with optrace.record(tmp_path / name, values="full", quiet=True):
            for step in range(3):
                param.grad = torch.randn(100, dtype=dtype)
                if swapped and step == 2:
                    param.grad[[4, 5]] = param.grad[[5, 4]]
                optimizer.step()
        torch.set_num_threads(1)
        return tmp_path / name

    a = record("a")
    assert diff(a, record("b", threads=2)).same
    first = diff(a, record("c", swapped=True, threads=2)).first
    assert (first.step, first.evidence) == (3, "values")
    assert dtype.is_complex or first.index in ((4,), (5,))


def test_statistics_prove_a_difference_without_samples(runs):
    def nudge(step, net, optimizer):
        if step == 2:
            optimizer.state[first(net)]["momentum_buffer"].mul_(1.5)

    bare = {"steps": 2, "samples": False}
    report = diff(runs("a", **bare), runs("b", tamper=nudge, environment=OTHER_THREADS, **bare))
    assert not report.same
    assert (report.first.quantity, report.first.evidence) == ("state.momentum_buffer", "statistics")
    assert report.first.a is None and report.first.index is None


def test_nan_on_one_side_is_a_difference_and_on_both_none(runs):
    def poison(step, net, optimizer):
        if step == 3:
            first(net).grad[1, 1] = math.nan

    a, b = runs("a", change=poison), runs("b", environment=OTHER_THREADS)
    report = diff(a, b)
    assert (report.first.step, report.first.quantity) == (3, "grad")
    assert report.tolerance.would_pass_at is None and report.first.eps == math.inf
    assert diff(a, runs("c", change=poison, environment=OTHER_THREADS)).same


def test_empty_and_scalar_parameters_are_compared(tmp_path):
    def record(name, scale, environment):
        params = [torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.empty(0, 3))]
        optimizer = torch.optim.Adam(params, lr=0.1, foreach=False)
        hand = TorchHand(tmp_path / name, environment=environment)
        hand.begin(0, optimizer, {id(p): n for p, n in zip(params, ("scalar", "empty"), strict=True)})
        for _ in range(3):
            for p in params:
                p.grad = torch.full_like(p, scale)
            hand.step(0, optimizer)
        return str(hand.close())

    a = record("a", 1.0, ENVIRONMENT)
    assert diff(a, record("b", 1.0, OTHER_THREADS)).same
    report = diff(a, record("c", 1.1, OTHER_THREADS))
    assert (report.first.step, report.first.param, report.first.quantity) == (1, "scalar", "grad")
    assert report.first.index == () and report.first.evidence == "values"


def test_other_dtype_of_parameters_differs_and_eps_is_the_coarser_ones(runs):
    report = diff(runs("a", steps=3), runs("b", steps=3, dtype=torch.bfloat16))
    assert not report.same and report.first.kind == "dtype"
    assert (report.first.a, report.first.b, report.first.step) == ("float32", "bfloat16", 0)
    assert "float32 in a, bfloat16 in b" in str(report).splitlines()[0]
    values = [row for row in report.rows if row.kind == "value"]
    assert not values, "bf16 rounding of the same numbers is within tolerance"


def test_drift_of_correct_implementations_is_told_and_not_judged(runs):
    options = {"steps": 60, "sizes": (5, 30, 3)}
    report = diff(
        runs("a", adamw(), **options), runs("b", adamw(foreach=None, fused=True), implementation="fused", **options)
    )
    assert report.same
    assert report.exact.max_eps > report.tolerance.max_eps
    assert any("drifted" in note for note in report.notes)
    assert np.isfinite(report.exact.max_eps)
