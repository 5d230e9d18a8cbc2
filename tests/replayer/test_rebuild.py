"""Parameters and state of any step, rebuilt from the gradients: bit for bit what the program had, and certified."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

import optrace
from optrace.errors import TraceError
from optrace.replayer.rebuild import certify
from optrace.trace.whole import values_files

pytestmark = pytest.mark.usefixtures("only_what_is_new")

torch.set_num_threads(1)

CASES = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    (torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "foreach": True}),
    (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
    (torch.optim.AdamW, {"lr": torch.tensor(0.01), "foreach": False}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {"lr": 0.01}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (torch.optim.Adagrad, {"lr_decay": 0.1}),
    (torch.optim.Adadelta, {}),
    (torch.optim.ASGD, {"lambd": 0.1, "t0": 4}),
    (torch.optim.Rprop, {}),
    (torch.optim.Adafactor, {}),
    (torch.optim.Muon, {"lr": 0.01}),
]
STEPS = 9


def _network(dtype=torch.float32, biases=True):
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(5, 12, biases), torch.nn.Tanh(), torch.nn.Linear(12, 7, biases)).to(
        dtype
    )


def train(path, kind, options, dtype=torch.float32, edit=None, values="grad"):
    """Train with two groups and a changing lr; what parameters and state were after each step, by torch itself."""
    net = _network(dtype, kind is not torch.optim.Muon)
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "weight_decay": 0.01}]
    optimizer = kind(groups, **options)
    x, y = torch.randn(16, 5, dtype=dtype), torch.randn(16, 7, dtype=dtype)
    names = {p: n for n, p in net.named_parameters()}
    seen = [({n: p.detach().clone() for n, p in net.named_parameters()}, {})]
    with optrace.record(path, quiet=True, values=values):
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            (net(x) - y).square().mean().backward()
            if step == 2 and net[0].bias is not None:
                net[0].bias.grad = None
            if edit is not None and step == 5:
                edit(net, optimizer)
            optimizer.step()
            if step == 4:
                for group in optimizer.param_groups:
                    group["lr"] = group["lr"] / 2
            state = {
                (names[p], key): v.detach().clone() if isinstance(v, torch.Tensor) else v
                for p, entry in optimizer.state.items()
                for key, v in entry.items()
            }
            seen.append(({n: p.detach().clone() for n, p in net.named_parameters()}, state))
    return seen


def bits(tensor):
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return wide.numpy().tobytes()


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_every_parameter_and_state_of_a_step_is_rebuilt_bit_for_bit(tmp_path, kind, options):
    seen = train(tmp_path / "run", kind, options)
    trace = optrace.open(tmp_path / "run")
    for step in (3, STEPS):
        params, state = seen[step]
        for name, tensor in params.items():
            assert optrace.value(trace, step, name, "param").tobytes() == bits(tensor), (step, name)
        for (name, key), tensor in state.items():
            if isinstance(tensor, torch.Tensor):
                assert optrace.value(trace, step, name, f"state.{key}").tobytes() == bits(tensor), (step, name, key)
    found = certify(trace)
    assert found.same
    assert (found.first, found.last) == (0, STEPS)
    rows = trace.tensors.query("step > 0 and present and (quantity == 'param' or quantity.str.startswith('state.'))")
    assert found.n_fingerprints == len(rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_and_updates(tmp_path, dtype):
    seen = train(tmp_path / "run", torch.optim.AdamW, {"lr": 0.01}, dtype)
    name = "0.weight"
    assert optrace.value(tmp_path / "run", 6, name, "param").tobytes() == bits(seen[6][0][name])
    update = seen[6][0][name].double() - seen[5][0][name].double()
    found = optrace.value(tmp_path / "run", 6, name, "update")
    assert found.dtype == np.float64
    assert found.tobytes() == update.numpy().tobytes()


def test_what_was_changed_between_two_steps_is_taken_over(tmp_path):
    def edit(net, optimizer):
        with torch.no_grad():
            net[0].weight.mul_(0.5)
            optimizer.state[net[2].weight]["exp_avg"].zero_()

    seen = train(tmp_path / "run", torch.optim.Adam, {"lr": 0.01}, edit=edit)
    assert certify(tmp_path / "run").same
    for name in ("0.weight", "2.weight"):
        assert optrace.value(tmp_path / "run", STEPS, name, "param").tobytes() == bits(seen[STEPS][0][name])


def _flip(path, key):
    """Change one bit of a stored tensor."""
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    start, _ = json.loads(data[8 : 8 + length])[key]["data_offsets"]
    data[8 + length + start + 2] ^= 0x40
    path.write_bytes(data)


def test_a_replay_that_misses_a_fingerprint_names_the_last_certified_step(tmp_path):
    train(tmp_path / "run", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})
    trace = optrace.open(tmp_path / "run")
    _flip(values_files(trace.rank_path)[6][0], "0/grad/0.weight")
    assert optrace.value(trace, 5, "0.weight", "param").shape == (12, 5)
    with pytest.raises(TraceError, match=r"step 6 gives another .* of '0.weight'.*certified up to step 5"):
        optrace.value(trace, 8, "0.weight", "param")
    found = certify(trace)
    assert not found.same
    assert (found.last, found.missed.step) == (5, 6)


def test_a_missing_gradient_is_named(tmp_path):
    train(tmp_path / "run", torch.optim.SGD, {"lr": 0.1})
    trace = optrace.open(tmp_path / "run")
    values_files(trace.rank_path)[4][0].unlink()
    assert optrace.value(trace, 3, "0.weight", "param").shape == (12, 5)
    with pytest.raises(TraceError, match=r"step 4 .* was not recorded with its whole gradients"):
        optrace.value(trace, 7, "0.weight", "param")


def test_without_whole_gradients_the_recording_that_would_have_it_is_named(tmp_path):
    train(tmp_path / "run", torch.optim.SGD, {"lr": 0.1}, values="sample")
    with pytest.raises(TraceError, match="--values full"):
        optrace.value(tmp_path / "run", 3, "0.weight", "param")
    with pytest.raises(TraceError, match="no parameter 'nothing'"):
        optrace.value(tmp_path / "run", 3, "nothing", "param")


def test_a_class_that_is_not_of_torch_is_never_imported(tmp_path):
    class Mine(torch.optim.SGD):
        pass

    seen = train(tmp_path / "run", Mine, {"lr": 0.1})
    with pytest.raises(TraceError, match=r"none of torch\.optim"):
        optrace.value(tmp_path / "run", 3, "0.weight", "param")
    found = optrace.value(tmp_path / "run", 3, "0.weight", "param", as_class=Mine)
    assert found.tobytes() == bits(seen[3][0]["0.weight"])


def test_keyframes_shorten_the_way(tmp_path, monkeypatch):
    from optrace.recorder import whole

    monkeypatch.setattr(whole, "KEYFRAME", 4)
    seen = train(tmp_path / "run", torch.optim.Adam, {"lr": 0.01})
    trace = optrace.open(tmp_path / "run")
    for step in (1, 2, 3):  # not needed for what comes after the keyframe
        values_files(trace.rank_path)[step][0].unlink()
    assert optrace.value(trace, 7, "2.bias", "param").tobytes() == bits(seen[7][0]["2.bias"])
    assert optrace.value(trace, 7, "2.weight", "state.exp_avg").tobytes() == bits(seen[7][1]["2.weight", "exp_avg"])


def test_stored_values_need_no_torch(tmp_path):
    train(tmp_path / "run", torch.optim.SGD, {"lr": 0.1})
    code = (
        "import optrace, sys\n"
        f"print(optrace.value({str(tmp_path / 'run')!r}, 3, '0.weight', 'grad').shape)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(12, 5)\n"
