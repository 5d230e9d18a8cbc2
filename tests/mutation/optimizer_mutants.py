# ruff: noqa: E501
"""Wrong optimizers, as edits (old, new) of the right ones in `optimizer_bases`; a name says what is wrong."""

from __future__ import annotations

# In the loop over groups and parameters, in what is saved, in how the class is built: tried with two rules each.
FRAME_MUTANTS: dict[str, list[tuple[str, str]]] = {
    "options of the first group for all": [("h = group\n", "h = self.param_groups[0]\n")],
    "options of the last group for all": [("h = group\n", "h = self.param_groups[-1]\n")],
    "lr of the first group for all": [("h = group\n", 'h = {**group, "lr": self.param_groups[0]["lr"]}\n')],
    "options of the constructor, not of the group": [("h = group\n", "h = self.defaults\n")],
    "group options ignored but lr": [("h = group\n", 'h = {**self.defaults, "lr": group["lr"]}\n')],
    "options frozen at construction": [
        (
            "        self.state = {}\n\n    def state_dict",
            "        self.state = {}\n        self.frozen = [dict(g) for g in self.param_groups]\n\n    def state_dict",
        ),
        ("h = group\n", "h = next(f for f in self.frozen if f['params'] is group['params'])\n"),
    ],
    "lr read one step late": [
        ("h = group\n", 'h = {**group, "lr": self.last.get(id(group["params"]), group["lr"])}\n'),
        (
            "        self.state = {}\n\n    def state_dict",
            "        self.state = {}\n        self.last = {}\n\n    def state_dict",
        ),
        (
            "update(p, g, state, h)\n",
            'update(p, g, state, h)\n            self.last[id(group["params"])] = group["lr"]\n',
        ),
    ],
    "return at the first gradient that is None": [("                    continue\n", "                    return\n")],
    "break at the first gradient that is None": [("                    continue\n", "                    break\n")],
    "None taken for zeros": [
        ("                    continue\n", "                    pass\n"),
        ("g = p.grad\n", "g = torch.zeros_like(p) if p.grad is None else p.grad\n"),
    ],
    "stale gradient used where it is None": [
        ("                    continue\n", "                    pass\n"),
        (
            "g = p.grad\n",
            "g = p.grad if p.grad is not None else self.kept.get(p, torch.zeros_like(p))\n                self.kept[p] = g.clone()\n",
        ),
        (
            "        self.state = {}\n\n    def state_dict",
            "        self.state = {}\n        self.kept = {}\n\n    def state_dict",
        ),
    ],
    "state forgotten where the gradient is None": [
        (
            "                    continue\n",
            "                    self.state.pop(p, None)\n                    continue\n",
        )
    ],
    "skips parameters whose gradient is all zeros": [("if p.grad is None:", "if p.grad is None or not p.grad.any():")],
    "only the first group": [
        (
            'for group in self.param_groups:\n            for p in group["params"]:\n                if',
            'for group in self.param_groups[:1]:\n            for p in group["params"]:\n                if',
        )
    ],
    "not the last parameter of a group": [
        (
            'for p in group["params"]:\n                if',
            'for p in group["params"][:-1] or group["params"]:\n                if',
        )
    ],
    "one state for all parameters of a shape": [
        ("state = self.state.setdefault(p, {})", "state = self.state.setdefault(p.shape, {})")
    ],
    "one state for a whole group": [
        ("state = self.state.setdefault(p, {})", "state = self.state.setdefault(group['lr'] and p.dim(), {})")
    ],
    "state not loaded": [('self.state = {order[i]: entries for i, entries in saved["state"].items()}', "pass")],
    "options not loaded": [("            group.update(options)\n", "            pass\n")],
    "state loaded to the next parameter of its size": [
        (
            "order[i]: entries for i, entries in",
            "order[i - 1 if order[i - 1].shape == order[i].shape else i]: entries for i, entries in",
        )
    ],
    "state loaded by its order, not by parameter": [
        ('{order[i]: entries for i, entries in saved["state"].items()}', "dict(zip(order, saved['state'].values()))")
    ],
    "step counters not loaded": [
        (
            "        for group, options in zip",
            "        for entries in self.state.values():\n            entries.update({k: 0 for k in entries if k == 'step'})\n        for group, options in zip",
        )
    ],
    "loaded state rounded to float16": [
        (
            "        for group, options in zip",
            "        for entries in self.state.values():\n            entries.update({k: v.half().to(v.dtype) for k, v in entries.items() if k != 'step' and torch.is_tensor(v)})\n        for group, options in zip",
        )
    ],
    "loaded state rounded to float32": [
        (
            "        for group, options in zip",
            "        for entries in self.state.values():\n            entries.update({k: v.float().to(v.dtype) for k, v in entries.items() if k != 'step' and torch.is_tensor(v)})\n        for group, options in zip",
        )
    ],
    "gradient clipped to 1 by norm": [("g = p.grad\n", "g = p.grad / max(1.0, float(p.grad.norm()))\n")],
    "gradient clipped to 1 by value": [("g = p.grad\n", "g = p.grad.clamp(-1, 1)\n")],
    "gradient normalised": [("g = p.grad\n", "g = p.grad / (p.grad.norm() + 1e-12)\n")],
    "gradient averaged over its elements": [("g = p.grad\n", "g = p.grad / p.grad.numel()\n")],
    "gradient centred": [("g = p.grad\n", "g = p.grad - p.grad.mean()\n")],
    "gradient in float32": [("g = p.grad\n", "g = p.grad.float().to(p.dtype)\n")],
    "small gradients flushed to zero": [("g = p.grad\n", "g = torch.where(p.grad.abs() < 1e-6, 0.0, p.grad)\n")],
    "steps twice": [("update(p, g, state, h)\n", "update(p, g, state, h)\n                update(p, g, state, h)\n")],
    "tail of 4 left out": [
        (
            "update(p, g, state, h)\n",
            "old = p.clone()\n                update(p, g, state, h)\n                n = p.numel() // 4 * 4 or p.numel()\n                mask = torch.arange(p.numel()).reshape(p.shape) >= n\n                p[mask] = old[mask]\n",
        )
    ],
    "tail of 8 left out": [
        (
            "update(p, g, state, h)\n",
            "old = p.clone()\n                update(p, g, state, h)\n                n = p.numel() // 8 * 8 or p.numel()\n                mask = torch.arange(p.numel()).reshape(p.shape) >= n\n                p[mask] = old[mask]\n",
        )
    ],
    "only the first 64 elements": [
        (
            "update(p, g, state, h)\n",
            "old = p.clone()\n                update(p, g, state, h)\n                mask = torch.arange(p.numel()).reshape(p.shape) >= 64\n                p[mask] = old[mask]\n",
        )
    ],
    "memory order taken for logical order": [
        (
            "g = p.grad\n",
            "g = p.grad\n                if not p.is_contiguous():\n                    g = g.contiguous().flatten().reshape(p.shape[::-1]).t()\n",
        )
    ],
    "0-d parameters skipped": [("if p.grad is None:", "if p.grad is None or p.dim() == 0:")],
    "parameters of one element skipped": [("if p.grad is None:", "if p.grad is None or p.numel() == 1:")],
    "stops after ten steps": [
        (
            '        for group in self.param_groups:\n            for p in group["params"]:\n                if',
            "        self.count = getattr(self, 'count', 0) + 1\n        if self.count > 10:\n            return\n        for group in self.param_groups:\n            for p in group[\"params\"]:\n                if",
        )
    ],
}

