"""Hand-written optimizers are recorded like torch's, whatever shape they have, and compute what they computed."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import optrace
from optrace.errors import RecordError

torch.set_num_threads(1)


class TutorialSGD:
    """Momentum as a moving average, kept in a list: the class of pytorch#94615."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        self.params = list(params)
        self.lr = lr
        self.momentum = momentum
        self.v = [torch.zeros_like(p) for p in self.params]

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self):
        for i, p in enumerate(self.params):
            self.v[i] = self.momentum * self.v[i] + (1 - self.momentum) * p.grad
            p -= self.lr * self.v[i]


class NumpyAdaGrad:
    """`update(params, grads)` over dicts, in place, as course code has it."""

    def __init__(self, lr=0.5):
        self.lr = lr
        self.h = None
        self.t = 0

    def update(self, params, grads):
        self.t += 1
        if self.h is None:
            self.h = {key: np.zeros_like(value) for key, value in params.items()}
        for key in params:
            self.h[key] += grads[key] * grads[key]
            params[key] -= self.lr * grads[key] / (np.sqrt(self.h[key]) + 1e-7)


def sgd_momentum(w, dw, config=None):
    """A course assignment's update rule."""
    if config is None:
        config = {}
    config.setdefault("learning_rate", 1e-2)
    config.setdefault("momentum", 0.9)
    v = config.get("velocity", np.zeros_like(w))
    v = config["momentum"] * v - config["learning_rate"] * dw
    config["velocity"] = v
    return w + v, config


def net_and_data():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2), torch.randn(8, 3), torch.randn(8, 2)


def train(net, x, y, optimizer, steps=4):
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()


def rows(trace, **selection):
    return trace.table("tensors", **selection)


def test_a_plain_class_over_torch_parameters(tmp_path):
    net, x, y = net_and_data()
    bare = copy.deepcopy(net)
    train(bare, x, y, TutorialSGD(bare.parameters()))

    optimizer = TutorialSGD(net.parameters())
    assert optrace.watch(optimizer) is optimizer
    seen = []
    with optrace.record(tmp_path / "run", quiet=True):
        for _ in range(4):
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            grad = net.weight.grad.clone()
            before = net.weight.detach().clone()
            optimizer.step()
            seen.append((loss.item(), grad, before, net.weight.detach().clone(), optimizer.v[0].clone()))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), bare.parameters(), strict=True))

    trace = optrace.open(tmp_path / "run")
    assert trace.optimizers == [(0, "TutorialSGD")]
    assert list(trace.params["param"]) == ["weight", "bias"]
    assert list(trace.groups["lr"]) == [0.1] * 4
    assert list(trace.groups["momentum"]) == [0.9] * 4
    for step, (loss, grad, before, after, velocity) in enumerate(seen, 1):
        assert trace.steps.set_index("step").loc[step, "loss"] == pytest.approx(loss, rel=1e-7)
        for quantity, value in (("grad", grad), ("param", after), ("state.v", velocity)):
            np.testing.assert_array_equal(trace.value(step, "weight", quantity), value.numpy())
        (update,) = rows(trace, step=step, param="weight", quantity="update")["sample"]
        np.testing.assert_array_equal(update[:6], (after.double() - before.double()).numpy().ravel())


def test_watched_classes_beside_another_optimizer_have_their_own_losses(tmp_path):
    nets = [net_and_data() for _ in range(3)]
    torchs = torch.optim.SGD(nets[0][0].parameters(), lr=0.1)
    optimizers = [torchs, *(optrace.watch(TutorialSGD(net.parameters())) for net, _, _ in nets[1:])]
    told = [[] for _ in nets]
    with optrace.record(tmp_path / "run", quiet=True):
        for round_ in range(3):
            for i, ((net, x, y), optimizer) in enumerate(zip(nets, optimizers, strict=True)):
                optimizer.zero_grad()
                loss = (net(x) - y).square().mean() * (i + 1 + round_)
                loss.backward()
                optimizer.step()
                told[i].append(loss.item())
    steps = optrace.open(tmp_path / "run").steps
    for index, losses in enumerate(told):
        mine = steps[steps["optimizer"] == index]
        assert list(mine["loss"]) == pytest.approx(losses, rel=1e-7)
        assert list(mine["n_backward"])[-1] == 1


