"""Events of optimizers and backwards, and what each completed step is told about the losses before it."""

from __future__ import annotations

import copy
import gc
import math

import pytest
import torch
from listening import listening, mse, small_data, small_model
from torch.optim import SGD, AdamW

from optrace.recorder.fingerprints import combine
from optrace.trace.measure import fingerprint

torch.set_num_threads(1)
DATA = small_data()


def test_one_step_is_zero_grad_backward_step() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = mse(model, DATA)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert heard.kinds() == ["zero_grad", "backward", "step"] * 3
    assert heard.losses(optimizer) == losses
    assert [taken["n_backward"] for taken in heard.taken()] == [1, 1, 1]
    assert all(owner is optimizer for kind, owner, _ in heard.events if kind == "zero_grad")


def test_accumulation_of_four_micro_batches_gives_their_mean_loss() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = AdamW(model.parameters())
        expected = []
        for _ in range(2):
            losses = []
            for part in range(4):
                loss = mse(model, (DATA[0][part * 4 : part * 4 + 4], DATA[1][part * 4 : part * 4 + 4])) / 4
                loss.backward()
                losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
            expected.append(sum(losses) / 4)
    assert heard.losses(optimizer) == expected
    assert [taken["n_backward"] for taken in heard.taken()] == [4, 4]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_loss_of_other_dtypes_is_its_value(dtype: torch.dtype) -> None:
    with listening() as heard:
        weight = torch.nn.Parameter(torch.tensor([1.25, -3.0], dtype=dtype))
        optimizer = SGD([weight], lr=0.1)
        loss = (weight * weight).sum() / 3
        loss.backward()
        optimizer.step()
    assert heard.losses(optimizer) == [loss.item()]


def test_two_networks_that_train_in_turn_have_each_its_own_loss() -> None:
    """The loop of a GAN: the second loss runs back through the first network too, whose gradients are then zeroed."""
    with listening() as heard:
        discriminator, generator = small_model(1), torch.nn.Linear(4, 4)
        first = SGD(discriminator.parameters(), lr=0.1)
        second = SGD(generator.parameters(), lr=0.1)
        expected: dict[str, list[float]] = {"first": [], "second": []}
        for _ in range(3):
            first.zero_grad()
            loss = discriminator(DATA[0]).mean() - discriminator(generator(DATA[0]).detach()).mean()
            loss.backward()
            first.step()
            expected["first"].append(loss.item())
            second.zero_grad()
            loss = discriminator(generator(DATA[0])).mean()
            loss.backward()
            second.step()
            expected["second"].append(loss.item())
    assert heard.losses(first) == expected["first"]
    assert heard.losses(second) == expected["second"]
    assert [taken["n_backward"] for taken in heard.taken(second)] == [1, 1, 1]
    assert [taken["n_backward"] for taken in heard.taken(first)] == [1, 2, 2]  # the other loss reached it too


def test_gradients_zeroed_at_the_top_still_give_each_network_its_own_loss() -> None:
    with listening() as heard:
        one, two = small_model(1), small_model(2)
        first, second = SGD(one.parameters(), lr=0.1), AdamW(two.parameters())
        expected = []
        for _ in range(2):
            first.zero_grad(set_to_none=False)
            second.zero_grad(set_to_none=False)
            losses = [mse(one, DATA), mse(two, DATA)]
            for loss in losses:
                loss.backward()
            first.step()
            second.step()
            expected.append([loss.item() for loss in losses])
    assert list(zip(heard.losses(first), heard.losses(second), strict=True)) == [tuple(pair) for pair in expected]


def test_two_optimizers_of_one_loss_both_have_it() -> None:
    with listening() as heard:
        model = small_model()
        first, second = SGD(model[0].parameters(), lr=0.1), AdamW(model[2].parameters())
        loss = mse(model, DATA)
        loss.backward()
        first.step()
        second.step()
    assert heard.losses(first) == heard.losses(second) == [loss.item()]


def test_networks_made_before_recording_began_have_their_own_losses_from_the_first_step() -> None:
    one, two = small_model(1), small_model(2)
    first, second = SGD(one.parameters(), lr=0.1), SGD(two.parameters(), lr=0.1)
    with listening() as heard:
        expected = []
        for _ in range(2):
            for model, optimizer in ((one, first), (two, second)):
                loss = mse(model, DATA)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                expected.append(loss.item())
    assert [taken["loss"] for taken in heard.taken()] == expected


