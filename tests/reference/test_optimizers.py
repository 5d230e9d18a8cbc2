"""What all reference optimizers share: groups, parameters of NumPy and torch, state dicts, options, errors."""

import copy
import doctest
import importlib
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import optrace.reference as reference
from optrace.errors import OptionError, OptraceError
from optrace.reference import RULES, SGD, Adam, Parameter, rounding
from optrace.reference.rule import rule

from .test_elementwise import ALL
from .twins import FUSED, TORCHS_OWN, Twins, assert_same

NAMES = ["SGD", *ALL, "SparseAdam", "Adafactor", "Muon", "LBFGS"]
DENSE = ["SGD", *ALL, "Adafactor"]
TORCHS_ALONE = ("foreach", "fused", "capturable", "differentiable")


def test_there_is_a_rule_for_every_optimizer_of_torch_and_for_lion():
    torchs = {name.lower() for name, kind in vars(torch.optim).items() if inspect.isclass(kind)} - {"optimizer"}
    assert set(RULES) == torchs | {"lion"}
    assert {name.lower() for name in NAMES} == torchs


@pytest.mark.parametrize("name", NAMES)
def test_constructor_has_torchs_parameters_and_defaults(name):
    ours, theirs = (inspect.signature(getattr(library, name)) for library in (reference, torch.optim))
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in theirs.parameters.values()
    ]


@pytest.mark.parametrize("name", NAMES)
def test_groups_hold_torchs_keys_and_the_rule_its_defaults(name):
    array = np.ones((2, 2), np.float32)
    ours = getattr(reference, name)([Parameter(array)])
    theirs = getattr(torch.optim, name)([torch.from_numpy(array.copy()).requires_grad_()])
    expected = {key: value for key, value in theirs.param_groups[0].items() if key != "params"}
    assert {key: value for key, value in ours.param_groups[0].items() if key != "params"} == expected
    found = RULES[name.lower()]
    assert found.name == name.lower()
    arithmetic = {key: value for key, value in expected.items() if key not in TORCHS_ALONE}
    if name == "LBFGS":
        arithmetic["max_eval"] = None
    if name == "AdamW":
        del arithmetic["decoupled_weight_decay"]
    assert dict(found.defaults) == arithmetic
    assert repr(ours).split("\n")[:3] == repr(theirs).split("\n")[:3]


@pytest.mark.parametrize("name", [*DENSE, "Muon"])
def test_state_keys_are_those_that_torch_makes(name):
    options = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    options |= {"amsgrad": True} if name.startswith("Adam") and name in ("Adam", "AdamW") else {}
    options |= {"centered": True} if name == "RMSprop" else {}
    shapes = [(3, 4)] if name == "Muon" else [(3, 4), (5,)]
    twins = Twins(name, options, shapes=shapes)
    twins.feed(1)
    twins.step()
    made = {key for entries in twins.their_optimizer.state.values() for key in entries}
    assert made == set(RULES[name.lower()].state_keys)


def test_unknown_rule_names_the_near_ones():
    assert rule("AdamW") is RULES["adamw"]
    with pytest.raises(OptraceError, match=r"'adamv'; did you mean .*adamw"):
        rule("adamv")
    with pytest.raises(OptraceError, match="there are adadelta, adafactor"):
        rule("zzz")


@pytest.mark.parametrize("name", [*DENSE, "Lion"])
def test_a_rule_neither_writes_its_arguments_nor_shares_memory_with_them(name):
    options = {"momentum": 0.9, "amsgrad": True, "centered": True, "t0": 0, "lambd": 0.1}
    step, hyper = RULES[name.lower()].step, {**RULES[name.lower()].defaults, **options}
    rng = np.random.default_rng(0)
    param, grad = rng.standard_normal((4, 6)), rng.standard_normal((4, 6))
    new, state = step(param, grad, {}, hyper)
    for _ in range(3):
        inputs = [param, grad, *state.values()]
        kept = [array.copy() for array in inputs]
        new, after = step(param, grad, state, hyper)
        for array, before in zip(inputs, kept, strict=True):
            np.testing.assert_array_equal(array, before)
        assert all(isinstance(value, np.ndarray) for value in [new, *after.values()])
        assert not any(np.shares_memory(value, grad) for value in after.values())
        assert not any(np.shares_memory(value, array) for value in [new, *after.values()] for array in (param, grad))
        param, state = new, after
    assert step(param, None, state, hyper) == (param, state)


