"""What tests of several rooms share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def only_what_is_new() -> Iterator[None]:
    """Let the collector pass over what was there before the module's tests, and so a recording that looks for models.

    For modules that record often and where that is not the subject: among all objects of torch a look takes 0.06 s.
    """
    import torch._dynamo  # noqa: F401 - which the first optimizer imports

    gc.freeze()
    yield
    gc.unfreeze()
