"""Fingerprints of what is no measured tensor of a step: batches that loaders yield, and state dicts."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from optrace.trace.measure import DTYPES, HASH, JOB, ROW, measure

LEAF_BYTES = 1 << 20
"""At most so much of each tensor of a batch is hashed."""
MAX_LEAVES = 4096
"""At most so many values of one batch are hashed."""
MAX_DEPTH = 8
MAX_PARAMS = 1000
"""A state dict of more parameters than this is told by key, not by parameter."""
STAGE_BYTES = 1 << 28
"""Of a state dict's tensors about so many bytes are hashed, and of a device's held on the host, at a time."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_NAMES = {getattr(torch, name): code for name, code in DTYPES.items() if hasattr(torch, name)}
_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def combine(words: Iterable[int]) -> int:
    """Return the fingerprint of a vector of 64-bit unsigned words, unsigned: DESIGN's hash, for a few of them.

    >>> f"{combine([0x3F800000, 0x80000000, 0x7FC00000]):016x}"
    'e3edd74feb8d7fc2'
    """
    total = 0
    for index, word in enumerate(words, 1):
        if word:
            z = word + index * _GOLDEN & _MASK
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
            z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
            total += z ^ z >> 31
    return total & _MASK


def signed(word: int) -> int:
    """Return a 64-bit word as the signed number that tables store."""
    return word - (1 << 64) if word >> 63 else word


def is_plain(tensor: Any) -> bool:
    """Whether a tensor is one whose memory says what it holds: no fake, no wrapper around others, no DTensor."""
    kind = type(tensor)
    return kind is torch.Tensor or (
        isinstance(tensor, torch.Tensor) and kind.__torch_dispatch__ is _PLAIN_DISPATCH and not _wrapped(tensor)
    )


