# ruff: noqa: E501
"""Mistakes in what all optimizers do alike, as edits (old, new) of those in `optimizer_bases`."""

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

EQUIVALENT: dict[tuple[str, str], str] = {
    ("sgd", "step counters not loaded"): "SGD counts no steps",
}
"""(rule, mutant) -> why no test can tell it from the right one."""
