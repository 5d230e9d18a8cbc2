"""What the dtypes of recorded tensors can represent: spacing at 1 and smallest normal number."""

from __future__ import annotations

_FORMATS: dict[str, tuple[int, int]] = {
    "float64": (52, -1022),
    "float32": (23, -126),
    "float16": (10, -14),
    "bfloat16": (7, -126),
    "float8_e4m3fn": (3, -6),
    "float8_e4m3fnuz": (3, -7),
    "float8_e5m2": (2, -14),
    "float8_e5m2fnuz": (2, -15),
    "complex128": (52, -1022),
    "complex64": (23, -126),
    "complex32": (10, -14),
}


def eps_of(dtype: str) -> float:
    """Spacing at 1 of a dtype (torch's name, with or without `torch.`); 0 for integers, bool and unknown ones."""
    digits, _ = _FORMATS.get(dtype.removeprefix("torch."), (0, 0))
    return 2.0**-digits if digits else 0.0


def tiny_of(dtype: str) -> float:
    """Smallest positive normal number of a dtype; 0 for integers, bool and unknown ones."""
    digits, least = _FORMATS.get(dtype.removeprefix("torch."), (0, 0))
    return 2.0**least if digits else 0.0