@pytest.mark.parametrize("name", [*DENSE, "Lion"])
def test_elementwise_rules_can_be_replayed_from_a_sample(name):
    found = RULES[name.lower()]
    rng = np.random.default_rng(0)
    param, chosen = rng.standard_normal(300).astype(np.float32), [0, 7, 150, 299]
    whole, part, state, few = param, param[chosen], {}, {}
    for _ in range(10):
        grad = rng.standard_normal(300).astype(np.float32)
        whole, state = found.step(whole, grad, state, found.defaults)
        part, few = found.step(part, grad[chosen], few, found.defaults)
    assert np.array_equal(whole[chosen], part) == found.elementwise


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [*DENSE, "Muon"])
def test_resume_in_mid_run_equals_the_uninterrupted_run(name, dtype):
    """Except where torch's own does not: on load it casts 0-d state to the parameters' dtype (see below)."""
    options = {"momentum": 0.9} if name == "SGD" else ALL.get(name, [{}, {}])[1]
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((20, 5, 7)).astype(dtype)

    def run(resume):
        param = Parameter(np.ones((5, 7), dtype))
        optimizer = getattr(reference, name)([param], **options)
        for step, grad in enumerate(grads):
            if step == 11 and resume:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = getattr(reference, name)([param], **options)
                optimizer.load_state_dict(saved)
            param.grad = grad
            optimizer.step()
        return param.data, optimizer.state[param]

    (whole, state), (resumed, resumed_state) = run(False), run(True)
    if name == "NAdam" and dtype == np.float64:
        assert not np.array_equal(whole, resumed)
        np.testing.assert_allclose(whole, resumed, rtol=1e-5)
        return
    np.testing.assert_array_equal(whole, resumed)
    for key, value in state.items():
        np.testing.assert_array_equal(value, resumed_state[key])


@pytest.mark.parametrize("name", [*DENSE, "Muon"])
def test_state_dicts_go_from_torch_to_ours_and_back(name):
    options = ALL.get(name, [{}, {}])[1]
    shapes = [(3, 5), (41, 37)] if name == "Muon" else [(), (33,), (3, 5)]
    twins = Twins(name, options, np.float32, shapes, groups=[{}, {"lr": 0.03}])
    with rounding(**TORCHS_OWN):
        for step in range(1, 13):
            twins.feed(step)
            twins.step()
            ours, theirs = twins.our_optimizer.state_dict(), twins.their_optimizer.state_dict()
            assert [group["params"] for group in ours["param_groups"]] == [
                group["params"] for group in theirs["param_groups"]
            ]
            if step % 3 == 0:  # exchange
                twins.our_optimizer, twins.their_optimizer = (
                    twins.build(reference, twins.ours),
                    twins.build(torch.optim, twins.theirs),
                )
                twins.our_optimizer.load_state_dict(theirs)
                twins.their_optimizer.load_state_dict(
                    {"state": twins_state(ours), "param_groups": copy.deepcopy(theirs["param_groups"])}
                )
            twins.check(step)


def twins_state(state_dict):
    return {
        number: {key: torch.from_numpy(np.asarray(value)) for key, value in entries.items()}
        for number, entries in state_dict["state"].items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_wrap_makes_a_state_dict_that_torch_loads(name):
    array = np.ones((2, 3), np.float32)
    mine = Parameter(array.copy(), np.full((2, 3), 0.5, np.float32))
    if name == "SparseAdam":
        mine.grad = reference.SparseGrad(np.array([[1]]), np.full((1, 3), 0.5, np.float32), (2, 3))
    ours = getattr(reference, name)([mine])
    ours.step(lambda: 1.0)
    tensor = torch.from_numpy(array.copy()).requires_grad_()
    theirs = getattr(torch.optim, name)([tensor])
    theirs.load_state_dict(ours.state_dict(wrap=torch.from_numpy))
    for key, value in ours.state.get(mine, {}).items():
        loaded = theirs.state[tensor][key]
        np.testing.assert_array_equal(np.asarray(loaded), np.asarray(value))


@pytest.mark.parametrize("name", [*DENSE, "Muon"])
def test_a_tensor_learning_rate_rounds_as_torchs(name):
    options = {"weight_decay": 0.1} if "weight_decay" in RULES[name.lower()].defaults else {}
    twins = Twins(name, options, np.float64, [(3, 5), (5, 3)])
    for optimizer, lr in ((twins.our_optimizer, np.float32(0.03)), (twins.their_optimizer, torch.tensor(0.03))):
        optimizer.param_groups[0]["lr"] = lr
    with rounding(**TORCHS_OWN):
        for step in range(1, 8):
            twins.feed(step)
            twins.step()
            if name != "ASGD":  # torch takes the power for eta in float32
                twins.check(step)


def test_a_torch_models_own_parameters_are_updated_in_place():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 10), torch.nn.Linear(10, 1))
    twin = copy.deepcopy(model)
    x = torch.linspace(-1, 1, 11).reshape(11, 1)
    groups = [[{"params": m[0].parameters(), "lr": 0.01}, {"params": m[1].parameters()}] for m in (model, twin)]
    ours, theirs = SGD(groups[0], lr=0.001, momentum=0.9), torch.optim.SGD(groups[1], lr=0.001, momentum=0.9)
    for _ in range(20):
        for network, optimizer in ((model, ours), (twin, theirs)):
            optimizer.zero_grad()
            ((network(x) - (3 * x + 0.5)) ** 2).mean().backward()
            optimizer.step()
    assert [group["lr"] for group in ours.param_groups] == [0.01, 0.001]
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_copies_and_pickles_go_on_from_the_same_state():
    param = Parameter(np.ones(3), np.full(3, 0.5))
    optimizer = Adam([param], lr=0.1)
    optimizer.step()
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (twin,) = other.param_groups[0]["params"]
        assert twin is not param
        other.step()
        assert float(other.state[twin]["step"]) == 2
    optimizer.step()
    np.testing.assert_array_equal(twin.data, param.data)


