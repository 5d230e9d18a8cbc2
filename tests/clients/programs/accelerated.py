"""Accelerate: accumulation over two batches, bf16 autocast, clipping, a prepared scheduler."""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

set_seed(2)
accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=3)
loader = DataLoader(TensorDataset(torch.randn(48, 6), torch.randn(48, 1)), batch_size=8)
prepared, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

for x, y in loader:
    with accelerator.accumulate(prepared):
        loss = nn.functional.mse_loss(prepared(x).float(), y)
        accelerator.backward(loss)
        print("loss", loss.item())
        if accelerator.sync_gradients:
            accelerator.clip_grad_norm_(prepared.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

torch.save(accelerator.unwrap_model(prepared).state_dict(), "weights.pt")
