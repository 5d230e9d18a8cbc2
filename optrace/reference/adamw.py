"""AdamW: Adam whose weight decay shrinks the weights directly instead of going through the gradient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from optrace.reference import adam
from optrace.reference.arithmetic import Array
from optrace.reference.rule import Hyper, Rule, State


def step(param: Array, grad: Array | None, state: State, hyper: Hyper) -> tuple[Array, State]:
    r"""One step of AdamW on one parameter: Adam's, with decoupled weight decay.

        theta <- theta * (1 - lr * weight_decay)            before the update, with the current lr
        theta <- theta - (Adam's update from the undecayed gradient)

    In Adam, decay that is added to the gradient is divided by the root of the squared gradients like the rest, so
    that weights with large gradients decay less; here every weight decays by the same factor.

    Args:
        param: the parameter, any shape; float or complex.
        grad: its gradient, same shape and dtype, or None: nothing happens, no decay either.
        state: as Adam's.
        hyper: lr, betas, eps, weight_decay, amsgrad, maximize.

    Returns:
        The new parameter and state; as near to torch 2.13 as Adam.

    References:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization (2017). torch 2.13, torch/optim/adamw.py.
    """
    return adam.step(param, grad, state, {**hyper, "decoupled_weight_decay": True})


RULE = Rule(
    name="adamw",
    defaults={
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 1e-2,
        "amsgrad": False,
        "maximize": False,
    },
    state_keys=adam.RULE.state_keys,
    elementwise=True,
    step=step,
)


class AdamW(adam.Adam):
    """AdamW over groups of parameters, with the options of `torch.optim.AdamW`; the maths is in `step` above.

    Raises:
        OptionError: a negative lr, eps or weight_decay; a beta outside [0, 1).
    """

    rule = RULE

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As every optimizer's; a checkpoint of Adam becomes one of AdamW."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True
