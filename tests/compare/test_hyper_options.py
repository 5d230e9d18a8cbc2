"""Which hyper-parameters decide between two classes: those that a rule knows, unless step() writes them itself."""

from __future__ import annotations

import torch
from hand_made import ENVIRONMENT, TorchHand

from optrace import diff
from optrace.compare.hyper import KNOWN
from optrace.reference.rule import RULES

OTHER_THREADS = {**ENVIRONMENT, "threads": {"intra": 2, "inter": 1}}


def test_every_option_of_a_reference_rule_is_known_and_no_other():
    assert {option for rule in RULES.values() for option in rule.defaults} == KNOWN


class Summing(torch.optim.SGD):
    """SGD that writes a sum over all gradients into its group, as Prodigy does with d."""

    rounded = 1.0

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["total"] = sum(float(p.grad.sum()) for p in group["params"]) * self.rounded


def record(folder, environment=ENVIRONMENT, rounded=1.0, start=0.0):
    torch.set_num_threads(1)
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = Summing([p], lr=0.1, foreach=False)
    optimizer.rounded = rounded
    optimizer.param_groups[0]["total"] = start
    hand = TorchHand(folder, environment=environment)
    hand.begin(0, optimizer, {id(p): "p"})
    for step in range(1, 4):
        p.grad = torch.full((3,), 0.1 * step)
        total = 0.3 * step * rounded
        hand.step(0, optimizer, extra=[(0, "", "group.total", "float64", torch.tensor([total]).double().numpy())])
    return str(hand.close())


def test_scalar_that_step_writes_is_judged_as_computed_from_the_parameters(tmp_path):
    a = record(tmp_path / "a")
    near = diff(a, record(tmp_path / "b", OTHER_THREADS, 1 + 8 * 2.0**-23))
    assert near.same, str(near)
    far = diff(a, record(tmp_path / "c", OTHER_THREADS, 1 + 1000 * 2.0**-23))
    assert (far.first.step, far.first.quantity) == (1, "group.total")


def test_what_somebody_set_before_the_first_step_is_compared_exactly(tmp_path):
    report = diff(record(tmp_path / "a"), record(tmp_path / "b", OTHER_THREADS, start=1e-9))
    assert (report.first.step, report.first.quantity) == (1, "hyper.total")
