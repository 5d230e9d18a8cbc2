"""How ATen rounds on a CPU: the tensor operations that optimizers are made of, in NumPy, bit for bit.

Floating-point addition is not associative, and `a + s*b` has two right answers: rounded twice (multiply, then add)
or once (a fused multiply-add). ATen's AVX2 and AVX-512 kernels fuse; its plain kernels
(`ATEN_CPU_CAPABILITY=default`) do not. NumPy never fuses, so this module brings an exact `fma` of its own.

| ATen operation                  | fused                                     | not fused                   |
|---------------------------------|-------------------------------------------|-----------------------------|
| `a.add(b, alpha=s)`             | fma(b, s, a)                              | a + s*b                     |
| `a.addcmul(b, c, value=v)`      | fma(v*b, c, a)                            | a + (v*b)*c                 |
| `a.addcdiv(b, c, value=v)`      | a + (v*b)/c                               | the same                    |
| `a.lerp(b, w)`, abs(w) < 0.5    | fma(w, b-a, a)                            | a + w*(b-a)                 |
| `a.lerp(b, w)`, otherwise       | fma(w-1, b-a, b)                          | b + (w-1)*(b-a)             |
| `a * s`, `a / s`                | one rounding                              | the same                    |
| `s / a`                         | (1/a) * s: two roundings                  | the same                    |

A scalar is a Python double until it meets a tensor; there it is rounded once, to the tensor's dtype. float16 is
computed in float32 and rounded after every operation; that is exact where torch works in whole vectors, while in the
rest of a tensor, and in strided ones, torch rounds the product inside `add(alpha)` once more. NumPy has no bfloat16.
Every function takes and returns ndarrays (0-d ones stay arrays), never writes to its arguments, and is silent about
overflow and NaN, as torch is.

Measured on torch 2.13.0, x86-64. Square roots, sums and matrix products torch leaves to libraries (its square root is
Intel MKL's on such builds, up to one ulp from the correctly rounded one; sums depend on the order of summation). They
are rounded correctly here, and `rounding(sqrt=...)` substitutes another.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Scalar: TypeAlias = float | np.floating[Any] | np.integer[Any]


@dataclass(frozen=True)
class Rounding:
    """What of the arithmetic depends on the machine.

    Attributes:
        fma: whether multiply-adds are fused.
        instead: functions to use in place of this module's `sqrt`, `total`, `dot`, `norm`, `mean` and
            `bfloat16_matmul`, by name: the operations whose last bits torch leaves to libraries.
    """

    fma: bool
    instead: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


_REPLACEABLE: set[str] = set()
_chosen: ContextVar[Rounding | None] = ContextVar("optrace_rounding", default=None)


@functools.cache
def machine_has_fma() -> bool:
    """Whether torch on this CPU would choose kernels with fused multiply-add, `ATEN_CPU_CAPABILITY` aside."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True
    core = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
    features = importlib.import_module(f"{core}._multiarray_umath").__cpu_features__
    return bool(features.get("AVX2") and features.get("FMA3")) or bool(features.get("X86_V3"))


