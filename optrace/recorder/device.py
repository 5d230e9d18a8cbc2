"""A device whose tensors are measured where they lie: how it is told what to measure, and how its results come back.

**Why nothing is read too late.** Tensors are read, and copies of parameters written, by kernels on the stream that is
current when the hook runs. The rule's kernels go to the same stream, or wait for it: the values that they are to find
there are as much theirs as ours. So what the hook before the step reads is what the rule will read, since streams keep
their order; what the hook after it reads is what the rule left, and whatever the program does next (a clamp of the
weights, an average swapped in, the next backward) comes after in that order. No hook tells of such edits, so reading on
a stream of our own would be safe only if the current stream waited for it at once: it would be the same order with
more waiting. The stream of our own takes what nobody else touches: the results, a few hundred bytes a tensor, which it
copies to pinned memory while the program's kernels go on.

**Why nothing of ours is used too early.** The buffer of results is taken anew each step and marked as used by our
stream (`record_stream`), so the allocator does not hand it out before the copy is done. The copies of parameters are
written and read on the current stream. What is uploaded (tables, addresses) lies in pinned memory from torch's
allocator, which keeps a block until the copies from it are done. If a program makes its steps on several streams, each
of our launches is on the one that it made current, which then waits (on the device) for the one that we used before.

**The host waits for nothing.** It looks whether results have arrived (`Arrival.ready`) at a later step. Only step 0,
the first four steps, in which the price is taken, and the end of the recording wait.

Run on no CUDA device so far: on machines without one, the kernels are run by Triton's interpreter and compiled for
NVIDIA chips, torch's operators and everything else are run with `HostDevice`.
"""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch

from optrace.recorder.device_table import Longs
from optrace.recorder.memory import SHARE, machine_memory


class Arrival(Protocol):
    """Results on their way to the host."""

    def ready(self) -> bool:
        """Whether they have arrived; does not wait."""

    def wait(self) -> Longs:
        """The results, int64 [n]; waits for them where they have not arrived."""


