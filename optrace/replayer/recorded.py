"""What a recording with `--values grad` holds for a replay: base steps, gradients, edits, fingerprints."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from optrace.errors import TraceError
from optrace.trace.measure import DTYPES, HASH, JOB, ROW, measure
from optrace.trace.reader import Trace
from optrace.trace.values import ValuesFile
from optrace.trace.whole import values_files

Fingerprint = np.int64
Entry = tuple[str, tuple[int, ...], bytes]
"""dtype in torch's words, shape, elements."""

_CHUNK = 200
"""Steps whose fingerprints are read at once."""


def fingerprint_of(address: int, numel: int, dtype: str) -> int:
    """The signed fingerprint of dense elements in memory; complex ones as their real view."""
    job, rows = np.zeros(1, JOB), np.zeros(1, ROW)
    job["op"], job["dtype"], job["a"], job["numel"] = HASH, DTYPES[dtype], address, numel
    measure(job, rows)
    return int(rows["fingerprint"][0])


class RecordedSteps:
    """One optimizer's whole tensors and fingerprints, step by step."""

    def __init__(self, trace: Trace, optimizer: int) -> None:
        self._trace = trace
        self._optimizer = optimizer
        self._files = values_files(trace.rank_path) if trace.rank_path is not None else {}
        self._rows: tuple[int, dict[int, dict[tuple[str, str], tuple[bool, int]]]] = (-1, {})

    @cached_property
    def has_gradients(self) -> bool:
        """Whether whole gradients of any step are stored."""
        prefix = f"{self._optimizer}/grad/"
        return any(key.startswith(prefix) for step in self._files for file in self._open(step) for key in file.keys())

    def members(self) -> dict[str, tuple[int, tuple[int, ...], str]]:
        """Name -> group, shape, dtype of each recorded parameter, in the optimizer's order."""
        rows = self._trace.table("params", optimizer=self._optimizer).to_dict("records")
        return {str(row["param"]): (int(row["group"]), tuple(row["shape"]), str(row["dtype"])) for row in rows}

    def base(self, last: int) -> int:
        """The latest step up to `last` whose parameters are stored whole; TraceError when there is none."""
        prefix = f"{self._optimizer}/param/"
        for step in sorted((step for step in self._files if step <= last), reverse=True):
            if any(key.startswith(prefix) for file in self._open(step) for key in file.keys()):
                return step
        raise TraceError(
            f"{self._trace.path} holds no whole parameters up to step {last} to begin with; record from step 1 with"
            " --values grad"
        )

    def values(self, step: int) -> dict[tuple[str, str], Entry]:
        """(quantity, parameter) -> what is stored whole of a step."""
        found: dict[tuple[str, str], Entry] = {}
        for file in self._open(step):
            for key in file.keys():
                optimizer, quantity, param = key.split("/", 2)
                if optimizer == str(self._optimizer):
                    array = file.raw(key)
                    found[quantity, param] = (file.dtype(key), array.shape, array.tobytes())
        return found

    def gradients(self, step: int) -> dict[str, Entry | None] | None:
        """Parameter -> its gradient; None where a gradient that was there is not stored."""
        rows = self._of(step)
        stored = self.values(step)
        found: dict[str, Entry | None] = {}
        for (param, quantity), (present, _) in rows.items():
            if quantity == "grad":
                entry = stored.get(("grad", param))
                if present and entry is None:
                    return None
                found[param] = entry
        return found or None

    def edits(self, step: int) -> dict[tuple[str, str], Entry]:
        """`param_in` and `state_in.<key>` of a step: what somebody changed since the step before."""
        return {key: entry for key, entry in self.values(step).items() if key[0].split(".")[0].endswith("_in")}

    def fingerprints(self, step: int) -> dict[tuple[str, str], Fingerprint]:
        """(parameter, quantity) -> fingerprint of all recorded parameters and state after a step."""
        return {
            key: Fingerprint(word)
            for key, (present, word) in self._of(step).items()
            if present and (key[1] == "param" or key[1].startswith("state."))
        }

    def has_row(self, step: int, param: str, quantity: str) -> bool:
        """Whether a row of it was recorded."""
        return (param, quantity) in self._of(step)

    def _of(self, step: int) -> dict[tuple[str, str], tuple[bool, int]]:
        """(parameter, quantity) -> whether it was there, fingerprint."""
        chunk = step // _CHUNK
        if self._rows[0] != chunk:
            table = self._trace.arrow(
                "tensors",
                step=(chunk * _CHUNK, chunk * _CHUNK + _CHUNK - 1),
                optimizer=self._optimizer,
                columns=["step", "param", "quantity", "present", "fingerprint"],
            )
            found: dict[int, dict[tuple[str, str], tuple[bool, int]]] = {}
            columns = [table.column(name).to_pylist() for name in table.column_names]
            for number, param, quantity, present, word in zip(*columns, strict=True):
                found.setdefault(number, {})[param, quantity] = (present, word)
            self._rows = (chunk, found)
        return self._rows[1].get(step, {})

    def _open(self, step: int) -> list[ValuesFile]:
        return [ValuesFile(path) for path in self._files.get(step, [])]
