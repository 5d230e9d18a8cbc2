"""Finds the CPU memory behind any torch tensor, so that it can be measured without torch."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from optrace.recorder.shards import Place, Shard, place_of
from optrace.trace.measure import DTYPES

_STRIDED = torch.strided
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype in torch's words without `torch.`: float32, bfloat16, complex64."""
    return str(dtype).removeprefix("torch.")


def _codes() -> tuple[dict[torch.dtype, int], frozenset[torch.dtype]]:
    codes = {getattr(torch, name): code for name, code in DTYPES.items() if hasattr(torch, name)}
    views = {torch.complex32: "float16", torch.complex64: "float32", torch.complex128: "float64"}
    codes.update({dtype: DTYPES[real] for dtype, real in views.items()})
    return codes, frozenset(views)


CODES, COMPLEX = _codes()
"""The measuring code of every dtype that can be measured as it lies (complex: of its real view); the complex ones."""


@dataclass(frozen=True)
class Unmeasurable:
    """A tensor that has no memory to measure, and why, in words."""

    reason: str


Kind = torch.dtype | Shard | Unmeasurable | None
"""What was located: a dtype, a piece of a larger tensor, something that cannot be measured, nothing at all."""

Found = tuple[int, int, Kind]
"""Address, number of elements (complex: of the real view), and what they are."""

NOTHING: Found = (0, 0, None)
"""Where a gradient is None."""


def locate(tensor: torch.Tensor, keep: list[Any]) -> Found:
    """Where the values of `tensor` lie in CPU memory, dense and in row-major logical order.

    A strided, conjugated, sparse, quantised, sharded or device tensor is first copied to such memory; the copy is
    appended to `keep`, which the caller holds until it has measured. Nothing is recorded for autograd. Never raises:
    what cannot be measured comes back as (0, 0, Unmeasurable).
    """
    if type(tensor) in _PLAIN:
        dtype = tensor.dtype
        if (
            tensor.layout is _STRIDED
            and tensor.is_cpu
            and tensor.is_contiguous()
            and not tensor.is_neg()
            and dtype in CODES
            and not (dtype in COMPLEX and tensor.is_conj())
        ):
            try:
                address = tensor.data_ptr()
            except RuntimeError as error:  # functorch wrappers look like plain tensors and have no storage
                return 0, 0, Unmeasurable(first_line(error))
            numel = tensor.numel()
            return address, numel + numel if dtype in COMPLEX else numel, dtype
    try:
        return _locate_slowly(tensor, keep)
    except Exception as error:
        return 0, 0, Unmeasurable(f"{type(tensor).__name__}: {first_line(error)}")


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Torch calls inside are seen by no autograd, no function or dispatch mode and no tensor subclass."""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        if torch._C._len_torch_dispatch_stack():
            from torch.utils._python_dispatch import _disable_current_modes

            with _disable_current_modes():
                yield
        else:
            yield


def _locate_slowly(tensor: torch.Tensor, keep: list[Any]) -> Found:
    with quiet_torch():
        local, place = plain_strided(tensor)
        if isinstance(local, Unmeasurable):
            return 0, 0, local
        if not local.is_cpu:
            local = local.cpu()
        if local.dtype not in CODES:
            if not local.dtype.is_floating_point:
                return 0, 0, Unmeasurable(f"its dtype {dtype_name(local.dtype)} is not known")
            local = local.float()
        local = local.contiguous()
        keep.append(local)
        factor = 2 if local.dtype in COMPLEX else 1
        kind: Kind = local.dtype
        if place is not None:
            kind = place(local.dtype, factor)
            keep.append(kind)
        return local.data_ptr(), local.numel() * factor, kind


def plain_strided(tensor: torch.Tensor) -> tuple[torch.Tensor | Unmeasurable, Place | None]:
    """The values of any tensor as a plain strided one on its own device, and, of a shard, which piece it is.

    Sparse and quantised tensors are made dense, conjugations and negations done. Call it within `quiet_torch`.
    """
    local, place = _unwrap(tensor)
    if isinstance(local, Unmeasurable):
        return local, None
    if local.is_meta:
        return Unmeasurable("it is on the meta device and has no values"), None
    local = local.detach()
    if local.is_quantized:
        local = local.dequantize()
    if local.layout is not _STRIDED:
        local = (local.coalesce() if local.layout is torch.sparse_coo else local).to_dense()
    return local.resolve_conj().resolve_neg(), place


def is_within_reach(tensor: torch.Tensor) -> bool:
    """Whether a tensor of any kind has values that can be measured; nothing is copied."""
    try:
        with quiet_torch():
            local, _ = _unwrap(tensor)
            return not isinstance(local, Unmeasurable) and not local.is_meta
    except Exception:
        return False


def _unwrap(tensor: torch.Tensor) -> tuple[torch.Tensor | Unmeasurable, Place | None]:
    """The plain tensor within a subclass, and, of a sharded one, which piece of the whole it is."""
    kind = type(tensor)
    if kind in _PLAIN:
        return tensor, None
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is not None and isinstance(tensor, distributed.DTensor):
        return _unwrap(tensor._local_tensor)[0], place_of(tensor)
    if kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        return tensor.as_subclass(torch.Tensor), None
    fake = sys.modules.get("torch._subclasses.fake_tensor")
    if fake is not None and isinstance(tensor, fake.FakeTensor):
        return Unmeasurable("it is a fake tensor and has no values"), None
    dequantize = getattr(tensor, "dequantize", None)
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__ and callable(dequantize):
        with torch._C._EnableTorchFunction():
            return _unwrap(dequantize())
    wait = getattr(tensor, "wait", None)
    if callable(wait) and kind.__name__ == "AsyncCollectiveTensor":
        return _unwrap(wait())
    return Unmeasurable(f"{kind.__module__}.{kind.__qualname__} does not show its values"), None


def placement_of(tensor: torch.Tensor) -> str | None:
    """How a DTensor is placed (`(Shard(dim=0),)`); None for other tensors."""
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is not None and isinstance(tensor, distributed.DTensor):
        return str(tuple(tensor.placements))
    return None


def torch_dtype(kind: Kind) -> torch.dtype:
    """The dtype behind a measurable kind."""
    if isinstance(kind, Shard):
        return kind.dtype
    assert isinstance(kind, torch.dtype), kind
    return kind


def bytes_at(address: int, count: int) -> Any:
    """The `count` bytes at an address as a buffer, not copied; the caller keeps the memory alive."""
    return (ctypes.c_ubyte * count).from_address(address) if count else b""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or else its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
