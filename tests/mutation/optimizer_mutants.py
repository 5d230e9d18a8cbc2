# ruff: noqa: E501
"""Wrong optimizers, as edits (old, new) of the right ones in `optimizer_bases`; a name says what is wrong."""

from __future__ import annotations

from .adam_mutants import ADAM_MUTANTS

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
    **ADAM_MUTANTS,
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
