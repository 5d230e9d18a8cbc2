"""Forms of Muon read off matrices whose singular values are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optrace.reference.muon import RULE, adjusted_lr
from optrace.replayer.spectral import Iteration, Matrix, Projection, form_of

USUAL = Iteration(RULE.defaults["ns_coefficients"], 5)
TRIED = [Iteration(USUAL.coefficients, steps) for steps in range(3, 8)]


def matrices(n=6, rows=24, columns=16, scale=1.0, decay=0.1, **hyper):
    """Steps of the reference's Muon, which iterates in bfloat16, from gradients that drift."""
    rng = np.random.default_rng(0)
    options = {**RULE.defaults, "lr": 0.02, "weight_decay": decay, **hyper}
    always, state = rng.normal(size=(rows, columns)), {"momentum_buffer": np.zeros((rows, columns), np.float32)}
    param = rng.normal(size=(rows, columns)).astype(np.float32)
    found = []
    for _ in range(n):
        grad = (always + rng.normal(size=(rows, columns))).astype(np.float32)
        new, after = RULE.step(param, grad, state, options)
        values = (grad, state["momentum_buffer"], after["momentum_buffer"], param, param + scale * (new - param))
        found.append(Matrix("w", 0.02, 0.1, options["momentum"], *(np.asarray(v, np.float64) for v in values)))
        param, state = new, after
    return found


def test_the_reference_follows_the_usual_form():
    form = form_of(matrices(), TRIED)
    assert form.ways == {("nesterov", USUAL)}
    assert form.error < 0.05
    assert form.share == "average"
    assert form.decays == {"told"}
    assert form.scales[24, 16] == pytest.approx(adjusted_lr(1.0, None, (24, 16)), rel=0.02)
    assert "original" in form.named_scales()


@pytest.mark.parametrize(("hyper", "way"), [({"ns_steps": 4}, 4), ({"ns_steps": 6}, 6)])
def test_other_numbers_of_iterations_are_told(hyper, way):
    assert form_of(matrices(**hyper), TRIED).ways == {("nesterov", Iteration(USUAL.coefficients, way))}


def test_momentum_without_nesterov_is_told():
    assert form_of(matrices(nesterov=False), TRIED).ways == {("plain", USUAL)}


def test_the_first_step_cannot_tell_directions_apart():
    assert {direction for direction, _ in form_of(matrices(n=1), TRIED).ways} == {"nesterov", "plain", "added"}


def test_weight_decay_that_is_left_out_is_told():
    assert form_of(matrices(decay=0.0), TRIED).decays == {"missing"}


def test_noise_is_no_form():
    rng = np.random.default_rng(1)
    values = [rng.normal(size=(12, 12)) for _ in range(5)]
    form = form_of([Matrix("w", 0.02, 0.1, 0.95, *values)], TRIED)
    assert not form.ways
    assert form.error > 1.0
    assert form.share is None


def test_a_gradient_of_zeros_has_no_direction():
    zeros = np.zeros((4, 4))
    projection = Projection(Matrix("w", 0.02, 0.1, 0.95, *[zeros] * 5), "plain")
    assert len(projection.values) == 0
    assert math.isinf(form_of([projection.matrix], TRIED).error)