def test_state_may_be_keyed_by_parameter_index_or_id(tmp_path):
    class Keyed(TutorialSGD):
        def __init__(self, params, how):
            super().__init__(params)
            self.v = {how(p, i): torch.zeros_like(p) for i, p in enumerate(self.params)}
            self.how = how

        @torch.no_grad()
        def step(self):
            for i, p in enumerate(self.params):
                v = self.v[self.how(p, i)]
                v.mul_(self.momentum).add_(p.grad)
                p -= self.lr * v

    for number, how in enumerate([lambda p, i: p, lambda p, i: i, lambda p, i: id(p)]):
        net, x, y = net_and_data()
        optimizer = optrace.watch(Keyed(net.parameters(), how))
        with optrace.record(tmp_path / f"run{number}", quiet=True):
            train(net, x, y, optimizer)
        trace = optrace.open(tmp_path / f"run{number}")
        assert set(rows(trace, step=2)["quantity"]) == {"grad", "update", "param", "state.v"}
        np.testing.assert_array_equal(trace.value(4, "bias", "state.v"), optimizer.v[how(net.bias, 1)].numpy())


def test_our_reference_sgd_is_the_same_as_torchs_to_the_bit(tmp_path):
    for name, module in (("torch", torch.optim), ("ours", optrace.reference)):
        net, x, y = net_and_data()
        optimizer = optrace.watch(module.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1))
        with optrace.record(tmp_path / name, quiet=True):
            train(net, x, y, optimizer, 10)
    report = optrace.diff(tmp_path / "torch", tmp_path / "ours", exact=True)
    assert report.same, str(report)


def test_two_optimizers_of_one_script_are_compared(tmp_path):
    with optrace.record(tmp_path / "run", quiet=True):
        for make in (
            lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
            lambda params: optrace.watch(TutorialSGD(params)),
        ):
            net, x, y = net_and_data()
            train(net, x, y, make(net.parameters()))
    report = optrace.diff(f"{tmp_path / 'run'}@0", f"{tmp_path / 'run'}@1")
    assert not report.same
    assert (report.first.step, report.first.quantity) == (1, "update")


def test_numpy_class_with_update(tmp_path):
    rng = np.random.default_rng(0)
    params = {"W": rng.normal(size=(3, 2)), "b": np.zeros(2)}
    bare = copy.deepcopy(params)
    gradients = [{k: rng.normal(size=v.shape) for k, v in params.items()} for _ in range(5)]
    plain = NumpyAdaGrad()
    for grads in gradients:
        plain.update(bare, grads)

    optimizer = optrace.watch(NumpyAdaGrad())
    with optrace.record(tmp_path / "run", quiet=True):
        for grads in gradients:
            optimizer.update(params, grads)
    assert all((params[k] == bare[k]).all() for k in params)

    trace = optrace.open(tmp_path / "run")
    assert trace.problems == []
    assert trace.optimizers == [(0, "NumpyAdaGrad")]
    assert set(trace.params["param"]) == {"W", "b"}
    assert set(trace.params["dtype"]) == {"float64"}
    for step, grads in enumerate(gradients, 1):
        np.testing.assert_array_equal(trace.value(step, "W", "grad"), grads["W"])
    np.testing.assert_array_equal(trace.value(5, "W", "param"), params["W"])
    np.testing.assert_array_equal(trace.value(5, "b", "state.h"), optimizer.h["b"])
    assert list(trace.groups["t"]) == [0, 1, 2, 3, 4]
    assert list(rows(trace, quantity="group.t")["mean"]) == [1, 2, 3, 4, 5]
    step_zero = rows(trace, step=0)
    assert set(step_zero["quantity"]) == {"param"}


