"""One fingerprint of the random generators that a training step can draw from, read without touching them."""

from __future__ import annotations

import random
import struct
import sys
import zlib
from collections.abc import Callable
from ctypes import c_char, memmove, string_at
from typing import Any

from optrace.trace.measure import kernel

_WORDS = 624
_MT_BYTES = 4 * (_WORDS + 1)
"""State of a Mersenne Twister: 624 words and the position within them."""

_HEAD = 64
"""Words of a Mersenne Twister's state that are hashed, beside its position.

All words are functions of the seed and are replaced together every 624 draws, so two generators that agree in 64 words
and the position agree in all. Hashing every word would cost more than the rest of a small step's bookkeeping.
"""

_TORCH_STATE = 24 + 8 * _WORDS
"""Where the words end in torch's CPU state: seed, left, seeded and next come before, kept normal deviates after."""
_TORCH_HEAD = 24 + 8 * _HEAD

_ENGINE_WITHIN = 192
"""So many bytes into torch's generator its engine begins at the latest (in 2.13: 80)."""
_ENGINE = struct.Struct("=Q i B 3x I")
"""Head of the engine: seed, left, seeded, next; the words follow."""
_ENGINE_WORDS, _ENGINE_SIZE = _ENGINE.size, 2520
_KEPT = struct.Struct("=f ? 3x d ?")
"""Normal deviates kept behind the engine: a float and a double, each with whether there is one."""
_DEVIATES = struct.Struct("=3d i 4x f ? 3x")
"""The same at the end of the state that `get_state()` gives."""


def generator_fingerprint() -> int:
    """Return one signed 64-bit number for the states of Python's, NumPy's, torch's and CUDA's default generators.

    Equal states give equal numbers in every process; reading changes none of them and waits for no device. The upper
    32 bits are a CRC-32 of the states of `random` and of NumPy's global generator (where NumPy is imported and it is a
    Mersenne Twister), the lower 32 bits that of torch's CPU generator and of each CUDA device's, once CUDA is in use.
    """
    number = _unchanged(LAST)  # most steps of most programs draw nothing
    return _looked_at_anew() if number is None else number


LAST: list[Any] = []
"""Where all can be looked at again: NumPy's generator and the bit generator in it, torch.cuda's variables, the memory
of the generators, what it held when the fingerprint was last taken, and the fingerprint; else empty."""


def _unchanged_in_python(last: list[Any]) -> int | None:
    """The last fingerprint, if no generator has changed or been put in another's place since."""
    if not last:
        return None
    rand, bits, cuda, parts, seen, number = last
    same = rand._bit_generator is bits and not cuda["_initialized"] and b"".join(parts) == seen
    return int(number) if same else None


_unchanged: Callable[[list[Any]], int | None] = getattr(kernel, "unchanged", _unchanged_in_python)


def _looked_at_anew() -> int:
    """The fingerprint, with whatever may have been imported or put in another's place since."""
    LAST.clear()
    torch = sys.modules.get("torch")
    parts = _HOST.parts()
    if torch is None:
        return _signed(_crc(parts) << 32)
    memory = _TORCH.parts(torch)
    if memory is None:
        return _signed(_crc(parts) << 32 | _torch_crc(torch))
    number = _signed(_crc(parts) << 32 | _torch_crc(torch))
    if _HOST.rand is not None and all(isinstance(part, memoryview) for part in parts + memory):
        seen = b"".join(parts + memory)
        LAST[:] = _HOST.rand, _HOST.bits, vars(torch.cuda), parts + memory, seen, number
    return number


def _crc(parts: tuple[Any, ...]) -> int:
    """CRC-32 of several pieces of memory, one after the other."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _torch_crc(torch: Any) -> int:
    """CRC-32 of torch's generators, unseen by whoever watches torch's functions or operators."""
    with torch._C.DisableTorchFunction():
        state = torch.default_generator.get_state()
        size = state.numel()
        words = memoryview((c_char * size).from_address(state.data_ptr()))
        if size > _TORCH_STATE:
            crc = zlib.crc32(words[_TORCH_STATE:], zlib.crc32(words[:_TORCH_HEAD]))
        else:
            crc = zlib.crc32(words)
        if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
            for generator in torch.cuda.default_generators:
                state = generator.get_state()
                crc = zlib.crc32(string_at(state.data_ptr(), state.numel()), crc)
    return crc


def _packed_python_state() -> bytes:
    """Python's state through its documented door: 12 microseconds, where the memory below takes 0.1."""
    *words, position = random.getstate()[1]
    return struct.pack("=i624I", position, *words)


