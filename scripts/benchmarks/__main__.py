"""The command line of scripts/bench: one subcommand a subject."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

SUBJECTS = {
    "record": "a recorded step against a bare one and against other ways to write such statistics down",
    "hooks": "the hooks alone, in CPU time of one thread: also for a busy machine",
    "diff": "two traces compared, against a pandas merge; the command on small runs; whole tensors",
    "read": "a long run: cost per step, files, opening it, the history of one parameter",
    "memory": "peak memory of a recorded training beyond a bare one",
    "margins": "what rounding does to gradients and updates of real programs, against what the diff forgives",
    "muon": "what bfloat16 leaves of Muon's form, against what the diff takes for rounding",
    "explain": "finding a cause, replaying, rebuilding",
    "ranks": "a run of many ranks compared with itself: time and memory by its rows",
}


def main() -> int:
    """Run one benchmark; 0, 1 when a figure misses its goal, or 2 when there is no such case."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, text in SUBJECTS.items():
        sub = subjects.add_parser(name, help=text, description=text)
        sub.add_argument("--quick", action="store_true", help="small sizes and few rounds: a minute instead of many")
        sub.add_argument("--rounds", type=int, help="turns to take the median of")
        sub.add_argument("--only", help="comma-separated cases, of those that the subject prints")
        sub.add_argument("--json", type=Path, help="write the figures to this file")
        sub.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    options = parser.parse_args()
    module = importlib.import_module(f"benchmarks.{options.subject}")
    known = module.cases()
    only, unknown = _named(options.only or "", known)
    if unknown:
        listed = f"it has {'; '.join(known)}" if known else "it is measured as a whole"
        print(f"scripts/bench {options.subject} has no case {unknown!r} for --only; {listed}", file=sys.stderr)
        return 2
    report = module.run(quick=options.quick, rounds=options.rounds, only=only)
    text = report.markdown()
    print(text)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text + "\n")
    return 1 if report.missed else 0


def _named(text: str, known: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """The known cases in a list with commas (names may have some of their own), and the first word that is none."""
    words = text.split(",") if text else []
    found: list[str] = []
    while words:
        ends = (end for end in range(len(words), 0, -1) if ",".join(words[:end]).strip() in known)
        end = next(ends, None)
        if end is None:
            return tuple(found), words[0].strip() or text
        found.append(",".join(words[:end]).strip())
        words = words[end:]
    return tuple(found), ""


if __name__ == "__main__":
    sys.exit(main())