def current() -> Rounding:
    """The rounding in force: the innermost `rounding(...)`, else what torch would do on this machine."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    return Rounding(fma=machine_has_fma() and os.environ.get("ATEN_CPU_CAPABILITY", "").lower() != "default")


@contextlib.contextmanager
def rounding(*, fma: bool | None = None, **instead: Callable[..., Any]) -> Iterator[Rounding]:
    """Choose the arithmetic for a block of code; what is left out stays as it was.

    Args:
        fma: fuse multiply-adds, as torch's AVX2 and AVX-512 kernels do, or not.
        **instead: functions to use in place of those of this module, by name: see `Rounding.instead`. With
            `sqrt=lambda x: torch.from_numpy(x).sqrt().numpy()` square roots are torch's own.
    """
    unknown = sorted(set(instead) - _REPLACEABLE)
    if unknown:
        raise TypeError(f"rounding() can replace {', '.join(sorted(_REPLACEABLE))}, not {', '.join(unknown)}")
    before = current()
    chosen = Rounding(before.fma if fma is None else fma, {**before.instead, **instead})
    token = _chosen.set(chosen)
    try:
        yield chosen
    finally:
        _chosen.reset(token)


def fma(a: Array, b: Array, c: Array) -> Array:
    """`a*b + c` with a single rounding, for float32 or float64 arrays that broadcast against each other.

    The same result as the hardware's instruction, subnormals, infinities and signed zeros included.
    """
    a, b, c = np.asarray(a), np.asarray(b), np.asarray(c)
    with np.errstate(all="ignore"):
        return np.asarray(_fma32(a, b, c) if a.dtype == np.float32 else _fma64(a, b, c))


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Knuth: the rounded sum, and its exact error."""
    total = np.asarray(a + b)
    b_part = total - a
    return total, np.asarray((a - (total - b_part)) + (b - b_part))


def _to_odd(total: Array, error: Array) -> Array:
    """Turn a sum rounded to nearest into the same sum rounded to odd, so that rounding it again does no harm."""
    inexact = (error != 0) & np.isfinite(total)
    bits, error_bits = total.view(np.int64), error.view(np.int64)
    beyond = inexact & ((bits ^ error_bits) < 0)  # the exact sum is nearer to zero than `total`
    return np.asarray((bits - beyond) | inexact).view(np.float64)


def _fma32(a: Array, b: Array, c: Array) -> Array:
    """Two float32 have an exact product in float64; only the sum and the way back to float32 round."""
    product = a.astype(np.float64) * b.astype(np.float64)
    return np.asarray(_to_odd(*_two_sum(product, c.astype(np.float64)))).astype(np.float32)


_SPLIT = 134217729.0  # 2**27 + 1, Veltkamp's constant for 53-bit floats
_LARGE, _SMALL = 2.0**990, 2.0**-960  # beyond these the error-free transforms could overflow or underflow


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Dekker: the rounded product, and its exact error."""
    product = np.asarray(a * b)
    scaled_a, scaled_b = a * _SPLIT, b * _SPLIT
    a_high, b_high = scaled_a - (scaled_a - a), scaled_b - (scaled_b - b)
    a_low, b_low = a - a_high, b - b_high
    return product, np.asarray(((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low)


def _fma64(a: Array, b: Array, c: Array) -> Array:
    """Boldo and Melquiond, Emulation of a FMA and correctly rounded sums (2008): round to odd, then to nearest."""
    high, low = _two_product(a, b)
    middle_high, middle_low = _two_sum(c, low)
    total, rest = _two_sum(high, middle_high)
    result = np.asarray(total + _to_odd(*_two_sum(middle_low, rest)))

    plain = np.where(np.isfinite(a) & np.isfinite(b) & np.isinf(c), c, a * b + c)
    size = np.abs(high)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    extreme = np.maximum(np.maximum(np.abs(a), np.abs(b)), np.maximum(np.abs(c), size)) > _LARGE
    extreme = finite & (extreme | ((size < _SMALL) & (a != 0) & (b != 0)))
    result = np.where(finite & (result != 0), result, plain)  # plain is right for zeros, infinities and NaN
    if extreme.any():
        a, b, c, _ = np.broadcast_arrays(a, b, c, result)
        triples = zip(a[extreme].tolist(), b[extreme].tolist(), c[extreme].tolist(), strict=True)
        result[extreme] = [_fma_of_rationals(*triple) for triple in triples]
    return result


def _fma_of_rationals(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c
    try:
        return float(exact)
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def _operation(function: Callable[..., Array]) -> Callable[..., Array]:
    """Give an operation on float32 and float64 its float16 form, silence, and an ndarray for a result."""

    @functools.wraps(function)
    def run(*operands: Any, **options: Any) -> Array:
        with np.errstate(all="ignore"):
            if not any(isinstance(operand, np.ndarray) and operand.dtype == np.float16 for operand in operands):
                return np.asarray(function(*operands, **options))
            wide = [operand.astype(np.float32) if isinstance(operand, np.ndarray) else operand for operand in operands]
            if "alpha" in options:  # ATen hands this one scalar over in the tensor's dtype, not in float32
                options["alpha"] = float(np.float16(options["alpha"]))
            return np.asarray(function(*wide, **options)).astype(np.float16)

    return run


def _like(scalar: Scalar, a: Array) -> Any:
    """The scalar in the dtype of the array that it is about to meet."""
    return a.dtype.type(scalar)


def _times(a: Array, scalar: Scalar) -> Array:
    """`a * scalar`; a complex array meets a complex scalar, whose imaginary zero keeps the signs of zeros as ATen's."""
    if not np.iscomplexobj(a):
        return np.asarray(a * _like(scalar, a))
    factor = _like(scalar, a)
    product = np.empty_like(a)
    product.real = a.real * factor.real - a.imag * factor.imag
    product.imag = a.real * factor.imag + a.imag * factor.real
    return product


