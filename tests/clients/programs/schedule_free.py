"""Schedule-free AdamW: the weights that are evaluated are others than those that are trained."""

import schedulefree
import torch
from torch import nn

torch.manual_seed(9)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01, warmup_steps=3)
x, y = torch.randn(40, 4), torch.randn(40, 1)

for _ in range(3):
    model.train()
    optimizer.train()
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        print("loss", loss.item())
    model.eval()
    optimizer.eval()
    with torch.no_grad():
        print("evaluated", nn.functional.mse_loss(model(x), y).item())

torch.save(model.state_dict(), "weights.pt")