def test_course_functions_make_one_step_of_all_their_parameters(tmp_path):
    rng = np.random.default_rng(1)
    weights = {"W1": rng.normal(size=(2, 2)), "b1": rng.normal(size=2)}
    update = optrace.watch(sgd_momentum)
    configs = {name: {"learning_rate": 0.1} for name in weights}
    history = []
    with optrace.record(tmp_path / "run", quiet=True):
        for _ in range(3):
            for name in weights:
                grad = rng.normal(size=weights[name].shape)
                expected = sgd_momentum(weights[name], grad, copy.deepcopy(configs[name]))[0]
                weights[name], configs[name] = update(weights[name], grad, configs[name])
                assert (weights[name] == expected).all()
            history.append({name: value.copy() for name, value in weights.items()})
    trace = optrace.open(tmp_path / "run")
    assert trace.last_step(0) == 3
    assert list(trace.params["param"]) == ["param0", "param1"]
    for step, values in enumerate(history, 1):
        np.testing.assert_array_equal(trace.value(step, "param0", "param"), values["W1"])
        np.testing.assert_array_equal(trace.value(step, "param1", "param"), values["b1"])
    np.testing.assert_array_equal(trace.value(3, "param1", "state.velocity"), configs["b1"]["velocity"])
    assert set(trace.groups["learning_rate"]) == {0.1}


def test_steps_told_by_hand(tmp_path):
    rng = np.random.default_rng(2)
    w = rng.normal(size=4).astype(np.float32)
    with optrace.record(tmp_path / "run", quiet=True) as run:
        for step in range(3):
            grad = rng.normal(size=4).astype(np.float32)
            old, w = w, w - np.float32(0.1) * grad
            run.step(
                params={"w": w},
                grads={"w": grad},
                state={"w": {"m": grad * 2}},
                hyper={"lr": 0.1, "betas": (0.9, 0.99)},
                loss=float(step),
                before={"w": old},
            )
    trace = optrace.open(tmp_path / "run")
    assert list(trace.steps["loss"]) == [0, 1, 2]
    assert list(trace.groups["betas.1"]) == [0.99] * 3
    np.testing.assert_array_equal(trace.value(3, "w", "param"), w)
    np.testing.assert_array_equal(trace.value(3, "w", "state.m"), grad * 2)
    assert optrace.replay(tmp_path / "run", rule="sgd").same


def test_told_steps_refuse_what_holds_no_numbers(tmp_path):
    with optrace.record(tmp_path / "run", quiet=True) as run:
        with pytest.raises(RecordError, match="w holds no numbers"):
            run.step(params={"w": object()})
        with pytest.raises(RecordError, match="grads names v"):
            run.step(params={"w": np.ones(2)}, grads={"v": np.ones(2)})


def test_what_cannot_be_watched_is_refused_and_torchs_own_comes_back_untouched():
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    assert optrace.watch(sgd) is sgd
    assert "step" not in vars(TutorialSGD) or sgd.step.__func__ is torch.optim.SGD.step
    with pytest.raises(RecordError, match="none of them"):
        optrace.watch(3)
    with pytest.raises(RecordError, match="got the class TutorialSGD"):
        optrace.watch(TutorialSGD)
    with pytest.raises(RecordError, match="got the model Linear"):
        optrace.watch(torch.nn.Linear(1, 1))
    with pytest.raises(RecordError, match="a StepLR is a schedule"):
        optrace.watch(torch.optim.lr_scheduler.StepLR(sgd, 1))


class StepsWhatItIsGiven:
    """Momentum SGD whose method is called `step`."""

    def __init__(self, lr):
        self.lr, self.momentum, self.v = lr, 0.5, {}

    def step(self, params, grads):
        for name in params:
            self.v[name] = self.momentum * self.v.get(name, 0.0) + grads[name]
            params[name] -= self.lr * self.v[name]


