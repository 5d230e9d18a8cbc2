"""Candidates of every kind are recognised, driven, and judged on what they have."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch

import optrace
from optrace.errors import GoldenError
from optrace.goldens.candidate import load
from optrace.reference.rule import RULES


class Plain:
    """torch-like, no groups, no state_dict, options as attributes."""

    factor = 1.0

    def __init__(self, params, learning_rate=0.1, mu=0.0):
        self.params, self.learning_rate, self.mu = list(params), learning_rate, mu
        self.velocity = [0.0] * len(self.params)

    def step(self):
        for i, p in enumerate(self.params):
            if p.grad is not None:
                self.velocity[i] = self.mu * self.velocity[i] + self.factor * p.grad
                p.data -= self.learning_rate * self.velocity[i]


class ByDict:
    """The book's interface: dicts, changed in place."""

    def __init__(self, lr=0.01, momentum=0.9):
        self.lr, self.momentum, self.v = lr, momentum, None

    def update(self, params, grads):
        if self.v is None:
            self.v = {key: np.zeros_like(value) for key, value in params.items()}
        for key in params:
            self.v[key] = self.momentum * self.v[key] + grads[key]
            params[key] -= self.lr * self.v[key]


class ByList:
    def __init__(self, eta):
        self.eta = eta

    def update(self, params, grads):
        return [p - self.eta * g for p, g in zip(params, grads, strict=True)]


class ByArray:
    def __init__(self, lr=0.1):
        self.lr = lr

    def update(self, w, dw):
        return np.subtract(w, self.lr * dw)


def by_config(w, dw, config=None):
    config = {} if config is None else config
    config.setdefault("learning_rate", 1e-2)
    config.setdefault("momentum", 0.9)
    v = config["momentum"] * config.get("velocity", np.zeros_like(w)) + dw
    config["velocity"] = v
    return w - config["learning_rate"] * v, config


def by_config_adam(w, dw, config):
    config.setdefault("m", np.zeros_like(w))
    config.setdefault("v", np.zeros_like(w))
    config["t"] = config.get("t", 0) + 1
    b1, b2 = config["beta1"], config["beta2"]
    config["m"] = b1 * config["m"] + (1 - b1) * dw
    config["v"] = b2 * config["v"] + (1 - b2) * dw * dw
    m, v = config["m"] / (1 - b1 ** config["t"]), config["v"] / (1 - b2 ** config["t"])
    return w - config["learning_rate"] * m / (np.sqrt(v) + config["epsilon"]), config


def pure(param, grad, state, hyper):
    buf = hyper["momentum"] * state.get("b", np.zeros_like(param)) + grad
    return param - hyper["lr"] * buf, {"b": buf}


class Nothing:
    pass


RIGHT = [
    (Plain, "sgd", {"nesterov", "dampening", "weight_decay", "maximize", "parameter groups", "state_dict"}),
    (ByDict, "sgd", {"nesterov", "weight_decay", "parameter groups", "gradients that are None", "state_dict"}),
    (ByList, "sgd", {"momentum", "parameter groups"}),
    (ByArray, "sgd", {"momentum", "parameter groups"}),
    (by_config, "sgd", {"nesterov", "weight_decay", "parameter groups"}),
    (by_config_adam, "adam", {"amsgrad", "weight_decay", "parameter groups"}),
    (pure, "sgd", {"nesterov", "weight_decay", "gradients that are None"}),
]


@pytest.mark.parametrize(("candidate", "rule", "lacks"), RIGHT, ids=lambda x: getattr(x, "__name__", None))
def test_each_kind_passes_what_it_has_and_lists_what_it_lacks(candidate, rule, lacks):
    report = optrace.check_golden(candidate, rule)
    assert report.same, str(report)
    assert lacks <= set(report.lacks)
    assert f"{rule}/plain" in {result.case for result in report.agreeing}
    assert "not covered" in str(report)


