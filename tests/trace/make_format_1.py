"""Makes tests/trace/data/format-1: a sealed run and the same run killed amid a step; run once, when a format is new."""

from __future__ import annotations

import json
from pathlib import Path

from storing import Story
from test_trace_format import FORMAT_1, numbers_of

from optrace.trace.reader import open_trace


def tell(folder: Path) -> Story:
    whole = Story.arrays_of(3, 0)["second.weight", "param"]
    story = Story(folder, optimizers=2).tell(2)
    story.writer.write_values(3, {"0/param/second.weight": ("float32", (2, 10), whole)})
    return story.tell(6, first=3)


def main() -> None:
    FORMAT_1.mkdir(parents=True)
    tell(FORMAT_1 / "sealed").writer.close()
    story = tell(FORMAT_1 / "killed")
    rank = FORMAT_1 / "killed" / "rank=00000"
    before = {path.name: path.stat().st_size for path in rank.glob("*.arrows")}
    story.tell_step(7)  # the kill: groups were written, tensors partly, steps and events not
    for path in rank.glob("*.arrows"):
        if not path.name.startswith("groups"):
            size = before[path.name] + (1000 if path.name.startswith("tensors") else 0)
            path.write_bytes(path.read_bytes()[:size])
    (FORMAT_1 / "expected.json").write_text(json.dumps(numbers_of(open_trace(FORMAT_1 / "sealed"))) + "\n")


if __name__ == "__main__":
    main()
