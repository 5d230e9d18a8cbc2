"""transformers' Trainer on a tiny GPT-2 made from its config: accumulation, warm-up, clipping, weight decay."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments, set_seed

set_seed(0)
config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config)
tokens = torch.randint(40, (32, 12))
dataset = [{"input_ids": row, "labels": row} for row in tokens]

arguments = TrainingArguments(
    output_dir="out",
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    num_train_epochs=1,
    learning_rate=1e-3,
    warmup_steps=2,
    weight_decay=0.1,
    max_grad_norm=0.5,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
    dataloader_num_workers=0,
)
trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
trainer.remove_callback(PrinterCallback)
trainer.train()
for entry in trainer.state.log_history:
    if "grad_norm" in entry:
        print("norm", entry["grad_norm"])

torch.save(model.state_dict(), "weights.pt")
