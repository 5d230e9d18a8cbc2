"""Torch on one thread, with MKL's square root already warm (its first call may race across threads)."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    torch.rand(1000).sqrt()
