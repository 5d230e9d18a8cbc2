"""Programs unlike those of which the first faults were made: a convolution, a recurrent net, an autoencoder."""

from __future__ import annotations

import torch
from torch import nn

from tests.faults.programs import Recipe, decay_groups


class Convolution(nn.Module):
    """Images through a convolution with a bias before a batch normalisation: its gradient is rounding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, stride=2)
        self.head = nn.Linear(6 * 3 * 3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.second(torch.relu(self.norm(self.first(x)))))
        return self.head(hidden.flatten(1))


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(160, 1, 8, 8, generator=generator), torch.arange(160) % 5


CONVOLUTION = Recipe(
    net=Convolution,
    data=_images,
    loss=nn.functional.cross_entropy,
    optimizer=lambda net: torch.optim.Adam(decay_groups(net), lr=1e-2, eps=1e-3),
)


class Recurrent(nn.Module):
    """Words through a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.gru = nn.GRU(6, 9, batch_first=True)
        self.out = nn.Linear(9, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(self.words(x))[0])


def _words() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    text = torch.randint(1, 3, (120, 9), generator=generator).cumsum(1) % 11
    return text[:, :-1], text[:, 1:]


def _next_word(out: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(out.flatten(0, 1), target.flatten())


RECURRENT = Recipe(
    net=Recurrent,
    data=_words,
    loss=_next_word,
    optimizer=lambda net: torch.optim.AdamW(net.parameters(), lr=5e-3, eps=1e-4),
    batch=6,
)


class Autoencoder(nn.Module):
    """Vectors through a bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 3))
        self.decode = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))


def _vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(128, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    return x, x + 0.1 * torch.randn(x.shape, generator=generator)


AUTOENCODER = Recipe(
    net=Autoencoder,
    data=_vectors,
    loss=nn.functional.mse_loss,
    optimizer=lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    batch=8,
)


class Attention(nn.Module):
    """One head of attention; the gradient of the key's bias is rounding alone, as softmax does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (self.query(x) @ self.key(x).transpose(-1, -2) / 3.5).softmax(-1)
        return self.out(weights @ self.value(x))


ATTENTION = AUTOENCODER.but(net=Attention)


class HalfFrozen(Autoencoder):
    """The autoencoder with an encoder that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.encode.requires_grad_(False)