def test_checkpoints_of_old_torch_are_understood():
    param = Parameter(np.ones(2, np.float32), np.ones(2, np.float32))
    adam = Adam([param])
    adam.step()
    saved = adam.state_dict()
    saved["state"][0]["step"] = 7  # a Python int before torch 1.12
    del saved["param_groups"][0]["maximize"]
    adam.load_state_dict(saved)
    assert_same(adam.state[param]["step"], np.float32(7), "step")
    adam.step()
    sgd = SGD([param], lr=0.5, momentum=0.9)
    sgd.load_state_dict({"state": {0: {"momentum_buffer": None}}, "param_groups": sgd.state_dict()["param_groups"]})
    sgd.step()
    np.testing.assert_array_equal(sgd.state[param]["momentum_buffer"], [1, 1])


def test_zero_grad_forgets_or_zeroes():
    param = Parameter(np.ones(2), np.ones(2))
    optimizer = SGD([param], lr=0.1, weight_decay=1.0)
    optimizer.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(param.grad, [0, 0])
    optimizer.step()
    np.testing.assert_allclose(param.data, 0.9)
    optimizer.zero_grad()
    assert param.grad is None
    optimizer.step()
    np.testing.assert_allclose(param.data, 0.9)


def test_step_returns_what_the_closure_returned():
    param = Parameter(np.ones(2))

    def closure():
        param.grad = param.data.copy()
        return 42.0

    assert SGD([param], lr=0.5).step(closure) == 42.0
    np.testing.assert_array_equal(param.data, [0.5, 0.5])


def test_named_pairs_and_late_groups():
    first, second = Parameter(np.ones(1)), Parameter(np.ones(1))
    optimizer = SGD([("w", first)], lr=0.1)
    optimizer.add_param_group({"params": [("b", second)], "lr": 0.2})
    assert [group["param_names"] for group in optimizer.param_groups] == [["w"], ["b"]]
    first.grad = second.grad = np.ones(1)
    optimizer.step()
    assert (first.data[0], second.data[0]) == (0.9, 0.8)
    assert optimizer.state_dict()["param_groups"][1]["params"] == [1]
    with pytest.raises(OptionError, match="names or none"):
        optimizer.add_param_group({"params": [Parameter(np.ones(1))]})
    with pytest.raises(OptionError, match="1 of 2"):
        SGD([("w", first), second])


def test_late_groups_of_adagrad_start_from_the_constructors_accumulator():
    shapes, options = [(3,), (4,)], {"initial_accumulator_value": 0.5}
    twins = Twins("Adagrad", options, np.float32, shapes)
    assert set(twins.our_optimizer.state[twins.ours[0]]) == {"step", "sum"}
    late = Parameter(np.ones(2, np.float32))
    tensor = torch.ones(2, requires_grad=True)
    twins.our_optimizer.add_param_group({"params": [late], "initial_accumulator_value": 9.0})
    twins.their_optimizer.add_param_group({"params": [tensor], "initial_accumulator_value": 9.0})
    twins.ours.append(late)
    twins.theirs.append(tensor)
    with rounding(**TORCHS_OWN):
        for step in range(1, 4):
            twins.feed(step)
            twins.step()
            twins.check(step)


