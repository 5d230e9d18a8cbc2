"""From-scratch optimizers and learning-rate schedulers in NumPy: an executable specification of torch.optim."""
