"""Optimizers written out by hand, right when no mistake is asked for, with the mistakes that real libraries had."""

from __future__ import annotations

from typing import Any

import torch


class OwnSGD(torch.optim.Optimizer):
    """SGD with momentum, weight decay and Nesterov, in torch's form unless `mistake` names another."""

    def __init__(self, params: Any, lr: float = 0.1, mistake: str = "", **options: Any) -> None:
        options = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, **options}
        super().__init__(params, {"lr": lr, **options})
        self.mistake = mistake

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            mu, damp, wd, lr = (group[k] for k in ("momentum", "dampening", "weight_decay", "lr"))
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad
                if wd and self.mistake not in ("decay-missing", "decay-decoupled", "decay-after"):
                    g = g + wd * p if self.mistake != "decay-sign" else g - wd * p
                state = self.state[p]
                buf = state.get("momentum_buffer")
                if self.mistake == "ema":
                    buf = (1 - mu) * g if buf is None else mu * buf + (1 - mu) * g
                elif self.mistake == "lr-inside":
                    buf = lr * g if buf is None else mu * buf + lr * g
                elif buf is None:
                    buf = (1 - damp) * g if self.mistake == "dampened-first" else g.clone()
                elif self.mistake == "no-dampening":
                    buf = mu * buf + g
                else:
                    buf = mu * buf + (1 - damp) * g
                state["momentum_buffer"] = buf
                d = buf
                if group["nesterov"] and self.mistake != "no-nesterov":
                    d = g - mu * buf if self.mistake == "nesterov-sign" else g + mu * buf
                if self.mistake == "nesterov-on":
                    d = g + mu * buf
                if self.mistake == "decay-decoupled":
                    p.mul_(1 - lr * wd)
                old = p.clone()
                p.sub_(d if self.mistake == "lr-inside" else lr * d)
                if self.mistake == "decay-after":
                    p.sub_(lr * wd * old)


class OwnAdam(torch.optim.Optimizer):
    """Adam and AdamW (`decoupled`), in torch's form unless `mistake` names another."""

    decoupled = False

    def __init__(self, params: Any, lr: float = 1e-3, mistake: str = "", **options: Any) -> None:
        options = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, **options}
        super().__init__(params, {"lr": lr, **options})
        self.mistake = mistake

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        wrong = self.mistake
        for group in self.param_groups:
            b1, b2 = group["betas"]
            if wrong == "betas-swapped":
                b1, b2 = b2, b1
            if wrong == "other-beta2":
                b2 = 0.98
            lr, eps, wd = group["lr"], group["eps"], group["weight_decay"]
            for p in group["params"]:
                g = p.grad
                if g is None:
                    if wrong == "none-grad":
                        p.mul_(1 - lr * wd)
                    continue
                coupled = (not self.decoupled) != (wrong == "coupling")
                if wd and coupled and wrong != "decay-missing":
                    g = g + wd * p
                elif wd and not coupled and wrong not in ("decay-missing", "decay-after"):
                    p.mul_(1 - lr * wd)
                state = self.state[p]
                if not state:
                    start = 1.0 if wrong == "counter" else 0.0
                    state.update(step=torch.tensor(start), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                    if group["amsgrad"]:
                        state["max_exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                t = state["step"].item()
                m = state["exp_avg"].mul_(b1).add_(g, alpha=1 - b1)
                v = state["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=1 - b2)
                one = 1.0 if wrong == "no-correction" else 1 - b1**t
                two = 1.0 if wrong in ("no-correction", "first-corrected") else 1 - b2**t
                if group["amsgrad"] and wrong != "no-amsgrad":
                    v = torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])
                bottom = {
                    "eps-inside": lambda: (v / two + eps).sqrt(),  # noqa: B023
                    "eps-early": lambda: (v.sqrt() + eps) / two**0.5,  # noqa: B023
                    "eps-missing": lambda: (v / two).sqrt(),  # noqa: B023
                }.get(wrong, lambda: (v / two).sqrt() + eps)()  # noqa: B023
                if wrong == "unheard":
                    p.sub_(lr * (m / one) / bottom.pow(0.9))
                else:
                    p.sub_(lr * (m / one) / bottom)
                if wrong == "decay-after":
                    p.mul_(1 - lr * wd)


class OwnAdamW(OwnAdam):
    """AdamW."""

    decoupled = True
