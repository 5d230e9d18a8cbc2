"""A policy gradient on a small bandit, with the learning rate and clip annealed by hand into the groups."""

import torch
from torch import nn

torch.manual_seed(8)
UPDATES = 5


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))
        self.critic = nn.Linear(3, 1)


agent = Agent()
optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
best = torch.tensor([1.0, 0.0, -1.0, 0.5])

for update in range(1, UPDATES + 1):
    optimizer.param_groups[0]["lr"] = (1.0 - (update - 1.0) / UPDATES) * 2.5e-4
    observation = torch.randn(32, 3)
    choice = torch.distributions.Categorical(logits=agent.actor(observation))
    action = choice.sample()
    reward = best[action]
    value = agent.critic(observation).squeeze(1)
    advantage = reward - value.detach()
    loss = -(choice.log_prob(action) * advantage).mean() + 0.5 * (value - reward).square().mean()
    loss = loss - 0.01 * choice.entropy().mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
    optimizer.step()
    print("loss", loss.item(), "lr", optimizer.param_groups[0]["lr"])

torch.save(agent.state_dict(), "weights.pt")
