"""Runs every code block of one Markdown file in order, in the current folder: `python run_blocks.py FILE.md`.

A `python` block is executed; with a first line `# file: NAME` it is saved under that name instead. A `pycon` block is a
doctest. In a `console` block each `$ command` is run by bash and what follows it is the output expected of it on stdout
and stderr together (`...` stands for anything, also for whole lines; no lines: any output, but exit status 0; a last
line `(exit N)` for another status). Blocks of one file share their names and the folder. Blocks in other languages are
refused unless they are `text`, `json`, `toml`, `sql`, `csv`, `rust`, `yaml`, `ini` or `html`.
"""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.M | re.S)
SHOWN_ONLY = {"text", "json", "toml", "sql", "csv", "rust", "yaml", "ini", "html", "c", "swift"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
Run = Callable[[str], tuple[int, str]]
"""Runs a command as bash does; its exit status, and what it printed on stdout and stderr together."""


def run_by_bash(command: str) -> tuple[int, str]:
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def run_console(block: str, where: str, run: Run) -> None:
    for entry in re.split(r"^\$ ", block, flags=re.M)[1:]:
        lines = entry.splitlines()
        command, rest = lines[0], lines[1:]
        while command.endswith("\\") and rest:
            command += "\n" + rest.pop(0)
        wanted_status = 0
        if rest and (match := re.fullmatch(r"\(exit (\d+)\)", rest[-1].strip())):
            wanted_status, rest = int(match[1]), rest[:-1]
        status, printed = run(command)
        if status != wanted_status:
            raise SystemExit(f"{where}: `{command}` exits {status}, not {wanted_status}:\n{printed}")
        wanted = "\n".join(rest).strip()
        if wanted and not doctest.OutputChecker().check_output(wanted + "\n", printed.strip() + "\n", FLAGS):
            raise SystemExit(f"{where}: `{command}` prints\n{printed}\ninstead of\n{wanted}")


def run_doctest(block: str, names: dict, where: str) -> None:
    test = doctest.DocTestParser().get_doctest(block, names, where, where, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=report.append, clear_globs=False)
    names.update(test.globs)
    if runner.failures:
        raise SystemExit("".join(report))


def run_file(path: Path, run: Run = run_by_bash) -> int:
    text = path.read_text()
    names: dict = {"__name__": "__main__"}
    count = 0
    for match in FENCE.finditer(text):
        language, block = match[1], match[2]
        where = f"{path.name}:{text.count(chr(10), 0, match.start()) + 1}"
        first, _, rest = block.partition("\n")
        if language == "python" and first.startswith("# file: "):
            Path(first.removeprefix("# file: ").strip()).write_text(rest)
        elif language == "python":
            exec(compile("\n" * text.count("\n", 0, match.start(2)) + block, str(path), "exec"), names)
        elif language == "pycon":
            run_doctest(block, names, where)
        elif language == "console":
            run_console(block, where, run)
        elif language in SHOWN_ONLY:
            continue
        else:
            raise SystemExit(f"{where}: a block in {language or 'no language'!r} is run by no test")
        count += 1
    return count


if __name__ == "__main__":
    sys.path[0] = ""
    print(run_file(Path(sys.argv[1]).resolve()), "blocks")