@_operation
def add(a: Array, b: Array, alpha: Scalar = 1) -> Array:
    """`a + alpha*b`: torch's `a.add(b, alpha=alpha)`."""
    if np.iscomplexobj(a):
        return np.asarray(a + _times(b, alpha))
    if abs(alpha) != 1 and current().fma:
        return fma(b, _like(alpha, a), a)
    return np.asarray(a + _like(alpha, a) * b)


@_operation
def neg(a: Array) -> Array:
    """`-a`."""
    return np.asarray(-a)


@_operation
def addcmul(a: Array, b: Array, c: Array, value: Scalar = 1) -> Array:
    """`a + value*b*c`: torch's `a.addcmul(b, c, value=value)`."""
    scaled = _like(value, a) * b
    return fma(scaled, c, a) if current().fma else np.asarray(a + scaled * c)


@_operation
def addcdiv(a: Array, b: Array, c: Array, value: Scalar = 1) -> Array:
    """`a + value*b/c`: torch's `a.addcdiv(b, c, value=value)`."""
    return np.asarray(a + (_like(value, a) * b) / c)


@_operation
def lerp(a: Array, b: Array, weight: Scalar) -> Array:
    """`a` moved towards `b` by the fraction `weight`: torch's `a.lerp(b, weight)`."""
    w = _like(weight, a)
    start, w = (a, w) if abs(w) < 0.5 else (b, w - _like(1, a))
    return fma(w, b - a, start) if current().fma else np.asarray(start + w * (b - a))


@_operation
def mul(a: Array, b: Array | Scalar) -> Array:
    """`a * b`, b a scalar or an array of a's dtype."""
    return np.asarray(a * b) if isinstance(b, np.ndarray) else _times(a, b)


@_operation
def div(a: Array, b: Array | Scalar) -> Array:
    """`a / b`, b a scalar or an array of a's dtype."""
    return np.asarray(a / (b if isinstance(b, np.ndarray) else _like(b, a)))


@_operation
def _reciprocal(a: Array) -> Array:
    return np.asarray(_like(1, a) / a)


def scalar_div(a: Array, numerator: Scalar) -> Array:
    """`numerator / a` as torch computes it: the reciprocal, then times the numerator, each rounded."""
    return mul(_reciprocal(a), numerator)


def add_scalar(a: Array, scalar: Scalar) -> Array:
    """`a + scalar`."""
    return _add_scalar(a, alpha=scalar)


@_operation
def _add_scalar(a: Array, alpha: Scalar) -> Array:
    return np.asarray(a + _like(alpha, a))


@_operation
def maximum(a: Array, b: Array) -> Array:
    """The larger of each pair; NaN where either is."""
    return np.maximum(a, b)


