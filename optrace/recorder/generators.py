"""One fingerprint of the random generators that a training step can draw from, read without touching them."""

from __future__ import annotations

import random
import struct
import sys
import zlib
from ctypes import c_char, string_at
from typing import Any

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


def generator_fingerprint() -> int:
    """Return one signed 64-bit number for the states of Python's, NumPy's, torch's and CUDA's default generators.

    Equal states give equal numbers in every process; reading changes none of them and waits for no device. The upper
    32 bits are a CRC-32 of the states of `random` and of NumPy's global generator (where NumPy is imported and it is a
    Mersenne Twister), the lower 32 bits that of torch's CPU generator and of each CUDA device's, once CUDA is in use.
    """
    torch = sys.modules.get("torch")
    upper = _HOST.crc()
    number = upper << 32 | (0 if torch is None else _torch_crc(torch))
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
        self._rand: Any = None
        self._bits: Any = None
        self._words, self._position = memoryview(b""), memoryview(b"")

    def crc(self) -> int:
        """CRC-32 of position and words of Python's generator, then words and position of NumPy's."""
        python = _packed_python_state()[: 4 * (_HEAD + 1)] if self._python is None else self._python
        if self._rand is None or self._rand._bit_generator is not self._bits:
            self._find_numpy()
        return zlib.crc32(self._position, zlib.crc32(self._words, zlib.crc32(python)))

    def _find_numpy(self) -> None:
        """Look up NumPy's global generator, through the address that its bit generator publishes."""
        module = sys.modules.get("numpy.random")
        if module is None:
            return
        self._words = self._position = memoryview(b"")
        try:
            self._rand = module.mtrand._rand
            self._bits = self._rand._bit_generator
        except AttributeError:  # another NumPy keeps it elsewhere
            self._rand = self._bits = None
            return
        if type(self._bits).__name__ == "MT19937":
            address = self._bits.ctypes.state_address
            self._words, self._position = _view(address, 4 * _HEAD), _view(address + 4 * _WORDS, 4)


def _view(address: int, size: int) -> memoryview:
    return memoryview((c_char * size).from_address(address)).toreadonly()


_HOST = _Host()
