"""SGD with momentum, summed as in torch or averaged as in many courses."""

import torch


class SGD(torch.optim.Optimizer):
    """`ema=True` averages the gradients, buf = momentum*buf + (1 - momentum)*g, instead of summing them."""

    def __init__(self, params, lr=1e-2, momentum=0.9, weight_decay=0.0, ema=False):
        if lr < 0:
            raise ValueError(f"lr must not be negative: {lr}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "ema": ema})

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            momentum = group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                grad = p.grad.add(p, alpha=group["weight_decay"]) if group["weight_decay"] else p.grad
                if momentum:
                    state = self.state[p]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(p)
                    grad = state["momentum_buffer"].mul_(momentum).add_(grad, alpha=1 - momentum if group["ema"] else 1)
                p.add_(grad, alpha=-group["lr"])
        return loss
