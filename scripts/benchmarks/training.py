"""The trainings that recording is measured on: each is a function that makes one step.

What recording adds to a step does not depend on its batch, so the ratios do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional


@dataclass
class Training:
    """A model in training: `step()` makes one step, zero_grad to scheduler."""

    name: str
    step: Callable[[], None]
    optimizer: torch.optim.Optimizer
    steps: int
    """Timed steps of one turn."""
    warm: int
    """Steps before them."""
    wait: Callable[[], None] | None = None
    """Waits for the device that the steps run on; None on the CPU."""


def _training(
    name: str,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], torch.Tensor],
    steps: int,
    warm: int,
    schedule: Any = None,
) -> Training:
    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()

    return Training(name, step, optimizer, steps, warm)


def two_layers() -> Training:
    """The two-layer regression of docs/examples: 31 parameters in 4 tensors, SGD with momentum, two groups, StepLR."""
    # 100,000 steps lower the lr to some billionths of it and not to 0, with which a step may be none
    return _two_layers("two-layer", lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 50, gamma=0.99))


def two_layers_each_step() -> Training:
    """The same under a schedule that sets another lr at each step."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
    return _two_layers("two-layer-cosine", lambda optimizer: schedule(optimizer, 100, eta_min=1e-4))


def two_layers_noisy() -> Training:
    """The same with targets that differ at each step, so that nothing converges to numbers that repeat."""
    constant = torch.optim.lr_scheduler.StepLR
    return _two_layers("two-layer-noisy", lambda optimizer: constant(optimizer, 50, gamma=1.0), noise=0.1)


def _two_layers(name: str, schedule: Callable[[torch.optim.Optimizer], Any], noise: float = 0.0) -> Training:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 11).reshape(11, 1)
    y = 3 * x + 0.5
    first, second = nn.Linear(1, 10), nn.Linear(10, 1)
    groups = [{"params": first.parameters(), "lr": 0.01}, {"params": second.parameters(), "lr": 0.001}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)

    def loss() -> torch.Tensor:
        target = y + noise * torch.randn(y.shape) if noise else y
        return ((second(first(x)) - target) ** 2).mean()

    return _training(name, optimizer, loss, steps=300, warm=30, schedule=schedule(optimizer))


class _Residual(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outer)
        self.second = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.short = nn.Sequential()
        if stride != 1 or inner != outer:
            self.short = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.norm2(self.second(functional.relu(self.norm(self.first(x)))))
        return functional.relu(inside + self.short(x))


def cnn() -> Training:
    """ResNet18 for CIFAR: 11 million parameters in 62 tensors, SGD with momentum and decay, batches of 64."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for outer, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [_Residual(width, outer, stride), _Residual(outer, outer, 1)]
        width = outer
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return _training("cnn-11m", optimizer, lambda: functional.cross_entropy(model(images), labels), steps=4, warm=1)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class _GPT(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


def _gpt(name: str, vocabulary: int, width: int, layers: int, batch: int, length: int, device: str = "cpu") -> Training:
    torch.manual_seed(0)
    model = _GPT(vocabulary, length, width, layers, width // 64).to(device)
    tokens = torch.randint(0, vocabulary, (batch, length + 1), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            logits = model(tokens[:, :-1])
            return functional.cross_entropy(logits.reshape(-1, vocabulary), tokens[:, 1:].reshape(-1))

    if device == "cpu":
        return _training(name, optimizer, loss, steps=3, warm=1)
    # a recording waits for the device in its first four steps, in which it takes its price
    return replace(_training(name, optimizer, loss, steps=20, warm=8), wait=torch.cuda.synchronize)


def gpt_29m() -> Training:
    """A GPT with 29 million parameters in 99 tensors, AdamW fused, 2048 tokens a step."""
    return _gpt("gpt-29m", 8192, 512, 8, batch=8, length=256)


def gpt_124m() -> Training:
    """GPT-2's size: 124 million parameters, AdamW fused, 1024 tokens a step."""
    return _gpt("gpt-124m", 50257, 768, 12, batch=4, length=256)


def gpt_124m_cuda() -> Training:
    """GPT-2's size on a CUDA device: 124 million parameters, bf16 autocast, AdamW fused, 16384 tokens a step."""
    return _gpt("gpt-124m-cuda", 50257, 768, 12, batch=16, length=1024, device="cuda")


def gpt_3m() -> Training:
    """A GPT with 3 million parameters, AdamW fused, 1024 tokens a step: a quick stand-in for the bigger ones."""
    return _gpt("gpt-3m", 2048, 256, 3, batch=8, length=128)


TRAININGS = {
    "two-layer": two_layers,
    "cnn-11m": cnn,
    "gpt-3m": gpt_3m,
    "gpt-29m": gpt_29m,
    "gpt-124m": gpt_124m,
    "two-layer-cosine": two_layers_each_step,
}
ON_CUDA = {"gpt-124m-cuda": gpt_124m_cuda}
"""Measured too where there is a CUDA device."""
