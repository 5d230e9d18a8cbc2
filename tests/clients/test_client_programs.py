"""Programs as people write them: rows equal an independent capture, events and losses are right, nothing changes."""

from __future__ import annotations

import math

import pytest


def test_digits_classifier(client):
    run = client("digits.py")
    run.check([20])
    run.check_losses()
    assert run.names() == ["0.weight", "0.bias", "3.weight", "3.bias"]
    assert run.steps("loss") == run.printed("loss")
    assert (run.count("zero_grad"), run.count("backward"), run.count("step")) == (20, 20, 20)
    assert run.count("scheduler_step") == 2
    assert len(set(run.steps("batch"))) == 20, "each batch has a fingerprint of its own"


def test_transformer_with_warm_up_accumulation_and_clipping(client):
    run = client("transformer.py")
    run.check([3])
    run.check_losses()
    losses = run.printed("loss")
    assert run.steps("loss") == [(first + second) / 2 for first, second in zip(losses[::2], losses[1::2], strict=True)]
    assert run.steps("n_backward") == [2, 2, 2]
    assert run.steps("grad_norm") == run.printed("norm")
    clips = [event["data"] for event in run.events if event["kind"] == "clip"]
    assert [clip["max_norm"] for clip in clips] == [1.0, 1.0, 1.0]
    assert [clip["total_norm"] for clip in clips] == run.printed("norm")
    assert {"token.weight", "blocks.5.mlp.2.bias", "ln.weight"} <= set(run.names())
    assert "head.weight" not in run.names(), "a tied parameter has one name"
    assert run.trace.params["numel"].sum() > 10e6
    assert run.trace.groups.query("group == 0")["lr"].tolist() == [0.5e-3, 1e-3, 1e-3]
    assert run.count("scheduler_step") == 3


def test_lbfgs_with_closure(client):
    run = client("lbfgs.py")
    run.check([4])
    assert run.names() == ["0.weight", "0.bias", "2.weight", "2.bias"]
    told = [event["data"]["loss"] for event in run.events if event["kind"] == "closure"]
    assert told == run.printed("loss")
    steps = run.alone.split("step")[:4]
    assert run.steps("loss") == [float(lines.split("loss")[-1]) for lines in steps]
    assert run.steps("n_backward") == [lines.count("loss") for lines in steps]


@pytest.mark.parametrize("how", ["unscaled by hand", "fused"])
def test_scaler_with_a_skipped_step(client, how):
    run = client("scaler.py", how)
    run.check([5])
    losses = run.printed("loss")
    assert math.isinf(losses[2])
    assert run.steps("loss") == [losses[0], losses[1], losses[3], losses[4], losses[5]]
    assert run.steps("n_skipped") == [0, 0, 1, 0, 0]
    scales = [event["data"]["scale"] for event in run.events if event["kind"] == "unscale"]
    assert scales == [4096.0] * 3 + [2048.0] * 3
    assert (run.count("step_skipped"), run.count("step"), run.count("backward")) == (1, 5, 6)


def test_optimizer_in_backward(client):
    run = client("in_backward.py")
    run.check([4, 4, 4, 4])
    assert [run.names(i) for i in range(4)] == [["2.bias"], ["2.weight"], ["0.bias"], ["0.weight"]] or sorted(
        name for i in range(4) for name in run.names(i)
    ) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    for optimizer in range(4):
        assert run.steps("loss", optimizer) == run.printed("loss")
        assert run.steps("n_backward", optimizer) == [1, 1, 1, 1]
    assert run.count("backward") == 4


def test_two_optimizers_stepped_by_hand(client):
    run = client("gan.py", models="generator,critic")
    run.check([6, 3])
    assert [name for _, name in run.trace.optimizers] == ["RMSprop", "Adam"]
    assert run.names(0) == run.names(1) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert run.steps("loss", 0) == run.printed("critic")
    assert run.steps("loss", 1) == run.printed("generator")
    order = [event["optimizer"] for event in run.events if event["kind"] == "step"]
    assert order == [0, 0, 1] * 3


def test_sparse_embeddings(client):
    run = client("sparse.py")
    run.check([5, 5])
    assert (run.names(0), run.names(1)) == (["vectors.weight"], ["out.weight", "out.bias"])
    for optimizer in (0, 1):
        assert run.steps("loss", optimizer) == run.printed("loss")


def test_compiled_model_and_step(client):
    run = client("compiled.py", CAPTURE_BY_HOOKS="1")
    run.check([4])
    assert run.names() == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert run.steps("loss") == run.printed("loss")
    assert run.trace.rank_info["optimizers"][0]["implementation"] == "for-loop compiled"


def test_policy_gradient_with_lr_written_by_hand(client):
    run = client("policy.py", models="agent")
    run.check([5])
    run.check_losses()
    assert run.names() == [f"{part}.{kind}" for part in ("actor.0", "actor.2", "critic") for kind in ("weight", "bias")]
    assert run.trace.groups["lr"].tolist() == [(1 - i / 5) * 2.5e-4 for i in range(5)]
    assert run.count("clip") == 5


def test_schedule_free_changes_weights_between_steps(client):
    run = client("schedule_free.py")
    run.check([6])
    run.check_losses()
    edited = run.trace.table("tensors", quantity="param_in")
    assert len(edited) and set(edited["step"]) <= {3, 5}, "train() after eval() gives the weights back but for rounding"
    modes = [event["data"]["mode"] for event in run.events if event["kind"] == "optimizer_mode"]
    assert modes == ["train", "eval"] * 3


def test_checkpointed_state_is_no_step(client):
    run = client("checkpointed.py", models="first,second")
    run.check([3, 2])
    assert run.count("state_init") == 1
    assert run.steps("loss", 0) + run.steps("loss", 1) == run.printed("loss")
    world = run.trace.table("tensors", step=0, optimizer=1)
    saved = run.trace.table("tensors", step=3, optimizer=0)
    for quantity in ("param", "state.exp_avg", "state.exp_avg_sq", "state.step"):
        loaded = world.loc[world["quantity"] == quantity, "fingerprint"].tolist()
        assert loaded == saved.loc[saved["quantity"] == quantity, "fingerprint"].tolist(), quantity