def test_what_is_no_parameter_is_refused():
    array = np.ones(2)
    for wrong in (array, Parameter(array), torch.ones(2)):
        with pytest.raises(TypeError, match="iterable"):
            SGD(wrong)
    with pytest.raises(TypeError, match=r"Parameter\(array\)"):
        SGD([array])
    with pytest.raises(TypeError, match="set"):
        SGD([{"params": {Parameter(array)}}])
    with pytest.raises(TypeError, match="int64"):
        Parameter(np.arange(3))
    with pytest.raises(OptionError, match="empty"):
        SGD([])
    with pytest.raises(OptionError, match="non-leaf"):
        SGD([torch.ones(2, requires_grad=True) * 2])
    shared = Parameter(array)
    with pytest.raises(OptionError, match="more than one"):
        SGD([{"params": [shared]}, {"params": [shared]}])
    with pytest.warns(UserWarning, match="twice"):
        SGD([shared, shared])
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    half.grad = torch.ones_like(half)
    with pytest.raises(TypeError, match="bfloat16"):
        SGD([half]).step()


@pytest.mark.parametrize("option", TORCHS_ALONE)
def test_other_implementations_are_refused_in_words(option):
    with pytest.raises(OptionError, match=f"leave {option} out"):
        Adam([Parameter(np.ones(1))], **{option: True})


def test_state_dict_of_other_groups_is_refused():
    saved = SGD([Parameter(np.ones(1)), Parameter(np.ones(1))]).state_dict()
    with pytest.raises(OptionError, match=r"groups of \[2\] parameters, the optimizer has groups of \[1\]"):
        SGD([Parameter(np.ones(1))]).load_state_dict(saved)


INVALID = [
    ("Adam", {"lr": -1.0}),
    ("Adam", {"eps": -1.0}),
    ("Adam", {"betas": (1.0, 0.9)}),
    ("Adam", {"betas": (0.9, -0.1)}),
    ("AdamW", {"weight_decay": -1.0}),
    ("Adamax", {"betas": (0.9, 1.0)}),
    ("NAdam", {"momentum_decay": -1.0}),
    ("RAdam", {"eps": -1.0}),
    ("RMSprop", {"alpha": -1.0}),
    ("RMSprop", {"momentum": -1.0}),
    ("Adagrad", {"lr_decay": -1.0}),
    ("Adagrad", {"initial_accumulator_value": -1.0}),
    ("Adadelta", {"rho": 1.1}),
    ("ASGD", {"weight_decay": -1.0}),
    ("Rprop", {"etas": (0.5, 0.9)}),
    ("Rprop", {"etas": (0.0, 1.2)}),
    ("SparseAdam", {"lr": 0.0}),
    ("SparseAdam", {"eps": 0.0}),
    ("Adafactor", {"beta2_decay": 0.1}),
    ("Adafactor", {"d": 0.5}),
    ("Adafactor", {"eps": (None, -1.0)}),
    ("Muon", {"momentum": -1.0}),
    ("LBFGS", {"lr": -1.0}),
]


@pytest.mark.parametrize(("name", "options"), INVALID)
def test_values_that_torch_refuses_are_refused_and_quoted(name, options):
    value = next(iter(options.values()))
    with pytest.raises(ValueError):
        getattr(torch.optim, name)([torch.ones(2, 2, requires_grad=True)], **options)
    with pytest.raises(OptionError) as caught:
        getattr(reference, name)([Parameter(np.ones((2, 2)))], **options)
    assert any(str(part) in str(caught.value) for part in (value if isinstance(value, tuple) else [value]))


def test_docstring_examples_run():
    for module in pkgutil.iter_modules(reference.__path__):
        if not module.ispkg:
            assert doctest.testmod(importlib.import_module(f"optrace.reference.{module.name}")).failed == 0


def test_reference_runs_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, optrace.reference as r\n"
        "assert 'numpy' in sys.modules and 'pandas' not in sys.modules\n"
        "p = r.Parameter(np.ones(3)); p.grad = np.ones(3)\n"
        "for name in ('SGD', 'Adam', 'ASGD', 'Adafactor'): getattr(r, name)([p]).step()\n"
        "print(sorted(r.RULES)[0])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "adadelta\n"), run.stderr


@pytest.mark.slow
@pytest.mark.skipif(not FUSED, reason="the plain kernels are the only ones on this machine")
def test_plain_arithmetic_is_torchs_with_default_kernels_in_every_case():
    chosen = "every_bit or from_the_same_state or bit_for_bit or complex or groups_keep"
    folder = os.path.dirname(__file__)
    files = [os.path.join(folder, f"test_{name}.py") for name in ("sgd", "elementwise", "sparse", "reductions")]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", chosen],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
