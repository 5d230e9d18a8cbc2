"""Adafactor, Muon and LBFGS: bit for bit torch's up to its sums and products, and within the stated bounds of them."""

import numpy as np
import pytest
import torch

import optrace.reference as reference
from optrace.reference import RULES, Parameter, rounding

from .test_elementwise import label
from .twins import SHAPES, TORCHS_OWN, Twins, assert_same, distance, drive, missing_at

ADAFACTOR = [
    {},
    {"lr": 0.5, "beta2_decay": -0.3, "eps": (1e-4, 1e-2), "d": 1.5, "weight_decay": 0.1},
    {"eps": (None, 0.1), "maximize": True, "weight_decay": 0.01},
]
MUON = [
    {},
    {"lr": 0.1, "momentum": 0.5, "nesterov": False},
    {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0, "ns_steps": 3, "eps": 1e-3},
    {"ns_coefficients": (2.0, -1.5, 0.5), "adjust_lr_fn": "original"},
]
MATRICES = [(3, 5), (5, 3), (41, 37), "strided", (1, 9), (9, 1), (1, 1), (16, 16)]
CASES = [("Adafactor", options, [*SHAPES, (2, 3, 4, 5), (1, 1), (1, 9)]) for options in ADAFACTOR]
CASES += [("Muon", options, MATRICES) for options in MUON]


def ids(value):
    return value if isinstance(value, str) else label(value) if isinstance(value, dict) else ""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options", "shapes"), CASES, ids=ids)
def test_every_bit_is_torchs_with_torchs_sums_and_products(name, options, shapes, dtype):
    drive(name, options, dtype, steps=200 if name == "Adafactor" else 40, shapes=shapes)


@pytest.mark.parametrize("name", ["Adafactor", "Muon"])
def test_groups_keep_their_own_options(name):
    second = {"lr": 0.3, "weight_decay": 0.05}
    drive(name, {}, np.float32, steps=20, shapes=MATRICES, groups=[{}, second])


def steps_from_torchs_state(name, options, dtype, shapes, steps):
    """Yield (ours, torch's, before, our state, torch's state, state before) of every parameter at every step."""
    twins = Twins(name, options, dtype, shapes)
    for step in range(1, steps + 1):
        for mine, tensor in zip(twins.ours, twins.theirs, strict=True):
            mine.data[...] = tensor.detach().numpy()
        twins.our_optimizer.load_state_dict(twins.their_optimizer.state_dict())
        befores = [mine.data.copy() for mine in twins.ours]
        states = {mine: dict(entries) for mine, entries in twins.our_optimizer.state.items()}
        twins.feed(step, missing_at(step))
        twins.step()
        for mine, tensor, before in zip(twins.ours, twins.theirs, befores, strict=True):
            if mine.grad is not None:
                theirs = {key: value.numpy() for key, value in twins.their_optimizer.state[tensor].items()}
                ours = twins.our_optimizer.state[mine]
                yield mine.data, tensor.detach().numpy(), before, ours, theirs, states.get(mine, {})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", [ADAFACTOR[0], {"lr": 0.5, "beta2_decay": -0.3, "eps": (1e-4, 1e-2), "d": 1.5}])
def test_adafactor_stays_within_its_proven_bound(options, dtype):
    eps = np.finfo(dtype).eps
    shapes = [*SHAPES, (2, 3, 4, 5), (1, 1), (300, 500)]
    for ours, theirs, before, state, their_state, _ in steps_from_torchs_state("Adafactor", options, dtype, shapes, 12):
        longest = max(ours.shape[-2:]) if ours.ndim > 1 else 0
        for key in ("row_var", "col_var"):
            if key in state:
                gap = np.abs(state[key] - their_state[key])
                assert (gap <= (longest / 2 + 7) * eps * np.abs(their_state[key])).all()
        if "variance" in state:
            assert_same(state["variance"], their_state["variance"], "variance")
        change, size = np.abs(theirs - before), np.maximum(np.abs(theirs), np.abs(before))
        assert (np.abs(ours - theirs) <= eps * ((ours.size / 2 + 2 * longest + 32) * change + 1.0 * size)).all()
        if ours.size == 1:
            assert_same(ours, theirs, "one element")
        if ours.size < 2000:
            assert distance(ours, theirs, before) <= 4 * eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", MUON, ids=label)
