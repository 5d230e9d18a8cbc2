"""Causes that the order of events tells: where a clip stands, who steps a scheduler when, what was loaded before."""

from __future__ import annotations

import copy

import pytest
import torch

import optrace

pytestmark = pytest.mark.usefixtures("only_what_is_new")

schedulers = torch.optim.lr_scheduler
clip = torch.nn.utils.clip_grad_norm_


class Run:
    """A small regression whose loop a test changes in one place."""

    steps, micro = 6, 2

    def __init__(self):
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
        self.given = self.net.parameters()
        self.optimizer = torch.optim.SGD(self.groups(), lr=0.1, momentum=0.9)
        self.scheduler = self.schedule()

    def groups(self):
        return self.net.parameters()

    def schedule(self):
        return None

    def begin(self, step):
        self.optimizer.zero_grad()

    def backward(self, loss):
        (loss / self.micro).backward()

    def clip(self):
        clip(self.net.parameters(), 0.05)

    def end(self, step):
        self.optimizer.step()

    def train(self, path):
        x, y = torch.randn(self.steps, self.micro, 8, 4), torch.randn(self.steps, self.micro, 8, 2)
        with optrace.record(path, quiet=True):
            for step in range(self.steps):
                self.begin(step)
                for i in range(self.micro):
                    self.backward((self.net(x[step, i]) - y[step, i]).square().mean())
                self.clip()
                self.end(step)
        return path


def first_cause(tmp_path, a, b):
    return optrace.diff(a().train(tmp_path / "a"), b().train(tmp_path / "b")).causes[0]


class ClipsEachMicroBatch(Run):
    def backward(self, loss):
        super().backward(loss)
        clip(self.net.parameters(), 0.05)

    def clip(self):
        pass


class ClipsFirst(Run):
    def begin(self, step):
        super().begin(step)
        clip(self.net.parameters(), 0.05)

    def clip(self):
        pass


class ClipsNothing(Run):
    def __init__(self):
        super().__init__()
        self.given = iter(())

    def clip(self):
        clip(self.given, 0.05)


class ClipsLayers(Run):
    def clip(self):
        clip(self.net[0].parameters(), 0.05)
        clip(self.net[2].parameters(), 0.05)


@pytest.mark.parametrize(
    ("wrong", "words", "fix"),
    [
        (
            ClipsEachMicroBatch,
            "b clips 2 times among the 2 backward passes of step 1",
            "in b clip once, after the last",
        ),
        (ClipsFirst, "b clips to 0.05 before backward, when there are no gradients yet", "in b clip after backward"),
        (ClipsNothing, "b clips to 0.05 after backward and finds a total norm of 0", "in b give clip_grad_norm_ the"),
        (ClipsLayers, "b clips its parameters in 2 parts, each to a norm of 0.05", "in b call clip_grad_norm_(param"),
    ],
)
def test_a_clip_at_another_place_is_named(tmp_path, wrong, words, fix):
    cause = first_cause(tmp_path, Run, wrong)
    assert cause.code == "grad-clip"
    assert words in cause.summary
    assert cause.fix.startswith(fix)


def test_parts_that_the_reference_clips_by_themselves_are_to_be_clipped_so(tmp_path):
    cause = first_cause(tmp_path, ClipsLayers, Run)
    assert cause.summary.startswith("a clips its parameters in 2 parts")
    assert cause.fix == "in b clip in parts as a does, each to 0.05, or all at once in both"


class OtherLossEachMicroBatch(ClipsEachMicroBatch):
    def backward(self, loss):
        super().backward(loss.square())


def test_a_clip_is_not_blamed_for_another_loss(tmp_path):
    assert first_cause(tmp_path, Run, OtherLossEachMicroBatch).code == "grad-upstream"


class Scheduled(Run):
    steps = 8

    def schedule(self):
        return schedulers.ExponentialLR(self.optimizer, 0.5)

    def end(self, step):
        self.optimizer.step()
        self.scheduler.step()


class ScheduledFirst(Scheduled):
    def end(self, step):
        self.scheduler.step()
        self.optimizer.step()


class ScheduledTwiceOnce(Scheduled):
    def end(self, step):
        super().end(step)
        if step == 2:
            self.scheduler.step()


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
def test_a_scheduler_stepped_before_its_optimizer_is_told(tmp_path):
    cause = first_cause(tmp_path, Scheduled, ScheduledFirst)
    assert cause.code == "lr-shift"
    assert cause.fix.startswith("in b call scheduler.step() after optimizer.step()")
    assert "in b scheduler.step() comes between backward and optimizer.step(), in a it does not" in cause.evidence


def test_a_scheduler_stepped_once_too_often_is_told_with_the_place(tmp_path):
    cause = first_cause(tmp_path, Scheduled, ScheduledTwiceOnce)
    assert cause.code == "lr-shift"
    assert "the scheduler steps 1 time in a and 2 in b before step 4" in cause.evidence
    assert cause.fix.startswith("step the scheduler once an optimizer step: see what steps it again before step 4")


class TwoGroups(Run):
    def groups(self):
        return [{"params": self.net[0].parameters()}, {"params": self.net[2].parameters(), "lr": 0.01}]

    def begin(self, step):
        super().begin(step)
        if step == 3:
            for group in self.lowered():
                group["lr"] *= 0.1

    def lowered(self):
        return self.optimizer.param_groups


class OneGroupLowered(TwoGroups):
    def lowered(self):
        return self.optimizer.param_groups[:1]


def test_a_group_whose_lr_is_forgotten_is_told_beside_one_that_moves(tmp_path):
    cause = first_cause(tmp_path, TwoGroups, OneGroupLowered)
    assert cause.code == "lr-frozen"
    assert cause.summary == (
        "lr of group 1 stays 0.01 in b, where a has 0.001 from step 4 on; lr of the other groups moves alike in both"
    )


class Rebuilt(Scheduled):
    def begin(self, step):
        super().begin(step)
        if step == 4:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.1
            self.scheduler = self.schedule()


def test_a_schedule_that_begins_anew_without_a_resume_is_to_be_built_once(tmp_path):
    cause = first_cause(tmp_path, Scheduled, Rebuilt)
    assert cause.code == "lr-reset"
    assert cause.summary == "lr of b jumps back to its start at step 5: 0.1 where a has 0.00625"
    assert cause.fix.startswith("in b build the scheduler once, and not again in the loop over epochs or phases")


class Loads(Run):
    lr = 0.02

    def begin(self, step):
        super().begin(step)
        if step == 3:
            self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr


class KeepsLoadedLr(Loads):
    lr = 0.1


def test_an_lr_that_comes_with_a_loaded_state_is_told(tmp_path):
    cause = first_cause(tmp_path, Loads, KeepsLoadedLr)
    assert cause.code == "lr-frozen"
    assert "b loads the optimizer's state_dict before step 4: its groups bring the lr they were saved with" in (
        cause.evidence
    )
    assert cause.fix.startswith("in b set lr after load_state_dict")
