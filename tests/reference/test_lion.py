"""The reference Lion is that of lion-pytorch, bit for bit; torch has none."""

import numpy as np
import pytest
import torch

from optrace.reference import Lion, Parameter

OPTIONS = [
    {},
    {"lr": 0.02, "betas": (0.95, 0.98), "weight_decay": 0.3},
    {"lr": 0.5, "betas": (0.5, 0.6)},
]


def grads(dtype, steps=60, size=33):
    draws = np.random.default_rng(4)
    for step in range(steps):
        g = draws.normal(size=size) * 10.0 ** draws.integers(-6, 2)
        g[:3] = 0.0
        g[3] = -0.0
        if step == 30:
            g[4] = np.nan
        yield None if step % 11 == 5 else g.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_bit_is_that_of_lion_pytorch(options, dtype):
    options = {"lr": 1e-4, "weight_decay": 0.0, **options}
    start = np.linspace(-1, 1, 33).astype(dtype)
    ours = Parameter(start.copy())
    theirs = torch.from_numpy(start.copy()).requires_grad_()
    reference, optimizer = Lion([ours], **options), pytest.importorskip("lion_pytorch").Lion([theirs], **options)
    for step, g in enumerate(grads(dtype)):
        ours.grad = g
        theirs.grad = None if g is None else torch.from_numpy(g.copy())
        reference.step()
        optimizer.step()
        assert ours.data.tobytes() == theirs.detach().numpy().tobytes(), step
        average = reference.state[ours]["exp_avg"]
        assert average.tobytes() == optimizer.state[theirs]["exp_avg"].numpy().tobytes(), step


@pytest.mark.parametrize(
    ("options", "words"),
    [({"lr": -1.0}, "learning rate"), ({"betas": (1.0, 0.9)}, "beta"), ({"weight_decay": -0.1}, "weight_decay")],
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Lion([Parameter(np.zeros(1))], **options)
