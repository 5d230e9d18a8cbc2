"""The three runs of a program, made once for all tests of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from client_runs import Client, three_runs


@pytest.fixture
def client(tmp_path: Path) -> Any:
    """Run a program of tests/clients/programs alone, recorded and captured."""

    def make(program: str, *arguments: str, **options: str) -> Client:
        return three_runs(tmp_path, program, *arguments, **options)

    return make