def _wrapped(tensor: torch.Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def batch_fingerprint(batch: Any) -> int:
    """Return the unsigned 64-bit fingerprint of what a loader yielded: nested containers of tensors, arrays, numbers.

    Leaves are taken depth first (mappings in their order, each key before its value) and one word each; the result is
    the fingerprint of the vector of words, as `combine` gives it. The word of a tensor or array in CPU memory is the
    fingerprint of its first `LEAF_BYTES` bytes of elements in row-major order; of a string or bytes that of its UTF-8
    bytes as uint8; of a float or int that of it as a 0-d float64 or int64 (a larger int: as a string); of a list of
    more than 16 floats or ints that of it as an array; of None 0. A tensor on a device is not waited for: its shape
    stands for it. Any other object counts as its class name and the values of its attributes.
    """
    with torch._C.DisableTorchFunction(), torch.no_grad():
        return combine(word for word, _ in zip(_words(batch, 0), range(MAX_LEAVES), strict=False))


def _words(item: Any, depth: int) -> Iterator[int]:
    if isinstance(item, torch.Tensor):
        yield _tensor_word(item)
    elif isinstance(item, np.ndarray | np.generic):
        yield _array_word(np.asarray(item))
    elif item is None:
        yield 0
    elif isinstance(item, str | bytes | bytearray):
        yield _bytes_word(item.encode(errors="surrogatepass") if isinstance(item, str) else bytes(item))
    elif isinstance(item, int | float):
        yield _number_word(item)
    elif depth >= MAX_DEPTH:
        yield _bytes_word(type(item).__qualname__.encode())
    elif isinstance(item, Mapping):
        for key, value in item.items():
            yield _bytes_word(str(key).encode(errors="surrogatepass"))
            yield from _words(value, depth + 1)
    elif isinstance(item, list | tuple):
        numbers = _numbers(item)
        if numbers is not None:
            yield _array_word(numbers)
        else:
            for value in item:
                yield from _words(value, depth + 1)
    else:
        yield _bytes_word(type(item).__qualname__.encode())
        attributes = getattr(item, "__dict__", None)
        if isinstance(attributes, dict):
            yield from _words(attributes, depth + 1)


def _numbers(items: list[Any] | tuple[Any, ...]) -> np.ndarray[Any, Any] | None:
    """A long list of Python numbers as one array, else None."""
    if len(items) <= 16 or type(items[0]) not in (int, float):
        return None
    try:
        array = np.asarray(items[: LEAF_BYTES // 8])
    except (ValueError, OverflowError):
        return None
    return array if array.dtype in (np.int64, np.float64) else None


def _number_word(number: int | float) -> int:
    if isinstance(number, float):
        return combine([int.from_bytes(struct.pack("<d", number), "little")])
    if -(1 << 63) <= number < 1 << 63:
        return combine([int(number) & _MASK])
    return _bytes_word(str(number).encode())


def _bytes_word(data: bytes) -> int:
    data = data[:LEAF_BYTES]
    return combine(data) if len(data) <= 32 else _array_word(np.frombuffer(data, np.uint8))


def _array_word(array: np.ndarray[Any, Any]) -> int:
    if array.dtype.kind == "c":
        array = np.ascontiguousarray(array).view(array.real.dtype)
    code = DTYPES.get(array.dtype.name)
    if code is None or array.itemsize == 0:
        return _bytes_word(repr(array.reshape(-1)[:64].tolist()).encode(errors="surrogatepass"))
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return _hash(_leading_array(array))


def _leading_array(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    limit = LEAF_BYTES // array.itemsize
    if array.size > limit and not array.flags.c_contiguous:
        array = array[: _rows(array.size, array.shape[0], limit)]
    return np.ascontiguousarray(array).reshape(-1)[:limit]


def _rows(size: int, length: int, limit: int) -> int:
    """How many entries along the first dimension hold the first `limit` elements."""
    return -(-limit // max(1, size // length))


def _hash(array: np.ndarray[Any, Any]) -> int:
    return _hash_memory(DTYPES[array.dtype.name], array.ctypes.data, array.size)


def _hash_memory(code: int, address: int, numel: int) -> int:
    jobs = np.zeros(1, JOB)
    jobs[0] = (HASH, code, address, 0, numel, 0, 0, 0, 0, 0)
    rows = np.zeros(1, ROW)
    measure(jobs, rows)
    return int(rows["fingerprint"][0]) & _MASK


def _tensor_word(tensor: torch.Tensor) -> int:
    """Word of a batch's tensor; what cannot be read at once is told by its shape and dtype."""
    if not is_plain(tensor) or not tensor.is_cpu or tensor.layout is not torch.strided:
        return _bytes_word(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    if tensor.is_quantized or tensor.is_neg() or tensor.is_conj():
        return _bytes_word(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach())
    code = _NAMES.get(tensor.dtype)
    if code is None:
        return _bytes_word(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    limit = LEAF_BYTES // tensor.element_size()
    numel = tensor.numel()
    if not tensor.is_contiguous():
        tensor = tensor.detach()
        if numel > limit:
            tensor = tensor[: _rows(numel, tensor.shape[0], limit)]
        tensor = tensor.contiguous()
    return _hash_memory(code, tensor.data_ptr(), min(numel, limit))


def state_dict_fingerprints(state_dict: Any) -> dict[str, Any]:
    """Return the fingerprints of a state dict, as 16 hex digits each, for an event.

    `groups`: of the groups' options as JSON; `state`: by state key, over all parameters; `params`: by parameter (up
    to `MAX_PARAMS`), over its keys in alphabetic order. Each tensor counts as its own whole fingerprint, each number
    as that of a 0-d float64 or int64, and words are put together by `combine` in the order of the parameters' indices.
    Waits for tensors on a device. Empty for something that is no state dict.
    """
    if not isinstance(state_dict, Mapping) or torch._C._len_torch_dispatch_stack():
        return {}
    groups, state = state_dict.get("param_groups"), state_dict.get("state")
    found: dict[str, Any] = {}
    if isinstance(groups, list | tuple):
        found["groups"] = f"{_bytes_word(_options(groups)):016x}"
    if not isinstance(state, Mapping):
        return found
    entries = [(index, entry) for index, entry in sorted(state.items(), key=_index) if isinstance(entry, Mapping)]
    flat = [(row, str(key), value) for row, (_, entry) in enumerate(entries) for key, value in sorted_items(entry)]
    with torch._C.DisableTorchFunction(), torch.no_grad():
        words = _whole_words([value for _, _, value in flat])
    by_key: dict[str, list[int]] = {}
    by_row: list[list[int]] = [[] for _ in entries]
    for (row, key, _), word in zip(flat, words, strict=True):
        by_key.setdefault(key, []).append(word)
        by_row[row].append(word)
    found["state"] = {key: f"{combine(words):016x}" for key, words in sorted(by_key.items())}
    if len(entries) <= MAX_PARAMS:
        rows = zip(entries, by_row, strict=True)
        found["params"] = {str(index): f"{combine(words):016x}" for (index, _), words in rows}
    return found


def sorted_items(entry: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Items of a mapping in alphabetic order of the keys' text."""
    return sorted(entry.items(), key=lambda item: str(item[0]))


def _index(item: tuple[Any, Any]) -> tuple[int, int, str]:
    key = item[0]
    return (0, key, "") if isinstance(key, int) else (1, 0, str(key))


def _options(groups: Iterable[Any]) -> bytes:
    kept = [
        {key: value for key, value in group.items() if key != "params"} for group in groups if isinstance(group, dict)
    ]
    return json.dumps(kept, sort_keys=True, default=_text).encode()


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor) and is_plain(value) and value.numel() == 1:
        return repr(value.item())
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _whole_words(values: list[Any]) -> list[int]:
    """One word for each value; device tensors come to the host a few at a time."""
    words = [0] * len(values)
    staged: list[tuple[int, int, torch.Tensor]] = []
    size = 0
    for place, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            memory = _dense_on_host(value)
            if memory is None:
                words[place] = _bytes_word(f"{type(value).__qualname__} {tuple(value.shape)} {value.dtype}".encode())
                continue
            code, dense = memory
            staged.append((place, code, dense))
            size += dense.numel() * dense.element_size()
            if size > STAGE_BYTES:
                _flush(staged, words)
                size = 0
        else:
            words[place] = combine(word for word, _ in zip(_words(value, 1), range(MAX_LEAVES), strict=False))
    _flush(staged, words)
    return words


def _flush(staged: list[tuple[int, int, torch.Tensor]], words: list[int]) -> None:
    jobs = np.zeros(len(staged), JOB)
    for row, (_, code, dense) in enumerate(staged):
        jobs[row] = (HASH, code, dense.data_ptr(), 0, dense.numel(), row, 0, 0, 0, 0)
    rows = np.zeros(len(staged), ROW)
    measure(jobs, rows, torch.get_num_threads())
    for (place, _, _), word in zip(staged, rows["fingerprint"], strict=True):
        words[place] = int(word) & _MASK
    staged.clear()


def _dense_on_host(tensor: torch.Tensor) -> tuple[int, torch.Tensor] | None:
    """Dtype code and row-major CPU tensor of the values, or None for what has no plain values."""
    local = getattr(tensor, "_local_tensor", None)
    if isinstance(local, torch.Tensor):  # DTensor: this rank's part
        tensor = local
    if not is_plain(tensor) or tensor.is_quantized or tensor.is_meta:
        return None
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    code = _NAMES.get(tensor.dtype)
    return None if code is None else (code, tensor.to("cpu").contiguous())
