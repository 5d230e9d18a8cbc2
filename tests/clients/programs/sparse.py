"""Word vectors with sparse gradients under SparseAdam, the dense rest under SGD."""

import torch
from torch import nn

torch.manual_seed(6)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.vectors = nn.Embedding(50, 8, sparse=True)
        self.out = nn.Linear(8, 5)

    def forward(self, words):
        return self.out(self.vectors(words).mean(dim=1))


model = Words()
sparse = torch.optim.SparseAdam(model.vectors.parameters(), lr=1e-2)
dense = torch.optim.SGD(model.out.parameters(), lr=0.1)

for _ in range(5):
    words, labels = torch.randint(50, (8, 3)), torch.randint(5, (8,))
    loss = nn.functional.cross_entropy(model(words), labels)
    sparse.zero_grad()
    dense.zero_grad()
    loss.backward()
    sparse.step()
    dense.step()
    print("loss", loss.item())

torch.save(model.state_dict(), "weights.pt")
