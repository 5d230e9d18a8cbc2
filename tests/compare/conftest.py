"""Fixtures of the tests of comparing: runs recorded by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "compare"))

from hand_made import sgd, train


@pytest.fixture
def runs(tmp_path: Path) -> Callable[..., str]:
    """`runs("name", maker, ...)` trains a small network, records it and gives the folder."""

    def make(name: str, maker: Any = None, **options: Any) -> str:
        return str(train(tmp_path / name, maker or sgd(), **options))

    return make
