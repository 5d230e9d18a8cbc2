"""A few optimizers for torch."""

from tinyoptim.cautious import CautiousAdamW
from tinyoptim.lion import Lion
from tinyoptim.sgd import SGD

__all__ = ["SGD", "CautiousAdamW", "Lion"]
