"""State saved and loaded by torch.distributed.checkpoint, which calls `step()` to have state to load into."""

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

torch.manual_seed(10)
x, y = torch.randn(24, 5), torch.randn(24, 1)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        print("loss", loss.item())


first = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
before = torch.optim.AdamW(first.parameters(), lr=0.01)
train(first, before, 3)
weights, state = get_state_dict(first, before)
dcp.save({"model": weights, "optimizer": state}, checkpoint_id="checkpoint", no_dist=True)

second = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
after = torch.optim.AdamW(second.parameters(), lr=0.01)
weights, state = get_state_dict(second, after)
found = {"model": weights, "optimizer": state}
dcp.load(found, checkpoint_id="checkpoint", no_dist=True)
set_state_dict(second, after, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
train(second, after, 2)

torch.save([first.state_dict(), second.state_dict()], "weights.pt")
