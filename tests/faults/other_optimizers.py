"""More optimizers written out by hand, with mistakes on request: from RMSprop to Lion and a tutorial's class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"betas": (0.9, 0.999), "weight_decay": 0.0},
    "sgd": {"momentum": 0.9, "weight_decay": 0.0},
    "rmsprop": {"alpha": 0.99, "momentum": 0.0},
    "adagrad": {"lr_decay": 0.0},
    "adamax": {"betas": (0.9, 0.999)},
    "nadam": {"betas": (0.9, 0.999), "momentum_decay": 4e-3},
}


class Own(torch.optim.Optimizer):
    """One of several rules, right unless `mistakes` names some of them, separated by spaces."""

    def __init__(self, params: Any, rule: str, mistakes: str = "", lr: float = 1e-2, **options: Any) -> None:
        eps = {} if rule == "sgd" else {"eps": 1e-3}
        super().__init__(params, {"lr": lr, **eps, **_DEFAULTS[rule], **options})
        self.rule, self.mistakes, self.first_lr = rule, set(mistakes.split()), lr

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    getattr(self, "_" + self.rule)(p, p.grad.clone(), self.state[p], group)

    def _count(self, p: torch.Tensor, state: dict[str, Any], *keys: str) -> float:
        if not state:
            state.update({key: torch.zeros_like(p) for key in keys}, step=torch.tensor(0.0))
        state["step"] += 1
        return state["step"].item()

    def _adam(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        wrong = self.mistakes
        lr = self.first_lr if "lr-read-once" in wrong else group["lr"] * (0.5 if "half-lr" in wrong else 1.0)
        decay = 0.02 if "own-decay" in wrong else group["weight_decay"]
        eps = 1e-5 if "own-eps" in wrong else group["eps"]
        first, second = group["betas"]
        if "decay-by-lr-twice" in wrong:
            p.mul_(1 - lr * lr * decay)
        elif "no-decay" not in wrong:
            g = g + decay * p
        t = self._count(p, state, "exp_avg", "exp_avg_sq")
        m = state["exp_avg"].mul_(first).add_(g, alpha=1 - first)
        v = state["exp_avg_sq"].mul_(second).addcmul_(g, g, value=1 - second)
        one = 1.0 if "first-uncorrected" in wrong else 1 - (second if "second-for-both" in wrong else first) ** t
        v = v / (1 - second**t)
        if "eps-inside" in wrong:
            bottom = (v + eps).sqrt()
        elif "eps-squared" in wrong:
            bottom = (v + eps**2).sqrt()
        elif "eps-least" in wrong:
            bottom = v.sqrt().clamp_min(eps)
        else:
            bottom = (v / (1 - second**t) if "unrooted" in wrong else v).sqrt() + eps
        p.sub_(lr * (m / one) / bottom)

    def _sgd(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        mu = group["momentum"]
        if "no-decay" not in self.mistakes:
            g = g + group["weight_decay"] * p
        share = 1 - mu if "average" in self.mistakes else 1.0
        old = state.get("momentum_buffer", torch.zeros_like(p))
        state["momentum_buffer"] = mu * old + share * g
        p.sub_(group["lr"] * state["momentum_buffer"])

    def _rmsprop(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["square_avg"] = torch.ones_like(p) if "starts-at-one" in self.mistakes else torch.zeros_like(p)
        state.setdefault("step", torch.tensor(0.0)).add_(1)
        v = state["square_avg"].mul_(group["alpha"]).addcmul_(g, g, value=1 - group["alpha"])
        d = g / ((v + group["eps"]).sqrt() if "eps-inside" in self.mistakes else v.sqrt() + group["eps"])
        if group["momentum"]:
            d = state["momentum_buffer"] = group["momentum"] * state.get("momentum_buffer", torch.zeros_like(p)) + d
        p.sub_(group["lr"] * d)

    def _adagrad(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        t = self._count(p, state, "sum")
        if "forgets" in self.mistakes:
            state["sum"].mul_(0.9)
        total = state["sum"].addcmul_(g, g)
        root = (total + group["eps"]).sqrt() if "eps-inside" in self.mistakes else total.sqrt() + group["eps"]
        p.sub_(group["lr"] / (1 + (t - 1) * group["lr_decay"]) * g / root)

    def _adamax(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        t = self._count(p, state, "exp_avg", "exp_inf")
        m = state["exp_avg"].mul_(first).add_(g, alpha=1 - first)
        u = state["exp_inf"] = torch.maximum(second * state["exp_inf"], g.abs() + group["eps"])
        p.sub_(group["lr"] / (1.0 if "first-uncorrected" in self.mistakes else 1 - first**t) * m / u)

    def _nadam(self, p: torch.Tensor, g: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        t = self._count(p, state, "exp_avg", "exp_avg_sq")
        now, then = (first * (1 - 0.5 * 0.96 ** (k * group["momentum_decay"])) for k in (t, t + 1))
        product = state["mu_product"] = state.get("mu_product", torch.tensor(1.0)) * now
        m = state["exp_avg"].mul_(first).add_(g, alpha=1 - first)
        v = state["exp_avg_sq"].mul_(second).addcmul_(g, g, value=1 - second) / (1 - second**t)
        root = (v + group["eps"]).sqrt() if "eps-inside" in self.mistakes else v.sqrt() + group["eps"]
        done = product.item()
        p.sub_(group["lr"] * (1 - now) / (1 - done) * g / root + group["lr"] * then / (1 - done * then) * m / root)


class Lion(torch.optim.Optimizer):
    """The sign of an average of momentum and gradient; `exchanged`: its betas the other way round."""

    def __init__(
        self, params: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.99), exchanged: bool = False
    ):
        super().__init__(params, {"lr": lr, "betas": betas})
        self.exchanged = exchanged

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            first, second = group["betas"][::-1] if self.exchanged else group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(group["lr"] * (first * m + (1 - first) * p.grad).sign())
                self.state[p]["exp_avg"] = second * m + (1 - second) * p.grad


class Tutorial:
    """SGD as tutorials write it, a plain class with a list of velocities: to be watched."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, average: bool) -> None:
        self.params = list(params)
        self.lr, self.momentum, self.average = lr, 0.9, average
        self.velocity = [torch.zeros_like(p) for p in self.params]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step."""
        share = 1 - self.momentum if self.average else 1.0
        for i, p in enumerate(self.params):
            self.velocity[i] = self.momentum * self.velocity[i] + share * p.grad
            p -= self.lr * self.velocity[i]
