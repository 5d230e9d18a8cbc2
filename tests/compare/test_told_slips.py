"""Slips that are told by name: exchanged groups, an option a step late, state that is the gradient's own memory."""

from __future__ import annotations

import pytest
import torch

import optrace

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)


class Run:
    """A small regression with two groups whose loop a test changes in one place."""

    steps, rates = 6, (0.1, 0.01)

    def __init__(self):
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
        self.optimizer = self.make()

    def make(self):
        layers = self.net[0], self.net[2]
        groups = [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(layers, self.rates, strict=True)]
        return torch.optim.SGD(groups, momentum=0.9)

    def begin(self, step):
        self.optimizer.zero_grad()

    def middle(self, step):
        pass

    def train(self, path):
        examples = torch.utils.data.TensorDataset(torch.randn(self.steps * 8, 4), torch.randn(self.steps * 8, 2))
        with optrace.record(path, quiet=True):
            for step, (x, y) in enumerate(torch.utils.data.DataLoader(examples, batch_size=8)):
                self.begin(step)
                (self.net(x) - y).square().mean().backward()
                self.middle(step)
                self.optimizer.step()
        return path


def causes(tmp_path, a, b):
    return optrace.diff(a().train(tmp_path / "a"), b().train(tmp_path / "b")).causes


class Exchanged(Run):
    rates = (0.01, 0.1)


def test_groups_with_each_others_lr_are_told(tmp_path):
    (cause,) = causes(tmp_path, Run, Exchanged)
    assert cause.code == "lr-value"
    assert "lr of groups 0 and 1 is exchanged: each has the other's of a" in cause.evidence
    assert cause.fix == "in b exchange what groups 0 and 1 are given, or their parameters"


class MovesDecay(Run):
    late = 0

    def begin(self, step):
        super().begin(step)
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.01 * max(step + 1 - self.late, 0)


class MovesDecayLate(MovesDecay):
    late = 1


class MovesDecayOtherwise(MovesDecay):
    def begin(self, step):
        super().begin(step)
        for group in self.optimizer.param_groups:
            group["weight_decay"] **= 2


def test_an_option_that_moves_a_step_late_is_told(tmp_path):
    (cause,) = causes(tmp_path, MovesDecay, MovesDecayLate)
    assert cause.code == "group-option"
    assert "weight_decay of b is a's, 1 step late" in cause.evidence
    assert cause.fix.startswith("in b set weight_decay 1 step earlier")


def test_an_option_that_moves_is_not_to_be_set_to_one_value(tmp_path):
    (cause,) = causes(tmp_path, MovesDecay, MovesDecayOtherwise)
    assert cause.fix == "in b move weight_decay of groups 0, 1 as a does: from 0.01 to 0.06"


class DecaysOneGroup(Run):
    decays = (0.1, 0.0)

    def make(self):
        optimizer = super().make()
        for group, decay in zip(optimizer.param_groups, self.decays, strict=True):
            group["weight_decay"] = decay
        return optimizer


class DecaysTheOther(DecaysOneGroup):
    decays = (0.0, 0.1)


def test_groups_with_each_others_option_are_each_given_their_own_value(tmp_path):
    (cause,) = causes(tmp_path, DecaysOneGroup, DecaysTheOther)
    assert cause.code == "group-option"
    assert cause.summary == "weight_decay of group 0 is 0.0 in b, 0.1 in a; of group 1 0.1 in b, 0.0 in a"
    assert cause.fix == "in b set weight_decay to 0.1 of group 0 and to 0.0 of group 1"


class Thaws(Run):
    at = 4

    def begin(self, step):
        super().begin(step)
        self.net[0].requires_grad_(step >= self.at)


class ThawsEarly(Thaws):
    at = 2


def test_a_layer_that_is_unfrozen_earlier_is_told(tmp_path):
    cause = causes(tmp_path, Thaws, ThawsEarly)[0]
    assert cause.code == "grad-missing"
    assert "None in a up to step 4, in b up to step 2: training of them begins earlier in b" in cause.evidence
    assert cause.fix.startswith("unfreeze them, or begin to use them, at the same step in both")


class GoesBackwardForAnother(Run):
    def middle(self, step):
        if step == 3:
            self.net(torch.ones(2, 4)).square().mean().backward()


def test_a_second_loss_before_one_step_is_not_blamed_on_the_reference(tmp_path):
    (cause,) = causes(tmp_path, Run, GoesBackwardForAnother)
    assert cause.code == "grad-accumulated"
    assert cause.summary == "b runs 2 backward passes for step 4, a 1 backward pass on the same batches"
    assert "at most other steps both run 1 backward pass" in cause.evidence


class Plain:
    """SGD with momentum, written by hand."""

    def __init__(self, params):
        self.params, self.lr, self.momentum = list(params), 0.1, 0.9
        self.buffers = [None] * len(self.params)

    def zero_grad(self):
        for p in self.params:
            if p.grad is not None:
                p.grad.zero_()

    def first(self, grad):
        return grad.clone()

    @torch.no_grad()
    def step(self):
        for i, p in enumerate(self.params):
            if self.buffers[i] is None:
                self.buffers[i] = self.first(p.grad)
            else:
                self.buffers[i].mul_(self.momentum).add_(p.grad)
            p.sub_(self.lr * self.buffers[i])


