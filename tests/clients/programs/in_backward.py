"""An optimizer for each parameter, stepping inside backward, so that no two gradients live at the same time."""

import torch
from torch import nn

torch.manual_seed(4)
model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
optimizers = {param: torch.optim.Adam([param], lr=1e-2, foreach=False) for param in model.parameters()}


def step_now(param):
    optimizers[param].step()
    optimizers[param].zero_grad()


for param in model.parameters():
    param.register_post_accumulate_grad_hook(step_now)

x, y = torch.randn(20, 6), torch.randint(3, (20,))
for _ in range(4):
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    print("loss", loss.item())

torch.save(model.state_dict(), "weights.pt")
