"""More pairs of programs between which nothing may be blamed on the optimizer."""

from __future__ import annotations

import torch
from prodigyopt import Prodigy
from torch import nn

from tests.faults.other_nets import ATTENTION, AUTOENCODER, CONVOLUTION, RECURRENT, HalfFrozen
from tests.faults.other_optimizers import Tutorial
from tests.faults.other_programs import of_torch, own
from tests.faults.parts import fault
from tests.faults.programs import TRANSFORMER, Recipe, State, decay_groups

optim = torch.optim
PRODIGY = CONVOLUTION.but(optimizer=of_torch(Prodigy, lr=1.0))
NO_CLIP = TRANSFORMER.but(before_step=lambda state: None)
FROZEN = AUTOENCODER.but(net=HalfFrozen, optimizer=of_torch(optim.RMSprop, lr=1e-2, eps=1e-3))
LAZY = RECURRENT.but(optimizer=of_torch(optim.Adagrad, lr=1e-2, eps=1e-3, lr_decay=0.1))


def control(name: str, right: Recipe, **parts: object) -> None:
    fault(name, "control", "", None, right, right.but(**parts))


def norm_logged(state: State) -> None:
    """The norm of the gradients, asked for to be written down."""
    nn.utils.clip_grad_norm_(state.net.parameters(), float("inf"))


def loss_logged_in_other_units(state: State, loss: torch.Tensor) -> torch.Tensor:
    """The same gradients from a loss that is a constant larger."""
    return loss / state.recipe.micro + 1.0


control("prodigy-on-two-threads", PRODIGY, threads=2)
control("convolution-on-two-threads", CONVOLUTION, threads=2)
control(
    "nadam-foreach", CONVOLUTION.but(optimizer=of_torch(optim.NAdam)), optimizer=of_torch(optim.NAdam, foreach=True)
)
control("key-bias", ATTENTION.but(optimizer=of_torch(optim.Adam)), optimizer=of_torch(optim.Adam, fused=True))
control("own-adagrad-makes-state-late", LAZY, optimizer=own("adagrad", lr_decay=0.1))
control("frozen-layers", FROZEN, optimizer=own("rmsprop"))
control("norm-logged", NO_CLIP, before_step=norm_logged)
control("loss-logged-otherwise", NO_CLIP, weigh=loss_logged_in_other_units)
control(
    "warm-up-from-lr-0",
    TRANSFORMER,
    optimizer=lambda net: optim.AdamW(decay_groups(net), lr=2e-3, betas=(0.9, 0.95), foreach=True),
)
control(
    "tied-embeddings-fused",
    TRANSFORMER,
    optimizer=lambda net: optim.AdamW(decay_groups(net), lr=2e-3, betas=(0.9, 0.95), fused=True),
)
control(
    "tutorial-that-is-right",
    AUTOENCODER,
    watched=True,
    optimizer=lambda net: Tutorial(net.parameters(), lr=0.05, average=False),
)