def test_a_step_with_params_and_grads_is_recorded_like_an_update(tmp_path):
    weights, bare = {"w": np.arange(3.0)}, {"w": np.arange(3.0)}
    optimizer, other = optrace.watch(StepsWhatItIsGiven(0.1)), StepsWhatItIsGiven(0.1)
    with optrace.record(tmp_path / "run", quiet=True):
        for _ in range(4):
            optimizer.step(weights, {"w": 2 * weights["w"]})
    for _ in range(4):
        other.step(bare, {"w": 2 * bare["w"]})
    assert (weights["w"] == bare["w"]).all()
    trace = optrace.open(tmp_path / "run")
    np.testing.assert_array_equal(trace.value(4, "w", "param"), bare["w"])
    np.testing.assert_array_equal(trace.value(4, "w", "state.v"), other.v["w"])


class Secretive:
    """Tells nobody what it steps."""

    def step(self):
        self.stepped = True


def test_a_step_whose_parameters_cannot_be_found_is_made_and_ends_the_recording_with_a_line(tmp_path, capsys):
    optimizer = optrace.watch(Secretive())
    with optrace.record(tmp_path / "run"):
        optimizer.step()
    assert optimizer.stepped
    told = capsys.readouterr().err
    assert told.startswith("optrace: recording stopped, the program goes on: the parameters of a Secretive are neither")
    assert told.count("\n") == 1


def test_a_watched_object_is_copied_and_pickled_as_before():
    optimizer = optrace.watch(TutorialSGD([torch.zeros(2, requires_grad=True)]))
    assert type(optimizer) is TutorialSGD
    assert vars(copy.deepcopy(optimizer)).keys() == vars(optimizer).keys()
    assert pickle.loads(pickle.dumps(optimizer)).lr == 0.1


def test_exceptions_pass_and_take_no_number(tmp_path):
    class Failing(TutorialSGD):
        fail = False

        def step(self):
            if self.fail:
                raise KeyError("mine")
            super().step()

    net, x, y = net_and_data()
    optimizer = optrace.watch(Failing(net.parameters()))
    with optrace.record(tmp_path / "run", quiet=True):
        train(net, x, y, optimizer, 2)
        optimizer.fail = True
        with pytest.raises(KeyError, match="mine"):
            optimizer.step()
        optimizer.fail = False
        train(net, x, y, optimizer, 1)
    trace = optrace.open(tmp_path / "run")
    assert trace.last_step(0) == 3
    assert "step_failed" in set(trace.events["kind"])


def run_script(tmp_path, text, *arguments, **environment):
    (tmp_path / "script.py").write_text(textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, *arguments, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )


def test_numpy_classes_are_recorded_without_torch(tmp_path):
    done = run_script(
        tmp_path,
        """
        import importlib.util, sys

        class NoTorch:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "torch":
                    raise ModuleNotFoundError("No module named 'torch'", name="torch")

        sys.meta_path.insert(0, NoTorch())
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: None if name == "torch" else real(name, package)
        import numpy as np
        import optrace

        class SGD:
            def __init__(self):
                self.lr = 0.5
            def update(self, params, grads):
                for i in range(len(params)):
                    params[i] -= self.lr * grads[i]

        optimizer = optrace.watch(SGD())
        w = [np.ones(3), np.zeros(2)]
        with optrace.record("run"):
            for _ in range(3):
                optimizer.update(w, [np.ones(3), np.ones(2)])
        trace = optrace.open("run")
        print(trace.value(3, "param0", "param"), optrace.replay("run", rule="sgd").same, "torch" in sys.modules)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[-0.5 -0.5 -0.5] True False"


def test_training_by_hand_is_told_what_to_do(tmp_path):
    script = """
        import torch
        w = torch.ones(3, requires_grad=True); b = torch.zeros(3, requires_grad=True)
        idle = torch.zeros(3, requires_grad=True)
        for _ in range(5):
            (w * 2 + b).sum().backward()
            for p in (w, b):
                p.data -= 0.1 * p.grad
                p.grad = None
        """
    done = run_script(tmp_path, script, "-m", "optrace", "record")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == (
        "optrace: no optimizer step seen; 2 tensors that require grad changed by hand: add opt = optrace.watch(opt)"
    )
    assert not (tmp_path / "optrace-runs").exists()
