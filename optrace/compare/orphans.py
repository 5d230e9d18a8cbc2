"""Parameters that an optimizer holds and the model may not have: nameless, without gradients, copies of others."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from optrace.compare.arrow import integers, numbers, texts
from optrace.compare.source import Source

_PLACE = re.compile(r"optimizer\d+\.group\d+\.param\d+(#\d+)?")


def nameless(names: Sequence[str]) -> bool:
    """Whether parameters are called by their place alone: no module and no variable had them at the first step."""
    return bool(names) and all(_PLACE.fullmatch(name) for name in names)


def without_grad(source: Source, names: Sequence[str]) -> bool:
    """Whether gradients of these parameters were looked at, and every one was None."""
    wanted, looked = set(names), False
    for optimizer in source.optimizers:
        table = source.trace.arrow("tensors", optimizer=optimizer, quantity="grad", columns=["param", "present"])
        if not table.num_rows:
            continue
        own = np.isin(np.array(texts(table.column("param")), dtype=object), list(wanted))
        if numbers(table.column("present"))[own].any():
            return False
        looked |= bool(own.any())
    return looked


def twins(source: Source, names: Sequence[str]) -> dict[str, str]:
    """The parameter of another name that each of these begins as a bitwise copy of, where there is one.

    Parameters of one repeated number, as those of norms, are copies of nothing.
    """
    found: dict[str, str] = {}
    columns = ["param", "numel", "fingerprint", "min", "max"]
    for optimizer in source.optimizers:
        table = source.trace.arrow("tensors", step=0, optimizer=optimizer, quantity="param", columns=columns)
        if not table.num_rows:
            continue
        varied = numbers(table.column("min")) < numbers(table.column("max"))
        values = zip(
            integers(table.column("numel")).tolist(), integers(table.column("fingerprint")).tolist(), strict=True
        )
        start = {
            name: value
            for name, value, is_varied in zip(texts(table.column("param")), values, varied.tolist(), strict=True)
            if is_varied
        }
        others = {value: name for name, value in start.items() if name not in names}
        found |= {name: others[start[name]] for name in names if start.get(name) in others}
    return found
