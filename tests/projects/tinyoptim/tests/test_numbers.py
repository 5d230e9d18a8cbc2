"""The numbers of every optimizer: against torch, against the paper's pseudocode, against what they were."""

import pytest
import torch
from tinyoptim import SGD, CautiousAdamW, Lion

from optrace.testing import check_same


class PaperLion(torch.optim.Optimizer):
    """Algorithm 2 of the paper, line by line."""

    def __init__(self, params, lr, betas, weight_decay):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (b1, b2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].get("m", torch.zeros_like(p))
                c = b1 * m + (1 - b1) * p.grad
                p.copy_(p - lr * (torch.sign(c) + decay * p))
                self.state[p]["m"] = b2 * m + (1 - b2) * p.grad


def test_lion_is_the_papers():
    options = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
    check_same(lambda params: Lion(params, **options), lambda params: PaperLion(params, **options))


@pytest.mark.optrace_golden("sgd", dtype="float64", cases=["plain", "momentum", "momentum-decay", "resume", "groups*"])
def test_sgd_is_torchs(optrace_golden):
    optrace_golden.check(SGD)


@pytest.mark.parametrize("kind", [SGD, Lion, CautiousAdamW])
def test_numbers_stay(kind, optrace_baseline):
    optrace_baseline.check(kind)


def test_averaged_momentum_stays(optrace_baseline):
    optrace_baseline.check(lambda params: SGD(params, lr=0.1, ema=True))