def test_optimizers_inside_backward_are_told_the_running_loss() -> None:
    with listening() as heard:
        model = small_model()
        optimizers = {param: SGD([param], lr=0.01) for param in model.parameters()}

        def step(param: torch.Tensor) -> None:
            optimizers[param].step()
            optimizers[param].zero_grad()

        for param in model.parameters():
            param.register_post_accumulate_grad_hook(step)
        expected = []
        for _ in range(3):
            loss = mse(model, DATA)
            loss.backward()
            expected.append(loss.item())
    assert len(heard.steps) == 3 * len(optimizers)
    for optimizer in optimizers.values():
        assert heard.losses(optimizer) == expected
        assert [taken["n_backward"] for taken in heard.taken(optimizer)] == [1, 1, 1]


def test_closure_of_lbfgs_gives_its_last_loss_and_the_number_of_evaluations() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
        losses = []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = mse(model, DATA)
            loss.backward()
            losses.append(loss.item())
            return loss

        optimizer.step(closure)
    assert len(losses) > 1
    assert heard.losses(optimizer) == [losses[-1]]
    assert heard.taken()[0]["n_backward"] == len(losses)


def test_module_zero_grad_is_told_and_drops_what_was_thrown_away() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        for set_to_none in (True, False):
            (mse(model, DATA) * 100).backward()
            model.zero_grad(set_to_none=set_to_none)
            loss = mse(model, DATA)
            loss.backward()
            optimizer.step()
            assert heard.losses(optimizer)[-1] == loss.item()
    assert heard.of("zero_grad") == [{"module": "Sequential", "set_to_none": flag} for flag in (True, False)]


def test_zeroing_a_part_of_the_model_keeps_the_loss() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        loss = mse(model, DATA)
        loss.backward()
        model[0].zero_grad()
        optimizer.step()
    assert heard.losses(optimizer) == [loss.item()]


def test_override_of_zero_grad_that_calls_super_is_one_event() -> None:
    with listening() as heard:

        class Mine(SGD):
            def zero_grad(self, set_to_none: bool = False) -> None:
                super().zero_grad(set_to_none=set_to_none)

        model = small_model()
        optimizer = Mine(model.parameters(), lr=0.1)
        optimizer.zero_grad()
        optimizer.zero_grad(False)
    assert heard.kinds() == ["zero_grad", "zero_grad"]
    assert heard.of("zero_grad")[1] == {"set_to_none": False}


def test_wrapper_that_passes_on_to_another_optimizer_is_not_told_twice() -> None:
    class Passing(torch.optim.Optimizer):
        def __init__(self, inner: torch.optim.Optimizer) -> None:
            self.optimizer = inner

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.optimizer.zero_grad(set_to_none)

        def state_dict(self) -> dict[str, object]:
            return self.optimizer.state_dict()

    with listening() as heard:
        inner = SGD(small_model().parameters(), lr=0.1)
        outer = Passing(inner)
        outer.zero_grad()
        outer.state_dict()
    assert [(kind, owner is inner) for kind, owner, _ in heard.events] == [("zero_grad", True), ("state_dict", True)]


def test_nested_and_repeated_backwards_are_counted_once_each() -> None:
    """A reentrant checkpoint starts a backward inside the backward; a second one over a kept graph is one more."""
    from torch.utils.checkpoint import checkpoint

    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        hidden = checkpoint(model[:2], DATA[0].requires_grad_(), use_reentrant=True)
        loss = (model[2](hidden) - DATA[1]).square().mean()
        loss.backward()
        optimizer.step()
        loss = mse(model, DATA)
        loss.backward(retain_graph=True)
        loss.backward()
        optimizer.step()
        DATA[0].requires_grad_(False)
        DATA[0].grad = None
    assert [taken["n_backward"] for taken in heard.taken()] == [1, 2]
    assert heard.kinds().count("backward") == 3
    assert heard.losses(optimizer)[1] == loss.item()


def test_backward_that_raises_is_not_counted() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.tensor(1e9).backward()
        loss = mse(model, DATA)
        loss.backward()
        optimizer.step()
    assert heard.losses(optimizer) == [loss.item()]
    assert heard.taken()[0]["n_backward"] == 1


