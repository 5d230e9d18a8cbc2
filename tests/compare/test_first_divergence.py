"""Where two runs part: the earliest step at which something differs while all that it came from matched."""

from __future__ import annotations

import pytest
import torch
from hand_made import adamw, sgd

import optrace
from optrace.compare.run import diff

pytestmark = pytest.mark.usefixtures("only_what_is_new")


def first_layer(net):
    return next(net.parameters())


def place(report):
    first = report.first
    return first.step, first.group, first.param, first.quantity


def test_same_run_twice_is_the_same_to_the_bit(runs):
    report = diff(runs("a"), runs("b"))
    assert report.same and report.exact.same and report.tolerance.same
    assert report.evidence == "bitwise"
    assert (report.n_divergences, report.n_unproven, report.first, report.rows) == (0, 0, None, ())
    assert report.extent.steps == 8 and report.extent.params == 4 and report.extent.rows == 4 + 8 * 4 * 4


def test_other_hyper_parameter_of_one_group_is_named_with_step_group_and_both_values(runs):
    def lower(step, net, optimizer):
        if step == 4:
            optimizer.param_groups[1]["lr"] = 0.01

    report = diff(runs("a"), runs("b", change=lower))
    assert not report.same
    assert place(report) == (4, 1, None, "hyper.lr")
    assert (report.first.a, report.first.b, report.first.count) == (0.05, 0.01, 5)


def test_tampered_update_is_found_at_its_step_and_element(runs):
    def nudge(step, net, optimizer):
        if step == 5:
            with torch.no_grad():
                first_layer(net)[3, 2] += 1e-3

    report = diff(runs("a", sizes=(4, 4, 2)), runs("b", sizes=(4, 4, 2), tamper=nudge))
    assert place(report) == (5, 0, "0.weight", "update")
    assert report.first.index == (3, 2) and report.first.evidence == "values"
    assert report.first.b - report.first.a == pytest.approx(1e-3, rel=1e-3)
    assert not report.first.follows


def test_changed_gradient_comes_before_the_update_that_it_causes(runs):
    def double(step, net, optimizer):
        if step == 3:
            first_layer(net).grad.mul_(2)

    report = diff(runs("a"), runs("b", change=double))
    assert place(report) == (3, 0, "0.weight", "grad")
    follows = {row.quantity: row.follows for row in report.rows if row.step == 3}
    assert follows == {"grad": False, "update": True, "state.momentum_buffer": True, "param": True}


def test_gradient_that_was_none_differs_from_a_zero_one(runs):
    def none(step, net, optimizer):
        if step == 6:
            first_layer(net).grad = None

    def zero(step, net, optimizer):
        if step == 6:
            first_layer(net).grad.zero_()

    report = diff(runs("a", change=zero), runs("b", change=none))
    assert place(report) == (6, 0, "0.weight", "grad")
    assert report.first.kind == "none" and report.first.b is None
    assert "None in b" in str(report).splitlines()[0]


def test_wrong_state_that_the_update_does_not_show_yet_is_found_in_the_state(runs):
    def wrong(step, net, optimizer):
        if step == 2:
            optimizer.state[first_layer(net)]["exp_avg_sq"].mul_(1.01)

    report = diff(runs("a", adamw()), runs("b", adamw(), tamper=wrong))
    assert place(report) == (2, 0, "0.weight", "state.exp_avg_sq")


def test_wrong_second_beta_is_invisible_in_the_first_update_and_found_in_the_state(runs):
    # AdamW with another beta2 whose group says the same: what a wrong constant in the code looks like
    def say_the_same(step, net, optimizer):
        optimizer.param_groups[0]["betas"] = (0.9, 0.999)

    def wrong(net):
        optimizer = adamw()(net)
        optimizer.register_step_pre_hook(lambda o, a, k: o.param_groups[0].update(betas=(0.9, 0.99)))
        return optimizer

    report = diff(runs("a", adamw()), runs("b", wrong, change=say_the_same))
    assert place(report) == (1, 0, "0.weight", "state.exp_avg_sq")


def test_other_start_values_are_step_zero(runs):
    def shifted(net):
        with torch.no_grad():
            first_layer(net).add_(1e-2)
        return sgd()(net)

    report = diff(runs("a"), runs("b", shifted))
    assert place(report) == (0, 0, "0.weight", "param")
    assert "in the start values" in str(report).splitlines()[0]


