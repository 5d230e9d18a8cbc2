"""The measuring kernels for a device, in Triton: all tensors of a hook in one launch, and one to put parts together.

`measure_units` gives each unit (a stretch of one tensor) a program of its own, which leaves sums, extrema, counts and a
part of the fingerprint; `finish_jobs` adds up the units of each tensor in their order and picks its sample. No atomics:
results do not depend on what ran when. Definitions are those of `optrace.trace.measure`: fingerprints, counts, extrema
and samples are equal bit for bit to the CPU's, sums within rounding.

Imported only where Triton is installed. The tests run these kernels in Triton's interpreter and have its compiler make
machine code of them for NVIDIA chips.
"""

from __future__ import annotations

import triton
import triton.language as tl

from optrace.recorder.device_table import BIG, SHIFT, SMALL

CHUNK = 512
"""Elements that a program works on at a time: with 8 warps ptxas needs 80 registers a thread for sm_90, no spills."""

_SHIFT: tl.constexpr = tl.constexpr(SHIFT)
_UP: tl.constexpr = tl.constexpr(2.0**SHIFT)
_DOWN: tl.constexpr = tl.constexpr(2.0**-SHIFT)
_BIG: tl.constexpr = tl.constexpr(BIG)
_SMALL: tl.constexpr = tl.constexpr(SMALL)
_LEAST: tl.constexpr = tl.constexpr(2.0**-149)


@triton.jit
def _mix(z):
    """The finaliser of splitmix64; z: uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def _widen_half(bits):
    """The float32 bits of float16 (uint32 in and out), exactly: NaNs become quiet and keep their payload."""
    exponent = (bits >> 10) & 31
    fraction = bits & 1023
    normal = ((exponent + 112) << 23) | (fraction << 13)
    small = (fraction.to(tl.float32) * 5.9604644775390625e-08).to(tl.uint32, bitcast=True)
    odd = 0x7F800000 | (fraction << 13) | ((fraction != 0).to(tl.uint32) << 22)
    magnitude = tl.where(exponent == 31, odd, tl.where(exponent == 0, small, normal))
    return magnitude | ((bits & 0x8000) << 16)


@triton.jit
def _read(address, dtype, at, mask, minifloats):
    """The elements at positions `at`: what is hashed of them (uint64), and their values (float64). Zero where masked.

    dtype is a code of `optrace.trace.jobs.DTYPES`.
    """
    word = tl.zeros_like(at).to(tl.uint64)
    value = word.to(tl.float64)
    if (dtype == 0) | (dtype == 7) | (dtype == 11):
        word = tl.load(address.to(tl.pointer_type(tl.uint64)) + at, mask=mask, other=0)
        if dtype == 0:
            value = word.to(tl.float64, bitcast=True)
        elif dtype == 7:
            value = word.to(tl.int64, bitcast=True).to(tl.float64)
        else:
            value = word.to(tl.float64)
    elif (dtype == 6) | (dtype == 10):
        narrow = tl.load(address.to(tl.pointer_type(tl.uint32)) + at, mask=mask, other=0)
        word = narrow.to(tl.uint64)
        if dtype == 6:
            value = narrow.to(tl.int32, bitcast=True).to(tl.float64)
        else:
            value = narrow.to(tl.float64)
    elif (dtype == 5) | (dtype == 9):
        short = tl.load(address.to(tl.pointer_type(tl.uint16)) + at, mask=mask, other=0)
        word = short.to(tl.uint64)
        if dtype == 5:
            value = short.to(tl.int16, bitcast=True).to(tl.float64)
        else:
            value = short.to(tl.float64)
    elif (dtype == 4) | (dtype == 8) | (dtype == 12):
        byte = tl.load(address.to(tl.pointer_type(tl.uint8)) + at, mask=mask, other=0)
        word = byte.to(tl.uint64)
        if dtype == 4:
            value = byte.to(tl.int8, bitcast=True).to(tl.float64)
        else:
            value = byte.to(tl.float64)
    else:
        single = tl.zeros_like(at).to(tl.uint32)
        if dtype == 1:
            single = tl.load(address.to(tl.pointer_type(tl.uint32)) + at, mask=mask, other=0)
        elif dtype == 3:
            brain = tl.load(address.to(tl.pointer_type(tl.uint16)) + at, mask=mask, other=0)
            single = brain.to(tl.uint32) << 16
        elif dtype == 2:
            half = tl.load(address.to(tl.pointer_type(tl.uint16)) + at, mask=mask, other=0)
            single = _widen_half(half.to(tl.uint32))
        else:
            code = tl.load(address.to(tl.pointer_type(tl.uint8)) + at, mask=mask, other=0)
            place = (dtype - 13) * 256 + code.to(tl.int32)
            wide = tl.load(minifloats + place, mask=mask, other=0)
            single = wide.to(tl.uint32, bitcast=True)
        word = single.to(tl.uint64)
        value = _exact(single)
    return word, value


@triton.jit
def _exact(single):
    """float32 bits as float64; subnormals by their integer, so that nothing rests on how the device treats them."""
    fraction = single & 0x7FFFFF
    small = fraction.to(tl.float64) * _LEAST
    small = tl.where((single >> 31) != 0, -small, small)
    value = single.to(tl.float32, bitcast=True).to(tl.float64)
    return tl.where(((single >> 23) & 255) == 0, small, value)


@triton.jit
def _copy(to, source, dtype, at, mask):
    """Copy the elements at positions `at`, whatever they are."""
    if (dtype == 0) | (dtype == 7) | (dtype == 11):
        word = tl.load(source.to(tl.pointer_type(tl.uint64)) + at, mask=mask)
        tl.store(to.to(tl.pointer_type(tl.uint64)) + at, word, mask=mask)
    elif (dtype == 1) | (dtype == 6) | (dtype == 10):
        narrow = tl.load(source.to(tl.pointer_type(tl.uint32)) + at, mask=mask)
        tl.store(to.to(tl.pointer_type(tl.uint32)) + at, narrow, mask=mask)
    elif (dtype == 2) | (dtype == 3) | (dtype == 5) | (dtype == 9):
        short = tl.load(source.to(tl.pointer_type(tl.uint16)) + at, mask=mask)
        tl.store(to.to(tl.pointer_type(tl.uint16)) + at, short, mask=mask)
    else:
        byte = tl.load(source.to(tl.pointer_type(tl.uint8)) + at, mask=mask)
        tl.store(to.to(tl.pointer_type(tl.uint8)) + at, byte, mask=mask)


@triton.jit
def _element(op, dtype, a, b, at, mask, minifloats):
    """Words and values of a job's elements: of `a`, or for an update of a - b, with one NaN."""
    word, value = _read(a, dtype, at, mask, minifloats)
    if op == 1:
        _, before = _read(b, dtype, at, mask, minifloats)
        value = value - before
        word = tl.where(value != value, 0x7FF8000000000000, value.to(tl.uint64, bitcast=True))
    return word, value


