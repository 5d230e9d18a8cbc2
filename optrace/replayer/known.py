"""The rules that a replay can run, and the mistakes in them that it knows, for the rooms that explain differences."""

from __future__ import annotations

from optrace.reference.rule import RULES, Rule
from optrace.reference.variants import VARIANTS, Variant

__all__ = ["RULES", "VARIANTS", "Rule", "Variant"]
