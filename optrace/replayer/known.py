"""The rules that a replay can run, and the mistakes in them that it knows, for the rooms that explain differences."""

from __future__ import annotations

from optrace.reference.families_frame import DECAY_LR
from optrace.reference.rule import RULES, Rule
from optrace.reference.variants import VARIANTS, Variant

__all__ = ["DECAY_LR", "RULES", "VARIANTS", "Rule", "Variant"]