MUTANTS: dict[str, dict[str, list[tuple[str, str]]]] = {
    "sgd": {
        "momentum averages": [
            ('(1 - h["dampening"]) * g', '(1 - h["momentum"]) * g'),
            ("buf = g.clone()", 'buf = (1 - h["momentum"]) * g'),
        ],
        "momentum averages, first gradient whole": [('(1 - h["dampening"]) * g', '(1 - h["momentum"]) * g')],
        "first gradient dampened": [("buf = g.clone()", 'buf = (1 - h["dampening"]) * g')],
        "dampening ignored": [('(1 - h["dampening"]) * g', "g")],
        "dampening without 1 minus": [('(1 - h["dampening"]) * g', '(h["dampening"] or 1) * g')],
        "dampening of the buffer": [
            (
                'h["momentum"] * state["momentum_buffer"] + (1 - h["dampening"]) * g',
                '(1 - h["dampening"]) * h["momentum"] * state["momentum_buffer"] + g',
            )
        ],
        "first step has no momentum but a zero buffer with dampening": [
            ("buf = g.clone()", 'buf = torch.zeros_like(g) + (1 - h["dampening"]) * g')
        ],
        "lr inside the buffer": [
            ('(1 - h["dampening"]) * g', '(1 - h["dampening"]) * h["lr"] * g'),
            ("buf = g.clone()", 'buf = h["lr"] * g'),
            ('d = g + h["momentum"] * buf', 'd = h["lr"] * g + h["momentum"] * buf'),
            ('p.sub_(h["lr"] * d)', 'p.sub_(d if h["momentum"] else h["lr"] * d)'),
        ],
        "nesterov ignored": [('d = g + h["momentum"] * buf if h["nesterov"] else buf', "d = buf")],
        "nesterov always": [('d = g + h["momentum"] * buf if h["nesterov"] else buf', 'd = g + h["momentum"] * buf')],
        "nesterov from the buffer": [('d = g + h["momentum"] * buf', 'd = buf + h["momentum"] * buf')],
        "nesterov with the old buffer": [
            ('d = g + h["momentum"] * buf', 'd = g + h["momentum"] * state.get("old", g)'),
            (
                'state["momentum_buffer"] = buf',
                'state["old"] = state.get("momentum_buffer", buf)\n        state["momentum_buffer"] = buf',
            ),
        ],
        "nesterov without momentum factor": [('d = g + h["momentum"] * buf', "d = g + buf")],
        "nesterov minus": [('d = g + h["momentum"] * buf', 'd = g - h["momentum"] * buf')],
        "nesterov squared": [('d = g + h["momentum"] * buf', 'd = g + h["momentum"] ** 2 * buf')],
        "decay ignored": [('g = g + h["weight_decay"] * p', "pass")],
        "decay decoupled": [('g = g + h["weight_decay"] * p', 'p.mul_(1 - h["lr"] * h["weight_decay"])')],
        "decay after momentum": [
            ('    g = g + h["weight_decay"] * p\n', ""),
            ('p.sub_(h["lr"] * d)', 'p.sub_(h["lr"] * (d + h["weight_decay"] * p))'),
        ],
        "decay after the update": [
            ('    g = g + h["weight_decay"] * p\n', ""),
            ('p.sub_(h["lr"] * d)', 'p.sub_(h["lr"] * d)\n    p.mul_(1 - h["lr"] * h["weight_decay"])'),
        ],
        "decay with the other sign": [('g + h["weight_decay"] * p', 'g - h["weight_decay"] * p')],
        "decay halved": [('g + h["weight_decay"] * p', 'g + 0.5 * h["weight_decay"] * p')],
        "decay doubled": [('g + h["weight_decay"] * p', 'g + 2 * h["weight_decay"] * p')],
        "decay of the sign": [('g + h["weight_decay"] * p', 'g + h["weight_decay"] * p.sign()')],
        "decay of matrices only": [('h["weight_decay"] * p', 'h["weight_decay"] * p * (p.dim() > 1)')],
        "decay before maximize": [
            (
                '    if h["maximize"]:\n        g = -g\n    g = g + h["weight_decay"] * p\n',
                '    g = g + h["weight_decay"] * p\n    if h["maximize"]:\n        g = -g\n',
            )
        ],
        "decay at the first step only": [
            ('g = g + h["weight_decay"] * p', 'g = g + h["weight_decay"] * p * ("momentum_buffer" not in state)')
        ],
        "maximize ignored": [('if h["maximize"]:', "if False:")],
        "climbs": [('p.sub_(h["lr"] * d)', 'p.add_(h["lr"] * d)')],
        "buffer shares memory with the gradient": [
            (
                '    g = g + h["weight_decay"] * p\n',
                '    if h["weight_decay"]:\n        g = g + h["weight_decay"] * p\n',
            ),
            ("buf = g.clone()", "buf = g"),
        ],
        "buffer reset when lr changes": [
            ('"momentum_buffer" not in state', '"momentum_buffer" not in state or state.get("lr") != h["lr"]'),
            ('state["momentum_buffer"] = buf', 'state["momentum_buffer"] = buf\n        state["lr"] = h["lr"]'),
        ],
        "buffer scaled when lr changes": [
            (
                'h["momentum"] * state["momentum_buffer"]',
                'h["momentum"] * state["momentum_buffer"] * (state["lr"] / h["lr"])',
            ),
            ('state["momentum_buffer"] = buf', 'state["momentum_buffer"] = buf\n        state["lr"] = h["lr"]'),
        ],
        "buffer in float32": [
            ('state["momentum_buffer"] = buf', 'state["momentum_buffer"] = buf = buf.float().to(p.dtype)')
        ],
        "momentum warms up": [
            (
                'h["momentum"] * state["momentum_buffer"]',
                'min(h["momentum"], 1 - 1 / (state.setdefault("n", 0) + 2)) * state["momentum_buffer"]',
            ),
            (
                'state["momentum_buffer"] = buf',
                'state["momentum_buffer"] = buf\n        state["n"] = state.get("n", 0) + 1',
            ),
        ],
        "momentum 0.9 whatever is asked": [('buf = h["momentum"] *', "buf = 0.9 *")],
        "lr squared": [('p.sub_(h["lr"] * d)', 'p.sub_(h["lr"] ** 2 * d)')],
        "moves with the last buffer": [
            (
                'd = g + h["momentum"] * buf if h["nesterov"] else buf',
                'd = g + h["momentum"] * buf if h["nesterov"] else state.get("old", buf)\n        state["old"] = buf',
            )
        ],
    },
    "adam": {
        "eps inside the root": [('v_hat.sqrt() + h["eps"]', '(v_hat + h["eps"]).sqrt()')],
        "eps squared inside the root": [('v_hat.sqrt() + h["eps"]', '(v_hat + h["eps"] ** 2).sqrt()')],
        "eps before correction": [
            ('m_hat / (v_hat.sqrt() + h["eps"])', 'm_hat / (v.sqrt() + h["eps"]) * math.sqrt(1 - beta2**t)')
        ],
        "eps missing": [('v_hat.sqrt() + h["eps"]', "v_hat.sqrt()")],
        "eps as a floor": [('v_hat.sqrt() + h["eps"]', 'v_hat.sqrt().clamp(min=h["eps"])')],
        "eps 1e-8 whatever is asked": [('v_hat.sqrt() + h["eps"]', "v_hat.sqrt() + 1e-8")],
        "eps 1e-7 for 1e-8": [('v_hat.sqrt() + h["eps"]', 'v_hat.sqrt() + max(h["eps"], 1e-7)')],
        "eps inside the second moment": [("(1 - beta2) * g * g\n", '(1 - beta2) * g * g + h["eps"]\n')],
        "no correction": [("m_hat = m / (1 - beta1**t)", "m_hat = m"), ("v_hat = v / (1 - beta2**t)", "v_hat = v")],
        "first moment not corrected": [("m_hat = m / (1 - beta1**t)", "m_hat = m")],
        "second moment not corrected": [("v_hat = v / (1 - beta2**t)", "v_hat = v")],
        "corrections exchanged": [
            ("m_hat = m / (1 - beta1**t)", "m_hat = m / (1 - beta2**t)"),
            ("v_hat = v / (1 - beta2**t)", "v_hat = v / (1 - beta1**t)"),
        ],
        "correction without the power": [("(1 - beta1**t)", "(1 - beta1)"), ("(1 - beta2**t)", "(1 - beta2)")],
        "counter ahead": [('t = state["step"]\n', 't = state["step"] + 1\n')],
        "counter behind": [('t = state["step"]\n', 't = max(state["step"] - 1, 1)\n')],
        "counter stops at 10": [('t = state["step"]\n', 't = min(state["step"], 10)\n')],
        "correction ends after 5 steps": [
            ("m_hat = m / (1 - beta1**t)", "m_hat = m / (1 - beta1**t) if t <= 5 else m")
        ],
        "power kept as a running product": [
            ("m_hat = m / (1 - beta1**t)", 'state["b"] = state.get("b", 1.0) * beta1\n    m_hat = m / (1 - state["b"])')
        ],
        "betas exchanged": [('beta1, beta2 = h["betas"]', 'beta2, beta1 = h["betas"]')],
        "beta1 twice": [('beta1, beta2 = h["betas"]', 'beta1 = beta2 = h["betas"][0]')],
        "shares exchanged": [
            ('beta1 * state["exp_avg"] + (1 - beta1) * g', '(1 - beta1) * state["exp_avg"] + beta1 * g')
        ],
        "moments are sums": [("(1 - beta1) * g\n", "g\n")],
        "second moment of the undecayed gradient": [
            ('    if h["maximize"]:', '    raw = g\n    if h["maximize"]:'),
            ("(1 - beta2) * g * g", "(1 - beta2) * raw * raw"),
        ],
        "second moment absolute": [("(1 - beta2) * g * g", "(1 - beta2) * g.abs()")],
        "second moment of the first": [("(1 - beta2) * g * g", "(1 - beta2) * m * m")],
        "second moment centred": [("(1 - beta2) * g * g", "(1 - beta2) * (g - m) ** 2")],
        "second moment one step old": [
            ("v_hat = v / (1 - beta2**t)", 'v_hat = state.get("old", v) / (1 - beta2**t)\n    state["old"] = v')
        ],
        "second moment a scalar": [("(1 - beta2) * g * g", "(1 - beta2) * (g * g).mean()")],
        "root missing": [("v_hat.sqrt()", "v_hat")],
        "amsgrad ignored": [('if h["amsgrad"]:', "if False:")],
        "amsgrad always": [('if h["amsgrad"]:', "if True:")],
        "amsgrad of the corrected moment": [
            (
                'state.get("max_exp_avg_sq", torch.zeros_like(p)), v)',
                'state.get("max_exp_avg_sq", torch.zeros_like(p)), v / (1 - beta2**t)) * (1 - beta2**t)\n        state["max_exp_avg_sq"] = v / (1 - beta2**t)',
            )
        ],
        "amsgrad fed back": [('v = state["max_exp_avg_sq"] =', 'v = state["exp_avg_sq"] = state["max_exp_avg_sq"] =')],
        "amsgrad takes the smaller": [
            (
                'torch.maximum(state.get("max_exp_avg_sq", torch.zeros_like(p)), v)',
                'torch.minimum(state.get("max_exp_avg_sq", v), v)',
            )
        ],
        "decay ignored": [('g = g + h["weight_decay"] * p', "pass")],
        "decay decoupled always": [('if h["decoupled_weight_decay"]:', "if True:")],
        "decay coupled always": [('if h["decoupled_weight_decay"]:', "if False:")],
        "decay outside the moments": [
            ('        g = g + h["weight_decay"] * p\n', "        pass\n"),
            (
                'p.sub_(h["lr"] * m_hat / (v_hat.sqrt() + h["eps"]))',
                'p.sub_(h["lr"] * (m_hat / (v_hat.sqrt() + h["eps"]) + h["weight_decay"] * p * (not h["decoupled_weight_decay"])))',
            ),
        ],
        "maximize ignored": [('if h["maximize"]:', "if False:")],
        "maximize after decay": [
            ('    if h["maximize"]:\n        g = -g\n', ""),
            ("    m = state", '    if h["maximize"]:\n        g = -g\n    m = state'),
        ],
        "one counter for all parameters": [
            (
                'state["step"] += 1\n    t = state["step"]\n',
                'state["step"] += 1\n    DEFAULTS["n"] = DEFAULTS.get("n", 0) + 1\n    t = DEFAULTS["n"]\n',
            )
        ],
        "counter slightly off": [('t = state["step"]\n', 't = float(torch.tensor(state["step"] / 7)) * 7 + 1e-3\n')],
        "correction factors rounded to float32": [
            ("m_hat = m / (1 - beta1**t)", "m_hat = m / float(torch.tensor(1 - beta1**t, dtype=torch.float32))")
        ],
        "update clipped to lr": [
            ('m_hat / (v_hat.sqrt() + h["eps"])', '(m_hat / (v_hat.sqrt() + h["eps"])).clamp(-1, 1)')
        ],
        "signs only": [('m_hat / (v_hat.sqrt() + h["eps"])', "m_hat.sign()")],
        "nesterov lookahead": [
            ("m_hat = m / (1 - beta1**t)", "m_hat = (beta1 * m + (1 - beta1) * g) / (1 - beta1**t)")
        ],
    },
    "adamw": {
        "decay coupled": [('    p.mul_(1 - h["lr"] * h["weight_decay"])\n', '    g = g + h["weight_decay"] * p\n')],
        "decay after the update": [
            ('    p.mul_(1 - h["lr"] * h["weight_decay"])\n', ""),
            ('+ h["eps"]))', '+ h["eps"]))\n    p.mul_(1 - h["lr"] * h["weight_decay"])'),
        ],
        "decay without lr": [('1 - h["lr"] * h["weight_decay"]', '1 - h["weight_decay"]')],
        "decay by the lr of the constructor": [
            ('1 - h["lr"] * h["weight_decay"]', '1 - state.setdefault("lr0", h["lr"]) * h["weight_decay"]')
        ],
        "decay ignored": [('    p.mul_(1 - h["lr"] * h["weight_decay"])\n', "")],
        "decay grows": [('1 - h["lr"] * h["weight_decay"]', '1 + h["lr"] * h["weight_decay"]')],
        "decay exponential": [('1 - h["lr"] * h["weight_decay"]', 'math.exp(-h["lr"] * h["weight_decay"])')],
        "decay of the old parameter, after": [
            ('    p.mul_(1 - h["lr"] * h["weight_decay"])\n', ""),
            ('p.sub_(h["lr"] * m_hat', 'old = p.clone()\n    p.sub_(h["lr"] * m_hat'),
            ('+ h["eps"]))', '+ h["eps"]))\n    p.mul_(1 - h["lr"] * h["weight_decay"])'),
        ],
        "decay flips with maximize": [
            ('1 - h["lr"] * h["weight_decay"]', '1 - (-1 if h["maximize"] else 1) * h["lr"] * h["weight_decay"]')
        ],
        "decay of vectors left out": [('    p.mul_(1 - h["lr"]', '    if p.dim() > 1:\n        p.mul_(1 - h["lr"]')],
        "decay corrected like the moments": [
            ('1 - h["lr"] * h["weight_decay"]', '1 - h["lr"] * h["weight_decay"] * (1 - beta1**t)')
        ],
        "default decay 0": [
            ("weight_decay=1e-2", "weight_decay=1e-2"),
            ('h["weight_decay"]', '(0 if h["weight_decay"] == 1e-2 else h["weight_decay"])'),
        ],
        "eps inside the root": [('v_hat.sqrt() + h["eps"]', '(v_hat + h["eps"]).sqrt()')],
        "counter ahead": [('t = state["step"]\n', 't = state["step"] + 1\n')],
        "beta2 twice": [('beta1, beta2 = h["betas"]', 'beta1 = beta2 = h["betas"][1]')],
    },
    "adamax": {
        "eps outside the maximum": [
            (
                'torch.maximum(beta2 * state["exp_inf"], g.abs() + h["eps"])',
                'torch.maximum(beta2 * state["exp_inf"], g.abs())',
            ),
            ("m / u)", 'm / (u + h["eps"]))'),
        ],
        "eps missing": [('g.abs() + h["eps"]', "g.abs()")],
        "norm not decayed": [('beta2 * state["exp_inf"]', 'state["exp_inf"]')],
        "first moment not corrected": [('/ (1 - beta1 ** state["step"])', "")],
        "norm corrected too": [("m / u)", 'm / (u / (1 - beta2 ** state["step"])))')],
        "root of the norm": [("m / u)", "m / u.sqrt())")],
        "averages instead of the maximum": [
            (
                'torch.maximum(beta2 * state["exp_inf"], g.abs() + h["eps"])',
                'beta2 * state["exp_inf"] + (1 - beta2) * (g.abs() + h["eps"])',
            )
        ],
        "sign of the gradient kept": [('g.abs() + h["eps"]', 'g + h["eps"]')],
    },
    "nadam": {
        "schedule of momentum missing": [
            ("beta1 * (1 - 0.5 * 0.96 ** (t *", "beta1 * (1 - 0 * 0.96 ** (t *"),
            ("beta1 * (1 - 0.5 * 0.96 ** ((t + 1) *", "beta1 * (1 - 0 * 0.96 ** ((t + 1) *"),
        ],
        "next momentum is this one": [("((t + 1) * h", "((t) * h")],
        "product without the next": [('state["mu_product"] * mu_next', 'state["mu_product"]')],
        "product is a power": [('state["mu_product"] *= mu', 'state["mu_product"] = mu**t')],
        "gradient term missing": [('p.sub_(h["lr"] * (1 - mu) / (1 - state["mu_product"]) * g / bottom)', "pass")],
        "eps missing": [('.sqrt() + h["eps"]', ".sqrt()")],
        "momentum_decay ignored": [('h["momentum_decay"]', "4e-3")],
        "product begins at 0.96": [("mu_product=1.0", "mu_product=0.96")],
        "schedule counts from 0": [("0.96 ** (t *", "0.96 ** ((t - 1) *"), ("((t + 1) *", "(t *")],
    },
    "radam": {
        "threshold 4": [("if rho > 5:", "if rho > 4:")],
        "threshold 6": [("if rho > 5:", "if rho > 6:")],
        "rectification missing": [("m_hat * r *", "m_hat *")],
        "rectification inverted": [("m_hat * r *", "m_hat / r *")],
        "no step before the switch": [('    else:\n        p.sub_(h["lr"] * m_hat)\n', "")],
        "uncorrected before the switch": [('p.sub_(h["lr"] * m_hat)\n', 'p.sub_(h["lr"] * m)\n')],
        "rho without the sum": [
            ("rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)", "rho = rho_inf - 2 * beta2**t / (1 - beta2**t)")
        ],
        "eps after correction": [
            ('math.sqrt(1 - beta2**t) / (v.sqrt() + h["eps"])', '1 / ((v / (1 - beta2**t)).sqrt() + h["eps"])')
        ],
        "counter ahead": [('t = state["step"]\n', 't = state["step"] + 1\n')],
    },
    "rmsprop": {
        "eps inside the root": [('v.sqrt() + h["eps"]', '(v + h["eps"]).sqrt()')],
        "eps missing": [('v.sqrt() + h["eps"]', "v.sqrt()")],
        "shares exchanged": [
            (
                'h["alpha"] * state["square_avg"] + (1 - h["alpha"]) * g * g',
                '(1 - h["alpha"]) * state["square_avg"] + h["alpha"] * g * g',
            )
        ],
        "average starts at one": [("square_avg=torch.zeros_like(p)", "square_avg=torch.ones_like(p)")],
        "average starts at the first square": [("square_avg=torch.zeros_like(p)", "square_avg=g * g")],
        "bias corrected": [("d = g / (v.sqrt()", 'd = g / ((v / (1 - h["alpha"] ** state["step"])).sqrt()')],
        "centered ignored": [('        v = v - state["grad_avg"] ** 2\n', "")],
        "centered feeds back": [
            ('v = v - state["grad_avg"] ** 2', 'v = state["square_avg"] = v - state["grad_avg"] ** 2')
        ],
        "centered by the gradient": [('v - state["grad_avg"] ** 2', 'v - (state["grad_avg"] * g)')],
        "momentum ignored": [('d = state["momentum_buffer"] = h["momentum"] * state["momentum_buffer"] + d', "pass")],
        "momentum averages": [
            (
                'h["momentum"] * state["momentum_buffer"] + d',
                'h["momentum"] * state["momentum_buffer"] + (1 - h["momentum"]) * d',
            )
        ],
        "momentum before the division": [
            ('    d = g / (v.sqrt() + h["eps"])\n', "    d = g\n"),
            ('p.sub_(h["lr"] * d)', 'p.sub_(h["lr"] * d / (v.sqrt() + h["eps"]))'),
        ],
        "lr inside the buffer": [
            ('h["momentum"] * state["momentum_buffer"] + d', 'h["momentum"] * state["momentum_buffer"] + h["lr"] * d'),
            ('p.sub_(h["lr"] * d)', 'p.sub_(d if h["momentum"] > 0 else h["lr"] * d)'),
        ],
        "decay decoupled": [('g = g + h["weight_decay"] * p', 'p.mul_(1 - h["lr"] * h["weight_decay"])')],
        "square of the undecayed gradient": [
            ('g = g + h["weight_decay"] * p', 'raw = g\n    g = g + h["weight_decay"] * p'),
            ('(1 - h["alpha"]) * g * g', '(1 - h["alpha"]) * raw * raw'),
        ],
    },
    "adagrad": {
        "eps inside the root": [('state["sum"].sqrt() + h["eps"]', '(state["sum"] + h["eps"]).sqrt()')],
        "eps missing": [('state["sum"].sqrt() + h["eps"]', 'state["sum"].sqrt()')],
        "lr_decay counts from 1": [('(state["step"] - 1)', 'state["step"]')],
        "lr_decay ignored": [('h["lr"] / (1 + (state["step"] - 1) * h["lr_decay"])', 'h["lr"]')],
        "lr_decay exponential": [
            (
                'h["lr"] / (1 + (state["step"] - 1) * h["lr_decay"])',
                'h["lr"] * (1 - h["lr_decay"]) ** (state["step"] - 1)',
            )
        ],
        "accumulator starts at 0": [('h["initial_accumulator_value"])', "0.0)")],
        "accumulator starts at 0.1": [('h["initial_accumulator_value"])', 'h["initial_accumulator_value"] or 0.1)')],
        "sum of absolute values": [('state["sum"] + g * g', 'state["sum"] + g.abs()')],
        "sum after the step": [
            ('    state["sum"] = state["sum"] + g * g\n', ""),
            ('+ h["eps"]))', '+ h["eps"] + (state["step"] == 1) * g.abs()))\n    state["sum"] = state["sum"] + g * g'),
        ],
        "mean instead of sum": [('state["sum"].sqrt()', '(state["sum"] / state["step"]).sqrt()')],
        "root missing": [('state["sum"].sqrt()', 'state["sum"]')],
    },
    "adadelta": {
        "eps outside the roots": [
            (
                '(state["acc_delta"] + h["eps"]).sqrt() / (v + h["eps"]).sqrt()',
                '(state["acc_delta"].sqrt() + h["eps"]) / (v.sqrt() + h["eps"])',
            )
        ],
        "eps only below": [('(state["acc_delta"] + h["eps"]).sqrt()', '(state["acc_delta"] + 1e-6).sqrt()')],
        "deltas accumulated before use": [
            (
                '    d = (state["acc_delta"]',
                '    state["acc_delta"] = h["rho"] * state["acc_delta"] + (1 - h["rho"]) * g * g * state["acc_delta"]\n    d = (state["acc_delta"]',
            )
        ],
        "delta accumulated with lr": [('(1 - h["rho"]) * d * d', '(1 - h["rho"]) * (h["lr"] * d) ** 2')],
        "roots exchanged": [
            (
                '(state["acc_delta"] + h["eps"]).sqrt() / (v + h["eps"]).sqrt()',
                '(v + h["eps"]).sqrt() / (state["acc_delta"] + h["eps"]).sqrt()',
            )
        ],
        "lr ignored": [('p.sub_(h["lr"] * d)', "p.sub_(d)")],
        "shares exchanged": [
            (
                'h["rho"] * state["square_avg"] + (1 - h["rho"]) * g * g',
                '(1 - h["rho"]) * state["square_avg"] + h["rho"] * g * g',
            )
        ],
    },
    "asgd": {
        "eta before its use": [
            (
                '    p.mul_(1 - h["lambd"]',
                '    state["eta"] = h["lr"] / (1 + h["lambd"] * h["lr"] * t) ** h["alpha"]\n    p.mul_(1 - h["lambd"]',
            )
        ],
        "lambd ignored in the parameter": [('    p.mul_(1 - h["lambd"] * state["eta"])\n', "")],
        "lambd acts after the gradient": [
            (
                '    p.mul_(1 - h["lambd"] * state["eta"])\n    p.sub_(state["eta"] * g)\n',
                '    p.sub_(state["eta"] * g)\n    p.mul_(1 - h["lambd"] * state["eta"])\n',
            )
        ],
        "alpha ignored": [('** h["alpha"]', "")],
        "eta from the present eta": [
            ('h["lr"] / (1 + h["lambd"] * h["lr"] * t)', 'state["eta"] / (1 + h["lambd"] * h["lr"] * t)')
        ],
        "average never begins": [('1 / max(1, t - h["t0"])', "1.0")],
        "average one step early": [('max(1, t - h["t0"])', 'max(1, t - h["t0"] + 1)')],
        "average of all steps": [('max(1, t - h["t0"])', "t")],
        "average before the move": [
            ('    p.mul_(1 - h["lambd"]', '    before = p.clone()\n    p.mul_(1 - h["lambd"]'),
            ('(p - state["ax"])', '(before - state["ax"])'),
        ],
        "average copied into the parameter": [
            (
                '    state["eta"] = h["lr"] /',
                '    if t > h["t0"]:\n        p.copy_(state["ax"])\n    state["eta"] = h["lr"] /',
            )
        ],
        "eta counts from 0": [('h["lr"] * t)', 'h["lr"] * (t - 1))')],
    },
    "rprop": {
        "moves after a change of sign": [("    g = torch.where(agree < 0, 0.0, g)\n", "")],
        "gradient kept after a change of sign": [
            ('state["prev"] = g.clone()', 'state["prev"] = raw'),
            ("    agree = ", "    raw = g.clone()\n    agree = "),
        ],
        "steps back after a change of sign": [
            (
                "p.sub_(size * g.sign())",
                'p.sub_(size * g.sign())\n    p.add_(torch.where(agree < 0, size * state["prev"].sign(), 0.0))',
            )
        ],
        "etas exchanged": [
            ('factor[agree > 0] = h["etas"][1]', 'factor[agree > 0] = h["etas"][0]'),
            ('factor[agree < 0] = h["etas"][0]', 'factor[agree < 0] = h["etas"][1]'),
        ],
        "grows where the product is zero": [("factor[agree > 0]", "factor[agree >= 0]")],
        "not clamped": [('.clamp(*h["step_sizes"])', "")],
        "clamped above only": [('.clamp(*h["step_sizes"])', '.clamp(max=h["step_sizes"][1])')],
        "gradient instead of its sign": [("size * g.sign()", "size * g")],
        "old step size": [
            ("p.sub_(size * g.sign())", 'p.sub_(state.get("old", size) * g.sign())\n    state["old"] = size')
        ],
        "step size follows lr": [
            ('state["step_size"] * factor', 'state["step_size"] * factor * h["lr"] / state.setdefault("lr", h["lr"])')
        ],
        "maximize only at first": [('if h["maximize"]:', 'if h["maximize"] and state["step"] == 1:')],
    },
    "sparseadam": {
        "moments of absent rows decay": [
            (
                '    m = state["exp_avg"][rows]',
                '    keep = torch.ones(len(p), dtype=torch.bool)\n    keep[rows] = False\n    state["exp_avg"][keep] *= beta1\n    m = state["exp_avg"][rows]',
            )
        ],
        "absent rows move": [
            (
                'p[rows] -= lr * m / (v.sqrt() + h["eps"])',
                'p -= lr * state["exp_avg"] / (state["exp_avg_sq"].sqrt() + h["eps"])',
            )
        ],
        "eps after correction": [
            (
                'lr * m / (v.sqrt() + h["eps"])',
                'h["lr"] * m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + h["eps"])',
            )
        ],
        "a counter a row": [
            (
                't = state["step"]\n',
                't = state["step"]\n    rowcount = state.setdefault("rows", torch.zeros(len(p), 1, dtype=p.dtype))\n',
            ),
            ("    lr = h", "    rowcount[rows] += 1\n    t = rowcount[rows]\n    lr = h"),
            ("math.sqrt(1 - beta2**t)", "(1 - beta2**t).sqrt()"),
        ],
        "not coalesced": [
            (
                "    g = g.coalesce()\n    rows, g = g.indices()[0], g.values()\n",
                "    rows, g = g._indices()[0], g._values()\n",
            )
        ],
        "first moment not corrected": [("/ (1 - beta1**t)", "")],
    },
    "adafactor": {
        "rows and columns exchanged": [
            ('.mean(-1, keepdim=True) - state["row_var"]', '.mean(-1, keepdim=True).flip(0) - state["row_var"]')
        ],
        "mean over columns not divided out": [(" / row.mean(-2, keepdim=True).clamp(min=eps1)", "")],
        "not clipped": [('max(1.0, u.norm().item() / math.sqrt(u.numel()) / h["d"])', "1.0")],
        "clipped by the norm": [("u.norm().item() / math.sqrt(u.numel())", "u.norm().item()")],
        "scale of the parameter ignored": [
            ("alpha = max(eps2, p.norm().item() / math.sqrt(p.numel())) * rho", "alpha = rho")
        ],
        "norm for the root mean square": [("p.norm().item() / math.sqrt(p.numel())", "p.norm().item()")],
        "relative step missing": [('rho = min(h["lr"], 1 / math.sqrt(t))', 'rho = h["lr"]')],
        "scale taken after decay": [
            ('    p.mul_(1 - h["lr"] * h["weight_decay"])\n', ""),
            ("    alpha = ", '    p.mul_(1 - h["lr"] * h["weight_decay"])\n    alpha = '),
        ],
        "decay of the relative step": [
            ('p.mul_(1 - h["lr"] * h["weight_decay"])', 'p.mul_(1 - rho * h["weight_decay"])')
        ],
        "decay after the update": [
            ('    p.mul_(1 - h["lr"] * h["weight_decay"])\n', ""),
            ('/ h["d"]) * u)', '/ h["d"]) * u)\n    p.mul_(1 - h["lr"] * h["weight_decay"])'),
        ],
        "beta2 of Adam": [('weight = t ** h["beta2_decay"]', "weight = 0.001 if t > 1 else 1.0")],
        "counter ahead": [("weight = t **", "weight = (t + 1) **")],
        "eps1 not squared": [("eps1 * eps1", "eps1")],
        "factored vectors": [
            ("if g.dim() > 1:\n        row =", "if g.dim() > 5:\n        row ="),
            ("if g.dim() > 1:\n            state", "if g.dim() > 5:\n            state"),
        ],
    },
    "muon": {
        "momentum sums": [('h["momentum"] * buf + (1 - h["momentum"]) * g\n', 'h["momentum"] * buf + g\n')],
        "nesterov ignored": [('(1 - h["momentum"]) * g + h["momentum"] * buf if h["nesterov"] else buf', "buf")],
        "nesterov adds the gradient whole": [
            ('(1 - h["momentum"]) * g + h["momentum"] * buf if', 'g + h["momentum"] * buf if')
        ],
        "one iteration more": [("in range(steps)", "in range(steps + 1)")],
        "one iteration less": [("in range(steps)", "in range(steps - 1)")],
        "cubic iteration": [("(b * gram + c * gram @ gram) @ x", "-0.5 * gram @ x"), ("x = a * x +", "x = 1.5 * x +")],
        "coefficients fixed": [("a, b, c = coefficients", "a, b, c = 3.4445, -4.775, 2.0315")],
        "not normalised": [("x = x / x.norm().clamp(min=eps)", "x = x")],
        "shape not adjusted": [("math.sqrt(max(1, rows / columns))", "1.0")],
        "shape adjusted without root": [("math.sqrt(max(1, rows / columns))", "max(1, rows / columns)")],
        "shape adjusted the other way": [("rows / columns", "columns / rows")],
        "rms matched by the smaller side": [("math.sqrt(max(rows, columns))", "math.sqrt(min(rows, columns))")],
        "decay without lr": [('p.mul_(1 - h["lr"] * h["weight_decay"])', 'p.mul_(1 - 0.1 * h["weight_decay"])')],
        "decay of the adjusted lr": [('p.mul_(1 - h["lr"] * h["weight_decay"])', 'p.mul_(1 - lr * h["weight_decay"])')],
        "decay after the update": [
            (
                '    p.mul_(1 - h["lr"] * h["weight_decay"])\n    p.sub_(lr * d)\n',
                '    p.sub_(lr * d)\n    p.mul_(1 - h["lr"] * h["weight_decay"])\n',
            )
        ],
        "decay ignored": [('    p.mul_(1 - h["lr"] * h["weight_decay"])\n', "")],
        "decay coupled": [
            ('    p.mul_(1 - h["lr"] * h["weight_decay"])\n', ""),
            ("    buf = state.get", '    g = g + h["weight_decay"] * p\n    buf = state.get'),
        ],
        "eps fixed": [("clamp(min=eps)", "clamp(min=1e-7)")],
        "orthogonalised before momentum": [
            (
                "    buf = state.get",
                '    g = orthogonal(g, h["ns_coefficients"], h["ns_steps"], h["eps"])\n    buf = state.get',
            ),
            ('    d = orthogonal(d, h["ns_coefficients"], h["ns_steps"], h["eps"])\n', ""),
        ],
    },
}

EQUIVALENT: dict[tuple[str, str], str] = {
    ("sgd", "step counters not loaded"): "SGD counts no steps",
}
"""(rule, mutant) -> why no test can tell it from the right one."""
