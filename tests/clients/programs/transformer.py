"""A character transformer of 10.8 million parameters: AdamW in two groups, warm-up, accumulation, clipping."""

import math

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(1337)
TEXT = (
    "One run is recorded, then the other; where they part is where to look. A gradient comes from outside, the rule is "
    "what the optimizer makes of it. Warm up, then cool down. "
) * 8
characters = sorted(set(TEXT))
data = torch.tensor([characters.index(c) for c in TEXT])
CONTEXT, WIDTH, HEADS, LAYERS = 16, 384, 6, 6
BATCH, ACCUMULATE, STEPS, WARMUP = 2, 2, 3, 2


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (z.view(b, t, HEADS, c // HEADS).transpose(1, 2) for z in self.qkv(self.ln_1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(len(characters), WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.ln = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(characters), bias=False)
        self.head.weight = self.token.weight  # tied

    def forward(self, tokens):
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.head(self.ln(self.blocks(x)))


def batch():
    starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,))
    return torch.stack([data[i : i + CONTEXT] for i in starts]), torch.stack(
        [data[i + 1 : i + 1 + CONTEXT] for i in starts]
    )


model = Transformer()
print(sum(p.numel() for p in model.parameters()), "parameters")
decay = [p for p in model.parameters() if p.dim() >= 2]
others = [p for p in model.parameters() if p.dim() < 2]
optimizer = torch.optim.AdamW(
    [{"params": decay, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95)
)


def rate(step):
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / 10))


scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

for _ in range(STEPS):
    for _ in range(ACCUMULATE):
        tokens, targets = batch()
        loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten()) / ACCUMULATE
        loss.backward()
        print("loss", loss.item())
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    print("norm", norm.item())
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad(set_to_none=True)

torch.save(model.state_dict(), "weights.pt")