@_operation
def sign(a: Array) -> Array:
    """-1, 0 or 1; 0 where it is NaN, as torch has it."""
    return np.asarray((a > 0).astype(a.dtype) - (a < 0).astype(a.dtype))


@_operation
def absolute(a: Array) -> Array:
    """`|a|`."""
    return np.abs(a)


def view_as_real(a: Array) -> Array:
    """A complex array as a real one with a last dimension of 2, real and imaginary part; a real one as it is."""
    if not np.iscomplexobj(a):
        return a
    return np.stack([a.real, a.imag], axis=-1)


def view_as_complex(a: Array, like: Array) -> Array:
    """Undo `view_as_real(like)`: complex again if `like` is, else as it is."""
    if not np.iscomplexobj(like):
        return a
    result = np.empty(a.shape[:-1], like.dtype)
    result.real, result.imag = a[..., 0], a[..., 1]
    return result


def _left_to_libraries(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let `rounding(name=...)` replace an operation whose last bits depend on the library that torch was built with."""
    _REPLACEABLE.add(function.__name__)

    @functools.wraps(function)
    def run(*operands: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):
            return current().instead.get(function.__name__, function)(*operands, **options)

    return run


def _wide(a: Array) -> Array:
    """In a dtype in which sums are rounded far below the array's own."""
    return a.astype(np.float64 if a.dtype.itemsize < 8 else np.longdouble)


@_left_to_libraries
def sqrt(a: Array) -> Array:
    """The square root, correctly rounded."""
    return np.asarray(np.sqrt(a))


@_left_to_libraries
def total(a: Array) -> Any:
    """The sum of all elements as a scalar of the array's dtype, rounded once."""
    return a.dtype.type(np.sum(_wide(a)))


@_left_to_libraries
def dot(a: Array, b: Array) -> Any:
    """The inner product of two vectors as a scalar of their dtype, rounded once."""
    return a.dtype.type(np.sum(_wide(a) * b))


@_left_to_libraries
def norm(a: Array, axis: int | None = None) -> Array:
    """The Euclidean norm of all elements (0-d), or along an axis (which is kept, of length 1), rounded once."""
    return np.asarray(np.sqrt(np.sum(_wide(a) ** 2, axis=axis, keepdims=axis is not None)), a.dtype)


@_left_to_libraries
def mean(a: Array, axis: int) -> Array:
    """The mean along an axis (which is kept, of length 1), rounded once."""
    return np.asarray(np.sum(_wide(a), axis=axis, keepdims=True) / a.shape[axis], a.dtype)


def to_bfloat16(a: Array | Scalar) -> Array:
    """The nearest bfloat16 numbers (ties to even), by way of float32 as in torch; a float32 array. NaN stays NaN."""
    with np.errstate(all="ignore"):
        single = np.asarray(a, np.float32)
    bits = single.view(np.uint32)
    rounded = (bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)) & np.uint32(0xFFFF0000)
    return np.asarray(np.where(np.isnan(single), single, rounded.view(np.float32)))


@_left_to_libraries
def bfloat16_matmul(a: Array, b: Array, addend: Array | None = None, beta: float = 0, alpha: float = 1) -> Array:
    """`beta*addend + alpha*(a @ b)` of bfloat16 matrices: torch's `a @ b` and `torch.addmm`, rounded once.

    Args:
        a: shape (m, k); like b and addend float32 holding bfloat16 numbers.
        b: shape (k, n).
        addend: shape (m, n), or None for none.
        beta: its factor, in float32.
        alpha: the product's factor, in float32.

    Returns:
        float32 of shape (m, n), every entry a bfloat16 number.
    """
    product = a.astype(np.float64) @ b.astype(np.float64)
    if addend is not None:
        product = float(np.float32(beta)) * addend.astype(np.float64) + float(np.float32(alpha)) * product
    return to_bfloat16(product)