def test_roots_given_as_a_list_count_by_their_mean_and_tensors_of_many_elements_not() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        output = model(DATA[0])
        torch.autograd.backward([output.sum(), output.mean()], retain_graph=True)
        output.backward(torch.ones_like(output))
        optimizer.step()
    assert heard.losses(optimizer) == [(output.sum().item() + output.mean().item()) / 2]
    assert heard.taken()[0]["n_backward"] == 2


def test_unscaled_loss_of_a_subclass_of_tensor_is_read() -> None:
    class Loss(torch.Tensor):
        pass

    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        loss = mse(model, DATA).as_subclass(Loss)
        loss.backward()
        optimizer.step()
    assert heard.losses(optimizer) == [loss.detach().item()]
    assert heard.kinds().count("backward") == 1


def test_state_dict_and_load_are_told_with_fingerprints_of_every_key() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = AdamW(model.parameters())
        mse(model, DATA).backward()
        optimizer.step()
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(saved)
        saved["state"][2]["exp_avg"][0, 3] += 1e-7
        optimizer.load_state_dict(saved)
    told, given, changed = heard.of("state_dict")[0], *heard.of("load_state_dict")
    assert told == given
    states = [optimizer.state[param] for param in model.parameters()]
    words = [fingerprint(state["exp_avg_sq"].numpy()) for state in states]
    assert given["state"]["exp_avg_sq"] == f"{combine(words):016x}"
    differ = {key for key in given["state"] if given["state"][key] != changed["state"][key]}
    assert differ == {"exp_avg"}
    assert {key for key in given["params"] if given["params"][key] != changed["params"][key]} == {"2"}
    assert given["groups"] == changed["groups"]


def test_state_dict_of_odd_state_is_told() -> None:
    with listening() as heard:
        weights = [
            torch.nn.Parameter(torch.randn(3, 4, dtype=torch.complex64)),
            torch.nn.Parameter(torch.randn(2, 2).t()),
        ]
        optimizer = AdamW(weights)
        sum((weight.abs() ** 2).sum() for weight in weights).backward()
        optimizer.step()
        optimizer.state[weights[0]] |= {
            "note": "text",
            "history": [torch.ones(2), None, 3],
            "sparse": torch.eye(2).to_sparse(),
        }
        optimizer.state_dict()
    assert sorted(heard.of("state_dict")[0]["state"]) == [
        "exp_avg",
        "exp_avg_sq",
        "history",
        "note",
        "sparse",
        "step",
    ]


def test_groups_added_later_and_modes_are_told_but_not_those_of_the_constructor() -> None:
    with listening() as heard:

        class Free(SGD):
            def train(self) -> None:
                pass

            def eval(self) -> None:
                pass

        model = small_model()
        optimizer = Free([{"params": model[0].parameters()}, {"params": [model[2].weight]}], lr=0.1)
        optimizer.add_param_group({"params": [model[2].bias], "lr": 0.5})
        optimizer.train()
        optimizer.eval()
    assert heard.events == [
        ("add_param_group", optimizer, {"group": 2, "n_params": 1}),
        ("optimizer_mode", optimizer, {"mode": "train"}),
        ("optimizer_mode", optimizer, {"mode": "eval"}),
    ]


def test_loss_that_is_not_finite_is_kept_as_it_is() -> None:
    with listening() as heard:
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = SGD([weight], lr=0.1)
        (weight.sum() / 0.0).backward()
        optimizer.step()
    assert heard.losses(optimizer) == [math.inf]


def test_accounts_of_optimizers_that_are_gone_are_closed() -> None:
    gc.collect()
    with listening() as heard:
        model = small_model()
        before = len(heard.context._tracks)
        for _ in range(20):
            optimizer = SGD(model.parameters(), lr=0.1)
            loss = mse(model, DATA)
            loss.backward()
            optimizer.step()
            assert heard.taken()[-1]["loss"] == loss.item()
            heard.steps.clear()
            heard.events.clear()
            optimizer.zero_grad()
        gc.collect()
        mse(model, DATA).backward()  # accounts are closed at the next thing that happens
        assert len(heard.context._tracks) <= before + 1
