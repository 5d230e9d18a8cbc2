"""Recording in this process, for tests of single points of the recorder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import optrace


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def traced(tmp_path: Path) -> Callable[..., Any]:
    """Record a function strictly and give the trace."""

    def run(train: Callable[[], Any], **settings: Any) -> Any:
        with optrace.record(tmp_path / "run", quiet=True, strict=True, **settings):
            train()
        trace = optrace.open(tmp_path / "run")
        assert trace.problems == []
        return trace

    return run
