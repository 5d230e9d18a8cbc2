"""A classifier of scikit-learn's digits: SGD with momentum, a decaying learning rate, batches from a DataLoader."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
loader = DataLoader(TensorDataset(x[:1000], y[:1000]), batch_size=100, shuffle=True)

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
loss_fn = nn.CrossEntropyLoss()

for epoch in range(2):
    model.train()
    for batch, target in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(batch), target)
        loss.backward()
        optimizer.step()
        print("loss", loss.item())
    scheduler.step()
    model.eval()
    with torch.no_grad():
        correct = (model(x[1000:]).argmax(1) == y[1000:]).float().mean()
    print(f"epoch {epoch}: {correct.item():.3f} of the test digits are right")

torch.save(model.state_dict(), "weights.pt")
