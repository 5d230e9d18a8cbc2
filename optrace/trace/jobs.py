"""The two tables between whoever measures tensors and whoever wants them measured: jobs in, rows out."""

from __future__ import annotations

import numpy as np

SAMPLE_SIZE = 16

ROW = np.dtype(
    [
        ("mean", "f8"),
        ("l1", "f8"),
        ("l2", "f8"),
        ("min", "f8"),
        ("max", "f8"),
        ("n_nan", "i8"),
        ("n_inf", "i8"),
        ("n_zero", "i8"),
        ("fingerprint", "i8"),
        ("sample", "f8", (SAMPLE_SIZE,)),
    ]
)
"""One measured tensor. `absmax` is derived: max(|min|, |max|)."""

JOB = np.dtype(
    [
        ("op", "u4"),
        ("dtype", "u4"),
        ("a", "u8"),
        ("b", "u8"),
        ("numel", "i8"),
        ("row", "i8"),
        ("row2", "i8"),
        ("index_base", "i8"),
        ("global_numel", "i8"),
        ("layout", "u8"),
    ]
)
"""One thing to measure; see `optrace.trace.measure.measure` for the meaning of each field."""

STAT, UPDATE, COPY, HASH = range(4)

DTYPES: dict[str, int] = {
    name: code
    for code, name in enumerate(
        (
            "float64",
            "float32",
            "float16",
            "bfloat16",
            "int8",
            "int16",
            "int32",
            "int64",
            "uint8",
            "uint16",
            "uint32",
            "uint64",
            "bool",
            "float8_e4m3fn",
            "float8_e5m2",
            "float8_e4m3fnuz",
            "float8_e5m2fnuz",
            "float8_e8m0fnu",
        )
    )
}
"""Code of each real dtype by torch's (and NumPy's) name for it. Complex goes as its real view, numel doubled."""

NAMES: tuple[str, ...] = tuple(DTYPES)

ITEMSIZE: tuple[int, ...] = (8, 4, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8, 1, 1, 1, 1, 1, 1)
"""Bytes of one element, by dtype code."""
