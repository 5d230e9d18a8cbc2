"""Sparse gradients: SparseAdam, Adagrad and SGD against torch's, and SparseGrad itself."""

import numpy as np
import pytest
import torch

import optrace.reference as reference
from optrace.reference import Parameter, SparseGrad, rounding

from .twins import TORCHS_OWN, assert_same, distance

ROWS, WIDTH = 23, 5
CASES = [
    ("SparseAdam", {}),
    ("SparseAdam", {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-2, "maximize": True}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5, "maximize": True}),
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True}),
]


def embedding_like_grad(rng, step, dtype):
    """Uncoalesced: rows come in any order, some of them twice; none at all at step 4."""
    n = 0 if step == 4 else 11
    rows = rng.permutation(np.repeat(np.arange(ROWS), 2))[:n]
    return SparseGrad(rows[None], rng.standard_normal((n, WIDTH)).astype(dtype), (ROWS, WIDTH))


def scattered_grad(rng, step, dtype):
    """Both dimensions sparse."""
    n = 17 + step
    places = rng.permutation(np.repeat(np.arange(ROWS * WIDTH), 2))[:n]
    return SparseGrad(
        np.stack(np.unravel_index(places, (ROWS, WIDTH))), rng.standard_normal(n).astype(dtype), (ROWS, WIDTH)
    )


def coalesced_grad(rng, step, dtype):
    return scattered_grad(rng, step, dtype).coalesce()


def as_torch(grad):
    with torch.sparse.check_sparse_tensor_invariants():
        tensor = torch.sparse_coo_tensor(torch.from_numpy(grad.indices), torch.from_numpy(grad.values), grad.shape)
    return tensor.coalesce() if grad.coalesced else tensor


def pair(name, options, dtype):
    start = np.random.default_rng(3).standard_normal((ROWS, WIDTH)).astype(dtype)
    mine, tensor = Parameter(start.copy()), torch.from_numpy(start.copy()).requires_grad_()
    return mine, tensor, getattr(reference, name)([mine], **options), getattr(torch.optim, name)([tensor], **options)


@pytest.mark.parametrize("make_grad", [embedding_like_grad, scattered_grad, coalesced_grad])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_bit_is_torchs_with_torchs_square_root(name, options, dtype, make_grad):
    mine, tensor, ours, theirs = pair(name, options, dtype)
    rng = np.random.default_rng(0)
    with rounding(**TORCHS_OWN):
        for step in range(1, 61):
            mine.grad = make_grad(rng, step, dtype)
            tensor.grad = as_torch(mine.grad)
            ours.step()
            theirs.step()
            assert_same(mine.data, tensor.detach().numpy(), f"{name} step {step}")
            for key, value in theirs.state[tensor].items():
                if isinstance(value, int):
                    assert ours.state[mine][key] == value
                else:
                    assert_same(ours.state[mine][key], value.numpy(), f"{name} step {step} {key}")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "options"), CASES[:4])
def test_a_step_from_the_same_state_is_within_4_eps(name, options, dtype):
    mine, tensor, ours, theirs = pair(name, options, dtype)
    rng = np.random.default_rng(0)
    for step in range(1, 61):
        mine.data[...] = before = tensor.detach().numpy().copy()
        ours.load_state_dict(theirs.state_dict())
        mine.grad = embedding_like_grad(rng, step, dtype)
        tensor.grad = as_torch(mine.grad)
        ours.step()
        theirs.step()
        assert distance(mine.data, tensor.detach().numpy(), before) <= 4 * np.finfo(dtype).eps


def test_sparse_adam_counts_in_python_ints_as_torchs_state_dict_does():
    mine, tensor, ours, theirs = pair("SparseAdam", {}, np.float32)
    mine.grad = embedding_like_grad(np.random.default_rng(0), 1, np.float32)
    tensor.grad = as_torch(mine.grad)
    ours.step()
    theirs.step()
    assert type(ours.state_dict()["state"][0]["step"]) is type(theirs.state_dict()["state"][0]["step"]) is int
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(wrap=torch.from_numpy))
    theirs.step()


def test_zeros_of_a_dense_array_are_places_without_a_gradient_for_the_pure_rule():
    rule = reference.RULES["sparseadam"]
    grad = SparseGrad(np.array([[1, 4]]), np.array([[1.0, 2.0], [3.0, -1.0]]), (6, 2))
    param = np.ones((6, 2))
    sparse, dense = (rule.step(param, g, {}, rule.defaults) for g in (grad, grad.dense()))
    np.testing.assert_array_equal(sparse[0], dense[0])
    np.testing.assert_array_equal(sparse[1]["exp_avg_sq"], dense[1]["exp_avg_sq"])
    assert (sparse[0] != param).any(axis=1).tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("make_grad", [embedding_like_grad, scattered_grad])
def test_coalesce_and_dense_are_torchs(make_grad):
    for step in range(1, 6):
        grad = make_grad(np.random.default_rng(step), step, np.float32)
        ours, theirs = grad.coalesce(), as_torch(grad).coalesce()
        np.testing.assert_array_equal(ours.indices, theirs.indices().numpy())
        assert_same(ours.values, theirs.values().numpy(), "coalesced values")
        assert_same(grad.dense(), as_torch(grad).to_dense().numpy(), "dense")


def test_sparse_gradients_of_a_torch_embedding_are_understood():
    table = torch.nn.Embedding(10, 3, sparse=True)
    start = table.weight.detach().clone()
    table(torch.tensor([1, 1, 7])).sum().backward()
    reference.SparseAdam(table.parameters(), lr=0.1).step()
    moved = (table.weight != start).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [1, 7]


def test_what_torch_refuses_is_refused():
    sparse = embedding_like_grad(np.random.default_rng(0), 1, np.float64)
    param = Parameter(np.zeros((ROWS, WIDTH)), sparse)
    with pytest.raises(RuntimeError, match="does not support sparse"):
        reference.Adam([param]).step()
    with pytest.raises(RuntimeError, match="weight_decay"):
        reference.Adagrad([param], weight_decay=0.1).step()
    with pytest.raises(RuntimeError, match="momentum and weight_decay"):
        reference.SGD([param], momentum=0.9).step()
    param.grad = np.zeros((ROWS, WIDTH))
    with pytest.raises(RuntimeError, match="does not support dense"):
        reference.SparseAdam([param]).step()
    with pytest.raises(ValueError, match="complex"):
        reference.SparseAdam([Parameter(np.zeros(2, np.complex64))])
