"""Numbers and text as a page can carry them: compressed arrays, and JSON that no HTML parser mistakes for markup."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from optrace.compare.report import strict


def packed(array: npt.ArrayLike) -> dict[str, Any]:
    """An array of numbers as float32, its bytes grouped by significance, deflated, in base64; with its shape.

    Grouping puts the bytes that vary little beside each other, which halves what is left after deflating.
    """
    values = np.ascontiguousarray(array, dtype="<f4")
    planes = values.reshape(-1, 1).view(np.uint8).reshape(-1, 4).T
    return {"shape": list(values.shape), "data": base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()}


def script_json(data: Any) -> str:
    """Strict JSON that can stand in a `script` element: nothing in it ends the element or begins a comment."""
    text = json.dumps(strict(data), allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
