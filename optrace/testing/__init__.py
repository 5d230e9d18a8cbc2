"""What other projects test with: fixtures of the pytest plugin, and the functions and classes behind them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optrace.testing.asserts import assert_traces_close as assert_traces_close
    from optrace.testing.asserts import check_same as check_same
    from optrace.testing.conformance import OptimizerConformance as OptimizerConformance

_PUBLIC = {
    "OptimizerConformance": "optrace.testing.conformance",
    "assert_traces_close": "optrace.testing.asserts",
    "check_same": "optrace.testing.asserts",
}

__all__ = ["OptimizerConformance", "assert_traces_close", "check_same"]  # resolved by __getattr__ (PEP 562)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'optrace.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
