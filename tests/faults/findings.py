"""What the linter finds in the wrong runs of the fault bench; it finds nothing in the others, nor in any right run."""

from __future__ import annotations

FINDINGS: dict[str, tuple[str, ...]] = {
    "scheduler-per-micro-batch": ("scheduler-before-step",),
    "norms-decayed": ("decay-on-norms",),
    "not-in-the-optimizer": ("params-in-no-group",),
    "zero-grad-missing": ("grads-never-zeroed",),
    "bf16-never-moves": ("update-rounded",),
    "all-bf16": ("update-rounded",),
    "moments-in-bf16": ("state-precision",),
    "scaler-skips": ("scheduler-through-skips",),
}
"""Fault -> codes. One run alone of each other fault shows nothing that is rarely meant."""
