"""Right optimizers, written once more as people write them: the sources that the mutants are edits of."""

from __future__ import annotations

from .lbfgs_base import LBFGS

FRAME = """
import copy
import math

import torch


class Optimizer:
    def __init__(self, params, **options):
        params = list(params)
        if not isinstance(params[0], dict):
            params = [{"params": params}]
        self.defaults = {**DEFAULTS, **options}
        self.param_groups = []
        for group in params:
            self.param_groups.append({**self.defaults, **group, "params": list(group["params"])})
        self.state = {}

    def state_dict(self):
        order = [p for group in self.param_groups for p in group["params"]]
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"state": {i: self.state[p] for i, p in enumerate(order) if p in self.state}, "groups": groups}

    def load_state_dict(self, saved):
        saved = copy.deepcopy(saved)
        order = [p for group in self.param_groups for p in group["params"]]
        self.state = {order[i]: entries for i, entries in saved["state"].items()}
        for group, options in zip(self.param_groups, saved["groups"]):
            group.update(options)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad
                state = self.state.setdefault(p, {})
                h = group
                update(p, g, state, h)
"""

SGD = """
DEFAULTS = dict(lr=1e-3, momentum=0, dampening=0, weight_decay=0, nesterov=False, maximize=False)


def update(p, g, state, h):
    if h["maximize"]:
        g = -g
    g = g + h["weight_decay"] * p
    d = g
    if h["momentum"] != 0:
        if "momentum_buffer" not in state:
            buf = g.clone()
        else:
            buf = h["momentum"] * state["momentum_buffer"] + (1 - h["dampening"]) * g
        state["momentum_buffer"] = buf
        d = g + h["momentum"] * buf if h["nesterov"] else buf
    p.sub_(h["lr"] * d)
"""

ADAM = """
DEFAULTS = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, maximize=False,
                decoupled_weight_decay=False)


def update(p, g, state, h):
    beta1, beta2 = h["betas"]
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    state["step"] += 1
    t = state["step"]
    if h["maximize"]:
        g = -g
    if h["decoupled_weight_decay"]:
        p.mul_(1 - h["lr"] * h["weight_decay"])
    else:
        g = g + h["weight_decay"] * p
    m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
    v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
    if h["amsgrad"]:
        v = state["max_exp_avg_sq"] = torch.maximum(state.get("max_exp_avg_sq", torch.zeros_like(p)), v)
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    p.sub_(h["lr"] * m_hat / (v_hat.sqrt() + h["eps"]))
"""

ADAMW = (
    ADAM.replace("weight_decay=0,", "weight_decay=1e-2,")
    .replace("maximize=False,\n                decoupled_weight_decay=False)", "maximize=False)")
    .replace(
        """    if h["decoupled_weight_decay"]:
        p.mul_(1 - h["lr"] * h["weight_decay"])
    else:
        g = g + h["weight_decay"] * p
""",
        """    p.mul_(1 - h["lr"] * h["weight_decay"])
""",
    )
)

ADAMAX = """
DEFAULTS = dict(lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, maximize=False)


def update(p, g, state, h):
    beta1, beta2 = h["betas"]
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(p), exp_inf=torch.zeros_like(p))
    state["step"] += 1
    if h["maximize"]:
        g = -g
    g = g + h["weight_decay"] * p
    m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
    u = state["exp_inf"] = torch.maximum(beta2 * state["exp_inf"], g.abs() + h["eps"])
    p.sub_(h["lr"] / (1 - beta1 ** state["step"]) * m / u)
"""

NADAM = """
DEFAULTS = dict(lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, momentum_decay=4e-3,
                decoupled_weight_decay=False, maximize=False)


def update(p, g, state, h):
    beta1, beta2 = h["betas"]
    if not state:
        state.update(step=0, mu_product=1.0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    state["step"] += 1
    t = state["step"]
    if h["maximize"]:
        g = -g
    if h["decoupled_weight_decay"]:
        p.mul_(1 - h["lr"] * h["weight_decay"])
    else:
        g = g + h["weight_decay"] * p
    mu = beta1 * (1 - 0.5 * 0.96 ** (t * h["momentum_decay"]))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * h["momentum_decay"]))
    state["mu_product"] *= mu
    m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
    v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
    bottom = (v / (1 - beta2**t)).sqrt() + h["eps"]
    p.sub_(h["lr"] * (1 - mu) / (1 - state["mu_product"]) * g / bottom)
    p.sub_(h["lr"] * mu_next / (1 - state["mu_product"] * mu_next) * m / bottom)
"""

