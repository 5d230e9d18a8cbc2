"""Two networks against each other, each with its optimizer, stepped by hand; the critic twice as often."""

import torch
from torch import nn

torch.manual_seed(5)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
for_generator = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
for_critic = torch.optim.RMSprop(critic.parameters(), lr=5e-4)
judge = nn.functional.binary_cross_entropy_with_logits
ones, zeros = torch.ones(16, 1), torch.zeros(16, 1)

for _ in range(3):
    for _ in range(2):
        real = torch.randn(16, 2) * 0.5 + 1
        fake = generator(torch.randn(16, 4)).detach()
        for_critic.zero_grad()
        loss = judge(critic(real), ones) + judge(critic(fake), zeros)
        loss.backward()
        for_critic.step()
        print("critic", loss.item())
    for_generator.zero_grad()
    loss = judge(critic(generator(torch.randn(16, 4))), ones)
    loss.backward()
    for_generator.step()
    print("generator", loss.item())

torch.save([generator.state_dict(), critic.state_dict()], "weights.pt")