def test_muon_stays_within_its_stated_bound(options, dtype):
    steps = exact = 0
    lr = options.get("lr", 1e-3)
    rate = {"match_rms_adamw": lambda a, b: 0.2 * max(a, b) ** 0.5}.get(
        options.get("adjust_lr_fn"), lambda a, b: max(1, a / b) ** 0.5
    )
    shapes = [*MATRICES, (100, 300), (300, 100)]
    for ours, theirs, _, state, their_state, _ in steps_from_torchs_state("Muon", options, dtype, shapes, 5):
        assert_same(state["momentum_buffer"], their_state["momentum_buffer"], "momentum_buffer")
        assert np.abs(ours - theirs).max() <= lr * rate(*ours.shape) * 2**-6
        steps += 1
        exact += np.array_equal(ours, theirs)
    assert exact >= 0.6 * steps


def test_muon_refuses_what_torch_refuses():
    with pytest.raises(ValueError, match="matrices only"):
        reference.Muon([Parameter(np.zeros(3))])
    with pytest.raises(ValueError, match="adjust_lr_fn: 'other'"):
        reference.Muon([Parameter(np.zeros((2, 2)))], adjust_lr_fn="other")
    param = Parameter(np.eye(2), np.eye(2))
    with pytest.raises(ValueError, match="ns_steps: 100"):
        reference.Muon([param], ns_steps=100).step()


def test_adafactor_eps_of_the_first_parameter_sticks_for_its_group():
    """As in torch: FACTS 2.1. The float32 epsilon is used for the float64 parameter that follows."""
    arrays = [np.full(3, 0.5, np.float32), np.full(3, 0.5)]
    grads = [np.full(3, 1e-9, np.float32), np.full(3, 1e-9)]
    for order in ((0, 1), (1, 0)):
        mine = [Parameter(arrays[i].copy(), grads[i]) for i in order]
        tensors = [torch.from_numpy(arrays[i].copy()).requires_grad_() for i in order]
        for tensor, i in zip(tensors, order, strict=True):
            tensor.grad = torch.from_numpy(grads[i].copy())
        reference.Adafactor(mine, lr=0.1).step()
        torch.optim.Adafactor(tensors, lr=0.1).step()
        for ours, theirs in zip(mine, tensors, strict=True):
            assert_same(ours.data, theirs.detach().numpy(), f"order {order}")


# --- L-BFGS -----------------------------------------------------------------------------------------------------------

LBFGS = [
    {},
    {"line_search_fn": "strong_wolfe"},
    {"lr": 0.1, "max_iter": 7, "history_size": 3},
    {"lr": 0.3, "max_iter": 9, "max_eval": 11, "history_size": 2, "line_search_fn": "strong_wolfe"},
    {"max_eval": 1, "line_search_fn": "strong_wolfe"},
]


def waves(params):
    (x,) = params
    return (x.sin() * 3 + 0.1 * x**2 + (1.7 * x).cos()).sum()


def rosenbrock(params):
    (x,) = params
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def least_squares(params):
    weight, bias = params
    rng = np.random.default_rng(0)
    inputs, targets = (torch.from_numpy(rng.standard_normal(s)).to(weight.dtype) for s in ((40, 12), (40, 3)))
    return ((inputs @ weight + bias - targets) ** 2).mean()


def phases(params):
    (z,) = params
    return ((z * z - (1 + 2j)).abs() ** 2).sum()


ONE = [(waves, [np.array(-3.5)]), (waves, [np.array([2.5])])]
MANY = [
    (waves, [np.linspace(-4, 4, 30)]),
    (rosenbrock, [np.array([-1.2, 1.0])]),
    (least_squares, [np.linspace(-1, 1, 36).reshape(12, 3), np.zeros(3)]),
    (phases, [np.linspace(-1, 1, 5) + 0.3j]),
]