class Device(Protocol):
    """What the recorder wants of a device."""

    name: str
    has_triton: bool
    memory: int
    """Bytes of its memory that the recorder may hold for copies where no bound was asked for."""

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether a plain tensor lies here."""

    def current(self) -> AbstractContextManager[Any]:
        """While it lasts, kernels are launched on this device."""

    def upload(self, array: Longs) -> torch.Tensor:
        """A copy of an array on the device; the array may change at once."""

    def room(self, count: int) -> torch.Tensor:
        """`count` bytes, uint8; torch.cuda.OutOfMemoryError where there are none."""

    def view(self, address: int, count: int) -> torch.Tensor:
        """The bytes at an address of the device as uint8, not copied."""

    def send(self, results: torch.Tensor) -> Arrival:
        """Have results (int64 [n] on the device) copied to the host."""

    def mark(self) -> Any:
        """A point in the work of the current stream."""

    def seconds(self, first: Any, last: Any) -> float:
        """What the device took from one mark to another, once it has come past both."""


class CudaDevice:
    """A CUDA device, NVIDIA's or (through ROCm) AMD's."""

    def __init__(self, device: torch.device) -> None:
        self.name = f"{device.type}:{device.index}"
        self._device = device
        properties = torch.cuda.get_device_properties(device)
        # Triton compiles for compute capability 7.0 and later; ROCm's chips have numbers of their own
        self.has_triton = find_spec("triton") is not None and (torch.version.hip is not None or properties.major >= 7)
        self.memory = properties.total_memory // SHARE
        self._aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._last: torch.cuda.Stream | None = None

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether a plain tensor lies here."""
        return tensor.is_cuda and tensor.get_device() == self._device.index

    def current(self) -> AbstractContextManager[Any]:
        """While it lasts, kernels are launched on this device; they come after those that were launched before."""
        stream = torch.cuda.current_stream(self._device)
        if self._last is not None and stream != self._last:
            stream.wait_stream(self._last)
        self._last = stream
        if torch.cuda.current_device() == self._device.index:
            return nullcontext()
        return torch.cuda.device(self._device)

    def upload(self, array: Longs) -> torch.Tensor:
        """A copy of an array on the device, by way of pinned memory: from other memory the copy would wait."""
        pinned = torch.empty(array.shape, dtype=torch.int64, device="cpu", pin_memory=True)
        pinned.numpy()[...] = array
        return pinned.to(self._device, non_blocking=True)

    def room(self, count: int) -> torch.Tensor:
        """`count` bytes, uint8; torch.cuda.OutOfMemoryError where there are none."""
        return torch.empty(count, dtype=torch.uint8, device=self._device)

    def view(self, address: int, count: int) -> torch.Tensor:
        """The bytes at an address of the device as uint8, not copied."""
        return torch.as_tensor(_Bytes(address, count), device=self._device) if count else self.room(0)

    def send(self, results: torch.Tensor) -> Arrival:
        """Have results copied to the host on a stream of our own, after what is on the current stream so far."""
        pinned = torch.empty(results.shape, dtype=results.dtype, device="cpu", pin_memory=True)
        self._aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._aside):
            pinned.copy_(results, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._aside)
        results.record_stream(self._aside)
        return _Pinned(pinned, done)

    def mark(self) -> Any:
        """A point in the work of the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, first: Any, last: Any) -> float:
        """What the device took from one mark to another, once it has come past both."""
        milliseconds: float = first.elapsed_time(last)
        return milliseconds / 1000


class _Bytes:
    """Memory of a CUDA device, in the words in which libraries hand it to each other."""

    def __init__(self, address: int, count: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": "|u1", "data": (address, False), "strides": None, "version": 2,
        }  # fmt: skip


class _Pinned:
    """Results in pinned memory, there once an event has come to pass."""

    def __init__(self, results: torch.Tensor, done: torch.cuda.Event) -> None:
        self._results, self._done = results, done

    def ready(self) -> bool:
        if torch.cuda.is_current_stream_capturing():  # a query would spoil the program's graph
            return False
        there: bool = self._done.query()  # type: ignore[no-untyped-call]
        return there

    def wait(self) -> Longs:
        self._done.synchronize()
        return self._results.numpy()


class HostDevice:
    """The memory of the host as if it were a device: everything but streams and kernels is run so without a device."""

    has_triton = False

    def __init__(self) -> None:
        self.name = "cpu"
        self.memory = machine_memory() // SHARE

    def owns(self, tensor: torch.Tensor) -> bool:
        """Whether a plain tensor lies here."""
        return tensor.is_cpu

    def current(self) -> AbstractContextManager[Any]:
        """Nothing is to be done."""
        return nullcontext()

    def upload(self, array: Longs) -> torch.Tensor:
        """A copy of an array."""
        return torch.from_numpy(np.array(array, np.int64, order="C"))

    def room(self, count: int) -> torch.Tensor:
        """`count` bytes, uint8."""
        return torch.empty(count, dtype=torch.uint8, device="cpu")

    def view(self, address: int, count: int) -> torch.Tensor:
        """The bytes at an address as uint8, not copied."""
        memory = (ctypes.c_ubyte * count).from_address(address) if count else bytearray()
        return torch.frombuffer(memory, dtype=torch.uint8) if count else self.room(0)

    def send(self, results: torch.Tensor) -> Arrival:
        """The results as they are: they are here."""
        return _Here(results)

    def mark(self) -> Any:
        """Nothing: what is launched is done when the launch returns."""
        return None

    def seconds(self, first: Any, last: Any) -> float:
        """Nothing beside what the host took."""
        return 0.0


class _Here:
    def __init__(self, results: torch.Tensor) -> None:
        self._results = results

    def ready(self) -> bool:
        return True

    def wait(self) -> Longs:
        return self._results.numpy()


_known: dict[int, CudaDevice] = {}


def cuda_device(tensor: Any) -> CudaDevice | None:
    """The CUDA device that a tensor (also the local piece of a sharded one) lies on; None for other tensors."""
    local = getattr(tensor, "_local_tensor", tensor)
    if not isinstance(local, torch.Tensor) or not local.is_cuda:
        return None
    index = local.get_device()
    if index not in _known:
        _known[index] = CudaDevice(torch.device("cuda", index))
    return _known[index]
