"""The JSON files of a trace: written whole by rename, read with one clear sentence for whatever is wrong with them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optrace.errors import TraceError

_LARGEST = 256 * 2**20


def write_json(path: Path, data: Any, *, exclusive: bool = False) -> bool:
    """Write `data` to a temporary file beside `path` and rename it there, so that a reader sees all or nothing.

    With `exclusive`, a file that is there stays as it is and the answer is False. OSError as the system gives it.
    """
    # A name of its own for each call: after link(2) the file is the same one under two names.
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        temporary.write_text(to_json(data) + "\n", encoding="utf-8")
        if not exclusive:
            os.replace(temporary, path)
            return True
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: the file is created at its place, once
            return _create(path, temporary.read_bytes())
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _create(path: Path, content: bytes) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    return True


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file whose outermost value is of `kind` (dict or list); TraceError otherwise."""
    try:
        if path.stat().st_size > _LARGEST:
            raise TraceError(f"{path} is {path.stat().st_size} bytes long, too long for what it should hold")
        data = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror or error}") from None
    except RecursionError:
        raise TraceError(f"{path} is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise TraceError(f"{path} is damaged: it is no JSON ({error})") from None
    if not isinstance(data, kind):
        raise TraceError(f"{path} is damaged: it should hold a JSON {'object' if kind is dict else 'list'}")
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    return str(value)


def _finite(value: Any) -> Any:
    """The same data with non-finite floats as the words nan, inf and -inf: JSON has no numbers for them."""
    if isinstance(value, np.generic | np.ndarray):
        value = _plain(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else ("nan" if value != value else "inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain).encode


def to_json(data: Any) -> str:
    """Strict JSON in ASCII; NaN and infinities are the strings nan, inf, -inf, unknown objects their str."""
    try:
        return _encode(data)
    except (ValueError, TypeError):
        pass
    try:
        return _encode(_finite(data))
    except RecursionError:
        raise TraceError("the data of an event holds itself, so it cannot be written as JSON") from None