def test_the_same_kinds_fail_when_they_are_wrong():
    class Ascends(Plain):
        factor = -1.0

    class Twice(ByDict):
        def update(self, params, grads):
            super().update(params, {key: 2 * grad for key, grad in grads.items()})

    def squared(param, grad, state, hyper):
        return pure(param, grad * abs(grad), state, hyper)

    for wrong in (Ascends, Twice, squared):
        assert not optrace.check_golden(wrong, "sgd").same


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"lbfgs", "lion"}))
def test_reference_rule_and_class_pass_every_case(rule):
    name = next(name for name in optrace.reference.__all__ if name.lower() == rule)
    for candidate in (RULES[rule], getattr(optrace.reference, name)):
        report = optrace.check_golden(candidate, rule)
        assert report.same, str(report)
        assert not report.not_covered


def test_partials_and_factories_are_classes_too():
    assert optrace.check_golden(functools.partial(torch.optim.SGD, foreach=True), "sgd").same
    assert optrace.check_golden(lambda params, **options: torch.optim.SGD(params, **options), "sgd").same


def test_options_go_to_the_constructor_or_choose_cases():
    assert optrace.check_golden(torch.optim.Adam, "adam", options={"fused": True}).same
    chosen = optrace.check_golden(torch.optim.SGD, "sgd", options={"nesterov": True})
    assert {result.case for result in chosen.cases} == {
        f"sgd/{case}{suffix}" for case in ("nesterov", "nesterov-decay") for suffix in ("", "-float32")
    }
    with pytest.raises(GoldenError, match=r"momentum=0\.123"):
        optrace.check_golden(torch.optim.SGD, "sgd", options={"momentum": 0.123})


def test_cases_are_chosen_by_name_and_glob():
    report = optrace.check_golden(torch.optim.SGD, "sgd", cases="groups*", dtype="float64")
    assert [result.case for result in report.cases] == ["sgd/groups", "sgd/groups-resume"]
    with pytest.raises(GoldenError, match="no case of sgd is called grups"):
        optrace.check_golden(torch.optim.SGD, "sgd", cases="grups")


def test_an_option_that_is_taken_and_ignored_is_a_difference():
    class Ignores(torch.optim.SGD):
        def __init__(self, params, lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False):
            super().__init__(params, lr, momentum, 0, weight_decay, nesterov, maximize=maximize)
            for group in self.param_groups:
                group["dampening"] = 0

    report = optrace.check_golden(Ignores, "sgd", cases="dampening*")
    assert len(report.differing) == 4


def test_state_under_torchs_names_is_compared():
    class Rescaled(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                if "momentum_buffer" in state:
                    state["momentum_buffer"] = state["momentum_buffer"].clone()

    assert optrace.check_golden(Rescaled, "sgd", cases="momentum").same

    class Broken(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state["step"] = state["step"].double()

    assert optrace.check_golden(Broken, "adam", cases="plain").same

    class Counts(torch.optim.ASGD):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state["ax"] = torch.zeros_like(state["ax"])

    report = optrace.check_golden(Counts, "asgd", cases="plain")
    assert report.first.failure.quantity == "state.ax"


def test_a_buffer_that_shares_memory_with_the_gradient_is_found():
    class Aliased(Plain):
        def step(self):
            for i, p in enumerate(self.params):
                if p.grad is not None:
                    first = isinstance(self.velocity[i], float)
                    self.velocity[i] = p.grad if first else self.mu * self.velocity[i] + p.grad
                    p.data -= self.learning_rate * self.velocity[i]

    assert not optrace.check_golden(Aliased, "sgd", cases="momentum").same


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (3, "the candidate is 3, no class or function"),
        (torch.optim.SGD([torch.ones(1, requires_grad=True)]), "the candidate is SGD .*, no class or function"),
        (Nothing, "neither step"),
        (lambda a, b: a, "is no candidate"),
    ],
)
def test_what_is_no_candidate_is_refused(thing, said):
    with pytest.raises(GoldenError, match=said):
        optrace.check_golden(thing, "sgd")


