"""The three runs of a program, made once for all tests of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_runs import Client, Forks, three_runs


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs programs without importing torch anew."""
    server = Forks()
    yield server
    server.close()


@pytest.fixture
def client(tmp_path: Path, forks: Forks) -> Callable[..., Client]:
    """Run a program of tests/clients/programs alone, recorded and captured."""

    def make(program: str, *arguments: str, **options: str) -> Client:
        return three_runs(tmp_path, forks, program, *arguments, **options)

    return make