RADAM = """
DEFAULTS = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, decoupled_weight_decay=False, maximize=False)


def update(p, g, state, h):
    beta1, beta2 = h["betas"]
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    state["step"] += 1
    t = state["step"]
    if h["maximize"]:
        g = -g
    if h["decoupled_weight_decay"]:
        p.mul_(1 - h["lr"] * h["weight_decay"])
    else:
        g = g + h["weight_decay"] * p
    m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
    v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
    m_hat = m / (1 - beta1**t)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho > 5:
        r = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
        p.sub_(h["lr"] * m_hat * r * math.sqrt(1 - beta2**t) / (v.sqrt() + h["eps"]))
    else:
        p.sub_(h["lr"] * m_hat)
"""

RMSPROP = """
DEFAULTS = dict(lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False, maximize=False)


def update(p, g, state, h):
    if not state:
        state.update(step=0, square_avg=torch.zeros_like(p))
        if h["momentum"] > 0:
            state["momentum_buffer"] = torch.zeros_like(p)
        if h["centered"]:
            state["grad_avg"] = torch.zeros_like(p)
    state["step"] += 1
    if h["maximize"]:
        g = -g
    g = g + h["weight_decay"] * p
    v = state["square_avg"] = h["alpha"] * state["square_avg"] + (1 - h["alpha"]) * g * g
    if h["centered"]:
        state["grad_avg"] = h["alpha"] * state["grad_avg"] + (1 - h["alpha"]) * g
        v = v - state["grad_avg"] ** 2
    d = g / (v.sqrt() + h["eps"])
    if h["momentum"] > 0:
        d = state["momentum_buffer"] = h["momentum"] * state["momentum_buffer"] + d
    p.sub_(h["lr"] * d)
"""

ADAGRAD = """
DEFAULTS = dict(lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10, maximize=False)


def update(p, g, state, h):
    if not state:
        state.update(step=0, sum=torch.full_like(p, h["initial_accumulator_value"]))
    state["step"] += 1
    if h["maximize"]:
        g = -g
    g = g + h["weight_decay"] * p
    lr = h["lr"] / (1 + (state["step"] - 1) * h["lr_decay"])
    state["sum"] = state["sum"] + g * g
    p.sub_(lr * g / (state["sum"].sqrt() + h["eps"]))
"""

ADADELTA = """
DEFAULTS = dict(lr=1.0, rho=0.9, eps=1e-6, weight_decay=0, maximize=False)


def update(p, g, state, h):
    if not state:
        state.update(step=0, square_avg=torch.zeros_like(p), acc_delta=torch.zeros_like(p))
    state["step"] += 1
    if h["maximize"]:
        g = -g
    g = g + h["weight_decay"] * p
    v = state["square_avg"] = h["rho"] * state["square_avg"] + (1 - h["rho"]) * g * g
    d = (state["acc_delta"] + h["eps"]).sqrt() / (v + h["eps"]).sqrt() * g
    state["acc_delta"] = h["rho"] * state["acc_delta"] + (1 - h["rho"]) * d * d
    p.sub_(h["lr"] * d)
"""

ASGD = """
DEFAULTS = dict(lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0, maximize=False)


def update(p, g, state, h):
    if not state:
        state.update(step=0, eta=h["lr"], mu=1.0, ax=torch.zeros_like(p))
    state["step"] += 1
    t = state["step"]
    if h["maximize"]:
        g = -g
    g = g + h["weight_decay"] * p
    p.mul_(1 - h["lambd"] * state["eta"])
    p.sub_(state["eta"] * g)
    state["ax"] = state["ax"] + state["mu"] * (p - state["ax"])
    state["eta"] = h["lr"] / (1 + h["lambd"] * h["lr"] * t) ** h["alpha"]
    state["mu"] = 1 / max(1, t - h["t0"])
"""

RPROP = """
DEFAULTS = dict(lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50), maximize=False)


def update(p, g, state, h):
    if not state:
        state.update(step=0, prev=torch.zeros_like(p), step_size=torch.full_like(p, h["lr"]))
    state["step"] += 1
    if h["maximize"]:
        g = -g
    agree = g * state["prev"]
    factor = torch.ones_like(p)
    factor[agree > 0] = h["etas"][1]
    factor[agree < 0] = h["etas"][0]
    size = state["step_size"] = (state["step_size"] * factor).clamp(*h["step_sizes"])
    g = torch.where(agree < 0, 0.0, g)
    p.sub_(size * g.sign())
    state["prev"] = g.clone()
"""

