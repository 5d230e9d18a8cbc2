"""What production asks of a recording: bounded memory, no secrets in the files, events of wrapped optimizers."""

from __future__ import annotations

import sys

import pytest
import torch
from client_runs import PROGRAMS, run

import optrace

ARGUMENTS = {
    "--api-key": "planted-api-key-91f3",
    "--token": "planted-token-77aa",
    "--db_password": "planted-password-5c5c",
}
SHAPED = ["hf_PlantedPlantedPlantedPlanted0123456", "ghp_PlantedPlantedPlantedPlantedPlanted01"]
VARIABLES = {
    "HF_TOKEN": "hf_PlantedInTheEnvironment0123456789ab",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefplanted",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/secret/of/forty/characters00",
    "MY_SERVICE_PASSWORD": "planted-in-environment-31",
    "PLAIN_VARIABLE": "planted-plain-variable-42",
}


def test_no_secret_is_in_the_files_of_a_run(tmp_path):
    split = [part for pair in ARGUMENTS.items() for part in pair]
    joined = [f"{name}={value}" for name, value in ARGUMENTS.items()]
    command = [PROGRAMS / "policy.py", *split, *joined, *SHAPED, "https://user:planted-in-url@example.org/x"]
    run([sys.executable, "-m", "optrace", "record", "-o", "run", *command], tmp_path, **VARIABLES)
    planted = [*ARGUMENTS.values(), *SHAPED, *VARIABLES.values(), "planted-in-url"]
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 6
    found = [(path.name, text) for path in files for text in planted if text.encode() in path.read_bytes()]
    for name in ("tensors", "groups", "steps", "events"):
        table = optrace.open(tmp_path / "run").table(name).to_csv()
        found += [(name, text) for text in planted if text in table]
    assert found == []
    assert "policy.py" in str(optrace.open(tmp_path / "run").info), "the command itself is kept"


def test_memory_bound_steps_down_in_words_and_changes_no_weight(tmp_path):
    run([sys.executable, PROGRAMS / "policy.py"], tmp_path / "alone")
    program = PROGRAMS / "policy.py"
    bounded = [sys.executable, "-m", "optrace", "record", "-o", "../run", "--memory", "300", program]
    done = run(bounded, tmp_path / "bounded")
    assert "updates of 4 parameters come from samples" in done.stderr and "--memory" in done.stderr
    told = [data for data in optrace.open(tmp_path / "run").events["data"] if data.get("what") == "memory"]
    assert [len(data["sampled"]) for data in told] == [4]
    weights = [(tmp_path / kind / "weights.pt").read_bytes() for kind in ("alone", "bounded")]
    assert weights[0] == weights[1]
    rows = optrace.open(tmp_path / "run").table("tensors", step=1, quantity="update")
    assert len(rows) == 6, "every update has a row, from a copy or from samples"


class Wrapper(torch.optim.Optimizer):
    """An optimizer that passes all on to another one, as Accelerate's does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


def test_scheduler_of_a_wrapped_optimizer_is_told_of_the_optimizer_inside(tmp_path):
    param = torch.nn.Parameter(torch.ones(3))
    with optrace.record(tmp_path / "run", quiet=True):
        wrapper = Wrapper(torch.optim.SGD([param], lr=0.1))
        scheduler = torch.optim.lr_scheduler.StepLR(wrapper, 1)
        for _ in range(3):
            param.grad = torch.ones(3)
            wrapper.step()
            scheduler.step()
    events = optrace.open(tmp_path / "run").events
    told = events[events["kind"] == "scheduler_step"]
    assert told["optimizer"].tolist() == [0, 0, 0]
    assert told["step"].tolist() == [1, 2, 3]


def test_events_of_an_optimizer_that_never_steps_are_kept(tmp_path):
    used, unused = (torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1) for _ in range(2))
    with optrace.record(tmp_path / "run", quiet=True):
        unused.zero_grad()
        used.param_groups[0]["params"][0].grad = torch.ones(2)
        used.step()
    events = optrace.open(tmp_path / "run").events
    assert events.loc[events["kind"] == "zero_grad", "optimizer"].tolist() == [-1]


class Unfinished(torch.optim.Optimizer):
    """An optimizer whose constructor raises before it has any groups."""

    def __init__(self, params, lr=0.1):
        if lr < 1:
            raise ValueError(lr)
        super().__init__(params, {"lr": lr})


def test_an_optimizer_whose_constructor_raised_does_not_disturb_the_others(tmp_path):
    param = torch.nn.Parameter(torch.ones(2))
    kept = Unfinished.__new__(Unfinished)
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        with pytest.raises(ValueError, match=r"0\.1"):
            kept.__init__([param])
        with pytest.raises(TypeError):
            torch.optim.SGD.__init__(kept, [param], wrong=1)
        optimizer = torch.optim.SGD([param], lr=0.1)
        for _ in range(2):
            param.grad = torch.ones(2)
            optimizer.step()
    assert optrace.open(tmp_path / "run").last_step(0) == 2