def test_parameter_edited_between_steps_is_found_before_the_gradients(tmp_path):
    from hand_made import TorchHand, array_of, model, names_of

    def record(folder, edit):
        torch.set_num_threads(1)
        net = model()
        optimizer = sgd()(net)
        hand = TorchHand(folder)
        hand.begin(0, optimizer, names_of(net))
        for step in range(1, 5):
            edited = []
            if edit and step == 3:
                with torch.no_grad():
                    first_layer(net)[0, 0] += 0.5
                edited = [(0, "0.weight", "param_in", *array_of(first_layer(net)))]
            optimizer.zero_grad()
            net(torch.ones(2, 5)).sum().backward()
            hand.step(0, optimizer, extra=edited)
        return str(hand.close())

    report = diff(record(tmp_path / "a", False), record(tmp_path / "b", True))
    assert place(report) == (3, 0, "0.weight", "param_in")
    assert report.first.b - report.first.a == pytest.approx(0.5)


def test_optimizers_are_ordered_in_time_not_by_index(tmp_path):
    from hand_made import TorchHand, model, names_of

    def record(folder, tamper):
        torch.set_num_threads(1)
        one, two = model(0), model(1)
        first, second = torch.optim.SGD(one.parameters(), lr=0.1), torch.optim.SGD(two.parameters(), lr=0.1)
        hand = TorchHand(folder)
        hand.begin(0, first, names_of(one, "one."))
        hand.begin(1, second, names_of(two, "two."))
        for round_ in range(3):
            for index, net, optimizer in ((0, one, first), (1, two, second), (1, two, second)):
                optimizer.zero_grad()
                net(torch.ones(2, 5)).sum().backward()
                if tamper and round_ == 1 and hand.known[1]["step"] == 2 and index == 1:
                    first_layer(two).grad.mul_(3)  # optimizer 1, step 3: before optimizer 0, step 3
                if tamper and round_ == 2 and index == 0:
                    first_layer(one).grad.mul_(3)
                hand.step(index, optimizer)
        return str(hand.close())

    report = diff(record(tmp_path / "a", False), record(tmp_path / "b", True))
    assert (report.first.optimizer, report.first.step, report.first.param) == (1, 3, "two.0.weight")


def test_every_stretch_gives_the_same_answer_as_one(runs, monkeypatch):
    from optrace.compare import walk

    def nudge(step, net, optimizer):
        if step == 7:
            optimizer.state[first_layer(net)]["exp_avg"].mul_(1.5)

    a, b = runs("a", adamw(), steps=12), runs("b", adamw(), steps=12, tamper=nudge)
    wholes = diff(a, b)
    for size in (1, 100, 200):
        monkeypatch.setattr(walk, "CELLS_AT_ONCE", size)
        assert diff(a, b).as_dict() == wholes.as_dict()


@pytest.mark.parametrize("limit", [0, 3, 10_000])
def test_limit_cuts_the_list_and_not_the_count(runs, limit):
    report = diff(runs("a"), runs("b", sgd(lr=0.06)), limit=limit)
    assert len(report.rows) == min(limit, report.n_divergences)
    assert report.n_divergences > 100
    assert len(report.divergences) == len(report.rows)
    assert list(report.divergences.columns)[:6] == ["step", "step_b", "optimizer", "group", "param", "quantity"]


class Counted(torch.optim.SGD):
    """Writes a number into its groups that is none of its options."""

    def step(self, closure=None):
        super().step()
        for group in self.param_groups if self.counts else ():
            group["seen"] = group.get("seen", 0) + 1


def test_a_number_that_one_side_keeps_in_its_group_is_said_to_be_the_groups(tmp_path):
    for name in ("plain", "counts"):
        param = torch.nn.Parameter(torch.ones(3))
        optimizer = Counted([param], lr=0.1)
        optimizer.counts = name == "counts"
        with optrace.record(tmp_path / name, quiet=True):
            for _ in range(2):
                param.grad = torch.ones(3)
                optimizer.step()
    report = str(diff(tmp_path / "plain", tmp_path / "counts"))
    assert "group.seen of group 0 is only in counts" in report
    assert "step 1, optimizer 0 (Counted), group 0, group.seen\n" in report
    assert "in counts: group.seen of group 0 at 2 steps" in report
