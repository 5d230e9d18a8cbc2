"""Causes that batches and backward passes tell: shuffling, batches left out, accumulation, evaluation mode."""

from __future__ import annotations

import pytest
import torch

import optrace

pytestmark = pytest.mark.usefixtures("only_what_is_new")

EXAMPLES = 40


class Run:
    """Three epochs over the same examples, shuffled anew each time; a test changes one thing."""

    size, drop_last, micro, epochs, dropout = 8, False, 1, 3, 0.0

    def __init__(self):
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Dropout(self.dropout), torch.nn.Linear(6, 2))
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05)
        self.examples = torch.utils.data.TensorDataset(torch.randn(EXAMPLES, 4), torch.randn(EXAMPLES, 2))

    def loader(self, epoch):
        return torch.utils.data.DataLoader(
            self.examples,
            batch_size=self.size,
            shuffle=True,
            drop_last=self.drop_last,
            generator=torch.Generator().manual_seed(self.seed(epoch)),
        )

    def seed(self, epoch):
        return epoch

    def begin(self, epoch):
        self.optimizer.zero_grad()

    def left_over(self):
        pass

    def loss(self, x, y):
        return (self.net(x) - y).square().mean()

    def train(self, path):
        with optrace.record(path, quiet=True):
            for epoch in range(self.epochs):
                self.begin(epoch)
                for i, (x, y) in enumerate(self.loader(epoch)):
                    (self.loss(x, y) / self.micro).backward()
                    if (i + 1) % self.micro == 0:
                        self.step()
                self.left_over()
        return path

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


def report(tmp_path, a, b):
    return optrace.diff(a().train(tmp_path / "a"), b().train(tmp_path / "b"))


class SameOrderEachEpoch(Run):
    def seed(self, epoch):
        return 0


def test_an_epoch_in_the_order_of_the_last_is_told(tmp_path):
    cause = report(tmp_path, Run, SameOrderEachEpoch).causes[0]
    assert cause.code == "data-order"
    assert cause.summary == "b goes through its batches again: at step 6 it has that of its step 1, a another"
    assert "sampler.set_epoch(epoch)" in cause.fix


class Unshuffled(Run):
    def loader(self, epoch):
        return torch.utils.data.DataLoader(self.examples, batch_size=self.size)


def test_a_loader_that_does_not_shuffle_is_told_by_its_period(tmp_path):
    cause = report(tmp_path, Run, Unshuffled).causes[0]
    assert cause.code == "data-content"
    assert "the batches of b repeat every 5 steps, those of a do not: b does not shuffle" in cause.evidence


class Uneven(Run):
    size = 9


class DropsLast(Uneven):
    drop_last = True


def test_a_batch_that_is_left_out_is_told(tmp_path):
    cause = report(tmp_path, Uneven, DropsLast).causes[0]
    assert cause.code == "data-order"
    assert cause.summary == "b passes over 1 batch that a has: it is ahead from step 5 on"
    assert "drop_last" in cause.fix


class Accumulates(Run):
    size, micro = 4, 4


class StepsEachTime(Accumulates):
    micro = 1


def test_steps_without_accumulation_are_not_called_other_data(tmp_path):
    cause = report(tmp_path, Accumulates, StepsEachTime).causes[0]
    assert cause.code == "grad-upstream"
    assert cause.summary == "b steps after 1 backward pass, a after 4: their steps are made of other batches"


class StepsWithTheRest(Accumulates):
    def left_over(self):
        self.step()


class ZeroesTheRest(Accumulates):
    pass


def test_an_epochs_rest_that_is_zeroed_unused_is_told(tmp_path):
    cause = report(tmp_path, StepsWithTheRest, ZeroesTheRest).causes[0]
    assert cause.code == "steps-missing"
    assert cause.summary == (
        "b zeroes the gradients of 2 backward passes unused before step 3: it passes over 1 step that a takes with them"
    )


class KeepsTheRest(Accumulates):
    def begin(self, epoch):
        pass


def test_an_epochs_rest_that_leaks_into_the_next_step_is_told(tmp_path):
    cause = report(tmp_path, ZeroesTheRest, KeepsTheRest).causes[0]
    assert cause.code == "grad-accumulated"
    assert cause.summary.startswith(
        "the gradients of b at step 3 hold 6 micro-batches, 2 of them left over from before"
    )


class Drops(Run):
    dropout = 0.5


class StaysInEvaluationMode(Drops):
    def begin(self, epoch):
        super().begin(epoch)
        if epoch == 1:
            self.net.eval()


def test_dropout_that_is_off_since_an_evaluation_is_told(tmp_path):
    cause = report(tmp_path, Drops, StaysInEvaluationMode).causes[0]
    assert cause.code == "grad-upstream"
    assert cause.summary.startswith("b draws no random numbers for step 6, as it did before and a still does")
    assert cause.fix == "in b call model.train() after evaluating"


class Summed(Run):
    def loss(self, x, y):
        return (self.net(x) - y).square().sum()


def test_a_sum_for_a_mean_is_told_by_the_loss(tmp_path):
    cause = report(tmp_path, Run, Summed).causes[0]
    assert cause.code == "grad-scale"
    assert "the loss is so many times as large, too" in cause.evidence
    assert "its reduction (sum or mean)" in cause.fix


class GoesBackwardTwice(Run):
    def loss(self, x, y):
        loss = super().loss(x, y)
        loss.backward(retain_graph=True)
        return loss


def test_a_second_backward_is_told(tmp_path):
    cause = report(tmp_path, Run, GoesBackwardTwice).causes[0]
    assert cause.code == "grad-scale"
    assert cause.fix.startswith("in b go backward 1 time a step as a does, or divide by 2")


class ResetsMoments(Run):
    def __init__(self):
        super().__init__()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.05)

    def begin(self, epoch):
        super().begin(epoch)
        if epoch == 1:
            self.optimizer.state.clear()


class KeepsMoments(ResetsMoments):
    def begin(self, epoch):
        self.optimizer.zero_grad()


def test_state_that_the_reference_resets_is_to_be_reset(tmp_path):
    cause = report(tmp_path, ResetsMoments, KeepsMoments).causes[0]
    assert cause.code == "state-reset"
    assert cause.summary.endswith("of all parameters, which b goes on with")
    assert cause.fix == "in b reset the optimizer's state before step 6 as a does, or keep it in both"