class Aliased(Plain):
    def first(self, grad):
        return grad


class ByHand(Run):
    kind = Plain

    def make(self):
        return optrace.watch(self.kind(self.net.parameters()))


class ByHandAliased(ByHand):
    kind = Aliased


def test_state_that_is_the_gradients_own_memory_is_told(tmp_path):
    found = causes(tmp_path, ByHand, ByHandAliased)
    assert found[0].code == "state-value"
    assert not any("whatever its groups say" in cause.summary for cause in found)
    assert (
        found[0].fix
        == "in b copy the gradient into buffers (clone): they share their memory, and backward changes both"
    )


class Edited(Run):
    def middle(self, step):
        if step == 3:
            for state in self.optimizer.state.values():
                state["momentum_buffer"].mul_(0.5).add_(0.01)


def test_state_that_changes_between_steps_was_not_lost_on_a_resume(tmp_path):
    cause = causes(tmp_path, Run, Edited)[0]
    assert cause.code == "state-value"
    assert cause.fix == "look in b for what changes the state between steps, just before step 4"


class Noisy(Run):
    """Each gradient off by a random rounding or two, as kernels leave it that add in any order."""

    seed, share = 1, 1e-7

    def make(self):
        generator = torch.Generator().manual_seed(self.seed)
        for p in self.net.parameters():
            p.register_hook(lambda g: g * (1 + self.share * torch.randn(g.shape, generator=generator)))
        return super().make()


class NoisyAgain(Noisy):
    seed = 2


class NoisyByMuch(Noisy):
    seed, share = 2, 2e-6


def test_kernels_that_do_not_repeat_themselves_are_noise_with_advice(tmp_path):
    (cause,) = causes(tmp_path, Noisy, NoisyAgain)
    assert cause.code == "noise"
    assert cause.fix.startswith("compare with --noise A2, a second recording of a")


def test_gradients_a_few_roundings_apart_are_told_to_be_so(tmp_path):
    cause = causes(tmp_path, Noisy, NoisyByMuch)[0]
    assert cause.code == "grad-upstream"
    assert any("of their size, as other kernels or another order of sums" in words for words in cause.evidence)


class NoisyInHalf(Noisy):
    share = 1e-3


def test_gradients_apart_by_half_precision_are_told_to_be_so(tmp_path):
    cause = causes(tmp_path, Noisy, NoisyInHalf)[0]
    assert cause.code == "grad-upstream"
    assert any("half precision in the passes of one side" in words for words in cause.evidence)


def attend(path, *, turned):
    """Steps of Adam on attention, the bias of whose keys has no effect and a gradient that is rounding alone."""
    torch.manual_seed(0)
    attention, head = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.nn.Linear(8, 4)
    optimizer = torch.optim.Adam([*attention.parameters(), *head.parameters()], lr=1e-3)
    x, y = torch.randn(3, 8, 5, 8), torch.randint(0, 4, (3, 8, 5))
    with optrace.record(path, quiet=True):
        for step in range(3):
            order = torch.arange(8).flip(0) if turned else torch.arange(8)
            inputs, wanted = x[step][order], y[step][order]
            optimizer.zero_grad()
            made = head(attention(inputs, inputs, inputs)[0])
            torch.nn.functional.cross_entropy(made.flatten(0, 1), wanted.flatten()).backward()
            optimizer.step()
    return path


def test_what_adam_makes_of_noise_is_not_called_another_rule_where_bits_decide(tmp_path):
    report = optrace.diff(attend(tmp_path / "a", turned=False), attend(tmp_path / "b", turned=True))
    assert report.lane == "exact"
    assert [cause.code for cause in report.causes] == ["noise"]
    assert report.first.quantity == "grad"


def close_in(path, *, zeroes):
    """Two steps of LBFGS, whose closure may leave the gradients of the evaluation before."""
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 2)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)
    x, y = torch.randn(2, 8, 4), torch.randn(2, 8, 2)
    with optrace.record(path, quiet=True):
        for step in range(2):

            def closure(step=step):
                if zeroes:
                    optimizer.zero_grad()
                loss = (net(x[step]) - y[step]).square().mean()
                loss.backward()
                return loss

            optimizer.step(closure)
    return path


def test_a_closure_that_does_not_zero_is_told_and_not_the_kind_of_its_state(tmp_path):
    (cause,) = optrace.diff(close_in(tmp_path / "a", zeroes=True), close_in(tmp_path / "b", zeroes=False)).causes
    assert cause.code == "grad-accumulated"
    assert cause.summary.startswith("the closure of b adds up the gradients of its 3 evaluations at step 1")
    assert cause.fix == "in b call optimizer.zero_grad() at the start of the closure"
