"""A compiled model and a compiled optimizer step."""

import torch
from torch import nn

torch.manual_seed(7)
model = nn.Sequential(nn.Linear(5, 12), nn.GELU(), nn.Linear(12, 1))
compiled = torch.compile(model, backend="eager")
optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2))
scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@torch.compile(backend="eager")
def update():
    optimizer.step()
    scheduler.step()


x, y = torch.randn(30, 5), torch.randn(30, 1)
for _ in range(4):
    loss = nn.functional.mse_loss(compiled(x), y)
    loss.backward()
    update()
    optimizer.zero_grad()
    print("loss", loss.item())

torch.save(model.state_dict(), "weights.pt")
