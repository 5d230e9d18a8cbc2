"""All faults of the bench, the real ones first."""

from __future__ import annotations

import importlib

from tests.faults.parts import FAULTS, Fault

__all__ = ["FAULTS", "Fault"]

for _part in (
    "real",
    "own_rules",
    "own_inputs",
    "other_programs",
    "strangers",
    "formulas",
    "controls",
    "other_controls",
):
    importlib.import_module(f"tests.faults.{_part}")
