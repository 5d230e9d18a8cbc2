"""Fit y = 3x + 0.5 with two layers: AdamW with decay for the weights only, warm-up, clipping."""

import torch


def train(steps=12, lr=1e-2):
    """Train and return the model."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
    x = torch.linspace(-1, 1, 11).unsqueeze(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ((model(x) - (3 * x + 0.5)) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


if __name__ == "__main__":
    train()
