"""What a cause says and advises where its code alone is not enough: clips, penalties, schedules."""

from __future__ import annotations

import pytest
import torch

import optrace

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)
schedulers = torch.optim.lr_scheduler
clip = torch.nn.utils.clip_grad_norm_


def sgd(params):
    return torch.optim.SGD(params, lr=0.1)


def adam(params):
    return torch.optim.Adam(params, lr=0.1)


def train(path, make=sgd, schedule=None, penalty=None, clipping=None, hook=None, again=None, steps=10):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    if hook is not None:
        layer, change = hook
        for p in net[layer].parameters():
            p.register_hook(change)
    optimizer = make(net.parameters())
    scheduler = schedule(optimizer) if schedule is not None else None
    x, y = torch.randn(steps, 8, 4), torch.randn(steps, 8, 2)
    with optrace.record(path, quiet=True):
        for step in range(steps):
            optimizer.zero_grad()
            loss = (net(x[step]) - y[step]).square().mean()
            (loss if penalty is None else loss + penalty(net)).backward()
            if clipping is not None:
                clipping(net)
            optimizer.step()
            if again is not None and step == again:
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return path


def cause(tmp_path, a, b, make=sgd):
    first = optrace.diff(train(tmp_path / "a", make, **a), train(tmp_path / "b", make, **b)).causes[0]
    return first.code, first.summary, first.fix, " ".join(first.evidence)


def by_norm(net):
    clip(net.parameters(), 0.05)


def by_largest(net):
    clip(net.parameters(), 0.05, norm_type=float("inf"))


def by_last_layer(net):
    clip(net[2].parameters(), 0.05)


@pytest.mark.parametrize(
    ("a", "b", "words", "advice"),
    [
        (by_norm, by_largest, "b takes the largest element for the total norm", "use the 2-norm"),
        (by_largest, by_norm, "a takes the largest element for the total norm", "use norm_type=inf"),
    ],
)
def test_a_clip_by_the_largest_element_is_told(tmp_path, a, b, words, advice):
    code, summary, fix, _ = cause(tmp_path, {"clipping": a}, {"clipping": b})
    assert code == "grad-clip"
    assert words in summary
    assert advice in fix


def test_a_clip_that_counts_one_layer_is_told(tmp_path):
    def both(net):
        total = torch.nn.utils.get_total_norm([p.grad for p in net[2].parameters()])
        torch.nn.utils.clip_grads_with_norm_(net.parameters(), 0.05, total)

    code, summary, fix, _ = cause(tmp_path, {"clipping": by_norm}, {"clipping": both})
    assert code == "grad-clip"
    assert "b counts the gradients of 2 alone into the total norm" in summary
    assert "clip all parameters at once" in fix


def l2(net):
    return 0.05 * sum(p.square().sum() for p in net.parameters())


def l2_of_weights(net):
    return 0.05 * sum(p.square().sum() for p in net.parameters() if p.ndim > 1)


def l1(net):
    return 0.02 * sum(p.abs().sum() for p in net.parameters())


@pytest.mark.parametrize(
    ("penalty", "words", "advice"),
    [
        (l2, "the gradients of b are a's plus 0.1 times the parameter: an L2 penalty", "0.05*sum(p**2)"),
        (l2_of_weights, "plus 0.1 times the parameter at 0.weight, 2.weight: an L2 penalty", "0.05*sum(p**2)"),
        (l1, "plus 0.02 times the parameter's sign: an L1 penalty", "0.02*sum(|p|)"),
    ],
)
def test_a_penalty_in_the_loss_is_told_from_the_gradients(tmp_path, penalty, words, advice):
    code, summary, fix, _ = cause(tmp_path, {}, {"penalty": penalty})
    assert code == "grad-upstream"
    assert words in summary
    assert f"in b drop the penalty {advice} from the loss" in fix


def test_a_penalty_that_the_reference_has_is_to_be_added(tmp_path):
    _, summary, fix, _ = cause(tmp_path, {"penalty": l2}, {})
    assert "the gradients of a are b's plus 0.1 times the parameter" in summary
    assert "in b add 0.05*sum(p**2) to the loss" in fix


