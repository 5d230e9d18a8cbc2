"""The two-layer linear regression of a well-known torch.optim tutorial: two groups, each with its own lr, and a StepLR.

    python two_layers.py [torch|reference|mine] [--steps N] [--no-schedule]

`torch` trains with torch.optim.SGD, `reference` with optrace's from-scratch SGD, and `mine` with the SGD below, which
has the mistake that tutorials spread: its momentum averages the gradients instead of summing them.
"""

import argparse

import torch
from torch import nn

# The parameters that the tutorial printed.
FIRST_WEIGHT = [0.7895, 0.4697, -0.0534, 0.8223, 0.9414, -0.5877, -0.4069, -0.6598, -0.1982, -0.2233]
FIRST_BIAS = [-0.9338, -0.9721, 0.3418, -0.4599, 0.1251, -0.2313, 0.9735, -0.1804, 0.0935, 0.9205]
SECOND_WEIGHT = [-0.0765, -0.1632, 0.0979, 0.2206, -0.0102, -0.0452, -0.3096, 0.0189, -0.0240, -0.0900]
SECOND_BIAS = [-0.1148]


class Net(nn.Module):
    """Two linear layers without a nonlinearity: [11, 1] -> [11, 10] -> [11, 1]."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(1, 10)
        self.second = nn.Linear(10, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor(FIRST_WEIGHT).reshape(10, 1))
            self.first.bias.copy_(torch.tensor(FIRST_BIAS))
            self.second.weight.copy_(torch.tensor(SECOND_WEIGHT).reshape(1, 10))
            self.second.bias.copy_(torch.tensor(SECOND_BIAS))

    def forward(self, x):
        return self.second(self.first(x))


class MySGD:
    """SGD with momentum, as one writes it after reading about moving averages."""

    def __init__(self, param_groups, momentum=0.0):
        self.param_groups = [{**group, "params": list(group["params"]), "momentum": momentum} for group in param_groups]
        self.velocity = {}

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                v = self.velocity.get(p, torch.zeros_like(p))
                self.velocity[p] = v = group["momentum"] * v + (1 - group["momentum"]) * p.grad
                p -= group["lr"] * v


def make_optimizer(name, net):
    groups = [
        {"params": net.first.parameters(), "lr": 0.01},
        {"params": net.second.parameters(), "lr": 0.001},
    ]
    if name == "torch":
        return torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    import optrace

    if name == "reference":
        return optrace.watch(optrace.reference.SGD(groups, lr=0.01, momentum=0.9))
    return optrace.watch(MySGD(groups, momentum=0.9))


def make_scheduler(name, optimizer):
    if name == "torch":
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=50, gamma=0.5)
    from optrace.reference.schedulers import StepLR  # torch's schedulers refuse what is no torch.optim.Optimizer

    return StepLR(optimizer, step_size=50, gamma=0.5)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("optimizer", nargs="?", default="torch", choices=["torch", "reference", "mine"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--no-schedule", action="store_true")
    options = parser.parse_args()

    x = torch.linspace(-1, 1, 11).reshape(11, 1)
    y = 3 * x + 0.5
    net = Net()
    optimizer = make_optimizer(options.optimizer, net)
    scheduler = None if options.no_schedule else make_scheduler(options.optimizer, optimizer)
    for _ in range(options.steps):
        optimizer.zero_grad()
        loss = ((net(x) - y) ** 2).mean()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    print(f"{options.optimizer}: loss {loss.item():.3g} after {options.steps} steps")


if __name__ == "__main__":
    main()
