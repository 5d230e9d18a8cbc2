"""Writes the files of golden/, or says in which of them another torch would change what."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from optrace.goldens.format import Golden, parse_csv, write_csv, write_safetensors
from optrace.goldens.grid_options import OPTIONS
from optrace.goldens.library import golden_folder
from optrace.goldens.make import lbfgs_goldens, optimizer_goldens
from optrace.goldens.make_schedules import schedule_goldens
from optrace.goldens.schedule_grid import MAIN
from optrace.goldens.tolerance import errors
from optrace.goldens.wrong import wrong_goldens


def named_goldens(rules: Sequence[str]) -> Iterator[tuple[str, Golden]]:
    """(place in the folder, golden), made anew: of the rules, or of all and the wrong ones, if none is named."""
    for golden in goldens(rules):
        yield golden.name, golden
    if not rules or "wrong" in rules:
        for stem, golden in wrong_goldens():
            yield f"wrong/{stem}", golden


def goldens(rules: Sequence[str]) -> Iterator[Golden]:
    """Every right golden of the rules (all, if none is named), made anew."""
    yield from optimizer_goldens(tuple(rule for rule in OPTIONS if not rules or rule in rules))
    if not rules or "lbfgs" in rules:
        yield from lbfgs_goldens()
    yield from schedule_goldens(tuple(rule for rule in MAIN if not rules or rule in rules))


def main(args: Sequence[str]) -> int:
    """Write or check; 1 if `--check` found a change."""
    check, rules = _arguments(args)
    folder = golden_folder()
    changes: list[str] = []
    made: set[str] = set()
    for stem, golden in named_goldens(rules):
        files = {".csv": write_csv(golden).encode(), ".safetensors": write_safetensors(golden)}
        if stem.startswith("wrong/"):
            del files[".safetensors"]
        for suffix, content in files.items():
            path = folder / (stem + suffix)
            made.add(str(path))
            if check:
                changes += _difference(path, content, golden) if not _same(path, content) else []
            elif not _same(path, content):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                changes.append(f"wrote {path.relative_to(folder)}")
    for line in changes:
        print(line)
    print(f"{len(made)} files, {len(changes)} {'differ' if check else 'written'}")
    return 1 if check and changes else 0


def _arguments(args: Sequence[str]) -> tuple[bool, list[str]]:
    known = [*OPTIONS, "lbfgs", *MAIN, "wrong"]
    parser = argparse.ArgumentParser(prog="make_goldens", description="Make the files of golden/ again.")
    parser.add_argument("--check", action="store_true", help="write nothing; say what would change, status 1 if any")
    parser.add_argument("rules", nargs="*", metavar="RULE", help="only these: " + ", ".join(known))
    given = parser.parse_args(args)
    rules = [rule.lower() for rule in given.rules]
    if unknown := [rule for rule in rules if rule not in known]:
        parser.error(f"no golden is called {unknown[0]!r}; there are {', '.join(known)}")
    return given.check, rules


def _same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _difference(path: Path, content: bytes, golden: Golden) -> list[str]:
    name = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        return [f"{name} is missing"]
    if path.suffix != ".csv":
        return [f"{name} differs"]
    old = parse_csv(path.read_text(encoding="utf-8"), name)
    eps = float(np.finfo(golden.dtype).eps)
    for row in golden.rows:
        before = [r for r in old.rows_at(row.step, row.quantity) if (r.param, r.group) == (row.param, row.group)]
        if not before or before[0].values.shape != row.values.shape:
            return [f"{name}: step {row.step}, {row.param} {row.quantity} is new"]
        if before[0].values.tobytes() != row.values.tobytes():
            scale = np.maximum(np.abs(row.values), np.abs(before[0].values)) + np.finfo(golden.dtype).tiny
            worst = float(np.max(errors(row.values, before[0].values, scale, eps)))
            return [f"{name}: step {row.step}, {row.param} {row.quantity} is another by {worst:.3g} eps"]
    if len(old.rows) != len(golden.rows):
        return [f"{name}: rows are gone"]
    for new_line, old_line in zip(write_csv(golden).splitlines(), path.read_text().splitlines(), strict=False):
        if new_line != old_line:
            return [f"{name}: {new_line!r} instead of {old_line!r}"]
    return [f"{name} differs"]
