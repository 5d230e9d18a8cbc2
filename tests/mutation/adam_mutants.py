# ruff: noqa: E501
"""Wrong Adams and what came of it, as edits (old, new) of the right ones in `optimizer_bases`; a name says what is wrong."""

from __future__ import annotations

ADAM_MUTANTS: dict[str, dict[str, list[tuple[str, str]]]] = {
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
}