def test_a_class_that_cannot_step_is_trouble_not_a_difference():
    class Crashes:
        def __init__(self, params, lr):
            pass

        def step(self):
            raise RuntimeError("nothing works")

    with pytest.raises(GoldenError, match="RuntimeError: nothing works"):
        optrace.check_golden(Crashes, "sgd")


def test_a_candidate_that_crashes_in_one_case_differs_there():
    class NeedsGrad(Plain):
        def step(self):
            for p in self.params:
                p.data -= self.learning_rate * p.grad

    report = optrace.check_golden(NeedsGrad, "sgd", cases=["plain", "none-grad"], dtype="float64")
    assert {result.case: result.verdict for result in report.cases} == {
        "sgd/plain": "same",
        "sgd/none-grad": "differs",
    }
    assert "TypeError" in report.differing[0].raised


def test_nothing_in_common_is_trouble():
    with pytest.raises(GoldenError, match=r"nothing of .* could be checked"):
        optrace.check_golden(ByList, "sgd", cases="momentum")


def test_unknown_rules_and_dtypes_are_refused_with_advice():
    with pytest.raises(GoldenError, match="did you mean adam"):
        optrace.check_golden(torch.optim.Adam, "adamm")
    with pytest.raises(GoldenError, match="did you mean sgd"):
        optrace.check_golden(torch.optim.SGD, "torch.optim.SGD")
    with pytest.raises(GoldenError, match=r"rule is <class .*; give its name, like 'sgd'"):
        optrace.check_golden(torch.optim.SGD, torch.optim.SGD)
    with pytest.raises(GoldenError, match="float128"):
        optrace.check_golden(torch.optim.Adam, "adam", dtype="float128")


def test_a_dtype_may_be_torchs():
    report = optrace.check_golden(torch.optim.SGD, "sgd", dtype=torch.float32, cases="plain*")
    assert [result.case for result in report.cases] == ["sgd/plain-float32"]


def test_candidates_are_found_by_module_and_by_file(tmp_path, monkeypatch):
    (tmp_path / "mine_here.py").write_text("import helper_here\nclass A:\n    pass\n")
    (tmp_path / "helper_here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert load("mine_here:A").__name__ == "A"
    assert load("mine_here.py:A").__name__ == "A"
    for text, said in [
        ("mine_here", "names no candidate; write module:Class or path"),
        ("mine_here.py", "'mine_here.py' names no candidate; name the class in it: mine_here.py:Class"),
        ("torch.optim.SGD", "'torch.optim.SGD' names no candidate; write torch.optim:SGD"),
        ("mine_here:B", "it has A"),
        ("no_such_module_here:A", "cannot import"),
        ("none.py:A", "no file"),
    ]:
        with pytest.raises(GoldenError, match=said):
            load(text)


def test_a_module_that_ends_the_program_is_trouble_and_no_verdict(tmp_path, monkeypatch):
    (tmp_path / "script_here.py").write_text("import sys\nclass A:\n    pass\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GoldenError, match=r"importing script_here ends the program with 0; put what does so below `if"):
        load("script_here:A")


def test_lbfgs_needs_a_closure_and_passes():
    assert optrace.check_golden(torch.optim.LBFGS, "lbfgs").same
    assert optrace.check_golden(optrace.reference.LBFGS, "lbfgs").same
    with pytest.raises(GoldenError, match=r"no step\(closure\)"):
        optrace.check_golden(pure, "lbfgs")

    class Shorter(torch.optim.LBFGS):
        def __init__(self, params, **options):
            super().__init__(params, **{**options, "history_size": 1})

    assert not optrace.check_golden(Shorter, "lbfgs").same


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("no torch here")

sys.meta_path.insert(0, NoTorch())
import optrace
from optrace.reference.schedulers import SCHEDULES
for name in ("SGD", "SparseAdam", "LBFGS"):
    assert optrace.check_golden(getattr(optrace.reference, name), name.lower()).same
for rule in SCHEDULES:
    assert optrace.check_golden(SCHEDULES[rule], rule).same
assert "torch" not in sys.modules
"""


def test_a_check_needs_no_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
