"""Programs of several optimizers: which is which where names differ, and parameters that change their optimizer."""

from __future__ import annotations

import pytest
import torch

import optrace
from optrace.errors import CompareError

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)
SGD = torch.optim.SGD


class Both(torch.nn.Module):
    def __init__(self, generator, discriminator):
        super().__init__()
        self.generator, self.discriminator = generator, discriminator


def nets(alike=False):
    torch.manual_seed(0)
    sizes = (2, 3) if alike else (3, 1)
    return [torch.nn.Sequential(torch.nn.Linear(*size), torch.nn.Tanh()) for size in ((2, 3), sizes)]


def train(path, together=False, alike=False, joint=False, discriminator_first=False, lr=0.1):
    generator, discriminator = nets(alike)
    keeps = Both(generator, discriminator) if together else None
    if joint:
        optimizers = [SGD([*generator.parameters(), *discriminator.parameters()], lr=lr)]
    else:
        optimizers = [SGD(net.parameters(), lr=lr) for net in (generator, discriminator)]
    if discriminator_first:
        optimizers.reverse()
    params = [*generator.parameters(), *discriminator.parameters()]
    with optrace.record(path, quiet=True):
        for step in range(1, 4):
            for p in params:
                p.grad = torch.full_like(p, 0.5 * step)
            for optimizer in optimizers:
                optimizer.step()
    del keeps
    return path


def test_optimizers_are_matched_where_one_side_has_longer_names(tmp_path):
    a, b = train(tmp_path / "a", together=True), train(tmp_path / "b")
    assert set(optrace.open(a).params["param"]) == {
        f"{net}.0.{kind}" for net in ("generator", "discriminator") for kind in ("weight", "bias")
    }
    assert set(optrace.open(b).params["param"]) == {"0.weight", "0.bias"}
    for one, other in ((a, b), (b, a)):
        report = optrace.diff(one, other)
        assert report.same, str(report)
        assert report.extent.params == 4
        assert sum("names end alike, shapes are equal" in note for note in report.notes) == 2
    report = optrace.diff(a, train(tmp_path / "c", lr=0.2))
    assert {cause.code for cause in report.causes} == {"lr-value"}


def test_nothing_is_guessed_where_several_would_fit(tmp_path):
    a, b = train(tmp_path / "a", together=True, alike=True), train(tmp_path / "b", alike=True)
    with pytest.raises(
        CompareError, match=r"compare one by one, and with --map '\^PREFIX='; of these pairs: .*a@0 with"
    ):
        optrace.diff(a, b)
    assert optrace.diff(f"{a}@1", f"{b}@1", map=[r"^discriminator\.="]).same


def test_equal_names_are_told_apart_by_shapes(tmp_path):
    a, b = train(tmp_path / "a"), train(tmp_path / "b", discriminator_first=True)
    report = optrace.diff(a, b)
    assert report.same, str(report)


def train_by_epochs(path, make, takes_over=None, steps=6):
    """Three steps an epoch; `takes_over(old, params)` makes the optimizer of the second."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = make(net.parameters())
    x = torch.randn(steps, 4, 3)
    with optrace.record(path, quiet=True):
        for step in range(steps):
            if step == 3 and takes_over is not None:
                optimizer = takes_over(optimizer, net.parameters())
            optimizer.zero_grad()
            net(x[step]).square().mean().backward()
            optimizer.step()
    return path


def adam(params):
    return torch.optim.Adam(params, lr=0.1)


def loaded(old, params):
    optimizer = adam(params)
    optimizer.load_state_dict(old.state_dict())
    return optimizer


def test_an_optimizer_that_is_made_anew_has_lost_its_state(tmp_path):
    a = train_by_epochs(tmp_path / "a", adam)
    b = train_by_epochs(tmp_path / "b", adam, lambda old, params: adam(params))
    report = optrace.diff(a, b)
    assert str(report).startswith("b differs from a - since step 4, in the state")
    (cause,) = report.causes
    assert cause.code == "state-reset"
    assert cause.summary == (
        "b goes on with a new optimizer from step 4 on: optimizer 1 (Adam) holds the same parameters and starts without"
        " exp_avg, exp_avg_sq, step"
    )
    assert "once, before the loop" in cause.fix
    assert report.matched == ("start values", "steps 1 to 3")
    assert [cause.code for cause in optrace.diff(b, a).causes] == ["state-reset"]


def test_nothing_is_lost_where_there_is_no_state_or_it_is_taken_over(tmp_path):
    def plain(params):
        return SGD(params, lr=0.1)

    for make, takes_over in ((plain, lambda old, params: plain(params)), (adam, loaded)):
        name = make.__name__
        a = train_by_epochs(tmp_path / f"a-{name}", make)
        b = train_by_epochs(tmp_path / f"b-{name}", make, takes_over)
        report = optrace.diff(a, b)
        assert report.first.step == 4
        assert [cause.code for cause in report.causes] == ["steps-missing"]
    assert optrace.diff(tmp_path / "a-adam", f"{tmp_path / 'b-adam'}@1").same


def test_parameters_that_are_in_another_optimizer_are_not_missing(tmp_path):
    a, b = train(tmp_path / "a", together=True), train(tmp_path / "b", together=True, joint=True)
    report = optrace.diff(a, b)
    text = str(report)
    assert "since step 0, in the groups: discriminator.0.weight is in another optimizer" in text
    assert "only in" not in text and "  only " not in text
    assert [cause.code for cause in report.causes] == ["group-membership"]
    assert "in optimizer 1 (SGD) of a, and in optimizer 0 (SGD) of b" in report.causes[0].summary
    assert optrace.diff(f"{a}@1", f"{b}@0").only_in_a == ()


class Lookahead(torch.optim.Optimizer):
    """Every second step goes half of the way back; `k` 0 only hands steps on."""

    def __init__(self, inner, k):
        super().__init__(inner.param_groups, {})
        self.inner, self.k, self.count = inner, k, 0
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure=None):
        self.inner.step()
        self.count += 1
        if self.k and self.count % self.k == 0:
            params = [p for group in self.inner.param_groups for p in group["params"]]
            for p, slow in zip(params, self.slow, strict=True):
                p.copy_(slow.add_(p - slow, alpha=0.5))


def test_an_optimizer_around_another_is_told_by_what_it_changes(tmp_path):
    a = train_by_epochs(tmp_path / "a", adam)
    b = train_by_epochs(tmp_path / "b", lambda params: Lookahead(adam(params), k=2))
    (cause,) = optrace.diff(a, b).causes
    assert cause.code == "param-outside"
    assert "(Lookahead) of b holds the parameters of optimizer" in cause.summary
    assert "first before step 3" in cause.summary
    c = train_by_epochs(tmp_path / "c", lambda params: Lookahead(adam(params), k=0))
    assert optrace.diff(a, c).causes == ()
