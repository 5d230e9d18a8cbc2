"""The fingerprint of a tensor, the fixed indices of its sample, and the exact widening of narrow floats (NumPy)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.trace.jobs import DTYPES, NAMES, SAMPLE_SIZE

Words = NDArray[np.uint64]

BLOCK = 32768
"""Elements worked on at a time: temporaries stay in the cache, and the borders of sums never move."""

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
CANONICAL_NAN = 0x7FF8000000000000

_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_MINIFLOATS = {  # exponent bits, mantissa bits, bias, has signed zero and the rest of IEEE's encoding
    "float8_e4m3fn": (4, 3, 7),
    "float8_e4m3fnuz": (4, 3, 8),
    "float8_e5m2fnuz": (5, 2, 16),
}


def hash_words(words: Words, start: int = 0, step: int = 1) -> int:
    """Return the part of a fingerprint that `words` contribute, modulo 2**64.

    words: uint64, shape (n,); the element at position k has the logical index `start + k * step`. The mixing function
    is the finaliser of splitmix64 (Steele, Lea and Flood 2014). Parts of one tensor add up in any order.
    """
    total = 0
    stride = step * GOLDEN & MASK
    ramp = np.arange(min(len(words), BLOCK), dtype=np.uint64) * np.uint64(stride)
    for low in range(0, len(words), BLOCK):
        word = words[low : low + BLOCK]
        offset = ((start + 1) * GOLDEN + low * stride) & MASK
        z = ramp[: len(word)] + np.uint64(offset)
        z += word
        z ^= z >> _S30
        z *= _MUL1
        z ^= z >> _S27
        z *= _MUL2
        z ^= z >> _S31
        z[word == 0] = 0
        total += int(z.sum(dtype=np.uint64))
    return total & MASK


def words_of(values: NDArray[Any], dtype: int) -> Words:
    """Return w_i of each element: its bits zero-extended to uint64, narrow floats as the bits of their float32 value.

    values: shape (n,), any NumPy dtype of the width that the dtype code has (bfloat16 comes as uint16, for example).
    """
    name = NAMES[dtype]
    bits = values.view(_UNSIGNED[values.itemsize])
    return (widen(bits, name) if is_narrow(name) else bits).astype(np.uint64)


def is_narrow(name: str) -> bool:
    """Tell whether a dtype is a float narrower than float32, measured as the float32 of the same value."""
    return name in ("float16", "bfloat16") or name.startswith("float8")


def widen(bits: NDArray[Any], name: str) -> NDArray[np.uint32]:
    """Return the float32 bits of each narrow float.

    A NaN keeps its sign and its payload. The NaNs of float16 and float8 are made quiet, as IEEE 754 conversion does;
    bfloat16 is the upper half of float32, whatever it holds.
    """
    if name == "bfloat16":
        return bits.astype(np.uint32) << np.uint32(16)
    wide: NDArray[np.uint32] = _table(name)[bits]
    return wide


@cache
def _table(name: str) -> NDArray[np.uint32]:
    """Float32 bits of every float16 (65536 entries) or float8 (256)."""
    if name == "float16":
        return _ieee_half(np.arange(65536, dtype=np.uint32))
    code = np.arange(256, dtype=np.uint32)
    if name == "float8_e5m2":
        return _ieee_half(code << np.uint32(8))
    if name == "float8_e8m0fnu":
        value = np.ldexp(np.float32(1), np.minimum(code, 254).astype(np.int32) - 127)
        bits = value.view(np.uint32)
        bits[255] = 0x7FC00000
        return bits
    exponent_bits, mantissa_bits, bias = _MINIFLOATS[name]
    sign = (code >> 7) << np.uint32(31)
    exponent = (code >> mantissa_bits & ((1 << exponent_bits) - 1)).astype(np.int32)
    mantissa = (code & ((1 << mantissa_bits) - 1)).astype(np.int32)
    implicit = (exponent > 0).astype(np.int32) << mantissa_bits
    value = np.ldexp((mantissa + implicit).astype(np.float32), np.maximum(exponent, 1) - bias - mantissa_bits)
    nan = code & 0x7F == 0x7F if name == "float8_e4m3fn" else code == 0x80
    table: NDArray[np.uint32] = np.where(nan, np.uint32(0x7FC00000), value.view(np.uint32)) | sign
    return table


def _ieee_half(code: NDArray[np.uint32]) -> NDArray[np.uint32]:
    exponent = (code >> 10 & 0x1F).astype(np.int32)
    mantissa = code & 0x3FF
    implicit = (exponent > 0).astype(np.uint32) << 10
    finite = np.ldexp((mantissa | implicit).astype(np.float32), np.maximum(exponent, 1) - 25).view(np.uint32)
    special = np.uint32(0x7F800000) | mantissa << 13 | (mantissa != 0).astype(np.uint32) << 22
    table: NDArray[np.uint32] = np.where(exponent == 31, special, finite) | (code & 0x8000) << 16
    return table


def sample_indices(numel: int) -> NDArray[np.int64]:
    """Return the logical indices that a tensor of `numel` elements is sampled at: int64, shape (min(numel, 16),).

    All of them up to 16; else 0, numel - 1 and floor(((j+1) * 0.6180339887498949 mod 1) * numel) for j = 0..13.
    """
    if numel <= SAMPLE_SIZE:
        return np.arange(numel, dtype=np.int64)
    fraction = np.arange(1, SAMPLE_SIZE - 1) * 0.6180339887498949 % 1.0
    return np.concatenate([[0, numel - 1], np.floor(fraction * numel)]).astype(np.int64)


class Layout:
    """Where the elements of a piece of a tensor, taken in the order of memory, lie in the whole tensor.

    Element (i_0, .., i_k) of the piece has the logical index `base + sum(i_k * strides[k])` in the whole. Sizes run
    from the slowest to the fastest dimension of memory, so a permuted dense tensor is described as well as a shard is.
    """

    def __init__(self, base: int, sizes: list[int], strides: list[int]) -> None:
        self.base = base
        dims = [(size, stride) for size, stride in zip(sizes, strides, strict=True) if size != 1]
        merged: list[tuple[int, int]] = []
        for size, stride in dims:
            if merged and merged[-1][1] == size * stride:
                merged[-1] = (merged[-1][0] * size, stride)
            else:
                merged.append((size, stride))
        self.sizes = [size for size, _ in merged] or [1]
        self.strides = [stride for _, stride in merged] or [1]

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yield (position in memory, logical index, elements) of each run along the fastest dimension."""
        length = self.sizes[-1]
        for number, outer in enumerate(np.ndindex(*self.sizes[:-1])):
            yield number * length, self.base + sum(i * s for i, s in zip(outer, self.strides, strict=False)), length

    def position(self, index: int) -> int | None:
        """Return the position in memory of a logical index of the whole, or None where another piece holds it."""
        rest = index - self.base
        place = [0] * len(self.sizes)
        for k in sorted(range(len(self.sizes)), key=lambda k: -self.strides[k]):
            place[k], rest = divmod(rest, self.strides[k])
            if not 0 <= place[k] < self.sizes[k]:
                return None
        if rest:
            return None
        position = 0
        for size, i in zip(self.sizes, place, strict=True):
            position = position * size + i
        return position


def code_of(name: str) -> int:
    """Return the dtype code of a dtype's name; raises TypeError for one that cannot be measured."""
    try:
        return DTYPES[name]
    except KeyError:
        raise TypeError(
            f"cannot measure dtype {name!r}; known: {', '.join(DTYPES)}, and complex as its real view"
        ) from None
