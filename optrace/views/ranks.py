"""What each rank of a run has: its steps, its part of the parameters, how it ended; ranks alike share a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from optrace.compare.words import count_words
from optrace.trace.logical import LogicalTrace

_LINES = 6


def rank_lines(trace: LogicalTrace) -> list[str]:
    """One line for each sort of rank: `ranks 0-2  4 steps, 1,214 elements, ended cleanly`; at most 7."""
    alike: dict[str, list[int]] = {}
    held = _held(trace)
    for rank, member in sorted(trace.members.items()):
        steps = max(trace.last_by_rank[rank].values(), default=0)
        end = member.rank_info.get("end")
        how = "ended cleanly" if end == "clean" else "not ended: running, or killed" if end is None else f"ended: {end}"
        words = f"{count_words(steps, 'step')}, {count_words(held.get(rank, 0), 'element')}, {how}"
        alike.setdefault(words, []).append(rank)
    found = [(f"{'ranks' if len(ranks) > 1 else 'rank'} {_spans(ranks)}", words) for words, ranks in alike.items()]
    more = len(found) - _LINES
    width = max(len(name) for name, _ in found[:_LINES])
    lines = [f"{name:<{width}}  {words}" for name, words in found[:_LINES]]
    return [*lines, f"and {more} more sorts of rank"] if more > 0 else lines


def own_lines(trace: LogicalTrace) -> list[str]:
    """What is read as parameters of the ranks' own though the ranks call it the same; two lines each."""
    found = []
    for own in trace.own:
        rank, name = own.camps[1][0], own.params[0]
        why = "their layouts differ" if own.certain else "apart since step 0, and no gradient agrees (see optrace lint)"
        found.append(f"{count_words(len(own.params), 'param')} of ranks' own under one name: {why}")
        found.append(f"{name}@rank{rank} is {name} of rank {rank}")
    return found


def _held(trace: LogicalTrace) -> dict[int, int]:
    """Elements of parameters that each rank holds; what several optimizers step counts once."""
    numels = {(row["optimizer"], row["param"]): int(row["numel"]) for row in trace.params_rows()}
    by_name: dict[tuple[int, str], int] = {}
    for (optimizer, name), numel in numels.items():
        split = trace.blocks.split(optimizer, name, "param")
        for number, ranks in enumerate(split.holders):
            size = split.blocks[number].numel if split.blocks else numel
            for rank in ranks:
                by_name[rank, name] = max(by_name.get((rank, name), 0), size)
    held: dict[int, int] = {}
    for (rank, _), size in by_name.items():
        held[rank] = held.get(rank, 0) + size
    return held


def _spans(ranks: Sequence[int]) -> str:
    """`0-3, 7`, cut after a few."""
    parts = [first if first == last else f"{first}-{last}" for first, last in _runs(ranks)]
    return ", ".join(map(str, parts[:4])) + (" ..." if len(parts) > 4 else "")


def _runs(ranks: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = last = ranks[0]
    for rank in ranks[1:]:
        if rank != last + 1:
            yield first, last
            first = rank
        last = rank
    yield first, last
