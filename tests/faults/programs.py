"""The programs of the fault bench: one training loop, and recipes for it that leave every part open to be replaced."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import optrace

State = SimpleNamespace
"""What a running program has: net, optimizer, scheduler, scaler, step, recipe."""


def _nothing(state: State) -> None:
    pass


def _plain_step(state: State) -> None:
    state.optimizer.step()


def _schedule(state: State) -> None:
    if state.scheduler is not None:
        state.scheduler.step()


def _zero(state: State) -> None:
    state.optimizer.zero_grad()


def _weigh(state: State, loss: torch.Tensor) -> torch.Tensor:
    return loss / state.recipe.micro


@dataclass(frozen=True)
class Recipe:
    """One program; a fault is a recipe with one part replaced."""

    net: Callable[[], nn.Module]
    data: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    optimizer: Callable[[nn.Module], Any]
    schedule: Callable[[Any], Any] | None = None
    steps: int = 12
    micro: int = 1
    batch: int = 16
    seed: int = 0
    order: Callable[[int, int], list[list[int]]] | None = None
    """(examples, batches) -> indices of each batch."""
    scaler: Callable[[], Any] | None = None
    zero: Callable[[State], None] = _zero
    weigh: Callable[[State, torch.Tensor], torch.Tensor] = _weigh
    after_micro: Callable[[State], None] = _nothing
    before_step: Callable[[State], None] = _nothing
    step: Callable[[State], None] = _plain_step
    after_step: Callable[[State], None] = _schedule
    built: Callable[[State], None] = _nothing
    """Called when all is built, before recording begins."""
    resume_at: int = 0
    """Steps that were taken before: their batches are skipped."""
    watched: bool = False
    """Whether the optimizer is handed to `optrace.watch`, as one has to that is no subclass of torch's."""
    threads: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the recording."""

    def but(self, **parts: Any) -> Recipe:
        """The recipe with parts replaced."""
        return replace(self, **parts)


def build(recipe: Recipe) -> State:
    """Everything that a program needs before its loop."""
    torch.manual_seed(recipe.seed)
    net = recipe.net()
    optimizer = recipe.optimizer(net)
    scheduler = recipe.schedule(optimizer) if recipe.schedule is not None else None
    scaler = recipe.scaler() if recipe.scaler is not None else None
    torch.manual_seed(recipe.seed + 1)
    return State(net=net, optimizer=optimizer, scheduler=scheduler, scaler=scaler, step=0, recipe=recipe)


def batches(recipe: Recipe) -> Any:
    """An iterator over the batches that the loop will use."""
    x, y = recipe.data()
    count = recipe.steps * recipe.micro
    if recipe.order is not None:
        chosen = recipe.order(len(x), count + recipe.resume_at * recipe.micro)
    else:
        chosen = shuffled(len(x), count + recipe.resume_at * recipe.micro, recipe.batch, seed=5)
    return iter(DataLoader(TensorDataset(x, y), batch_sampler=chosen[recipe.resume_at * recipe.micro :]))


def shuffled(examples: int, count: int, size: int = 16, seed: int = 5) -> list[list[int]]:
    """`count` batches of `size` indices."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(examples, generator=generator)[:size].tolist() for _ in range(count)]


def loop(state: State) -> None:
    """Train for the recipe's steps."""
    recipe = state.recipe
    loader = batches(recipe)
    for state.step in range(recipe.resume_at + 1, recipe.resume_at + recipe.steps + 1):
        recipe.zero(state)
        for state.i_micro in range(recipe.micro):
            x, y = next(loader)
            dtype = next(state.net.parameters()).dtype
            loss = recipe.loss(state.net(x.to(dtype) if x.is_floating_point() else x), y)
            loss = recipe.weigh(state, loss)
            (state.scaler.scale(loss) if state.scaler is not None else loss).backward()
            recipe.after_micro(state)
        recipe.before_step(state)
        recipe.step(state)
        recipe.after_step(state)


def run(path: Path, recipe: Recipe) -> Path:
    """Build, record and train a program."""
    torch.set_num_threads(recipe.threads)
    state = build(recipe)
    recipe.built(state)
    with optrace.record(path, quiet=True, **recipe.settings):
        if recipe.watched:
            state.optimizer = optrace.watch(state.optimizer)
        loop(state)
    torch.set_num_threads(1)
    return path


