"""Many ranks read as one run: shards of tensors added up, each replica once, what ranks disagree in left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from optrace.errors import TraceError
from optrace.trace.arrays import booleans, elements, no_rows
from optrace.trace.blocks import Block, Blocks
from optrace.trace.locate import unrecorded
from optrace.trace.merge import Merger
from optrace.trace.reader import Trace
from optrace.trace.schema import arrow_schema
from optrace.trace.select import Selection
from optrace.trace.unedited import rows_before
from optrace.trace.whole import check_step, value_from_row

if TYPE_CHECKING:
    from optrace.trace.own import Own
    from optrace.trace.replicas import Drift

Flags = npt.NDArray[np.bool_]


class LogicalTrace(Trace):
    """A run of several ranks as if one process had made it; `rank(n)` gives what one of them recorded.

    Tensors: the blocks of a sharded one add up; of ranks that hold the same the lowest counts (`optrace.trace.replicas`
    finds those that differ); different parameters under one name all count (`optrace.trace.own`). Groups: of the lowest
    rank that has the optimizer. Steps: the mean of the losses; the gradient norm, batch and generators where all ranks
    say the same; the longest time. Events: of the rank that got
    furthest. A step counts when for every tensor some holder of each of its blocks has finished it.
    """

    def __init__(self, path: Path, info: dict[str, Any], restart: int = 0) -> None:
        """Use `open_trace`, and `Trace.restart` for what was recorded after the ranks were started again."""
        super().__init__(path, info)
        self._restart = restart
        self._gather()

    def __repr__(self) -> str:
        return f"LogicalTrace({str(self.path)!r}, ranks={len(self._raw)})"

    def refresh(self) -> None:
        """Look again at what running processes have written since."""
        super().refresh()
        self._gather()

    def _gather(self) -> None:
        self._raw = {key[0]: Trace(self.path, self.info, key) for key in self._ranks if key[1] == self._restart}
        self.incomplete: dict[int, int] = {}
        """Step to the tensors that could not be put together there, of what has been read so far."""
        for name in ("own", "members", "blocks", "last_by_rank", "_last_steps"):
            self.__dict__.pop(name, None)

    @cached_property
    def own(self) -> list[Own]:
        """Parameters of the ranks' own, which call them by the same names: `optrace.trace.own`."""
        from optrace.trace.own import find_own

        return find_own(self._raw)

    @cached_property
    def members(self) -> dict[int, Trace]:
        """Rank to its view, all of the same start; parameters of its own have the names that they have in the run."""
        if not self.own:
            return dict(self._raw)
        from optrace.trace.own import renamed
        from optrace.trace.renamed import RenamedTrace

        names = {rank: renamed(self.own, rank) for rank in self._raw}
        return {
            rank: RenamedTrace(self.path, self.info, (rank, self._restart), names[rank]) if names[rank] else raw
            for rank, raw in self._raw.items()
        }

    @property
    def ranks(self) -> list[int]:
        """Numbers of the ranks that recorded steps."""
        return sorted(self._raw)

    def rank(self, number: int, restart: int | None = None) -> Trace:
        """The trace of one rank, of this start or of its n-th restart; TraceError if there is no such rank."""
        return super().rank(number, self._restart if restart is None else restart)

    def parts(self) -> list[Trace]:
        """Every rank and restart of the run; of the trace of a restart only its own ranks."""
        return list(self._raw.values()) if self._restart else super().parts()

    @property
    def _key(self) -> tuple[int, int] | None:
        return (min(self._raw), self._restart) if self._raw else None

    @cached_property
    def blocks(self) -> Blocks:
        """Which rank holds what."""
        return Blocks({rank: member.params_rows() for rank, member in self.members.items()})

    @cached_property
    def last_by_rank(self) -> dict[int, dict[int, int]]:
        """Rank to its last finished step per optimizer."""
        return {rank: member.last_steps for rank, member in self._raw.items()}

    @property
    def last_steps(self) -> dict[int, int]:
        """The last step of every optimizer of which all tensors can be put together."""
        return dict(self._last_steps)

    @cached_property
    def _last_steps(self) -> dict[int, int]:
        last = self.last_by_rank
        found: dict[int, int] = {}
        for optimizer in sorted({index for steps in last.values() for index in steps}):
            limit = max(steps.get(optimizer, -1) for steps in last.values())
            for index, name in self.blocks:
                if index == optimizer:
                    for holders in self.blocks.split(index, name, "param").holders:
                        limit = min(limit, max((last[rank].get(optimizer, -1) for rank in holders), default=limit))
            if limit >= 0:
                found[optimizer] = limit
        return found

    @property
    def rank_info(self) -> dict[str, Any]:
        """The content of the lowest rank's rank.json; `end` is clean only if it is on every rank."""
        info = dict(super().rank_info)
        ends = {rank: member.rank_info.get("end") for rank, member in self.members.items()}
        info.pop("end", None)
        if None not in ends.values():
            unclean = {rank: end for rank, end in ends.items() if end != "clean"}
            info["end"] = "; ".join(f"rank {rank}: {end}" for rank, end in unclean.items()) or "clean"
        return info

    @property
    def problems(self) -> list[str]:
        """What was dropped, torn or is missing on any rank, and which rank stops where, in words."""
        found = [f"rank {rank}: {problem}" for rank, member in self.members.items() for problem in member.problems]
        found += self.gone
        again = sorted({rank for rank, restart in self._ranks if restart > self._restart})
        if again:
            listed = ", ".join(map(str, again[:8])) + (" ..." if len(again) > 8 else "")
            who, was, they = ("ranks", "were", "they") if len(again) > 1 else ("rank", "was", "it")
            spec = f"{self.path.name}@restart={self._restart + 1}"
            found.append(f"{who} {listed} {was} started again: {spec} is what {they} recorded then")
        if self.incomplete:
            step, count = min(self.incomplete.items())
            found.append(f"{count} tensors of step {step} could not be put together: a rank's block is missing")
        return found

    @property
    def gone(self) -> list[str]:
        """Ranks that left no record, and ranks that stop before others, in words."""
        return list(self._gone())

    def _gone(self) -> Iterator[str]:
        yield from unrecorded(super().rank_info, self.members)
        last = self.last_by_rank
        furthest: dict[int, int] = {}
        for steps in last.values():
            for optimizer, step in steps.items():
                furthest[optimizer] = max(furthest.get(optimizer, step), step)
        for rank, steps in last.items():
            ended = self.members[rank].rank_info.get("end")
            for optimizer, step in steps.items():
                if step < furthest[optimizer]:
                    how = "it was killed, or is behind" if ended is None else f"it ended: {ended}"
                    yield (
                        f"rank {rank} stops after step {step} of optimizer {optimizer} ({how}); others go on to step"
                        f" {furthest[optimizer]}"
                    )
        endless = [rank for rank, member in self.members.items() if member.rank_info.get("end") is None]
        for rank in endless if len(endless) < len(self.members) else ():
            if all(step == furthest[optimizer] for optimizer, step in last[rank].items()):
                yield f"rank {rank} did not end: killed after step {max(last[rank].values(), default=0)}, or running"

    @property
    def drifts(self) -> list[Drift]:
        """Where ranks hold different bits of what should be the same, first of all; one for each optimizer at most."""
        from optrace.trace.replicas import drifts

        return list(self._cached("drifts", lambda: drifts(self)))

    @property
    def unlike(self) -> list[Drift]:
        """Where ranks start from other values under one name and no gradient agrees: read as parameters of their own.

        They may as well be replicas to which nothing was broadcast and whose gradients were never reduced.
        """
        from optrace.trace.replicas import unlike

        return list(self._cached("unlike", lambda: unlike(self)))

    def params_rows(self) -> list[Any]:
        """The rows of all ranks' params.json, each parameter once, by optimizer, group and index."""
        return list(self._cached("params", lambda: list(self._union())))

    def _union(self) -> Iterator[dict[str, Any]]:
        found: dict[tuple[Any, Any], dict[str, Any]] = {}
        for member in self.members.values():
            for row in member.params_rows():
                if isinstance(row, dict):
                    plain = {key: value for key, value in row.items() if key != "pieces"}
                    found.setdefault((row.get("optimizer"), row.get("param")), plain)
        yield from sorted(
            found.values(), key=lambda row: tuple(_number(row, k) for k in ("optimizer", "group", "index"))
        )

    def value(self, step: int, param: str, quantity: str, optimizer: int = 0) -> npt.NDArray[Any]:
        """The whole tensor of a step, put together from what the ranks stored; read-only.

        TraceError when it was not stored, naming the recording that would have it.
        """
        check_step(self, step, optimizer)
        found = self.value_in_files(step, param, quantity, optimizer)
        return value_from_row(self, step, param, quantity, optimizer) if found is None else found

    def value_in_files(self, step: int, param: str, quantity: str, optimizer: int) -> npt.NDArray[Any] | None:
        """The same where the ranks stored it whole; None where one of its blocks is in no values file."""
        split = self.blocks.split(optimizer, param, quantity)
        result = None
        for number, ranks in enumerate(split.holders):
            stored = (self.members[rank].value_in_files(step, param, quantity, optimizer) for rank in ranks)
            one = next((value for value in stored if value is not None), None)
            if one is None or not split.count:
                return None
            if not split.blocks:
                return one
            result = _put(result, one, split.blocks[number])
        assert result is not None
        shape = next(
            (r["shape"] for r in self.params_rows() if (r["optimizer"], r["param"]) == (optimizer, param)), None
        )
        if shape is not None and math.prod(shape) == result.size:
            result = result.reshape(shape)
        result.flags.writeable = False
        return result

    def bits_in_files(
        self, step: int, param: str, quantity: str, optimizer: int
    ) -> tuple[str, npt.NDArray[Any]] | None:
        """The same with the name of its dtype: bf16 and float8 are widened before they are put together."""
        found = self.value_in_files(step, param, quantity, optimizer)
        return None if found is None else (found.dtype.name, found)

    def stored(
        self,
        name: str,
        selection: Selection,
        columns: Sequence[str] | None,
        after: Mapping[int, int] | None = None,
        coded: bool = False,
    ) -> Any:
        """Rows of a stored table of the whole run, strings as strings, `coded` or not; `columns` None for all."""
        wanted = list(columns) if columns is not None else arrow_schema(name).names
        for column in wanted:
            if column not in arrow_schema(name).names:
                raise TraceError(f"{name} has no column {column!r}; it has {', '.join(arrow_schema(name).names)}")
        if name == "events":
            return self._leader().stored(name, selection, columns, after)
        if name == "tensors":
            merger = Merger(self.blocks, wanted, self.last_by_rank)
            for rank, member in self.members.items():
                merger.add(rank, self._limited(member.stored(name, selection, merger.read, after)))
            for rank, missing in merger.unedited().items():
                merger.add(rank, rows_before(self.members[rank], missing, merger.read))
            rows = merger.table()
            self.incomplete |= merger.incomplete
            return rows
        if name == "groups":
            return self._groups(selection, wanted, after)
        from optrace.trace.logical_steps import merge_steps

        parts = [self._limited(member.stored(name, selection, None, after)) for member in self.members.values()]
        return merge_steps(parts).select(wanted)

    def segment_ends(self, name: str) -> list[int]:
        """None: the ranks' segments end at steps of their own."""
        return []

    def _leader(self) -> Trace:
        """The lowest of the ranks that got furthest."""
        rank = max(self.members, key=lambda rank: (sum(self.last_by_rank[rank].values()), -rank))
        return self.members[rank]

    def _groups(self, selection: Selection, wanted: list[str], after: Mapping[int, int] | None) -> Any:
        """Groups of each optimizer from the lowest rank that has finished all of its steps."""
        import pyarrow as pa

        limit = self.last_steps
        owner: dict[int, list[int]] = {}
        for optimizer, last in limit.items():
            ranks = [rank for rank, steps in self.last_by_rank.items() if steps.get(optimizer, -1) >= last]
            owner.setdefault(ranks[0] if ranks else min(self.members), []).append(optimizer)
        parts = []
        read = list(dict.fromkeys([*wanted, "step", "optimizer"]))
        for rank, optimizers in sorted(owner.items()):
            rows = self._limited(self.members[rank].stored("groups", selection, read, after))
            mask = np.isin(elements(rows.column("optimizer")), optimizers)
            parts.append(rows.filter(booleans(mask)).select(wanted))
        schema = pa.schema([arrow_schema("groups").field(column) for column in wanted])
        return pa.concat_tables(parts) if parts else no_rows(schema)

    def _limited(self, rows: Any) -> Any:
        """Rows without the steps that some ranks have and the run as a whole has not."""
        step, optimizer = elements(rows.column("step")), elements(rows.column("optimizer"))
        limits = np.full(len(step), -1, np.int64)
        for index, last in self.last_steps.items():
            limits[optimizer == index] = last
        kept: Flags = step <= limits
        return rows if kept.all() else rows.filter(booleans(kept))


def _put(whole: npt.NDArray[Any] | None, value: npt.NDArray[Any], block: Block) -> npt.NDArray[Any]:
    """The whole with one more block written into it (a summand: added)."""
    if whole is None:
        whole = np.zeros(block.of, value.dtype)
    where = tuple(slice(start, start + size) for start, size in zip(block.offset, block.shape, strict=True))
    if block.part:
        whole[where] += value.reshape(block.shape)
    else:
        whole[where] = value.reshape(block.shape)
    return whole


def _number(row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    return value if isinstance(value, int) else -1
