"""Mixed precision with a GradScaler: a gradient overflows once, the step is skipped, the scale is halved."""

import sys

import torch
from torch import nn

fused = "fused" in sys.argv
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=100)
x, y = torch.randn(32, 8), torch.randn(32, 1)

for step in range(6):
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    loss = nn.functional.mse_loss(out.float(), y)
    if step == 2:
        loss = loss * torch.inf
    scaler.scale(loss).backward()
    if not fused:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    scaler.step(optimizer)
    scaler.update()
    print("loss", loss.item())
    print("scale", scaler.get_scale())

torch.save(model.state_dict(), "weights.pt")
