"""Programs that do unusual things to parameters, groups and state: all is recorded as it was, and nothing changes."""

from __future__ import annotations

import collections
import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from client_inside import Named, check_inside, same_bits
from client_measure import measured_tensor, row_errors
from torch import nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.optim import Optimizer
from torch.optim.sgd import sgd as functional_sgd
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

import optrace


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def step_once(model: nn.Module, optimizer: Any, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


# ---- groups, parameters and state that change while training ----


def test_parameters_and_state_are_replaced_between_steps(tmp_path):
    def train() -> Named:
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        x = torch.randn(8, 4)
        step_once(model, optimizer, x)
        model[0].weight.data = torch.randn(6, 4)  # the parameter's values lie elsewhere
        step_once(model, optimizer, x)
        optimizer.state[model[0].bias]["exp_avg"] = torch.ones(6)
        del optimizer.state[model[2].bias]
        step_once(model, optimizer, x)
        model.double()
        for entry in optimizer.state.values():
            entry.update(exp_avg=entry["exp_avg"].double(), exp_avg_sq=entry["exp_avg_sq"].double())
        step_once(model, optimizer, x.double())
        with torch.no_grad():  # the vocabulary grows
            model[0].weight.set_(torch.randn(6, 5, dtype=torch.double))
        for key in ("exp_avg", "exp_avg_sq"):
            optimizer.state[model[0].weight][key] = torch.zeros(6, 5, dtype=torch.double)
        step_once(model, optimizer, torch.randn(8, 5, dtype=torch.double))
        return model.named_parameters()

    trace = check_inside(tmp_path, train, [5])
    assert trace.params.set_index("param").loc["0.weight", "shape"] == (6, 5)


def test_groups_that_grow_and_shrink_keep_the_names_of_all_parameters(tmp_path):
    def train() -> Named:
        model = small()
        first, last = model[0], model[2]
        optimizer = torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9)
        x = torch.randn(8, 4)
        step_once(model, optimizer, x)
        optimizer.add_param_group({"params": list(last.parameters()), "lr": 0.5, "note": "unfrozen"})
        step_once(model, optimizer, x)
        taken = optimizer.param_groups.pop(0)  # frozen for a step, then back
        step_once(model, optimizer, x)
        optimizer.param_groups.append(taken)
        step_once(model, optimizer, x)
        optimizer.param_groups[0]["params"] = [last.weight]
        step_once(model, optimizer, x)
        return model.named_parameters()

    trace = check_inside(tmp_path, train, [5])
    assert set(trace.params["param"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}, "those that left are listed"


def test_a_parameter_in_the_place_of_another_has_its_name(tmp_path):
    model = small()
    old = model[2].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        step_once(model, optimizer, torch.ones(3, 4))
        model[2].weight = nn.Parameter(torch.zeros(1, 6))
        optimizer.param_groups[0]["params"] = list(model.parameters())
        step_once(model, optimizer, torch.ones(3, 4))
    trace = optrace.open(tmp_path / "run")
    assert old is not model[2].weight, "the old one is alive, and still the name is free"
    for step in (1, 2):
        assert set(trace.table("tensors", step=step, quantity="param")["param"]) == set(trace.params["param"])
    assert list(trace.params["param"]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    edited = trace.table("tensors", step=2, quantity="param_in")
    assert edited["param"].tolist() == ["2.weight"] and edited["n_zero"].tolist() == [6]


def test_optimizers_made_in_a_function_and_dropped_are_told_apart(tmp_path):
    def train() -> Named:
        torch.manual_seed(0)
        models = nn.ModuleList()
        for fold in range(6):
            models.append(nn.Linear(4, 1))
            kind = torch.optim.SGD if fold % 2 else torch.optim.Adam
            optimizer = kind(models[fold].parameters(), lr=0.1)
            for _ in range(2):
                step_once(models[fold], optimizer, torch.ones(3, 4) * fold)
            del optimizer
            if fold == 2:
                gc.collect()  # also what is in cycles is gone
        return models.named_parameters()

    check_inside(tmp_path, train, [2] * 6)


def test_copied_and_pickled_optimizers_are_optimizers_of_their_own(tmp_path):
    def train() -> Named:
        torch.manual_seed(0)
        x = torch.randn(8, 4)
        model = nn.Linear(4, 2)
        optimizer = torch.optim.RAdam(model.parameters(), lr=0.1)
        step_once(model, optimizer, x)
        second = copy.deepcopy((model, optimizer))
        third = pickle.loads(pickle.dumps((model, optimizer)))
        file = io.BytesIO()
        torch.save((model, optimizer), file)
        file.seek(0)
        fourth = torch.load(file, weights_only=False)
        made = [(model, optimizer), second, third, fourth]
        for one in made:
            step_once(*one, x)
        return [(f"{i}.{name}", p) for i, (one, _) in enumerate(made) for name, p in one.named_parameters()]

    def named() -> Named:
        return [(name.partition(".")[2], p) for name, p in train()]

    check_inside(tmp_path, named, [2, 1, 1, 1])


# ---- tensors of every sort ----


class Sorts(nn.Module):
    """Parameters of many dtypes and layouts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        made = {
            "empty": torch.zeros(0, 3),
            "zero_d": torch.tensor(2.0),
            "complex": torch.randn(5, dtype=torch.complex64),
            "wide_complex": torch.randn(4, dtype=torch.complex128),
            "double_precision": torch.randn(3, 2, dtype=torch.double),
            "brain": torch.randn(7).bfloat16(),
            "half_precision": torch.randn(7).half(),
            "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
            "transposed": torch.randn(4, 6).t(),
            "sliced": torch.randn(10)[::2],
            "large": torch.randn(50, 41),
            "never_used": torch.randn(3),
        }
        for name, value in made.items():
            self.register_parameter(name, nn.Parameter(value))
        self.tied = self.large

    def loss(self) -> torch.Tensor:
        parts = [p.abs().float().square().sum() for name, p in self.named_parameters() if name != "never_used"]
        return torch.stack(parts).sum()


def fit_for_the_fused_kernel(param: torch.Tensor) -> bool:
    """The one of CPUs takes values for dense: of strided ones it reads and writes memory that is not theirs."""
    return param.is_floating_point() and param.dim() > 0 and param.stride() != (2,)


@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, nesterov=True, foreach=True),
        lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, maximize=True),
        lambda params: torch.optim.Adam(params, lr=0.01, amsgrad=True, maximize=True),
        lambda params: torch.optim.RMSprop(params, lr=1e-3, centered=True, momentum=0.9, foreach=True),
        lambda params: torch.optim.Adagrad([p for p in params if not p.is_complex()], lr=0.01),
        lambda params: torch.optim.AdamW([p for p in params if fit_for_the_fused_kernel(p)], fused=True, lr=0.01),
    ],
    ids=["foreach", "for-loop", "amsgrad", "centered", "adagrad", "fused"],
)
def test_parameters_of_every_sort(tmp_path, make):
    def train() -> Named:
        model = Sorts()
        optimizer = make(list(model.parameters()))
        for step in range(3):
            optimizer.zero_grad()
            model.loss().backward()
            if type(optimizer) in (torch.optim.SGD, torch.optim.Adam) and not optimizer.param_groups[0]["foreach"]:
                model.sliced.grad = torch.ones(1).expand(5)
                if step == 1:
                    model.wide_complex.grad = model.wide_complex.grad.conj()
            optimizer.step()
        return model.named_parameters()

    check_inside(tmp_path, train, [3])


# ---- gradients that come from elsewhere than a backward ----


def test_gradients_by_torch_func_and_per_sample(tmp_path):
    def train() -> Named:
        model = small()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        params = dict(model.named_parameters())
        x, y = torch.randn(8, 4), torch.randn(8, 1)

        def loss_of(params: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (functional_call(model, params, (x,)) - y).square().mean()

        for _ in range(3):
            detached = {name: param.detach() for name, param in params.items()}
            each, _ = vmap(grad_and_value(loss_of), in_dims=(None, 0, 0))(detached, x, y)
            for name, param in params.items():
                param.grad = each[name].clamp(-1, 1).mean(0)
            optimizer.step()
        return model.named_parameters()

    check_inside(tmp_path, train, [3])


def test_evolution_strategy_without_autograd(tmp_path):
    def train() -> Named:
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            with torch.inference_mode():
                for param in model.parameters():
                    param.grad = torch.randn_like(param)  # inference tensors have no version
            optimizer.step()
            step_once(model, optimizer, torch.ones(3, 4))
        return model.named_parameters()

    check_inside(tmp_path, train, [6])


def test_learned_learning_rate_through_differentiable_steps(tmp_path):
    def train() -> Named:
        torch.manual_seed(0)
        rates = nn.ParameterDict({"lr": torch.tensor(0.1)})
        outer = torch.optim.Adam(rates.parameters(), lr=0.01)
        x = torch.randn(8, 4)
        weights = []
        for _ in range(2):
            w = torch.randn(4, requires_grad=True).clone()
            inner = torch.optim.SGD([w], lr=rates["lr"], differentiable=True)
            (w.grad,) = torch.autograd.grad((x @ w).square().mean(), w, create_graph=True)
            inner.step()
            outer.zero_grad()
            (x @ w).square().mean().backward()
            outer.step()
            weights.append(("w", w))
        return [*rates.named_parameters(), *weights]

    check_inside(tmp_path, train, [1, 2, 1])


def test_adversaries_with_normed_weights_penalty_and_clamped_critic(tmp_path):
    def train() -> Named:
        torch.manual_seed(0)
        generator = nn.Sequential(weight_norm(nn.Linear(3, 8)), nn.ReLU(), nn.Linear(8, 2))
        critic = nn.Sequential(spectral_norm(nn.Linear(2, 8)), nn.ReLU(), nn.Linear(8, 1))
        for_generator = torch.optim.Adam(generator.parameters(), lr=1e-3)
        for_critic = torch.optim.RMSprop(critic.parameters(), lr=1e-3)
        for _ in range(2):
            fake = generator(torch.randn(8, 3)).detach().requires_grad_()
            (slope,) = torch.autograd.grad(critic(fake).sum(), fake, create_graph=True)
            for_critic.zero_grad()
            critic(fake).mean().backward(inputs=list(critic.parameters()), retain_graph=True)
            (slope.norm(dim=1) - 1).square().mean().backward()
            for_critic.step()
            with torch.no_grad():
                for param in critic.parameters():
                    param.clamp_(-0.3, 0.3)
            critic.requires_grad_(False)
            for_generator.zero_grad()
            (-critic(generator(torch.randn(8, 3))).mean()).backward()
            for_generator.step()
            critic.requires_grad_(True)
        return [(f"{i}.{name}", p) for i, one in enumerate((generator, critic)) for name, p in one.named_parameters()]

    def named() -> Named:
        return [(name.partition(".")[2], p) for name, p in train()]

    check_inside(tmp_path, named, [2, 2])


def test_averaged_weights_and_their_schedule(tmp_path):
    def train() -> Named:
        model = small()
        averaged = AveragedModel(model)
        moving = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = SWALR(optimizer, swa_lr=0.01, anneal_epochs=2)
        for _ in range(3):
            step_once(model, optimizer, torch.ones(3, 4))
            moving.update_parameters(model)
            averaged.update_parameters(model)
            schedule.step()
        return [*model.named_parameters(), ("averaged", averaged.module[0].weight), ("ema", moving.module[0].weight)]

    trace = check_inside(tmp_path, train, [3])
    assert trace.groups["swa_lr"].tolist() == [0.01] * 3


# ---- optimizers as people write them ----

Pair = collections.namedtuple("Pair", "m v")


class OddState(Optimizer):
    """State of odd sorts, options that `step()` moves, arguments of its own."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "table": {"a": 1}, "bounds": [1, 2.5]})

    @torch.no_grad()
    def step(self, closure: Any = None, *, scale: float = 1.0, extra: Any = None) -> int:
        self.state["calls"] = self.state.get("calls", 0) + 1
        for group in self.param_groups:
            group["lr"] *= 0.9
            for p in group["params"]:
                entry = self.state[p]
                if not entry:
                    entry.update(pair=Pair(torch.zeros_like(p), 0.0), seen=collections.deque(maxlen=2))
                    entry.update(nested={"a": {"b": torch.ones(2)}}, none=None, text="words")
                entry["pair"] = Pair(entry["pair"].m * 0.9 + p.grad, entry["pair"].v + 1)
                entry["seen"].append(p.grad.norm().item())
                p.sub_(entry["pair"].m, alpha=group["lr"] * scale)
        return 7


class Replacing(Optimizer):
    """Gives its parameters other memory and throws the gradients away."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad.data
                p.grad = None


class Shrinking(torch.optim.AdamW):
    """A rule that goes on after `super().step()`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.99)
        return result


@pytest.mark.parametrize("kind", [OddState, Replacing, Shrinking])
def test_optimizers_of_peoples_own(tmp_path, kind):
    def train() -> Named:
        model = small()
        optimizer = kind([{"params": layer.parameters()} for layer in (model[0], model[2])])
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            if kind is OddState:
                assert optimizer.step(scale=0.5, extra=object()) == 7
            else:
                optimizer.step()
        return model.named_parameters()

    check_inside(tmp_path, train, [3])


def test_models_trained_in_threads_side_by_side(tmp_path):
    def train() -> Named:
        torch.manual_seed(0)
        models = nn.ModuleList(nn.Linear(4, 1) for _ in range(3))
        turns = [threading.Event() for _ in range(4)]
        turns[0].set()

        def work(number: int) -> None:
            optimizer = torch.optim.Adam(models[number].parameters(), lr=0.1)
            turns[number].wait()
            for _ in range(10):  # the first steps in order, so that the optimizers have their numbers; then at once
                step_once(models[number], optimizer, torch.ones(3, 4) * number)
                turns[number + 1].set()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return models.named_parameters()

    trace = check_inside(tmp_path, train, [10, 10, 10])
    assert trace.steps["n_backward"].tolist() == [1] * 30, "a thread's backward is its own"
    assert trace.steps["loss"].notna().all()


# ---- what torch tells nobody of ----


def test_the_functional_api_is_told_of(tmp_path, capsys):
    model = small()
    params = list(model.parameters())
    with optrace.record(tmp_path / "run", strict=True):
        for _ in range(4):
            grads = torch.autograd.grad(model(torch.ones(3, 4)).square().mean(), params)
            model.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            with torch.no_grad():
                functional_sgd(
                    params,
                    list(grads),
                    [None] * len(params),
                    weight_decay=0.0,
                    momentum=0.0,
                    lr=0.1,
                    dampening=0.0,
                    nesterov=False,
                    maximize=False,
                )
    assert not (tmp_path / "run").exists()
    assert "no optimizer step seen; 4 tensors that require grad changed by hand" in capsys.readouterr().err


class WithoutHooks(Optimizer):
    """Has what an optimizer has, and none of torch's constructor."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": list(params), "lr": 0.1}]
        self.state = collections.defaultdict(dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


def test_an_optimizer_that_skips_torchs_constructor_is_recorded_when_watched(tmp_path):
    model = small()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        optimizer = optrace.watch(WithoutHooks(model.parameters()))
        for _ in range(3):
            model.zero_grad()
            model(torch.ones(3, 4)).square().mean().backward()
            optimizer.step()
    trace = optrace.open(tmp_path / "run")
    assert trace.last_step(0) == 3 and set(trace.params["param"]) == set(before)
    assert optrace.replay(trace, rule="sgd").same
    for name, param in model.named_parameters():
        assert not same_bits(before[name], param)
        (row,) = trace.table("tensors", step=3, param=name, quantity="param").to_dict("records")
        assert row_errors(row, measured_tensor(param)) == []