def lbfgs_pair(problem, starts, options, dtype):
    """Two copies of the parameters, both torch's; ours is updated through their shared memory."""
    kinds = [np.result_type(dtype, np.complex64) if np.iscomplexobj(start) else dtype for start in starts]
    copies = [
        [torch.from_numpy(start.astype(kind)).requires_grad_() for start, kind in zip(starts, kinds, strict=True)]
        for _ in range(2)
    ]
    return copies, [reference.LBFGS(copies[0], **options), torch.optim.LBFGS(copies[1], **options)]


def closure_of(problem, params):
    def closure():
        for param in params:
            param.grad = None
        loss = problem(params)
        loss.backward()
        return loss

    return closure


def compare_lbfgs(problem, starts, options, dtype, steps=8, resume_at=5):
    copies, optimizers = lbfgs_pair(problem, starts, options, dtype)
    for step in range(1, steps + 1):
        if step == resume_at:
            saved = [optimizer.state_dict() for optimizer in optimizers]
            _, optimizers = (
                copies,
                [
                    kind(params, **options)
                    for kind, params in zip((reference.LBFGS, torch.optim.LBFGS), copies, strict=True)
                ],
            )
            for optimizer, state in zip(optimizers, saved, strict=True):
                optimizer.load_state_dict(state)
        losses = [o.step(closure_of(problem, params)) for o, params in zip(optimizers, copies, strict=True)]
        where = f"{problem.__name__} {options} step {step}"
        assert float(losses[0].detach()) == float(losses[1].detach()), where
        for ours, theirs in zip(*copies, strict=True):
            assert_same(ours.detach().numpy(), theirs.detach().numpy(), where)
        state, their_state = optimizers[0].state[copies[0][0]], optimizers[1].state[copies[1][0]]
        assert sorted(state) == sorted(their_state)
        for key, value in their_state.items():
            items = zip(state[key], value, strict=True) if isinstance(value, list) else [(state[key], value)]
            for mine, theirs in items:
                if isinstance(theirs, torch.Tensor):
                    assert_same(np.asarray(mine), theirs.numpy(), f"{where} {key}")
                else:
                    assert mine == theirs, f"{where} {key}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", LBFGS, ids=label)
@pytest.mark.parametrize(("problem", "starts"), ONE + MANY)
def test_lbfgs_is_bit_for_bit_torchs_with_torchs_inner_products(problem, starts, options, dtype):
    with rounding(**TORCHS_OWN):
        compare_lbfgs(problem, starts, options, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("options", LBFGS, ids=label)
@pytest.mark.parametrize(("problem", "starts"), ONE)
def test_lbfgs_of_one_element_is_bit_for_bit_torchs(problem, starts, options, dtype):
    with rounding(sqrt=TORCHS_OWN["sqrt"]):
        compare_lbfgs(problem, starts, options, dtype)


def test_lbfgs_rule_takes_a_function_of_one_vector():
    rule = RULES["lbfgs"]

    def evaluate(x):
        return float(((x - 3) ** 2).sum()), 2 * (x - 3)

    x, state = rule.step(np.zeros(4), evaluate, {}, rule.defaults | {"line_search_fn": "strong_wolfe"})
    np.testing.assert_allclose(x, 3)
    assert state["n_iter"] <= 3
    assert rule.step(x, None, state, rule.defaults)[0] is x


def test_lbfgs_refuses_what_torch_refuses():
    param = Parameter(np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="one param group, not 2"):
        reference.LBFGS([{"params": [param]}, {"params": [Parameter(np.zeros(1))]}])
    with pytest.raises(TypeError, match="closure"):
        reference.LBFGS([param]).step()
    with pytest.raises(RuntimeError, match="'armijo'"):
        reference.LBFGS([param], line_search_fn="armijo").step(lambda: 1.0)
