"""Damages copies of a trace in seeded ways and reads them with everything the reader has; run by test_trace_fuzz.py.

Prints one JSON object. Anything but a TraceError or a read shows as a traceback and an exit status; a crash of the
process as a signal, with the damage that caused it as the last line of stderr.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
from pathlib import Path

from optrace.errors import TraceError
from optrace.trace.reader import open_trace

TABLES = ("params", "groups", "steps", "tensors", "events")
WORDS = [
    b"\xff" * 4,
    b"\x00" * 8,
    b"\x7f\xff\xff\xff",
    b"PAR1",
    b"\xff\xff\xff\xff\x00\x00\x00\x00",
    b"{",
    b'"',
    b"__import__",
]


def damage(data: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(7)
    if not data or kind == 0:
        return data[: chance.randrange(len(data) + 1)]
    changed = bytearray(data)
    if kind in (1, 2):
        for _ in range(chance.choice((1, 1, 2, 8))):
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == 3:
        at = chance.randrange(len(data))
        word = chance.choice(WORDS)
        changed[at : at + len(word)] = word
    elif kind == 4:
        at = chance.randrange(len(data))
        del changed[at : at + chance.choice((1, 4, 8, 64))]
    elif kind == 5:
        at = chance.randrange(len(data))
        changed[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 8, 64))))
    else:  # near the end: footers, end marks
        at = len(data) - 1 - chance.randrange(min(len(data), 600))
        changed[at] = chance.randrange(256)
    return bytes(changed)


def read_all(run: Path) -> str:
    """`error`, `partial` (problems are named) or `whole`."""
    outcome = "whole"
    try:
        trace = open_trace(run)
    except TraceError as error:
        one_sentence(error)
        return "error"
    reads = [lambda name=name: trace.table(name) for name in TABLES]
    reads += [
        lambda: trace.table(
            "tensors", step=(2, 3), param="first.*", quantity="param", columns=["l2", "sample", "absmax"]
        ),
        lambda: trace.value(3, "second.weight", "param"),
        lambda: trace.value(2, "scale", "param"),
        lambda: (trace.optimizers, trace.last_steps, trace.rank_info, trace.children),
    ]
    for read in reads:
        try:
            read()
        except TraceError as error:
            one_sentence(error)
            outcome = "error"
    try:
        problems = trace.problems
        problems += trace.verify()
    except TraceError as error:
        one_sentence(error)
        return "error"
    return "partial" if outcome == "whole" and problems else outcome


def one_sentence(error: TraceError) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 600, text


def main(source: Path, work: Path, seed: int, rounds: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    whole = {path: (source / path).read_bytes() for path in files}
    shutil.copytree(source, work)
    outcomes: dict[str, int] = {}
    for number in range(rounds):
        chance = random.Random(f"{seed} {number}")
        path = chance.choice(files)
        sys.stderr.write(f"seed {seed} round {number} {path}\n")
        sys.stderr.flush()
        (work / path).write_bytes(damage(whole[path], chance))
        outcome = read_all(work)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        (work / path).write_bytes(whole[path])
    assert read_all(work) == "whole"
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
