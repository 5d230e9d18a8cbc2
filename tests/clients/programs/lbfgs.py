"""A curve fitted with LBFGS, whose closure is evaluated many times in each step."""

import torch
from torch import nn

torch.manual_seed(2)
torch.set_default_dtype(torch.float64)
x = torch.linspace(-2, 2, 40)[:, None]
y = torch.sin(2 * x)
model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1))
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, history_size=4, line_search_fn="strong_wolfe")


def closure():
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    print("loss", loss.item())
    return loss


for step in range(4):
    optimizer.step(closure)
    print("step", step + 1)

torch.save(model.state_dict(), "weights.pt")
