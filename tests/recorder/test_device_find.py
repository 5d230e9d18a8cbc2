"""Whatever a tensor is, what is found of it on a device measures as what is found of it on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from measuring_on import measure_on

from optrace.recorder.device import HostDevice
from optrace.recorder.device_find import DeviceAddress, as_recorded, locate_on
from optrace.recorder.jobs import fill_job, measure_now
from optrace.recorder.shards import Shard
from optrace.recorder.tensors import Unmeasurable, is_within_reach, locate
from optrace.trace import measure as m

FIELDS = ("min", "max", "n_nan", "n_inf", "n_zero", "fingerprint", "sample")


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)


IN_PLACE: dict[str, Callable[[], torch.Tensor]] = {
    "plain": lambda: numbers(5, 4),
    "0-d": numbers,
    "parameter": lambda: torch.nn.Parameter(numbers(30)),
    "bfloat16": lambda: numbers(30, dtype=torch.bfloat16),
    "bool": lambda: numbers(30) > 0,
    "complex": lambda: torch.complex(numbers(5, 4), numbers(5, 4) * 2),
    "transposed": lambda: numbers(5, 40).t(),
    "transposed complex": lambda: torch.complex(numbers(5, 4), numbers(5, 4) * 2).t(),
    "channels_last": lambda: numbers(3, 4, 5, 2).contiguous(memory_format=torch.channels_last),
    "dimensions of one": lambda: numbers(1, 4, 1, 5).permute(2, 3, 0, 1),
    "six dimensions": lambda: numbers(2, 3, 2, 3, 2, 3).permute(5, 0, 4, 1, 3, 2),
    "part of a larger one": lambda: numbers(50)[7:40],
}
COPIED: dict[str, Callable[[], torch.Tensor]] = {
    "seven dimensions": lambda: numbers(2, 2, 2, 2, 2, 2, 2).permute(6, 0, 5, 1, 4, 2, 3),
    "with gaps": lambda: numbers(6, 10)[:, ::2],
    "expanded": lambda: numbers(1, 4).expand(6, 4),
    "conjugated": lambda: torch.complex(numbers(5), numbers(5)).conj(),
    "negated": lambda: torch.complex(numbers(5), numbers(5)).conj().imag,
    "sparse": lambda: torch.sparse_coo_tensor([[0, 2, 0]], numbers(3, 4), (3, 4), check_invariants=True),
}


def check(tensor: torch.Tensor) -> tuple[int, object]:
    """Address and kind on the device, once they have been measured as on the host."""
    keep: list[object] = []
    found, expected = locate_on(HostDevice(), tensor, keep), measure_now([locate(tensor, keep)], 1)
    job = np.zeros(1, m.JOB)
    fill_job(job[0], m.STAT, found, 0)
    rows = measure_on(HostDevice(), job, 1)
    for field in FIELDS:
        assert rows[field].tobytes() == expected[field].tobytes(), field
    assert found[1] == locate(tensor, keep)[1]
    assert type(found[0]) is DeviceAddress
    return found[0], found[2]


@pytest.mark.parametrize("name", IN_PLACE)
def test_dense_tensors_are_measured_where_they_lie(name: str) -> None:
    tensor = IN_PLACE[name]()
    address, kind = check(tensor)
    assert address == tensor.data_ptr()
    assert as_recorded(kind) is tensor.dtype


@pytest.mark.parametrize("name", COPIED)
def test_others_are_laid_out_anew(name: str) -> None:
    check(COPIED[name]())


def test_an_empty_tensor_has_nothing_to_measure() -> None:
    check(torch.zeros(0, 3))


class Nowhere(HostDevice):
    """Owns nothing."""

    def owns(self, tensor: torch.Tensor) -> bool:
        return False


@pytest.mark.parametrize("tensor", [numbers(5), numbers(5, 4).t()], ids=["plain", "transposed"])
def test_what_lies_elsewhere_is_found_on_the_host(tensor: torch.Tensor) -> None:
    address, numel, kind = locate_on(Nowhere(), tensor, [])
    assert type(address) is int and (numel, kind) == (tensor.numel(), torch.float32)


def test_what_has_no_values_says_so() -> None:
    _, _, kind = locate_on(HostDevice(), torch.empty(3, device="meta"), [])
    assert isinstance(kind, Unmeasurable) and "meta device" in kind.reason
    assert not is_within_reach(torch.empty(3, device="meta"))
    assert is_within_reach(torch.nn.Parameter(numbers(3)))


@pytest.fixture
def two_ranks() -> Iterator[object]:
    """This process as rank 1 of 2, of which the other does not exist."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield dist.device_mesh.init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.parametrize("dim", [0, 1])
def test_a_shard_is_measured_as_a_piece_of_the_whole(two_ranks: object, dim: int) -> None:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Sharded

    local = numbers(3, 4) if dim == 0 else numbers(4, 3).t()
    sharded = DTensor.from_local(local, two_ranks, [Sharded(dim)], run_check=False)
    _, kind = check(sharded)
    assert isinstance(kind, Shard) and kind.piece is not None and as_recorded(kind) is kind
    assert is_within_reach(sharded)
