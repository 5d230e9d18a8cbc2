"""The trainers that people use: rows equal an independent capture, names are the model's, nothing changes."""

from __future__ import annotations

import warnings

import pytest
import torch
from client_inside import check_inside
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.slow


def means(losses: list[float], of: int) -> list[float]:
    return [sum(losses[i : i + of]) / of for i in range(0, len(losses), of)]


def test_transformers_trainer(client):
    pytest.importorskip("transformers")
    run = client("hf_trainer.py")
    run.check([4])
    run.check_losses()
    assert run.steps("n_backward") == [2, 2, 2, 2]
    assert {"transformer.wte.weight", "transformer.h.1.mlp.c_proj.bias", "transformer.ln_f.weight"} <= set(run.names())
    assert run.steps("grad_norm") == pytest.approx(run.printed("norm"), rel=1e-6)  # the Trainer logs a rounded one
    assert run.trace.groups.query("group == 0")["weight_decay"].unique().tolist() == [0.1]
    assert run.trace.groups.query("group == 1")["weight_decay"].unique().tolist() == [0.0]
    lrs = run.trace.groups.query("group == 0")["lr"].tolist()
    assert lrs[:3] == [0.0, 0.5e-3, 1e-3], "a first step with lr 0 while warming up is a step"
    assert run.count("scheduler_step") == 4


def test_lightning(client):
    pytest.importorskip("lightning")
    run = client("lightning_module.py")
    run.check([3])
    losses = run.printed("loss")
    assert run.steps("n_backward") == [2, 2, 2]
    assert run.steps("loss") == [mean / 2 for mean in means(losses, 2)], "Lightning divides by the accumulation"
    assert run.names() == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    assert run.count("scheduler_step") == 3 and run.count("clip") == 3
    assert run.trace.groups["lr"].tolist() == [1e-2, 0.5e-2, 0.25e-2]


def test_accelerate_with_accumulation_and_bf16_autocast(client):
    pytest.importorskip("accelerate")
    run = client("accelerated.py")
    run.check([3])
    run.check_losses()
    assert run.steps("n_backward") == [2, 2, 2]
    assert run.steps("loss") == [mean / 2 for mean in means(run.printed("loss"), 2)], "divided by the accumulation"
    assert run.names() == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert run.trace.groups["lr"].tolist() == pytest.approx([0.25e-2, 0.5e-2, 0.75e-2])
    assert run.count("clip") == 3


def test_skorch(client):
    pytest.importorskip("skorch")
    run = client("skorched.py")
    run.check([6])
    run.check_losses()
    assert run.steps("loss") == run.printed("loss")
    assert run.names() == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_lightning_with_manual_optimization(tmp_path):
    lightning = pytest.importorskip("lightning")
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }

    class Adversaries(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = nn.Linear(3, 2), nn.Linear(2, 1)

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            critic = torch.optim.RMSprop(self.critic.parameters(), lr=0.01)
            return [torch.optim.Adam(self.generator.parameters(), lr=0.01), critic]

        def training_step(self, batch: list[torch.Tensor], index: int) -> None:
            for_generator, for_critic = self.optimizers()
            fake = self.generator(batch[0])
            self.toggle_optimizer(for_critic)
            self.manual_backward(self.critic(fake.detach()).square().mean())
            self.clip_gradients(for_critic, 0.1, "norm")
            for_critic.step()
            for_critic.zero_grad()
            self.untoggle_optimizer(for_critic)
            if index % 2:
                self.toggle_optimizer(for_generator)
                self.manual_backward(self.critic(self.generator(batch[0])).mean())
                for_generator.step()
                for_generator.zero_grad()
                self.untoggle_optimizer(for_generator)

    def train() -> list[tuple[str, torch.Tensor]]:
        torch.manual_seed(1)
        model, data = Adversaries(), DataLoader(TensorDataset(torch.randn(16, 3)), batch_size=4)
        lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, **quiet).fit(model, data)
        return list(model.named_parameters())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trace = check_inside(tmp_path, train, [4, 2])
    events = trace.events[trace.events["optimizer"] >= 0].sort_values("seq")
    for kind, of in (("clip", [0] * 4), ("zero_grad", [0, 0, 1, 0, 0, 1])):
        assert events[events["kind"] == kind]["optimizer"].tolist() == of
    assert trace.steps["n_backward"].tolist() == [1] * 6


def test_fabric(tmp_path):
    lightning = pytest.importorskip("lightning")

    def train() -> list[tuple[str, torch.Tensor]]:
        torch.manual_seed(1)
        fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        model, optimizer = fabric.setup(net, torch.optim.AdamW(net.parameters(), lr=0.01))
        data = fabric.setup_dataloaders(DataLoader(TensorDataset(torch.randn(16, 3)), batch_size=4))
        for index, (x,) in enumerate(data):
            with fabric.no_backward_sync(model, enabled=index % 2 == 0):
                fabric.backward(model(x).square().mean())
            if index % 2:
                fabric.clip_gradients(model, optimizer, max_norm=0.1)
                optimizer.step()
                optimizer.zero_grad()
        return list(net.named_parameters())

    trace = check_inside(tmp_path, train, [2])
    assert trace.steps["n_backward"].tolist() == [2, 2] and trace.steps["grad_norm"].notna().all()
    events = trace.events[trace.events["kind"].isin(["clip", "step", "zero_grad"])].sort_values("seq")
    assert events["kind"].tolist() == ["clip", "step", "zero_grad"] * 2
    assert set(events["optimizer"]) == {0}