def test_another_loss_is_no_penalty(tmp_path):
    def other(net):
        return 0.05 * net[0].weight.sum().sin() + 0.01 * net[2].weight.square().square().sum()

    code, summary, _, _ = cause(tmp_path, {}, {"penalty": other})
    assert code == "grad-upstream"
    assert "penalty" not in summary


def test_a_schedule_that_the_reference_lacks_is_to_be_left_out(tmp_path):
    def halved(optimizer):
        return schedulers.StepLR(optimizer, 4, 0.5)

    code, _, fix, _ = cause(tmp_path, {}, {"schedule": halved})
    assert (code, fix) == ("lr-value", "leave out what moves lr in b, or move it in a alike: in a it stays 0.1")


def test_the_courses_of_unlike_schedules_are_told(tmp_path):
    def one_cycle(pct):
        return lambda optimizer: schedulers.OneCycleLR(optimizer, 1.0, total_steps=11, pct_start=pct)

    code, _, _, evidence = cause(tmp_path, {"schedule": one_cycle(0.3)}, {"schedule": one_cycle(0.5)}, make=adam)
    assert code == "lr-value"
    assert "a's goes from 0.04, " in evidence
    assert "at most (step 4)" in evidence
    assert "b's goes from 0.04, " in evidence
    assert "at most (step 6)" in evidence


def test_cycled_momentum_that_the_candidate_lacks_is_told_from_its_scheduler(tmp_path):
    def one_cycle(cycle):
        return lambda optimizer: schedulers.OneCycleLR(optimizer, 1.0, total_steps=11, cycle_momentum=cycle)

    code, _, fix, _ = cause(tmp_path, {"schedule": one_cycle(True)}, {"schedule": one_cycle(False)}, make=adam)
    assert code == "group-option"
    assert fix == "in b use OneCycleLR with cycle_momentum=True, as a does, or cycle_momentum=False in both"


@pytest.mark.parametrize(
    ("hook", "words", "advice"),
    [
        ((2, lambda g: g * 0.1), "the gradients of 2.weight, 2.bias in b are 1/10 of a's, and 2 gradients", "a hook"),
        ((0, torch.neg), "the gradients of 0.weight, 0.bias in b are the negative of a's", "a gradient reversal"),
    ],
)
def test_gradients_that_are_scaled_in_one_layer_are_told(tmp_path, hook, words, advice):
    code, summary, fix, _ = cause(tmp_path, {}, {"hook": hook})
    assert code == "grad-scale"
    assert words in summary
    assert advice in fix


def test_another_gradient_of_one_layer_is_no_scale(tmp_path):
    code, _, _, _ = cause(tmp_path, {}, {"hook": (2, lambda g: g * 0.1 + 0.01)})
    assert code == "grad-upstream"


def test_a_second_step_with_one_gradient_is_told(tmp_path):
    code, summary, fix, _ = cause(tmp_path, {}, {"again": 3})
    assert code == "grad-upstream"
    assert summary == "b makes step 5 with the gradients of step 4 again: no backward pass lies between"
    assert fix.startswith("in b call optimizer.step() once a backward pass")


def test_gradients_that_are_cleared_before_the_step_are_told(tmp_path):
    def clear(net):
        net.zero_grad()

    code, _, fix, _ = cause(tmp_path, {}, {"clipping": clear})
    assert code == "grad-missing"
    assert fix == "in b call zero_grad before backward, or after step, and not between the two"


def test_a_rounded_lr_is_told_from_another(tmp_path):
    def in_a_tensor(params):
        return torch.optim.SGD(params, lr=torch.tensor(0.1))

    report = optrace.diff(train(tmp_path / "a"), train(tmp_path / "b", in_a_tensor))
    assert report.causes[0].code == "lr-value"
    assert report.causes[0].fix.startswith("give both lr in a Tensor")