@triton.jit
def _index(entry, at, SIZES: tl.constexpr, DIMS: tl.constexpr):
    """Logical indices in the whole tensor of the elements at positions `at` in memory."""
    index = tl.load(entry + 5) + at
    ndim = tl.load(entry + 6)
    if ndim > 0:
        rest = at
        index = at * 0 + tl.load(entry + 5)
        for d in range(0, ndim):
            size = tl.load(entry + SIZES + d)
            index += (rest % size) * tl.load(entry + SIZES + DIMS + d)
            rest = rest // size
    return index


@triton.jit(do_not_specialize=["n_units"])
def measure_units(
    jobs, addresses, units, parts, minifloats, n_units, unit,
    FIELDS: tl.constexpr, SIZES: tl.constexpr, DIMS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One unit a program; `parts` is [10, n_units] of 64-bit words."""
    number = tl.program_id(0).to(tl.int64)
    job = tl.load(units + 2 * number)
    start = tl.load(units + 2 * number + 1)
    entry = jobs + job * FIELDS
    op, dtype, numel = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    a, b = tl.load(addresses + 2 * job), tl.load(addresses + 2 * job + 1)
    stop = tl.minimum(start + unit, numel)
    lane = tl.arange(0, CHUNK).to(tl.int64)

    exponent = tl.full([], 0, tl.int64)
    scale = tl.full([], 1.0, tl.float64)
    if dtype == 0:  # squares of float64 can leave its range
        largest = tl.zeros([CHUNK], tl.float64)
        for begin in range(start, stop, CHUNK):
            at = begin + lane
            _, value = _element(op, dtype, a, b, at, at < stop, minifloats)
            magnitude = tl.abs(value)
            largest = tl.maximum(largest, tl.where(magnitude < float("inf"), magnitude, 0.0))
        most = tl.max(largest, 0)
        if most > _BIG:
            exponent = tl.full([], _SHIFT, tl.int64)
            scale = tl.full([], _DOWN, tl.float64)
        elif most < _SMALL:
            exponent = tl.full([], -_SHIFT, tl.int64)
            scale = tl.full([], _UP, tl.float64)

    total = tl.zeros([CHUNK], tl.float64)
    absolute = tl.zeros([CHUNK], tl.float64)
    squares = tl.zeros([CHUNK], tl.float64)
    low = tl.full([CHUNK], float("inf"), tl.float64)
    high = tl.full([CHUNK], float("-inf"), tl.float64)
    n_nan = tl.zeros([CHUNK], tl.int32)
    n_inf = tl.zeros([CHUNK], tl.int32)
    n_zero = tl.zeros([CHUNK], tl.int32)
    fingerprint = tl.zeros([CHUNK], tl.uint64)
    for begin in range(start, stop, CHUNK):
        at = begin + lane
        mask = at < stop
        word, value = _element(op, dtype, a, b, at, mask, minifloats)
        if op == 2:
            _copy(b, a, dtype, at, mask)
        index = _index(entry, at, SIZES, DIMS)
        mixed = _mix(word + (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15)
        fingerprint += tl.where(word != 0, mixed, word)
        magnitude = tl.abs(value)
        finite = mask & (magnitude < float("inf"))
        n_nan += (value != value).to(tl.int32)
        n_inf += (magnitude == float("inf")).to(tl.int32)
        n_zero += (mask & (value == 0)).to(tl.int32)
        low = tl.minimum(low, tl.where(finite, value, float("inf")))
        high = tl.maximum(high, tl.where(finite, value, float("-inf")))
        scaled = tl.where(finite, value, 0.0) * scale
        total += scaled
        absolute += tl.abs(scaled)
        squares += scaled * scaled

    floats = parts.to(tl.pointer_type(tl.float64)) + number
    tl.store(floats, tl.sum(total, 0))
    tl.store(floats + n_units, tl.sum(absolute, 0))
    tl.store(floats + 2 * n_units, tl.sum(squares, 0))
    tl.store(floats + 3 * n_units, tl.min(low, 0))
    tl.store(floats + 4 * n_units, tl.max(high, 0))
    longs = parts + number
    tl.store(longs + 5 * n_units, exponent)
    tl.store(longs + 6 * n_units, tl.sum(n_nan, 0))
    tl.store(longs + 7 * n_units, tl.sum(n_inf, 0))
    tl.store(longs + 8 * n_units, tl.sum(n_zero, 0))
    tl.store(longs + 9 * n_units, tl.sum(fingerprint, 0).to(tl.int64, bitcast=True))


@triton.jit(do_not_specialize=["n_units"])
def finish_jobs(
    jobs, addresses, parts, results, minifloats, n_units,
    FIELDS: tl.constexpr, SAMPLE: tl.constexpr, RESULT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One job a program; `results` is [n, RESULT] of 64-bit words."""
    job = tl.program_id(0).to(tl.int64)
    entry = jobs + job * FIELDS
    op, dtype = tl.load(entry), tl.load(entry + 1)
    first, count = tl.load(entry + 3), tl.load(entry + 4)
    floats = parts.to(tl.pointer_type(tl.float64))
    lane = tl.arange(0, WIDTH).to(tl.int64)

    largest = tl.full([WIDTH], -_SHIFT, tl.int64)
    for begin in range(first, first + count, WIDTH):
        at = begin + lane
        largest = tl.maximum(largest, tl.load(parts + 5 * n_units + at, mask=at < first + count, other=-_SHIFT))
    exponent = tl.max(largest, 0)

    total = tl.zeros([WIDTH], tl.float64)
    absolute = tl.zeros([WIDTH], tl.float64)
    squares = tl.zeros([WIDTH], tl.float64)
    low = tl.full([WIDTH], float("inf"), tl.float64)
    high = tl.full([WIDTH], float("-inf"), tl.float64)
    n_nan = tl.zeros([WIDTH], tl.int64)
    n_inf = tl.zeros([WIDTH], tl.int64)
    n_zero = tl.zeros([WIDTH], tl.int64)
    fingerprint = tl.zeros([WIDTH], tl.int64)
    for begin in range(first, first + count, WIDTH):
        at = begin + lane
        mask = at < first + count
        below = exponent - tl.load(parts + 5 * n_units + at, mask=mask, other=0)
        # what is 2**600 times smaller hardly counts in a sum, and not at all in one of squares
        factor = tl.where(below == 0, 1.0, tl.where(below == _SHIFT, _DOWN, 0.0))
        total += tl.load(floats + at, mask=mask, other=0.0) * factor
        absolute += tl.load(floats + n_units + at, mask=mask, other=0.0) * factor
        squares += tl.where(below == 0, tl.load(floats + 2 * n_units + at, mask=mask, other=0.0), 0.0)
        low = tl.minimum(low, tl.load(floats + 3 * n_units + at, mask=mask, other=float("inf")))
        high = tl.maximum(high, tl.load(floats + 4 * n_units + at, mask=mask, other=float("-inf")))
        n_nan += tl.load(parts + 6 * n_units + at, mask=mask, other=0)
        n_inf += tl.load(parts + 7 * n_units + at, mask=mask, other=0)
        n_zero += tl.load(parts + 8 * n_units + at, mask=mask, other=0)
        fingerprint += tl.load(parts + 9 * n_units + at, mask=mask, other=0)

    out = results + job * RESULT
    numbers = out.to(tl.pointer_type(tl.float64))
    tl.store(numbers, tl.sum(total, 0))
    tl.store(numbers + 1, tl.sum(absolute, 0))
    tl.store(numbers + 2, tl.sum(squares, 0))
    tl.store(numbers + 3, tl.min(low, 0))
    tl.store(numbers + 4, tl.max(high, 0))
    tl.store(out + 5, exponent)
    tl.store(out + 6, tl.sum(n_nan, 0))
    tl.store(out + 7, tl.sum(n_inf, 0))
    tl.store(out + 8, tl.sum(n_zero, 0))
    tl.store(out + 9, tl.sum(fingerprint, 0))

    slot = tl.arange(0, 16)
    position = tl.load(entry + SAMPLE + slot)
    held = position >= 0
    a, b = tl.load(addresses + 2 * job), tl.load(addresses + 2 * job + 1)
    _, value = _element(op, dtype, a, b, tl.where(held, position, 0), held, minifloats)
    tl.store(numbers + (RESULT - 16) + slot, tl.where(held, value, float("nan")))
