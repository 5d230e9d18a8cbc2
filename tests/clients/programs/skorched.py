"""skorch: a network behind scikit-learn's fit and predict."""

import torch
from skorch import NeuralNetClassifier
from torch import nn

torch.manual_seed(3)
x, y = torch.randn(60, 5), torch.randint(3, (60,))
net = NeuralNetClassifier(
    nn.Sequential(nn.Linear(5, 10), nn.ReLU(), nn.Linear(10, 3)),
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.SGD,
    optimizer__momentum=0.9,
    lr=0.05,
    max_epochs=2,
    batch_size=20,
    train_split=None,
    verbose=0,
)
net.fit(x, y)
for batch in net.history[:, "batches", :, "train_loss"]:
    for loss in batch:
        print("loss", loss)
model = net.module_

torch.save(model.state_dict(), "weights.pt")