def _python_memory() -> int | None:
    """Address of the position and the words of `random`'s generator, or None where they do not lie as expected.

    CPython keeps an int position and 624 uint32 words behind the object's head. That is checked here, once, against
    what `random.getstate()` says.
    """
    generator = getattr(random, "_inst", None)
    offset = object.__basicsize__
    base = random.Random.__base__
    if sys.implementation.name != "cpython" or type(generator) is not random.Random or base is None:
        return None
    if base.__basicsize__ < offset + _MT_BYTES:
        return None
    address = id(generator) + offset
    return address if string_at(address, _MT_BYTES) == _packed_python_state() else None


class _Host:
    """The memory of Python's and NumPy's generators: found once, looked at each time."""

    def __init__(self) -> None:
        self._held: list[Any] = [getattr(random, "_inst", None)]  # keeps alive what the addresses point to
        address = _python_memory()
        self._python = None if address is None else _view(address, 4 * (_HEAD + 1))
        self.rand: Any = None
        """NumPy's global generator, and the bit generator in it."""
        self.bits: Any = None
        self._words, self._position = memoryview(b""), memoryview(b"")

    def parts(self) -> tuple[Any, ...]:
        """Position and words of Python's generator, then words and position of NumPy's."""
        python = _packed_python_state()[: 4 * (_HEAD + 1)] if self._python is None else self._python
        if self.rand is None or self.rand._bit_generator is not self.bits:
            self._find_numpy()
        return python, self._words, self._position

    def _find_numpy(self) -> None:
        """Look up NumPy's global generator, through the address that its bit generator publishes."""
        module = sys.modules.get("numpy.random")
        if module is None:
            return
        self._words = self._position = memoryview(b"")
        try:
            self.rand = module.mtrand._rand
            self.bits = self.rand._bit_generator
        except AttributeError:  # another NumPy keeps it elsewhere
            self.rand = self.bits = None
            return
        if type(self.bits).__name__ == "MT19937":
            address = self.bits.ctypes.state_address
            self._words, self._position = _view(address, 4 * _HEAD), _view(address + 4 * _WORDS, 4)


def _view(address: int, size: int) -> memoryview:
    return memoryview((c_char * size).from_address(address)).toreadonly()


class _Torch:
    """The memory of torch's CPU generator: where it does not change, neither does its state."""

    def __init__(self) -> None:
        self._parts: tuple[Any, ...] | None = None
        self._looked = False

    def parts(self, torch: Any) -> tuple[Any, ...] | None:
        """Head and words of the engine, and the normal deviates kept beside it.

        None where they do not lie as expected, or where a CUDA device has a generator too.
        """
        if torch.cuda.is_initialized():
            return None
        if not self._looked:
            self._looked = True
            with torch._C.DisableTorchFunction():
                engine = _engine(torch)
            if engine is not None:
                words = _view(engine, _ENGINE_WORDS + 4 * _HEAD)
                self._parts = words, _view(engine + _ENGINE_SIZE, _KEPT.size)
        return self._parts


def _engine(torch: Any) -> int | None:
    """Address of the engine in torch's default generator, found by what `get_state()` says; None where it is not.

    That the deviates lie behind it is tried on a generator of our own, which is given some.
    """
    try:
        address = _find_engine(torch.default_generator)
        trial = torch.Generator()
        ours = _find_engine(trial)
        state = trial.get_state()
        if state.numel() != _TORCH_STATE + _DEVIATES.size:
            return None
        given = _DEVIATES.pack(0.0, 0.375, 0.0, 1, 0.25, True)
        memmove(state.data_ptr() + _TORCH_STATE, given, len(given))
        trial.set_state(state)
    except (AttributeError, ValueError, RuntimeError, struct.error):
        return None
    if address is None or ours is None:
        return None
    kept = _KEPT.unpack(string_at(ours + _ENGINE_SIZE, _KEPT.size))
    return address if kept == (0.25, True, 0.375, True) else None


def _find_engine(generator: Any) -> int | None:
    """Address of the engine of a CPU generator, or None where its memory does not hold what it says.

    CPython's view of it keeps where the C++ object lies; the engine is a part of that.
    """
    state = generator.get_state()
    data = string_at(state.data_ptr(), state.numel())
    seed, left, seeded, following = struct.unpack_from("=Q i i Q", data)
    words = struct.pack(f"={_WORDS}I", *struct.unpack_from(f"={_WORDS}Q", data, 24))
    start: int = generator._cdata
    memory = string_at(start, _ENGINE_WITHIN + _ENGINE.size)
    for place in range(0, _ENGINE_WITHIN, 8):
        if _ENGINE.unpack_from(memory, place) == (seed, left, seeded, following):
            return start + place if string_at(start + place + _ENGINE_WORDS, 4 * _WORDS) == words else None
    return None


_HOST = _Host()
_TORCH = _Torch()