SPARSEADAM = """
DEFAULTS = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, maximize=False)


def update(p, g, state, h):
    beta1, beta2 = h["betas"]
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    state["step"] += 1
    t = state["step"]
    g = g.coalesce()
    rows, g = g.indices()[0], g.values()
    if h["maximize"]:
        g = -g
    m = state["exp_avg"][rows] = beta1 * state["exp_avg"][rows] + (1 - beta1) * g
    v = state["exp_avg_sq"][rows] = beta2 * state["exp_avg_sq"][rows] + (1 - beta2) * g * g
    lr = h["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
    p[rows] -= lr * m / (v.sqrt() + h["eps"])
"""

ADAFACTOR = """
DEFAULTS = dict(lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0, maximize=False)


def update(p, g, state, h):
    eps1 = torch.finfo(p.dtype).eps if h["eps"][0] is None else h["eps"][0]
    eps2 = h["eps"][1]
    if not state:
        state["step"] = 0
        if g.dim() > 1:
            state["row_var"] = g.new_zeros(g.shape[:-1] + (1,))
            state["col_var"] = g.new_zeros(g.shape[:-2] + (1, g.shape[-1]))
        else:
            state["variance"] = torch.zeros_like(g)
    state["step"] += 1
    t = state["step"]
    if h["maximize"]:
        g = -g
    weight = t ** h["beta2_decay"]
    rho = min(h["lr"], 1 / math.sqrt(t))
    alpha = max(eps2, p.norm().item() / math.sqrt(p.numel())) * rho
    p.mul_(1 - h["lr"] * h["weight_decay"])
    if g.dim() > 1:
        row = state["row_var"] = state["row_var"] + weight * ((g * g).mean(-1, keepdim=True) - state["row_var"])
        col = state["col_var"] = state["col_var"] + weight * ((g * g).mean(-2, keepdim=True) - state["col_var"])
        v = row @ col / row.mean(-2, keepdim=True).clamp(min=eps1)
    else:
        v = state["variance"] = state["variance"] + weight * (g * g - state["variance"])
    u = g / v.clamp(min=eps1 * eps1).sqrt()
    p.sub_(alpha / max(1.0, u.norm().item() / math.sqrt(u.numel()) / h["d"]) * u)
"""

MUON = """
DEFAULTS = dict(lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, ns_coefficients=(3.4445, -4.775, 2.0315),
                eps=1e-7, ns_steps=5, adjust_lr_fn=None)


def orthogonal(g, coefficients, steps, eps):
    a, b, c = coefficients
    x = g.bfloat16()
    if g.shape[0] > g.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    if g.shape[0] > g.shape[1]:
        x = x.T
    return x.to(g.dtype)


def update(p, g, state, h):
    buf = state.get("momentum_buffer", torch.zeros_like(p))
    buf = state["momentum_buffer"] = h["momentum"] * buf + (1 - h["momentum"]) * g
    d = (1 - h["momentum"]) * g + h["momentum"] * buf if h["nesterov"] else buf
    d = orthogonal(d, h["ns_coefficients"], h["ns_steps"], h["eps"])
    rows, columns = p.shape
    if h["adjust_lr_fn"] == "match_rms_adamw":
        lr = h["lr"] * 0.2 * math.sqrt(max(rows, columns))
    else:
        lr = h["lr"] * math.sqrt(max(1, rows / columns))
    p.mul_(1 - h["lr"] * h["weight_decay"])
    p.sub_(lr * d)
"""

BASES = {
    "sgd": SGD,
    "adam": ADAM,
    "adamw": ADAMW,
    "adamax": ADAMAX,
    "nadam": NADAM,
    "radam": RADAM,
    "rmsprop": RMSPROP,
    "adagrad": ADAGRAD,
    "adadelta": ADADELTA,
    "asgd": ASGD,
    "rprop": RPROP,
    "sparseadam": SPARSEADAM,
    "adafactor": ADAFACTOR,
    "muon": MUON,
    "lbfgs": LBFGS,
}


def source_of(rule: str) -> str:
    """The whole source of a right optimizer."""
    return LBFGS if rule == "lbfgs" else FRAME + BASES[rule]