def checkpoint(recipe: Recipe, at: int) -> dict[str, Any]:
    """What a program has saved after `at` steps."""
    torch.set_num_threads(1)
    state = build(recipe)
    recipe.built(state)
    state.recipe = recipe.but(steps=at)
    loop(state)
    saved = {"net": state.net.state_dict(), "optimizer": state.optimizer.state_dict()}
    if state.scheduler is not None:
        saved["scheduler"] = state.scheduler.state_dict()
    saved["rng"] = torch.get_rng_state()
    import copy

    return copy.deepcopy(saved)


def restore(state: State, saved: dict[str, Any], *, optimizer: bool = True, scheduler: bool = True) -> None:
    """Load a checkpoint into a program."""
    import copy

    saved = copy.deepcopy(saved)
    state.net.load_state_dict(saved["net"])
    if optimizer:
        state.optimizer.load_state_dict(saved["optimizer"])
    if scheduler and state.scheduler is not None:
        state.scheduler.load_state_dict(saved["scheduler"])
    torch.set_rng_state(saved["rng"])


# --- the programs -------------------------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """A regression with two layers, as in docs/examples/two_layers.py."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 10)
        self.second = nn.Linear(10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def _line() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(-1, 1, 64).reshape(64, 1)
    return x, 3 * x + 0.5


def two_groups(net: nn.Module, **options: Any) -> list[dict[str, Any]]:
    """The two layers as groups, the second at a tenth of the lr."""
    lr = options.get("lr", 0.05)
    return [
        {"params": list(net.first.parameters()), "lr": lr},
        {"params": list(net.second.parameters()), "lr": lr / 10},
    ]


REGRESSION = Recipe(
    net=TwoLayers,
    data=_line,
    loss=nn.functional.mse_loss,
    optimizer=lambda net: torch.optim.SGD(two_groups(net), lr=0.05, momentum=0.9, weight_decay=0.01),
    schedule=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: 1 / (1 + 0.3 * e)),
)


class Digits(nn.Module):
    """A classifier of 8x8 images with a normalisation and dropout."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.inside = nn.Linear(64, 24)
        self.norm = nn.LayerNorm(24)
        self.dropout = nn.Dropout(dropout)
        self.outside = nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outside(self.dropout(torch.relu(self.norm(self.inside(x)))))


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(17)
    centres = torch.rand(10, 64, generator=generator) * 2
    y = torch.arange(400) % 10
    return centres[y] + 0.5 * torch.randn(400, 64, generator=generator), y


def decay_groups(net: nn.Module, decay: float = 0.1) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors (biases, norms) without."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


DIGITS = Recipe(
    net=Digits,
    data=_digits,
    loss=nn.functional.cross_entropy,
    optimizer=lambda net: torch.optim.AdamW(decay_groups(net), lr=3e-3),
    schedule=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40),
)


class Block(nn.Module):
    """One causal transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        x = x + self.out(scores.softmax(-1) @ v)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A character transformer with tied embeddings."""

    def __init__(self, width: int = 16, words: int = 20) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def _text() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    jumps = torch.randint(1, 4, (300, 13), generator=generator)
    text = jumps.cumsum(1) % 20
    return text[:, :-1], text[:, 1:]


def _next_word(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(out.flatten(0, 1), target.flatten())


def warm_up(optimizer: Any, steps: int = 5, total: int = 60) -> Any:
    """Linear warm-up from lr 0, then a cosine."""

    def factor(epoch: int) -> float:
        if epoch < steps:
            return epoch / steps
        return 0.5 * (1 + math.cos(math.pi * (epoch - steps) / (total - steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def clip_norm(state: State, largest: float = 0.5) -> None:
    """Clip the total norm, after unscaling where there is a scaler."""
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    nn.utils.clip_grad_norm_(state.net.parameters(), largest)


def scaler_step(state: State) -> None:
    """Step through the GradScaler."""
    state.scaler.step(state.optimizer)
    state.scaler.update()


TRANSFORMER = Recipe(
    net=Transformer,
    data=_text,
    loss=_next_word,
    optimizer=lambda net: torch.optim.AdamW(decay_groups(net), lr=2e-3, betas=(0.9, 0.95)),
    schedule=warm_up,
    micro=2,
    batch=8,
    before_step=clip_norm,
)

SCALED = DIGITS.but(
    scaler=lambda: torch.amp.GradScaler("cpu", init_scale=1024.0),
    before_step=clip_norm,
    step=scaler_step,
)

PROGRAMS = {"regression": REGRESSION, "digits": DIGITS, "transformer": TRANSFORMER, "scaled": SCALED}
