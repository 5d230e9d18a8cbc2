"""A small training job with warm-up, clipping, accumulation and checkpoints; its resume forgets something.

python train.py [--steps N] [--save FILE] [--resume FILE]
"""

import argparse

import torch
from torch import nn


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    return model, optimizer, scheduler


def batch(step, micro):
    generator = torch.Generator().manual_seed(1000 * step + micro)
    x = torch.randn(8, 16, generator=generator)
    return x, x[:, :4].argmax(dim=1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--save")
    parser.add_argument("--resume")
    options = parser.parse_args()

    model, optimizer, scheduler = make()
    start = 0
    if options.resume:
        saved = torch.load(options.resume)
        model.load_state_dict(saved["model"])
        scheduler.load_state_dict(saved["scheduler"])
        start = saved["step"]

    for step in range(start, options.steps):
        optimizer.zero_grad()
        for micro in range(2):
            x, y = batch(step, micro)
            loss = nn.functional.cross_entropy(model(x), y) / 2
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    print(f"step {options.steps}: loss {2 * loss.item():.4f}")

    if options.save:
        saved = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "step": options.steps,
        }
        torch.save(saved, options.save)


if __name__ == "__main__":
    main()
