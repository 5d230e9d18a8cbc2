"""The house keeps its plan: who may import whom, what is light, and that no module shadows a public function."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import optrace

PACKAGE = Path(optrace.__file__).parent
ALL = {"trace", "recorder", "reference", "replayer", "compare", "goldens", "testing", "views", "cli"}
ARROWS = {
    "trace": set(),
    "reference": set(),
    "recorder": {"trace"},
    "replayer": {"reference", "trace"},
    "compare": {"replayer", "trace"},
    "views": {"compare", "trace"},
    "goldens": {"reference", "compare", "trace"},
    "testing": {"goldens", "compare", "recorder", "views"},
    "cli": ALL - {"cli"},
}
NO_TORCH = {"trace", "compare", "views", "reference"}


def imports_of(source: Path) -> set[str]:
    """Absolute dotted names that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} uses a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def sources(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_rooms_import_only_along_the_arrows(room):
    wrong = []
    for source in sources(room):
        for name in imports_of(source):
            parts = name.split(".")
            if parts[0] == "optrace" and len(parts) > 1 and parts[1] in ALL - {room} - ARROWS[room]:
                wrong.append(f"{source.relative_to(PACKAGE)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("room", sorted(NO_TORCH))
def test_rooms_that_read_traces_never_import_torch(room):
    wrong = [str(s) for s in sources(room) if any(n.split(".")[0] == "torch" for n in imports_of(s))]
    assert not wrong


def test_no_module_takes_a_public_functions_name_and_every_public_name_works_after_all_imports():
    code = (
        "import importlib, pkgutil, optrace\n"
        "for m in pkgutil.walk_packages(optrace.__path__, 'optrace.'):\n"
        "    if '.autostart' not in m.name and not m.name.endswith(('__main__', '_kernel')):\n"
        "        importlib.import_module(m.name)\n"
        "import types\n"
        "for name in optrace.__all__:\n"
        "    thing = getattr(optrace, name)\n"
        "    assert not isinstance(thing, types.ModuleType), name\n"
        "    print(name)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(optrace.__all__)
    top = {m.name for m in pkgutil.iter_modules([str(PACKAGE)])}
    assert not top & set(optrace.__all__)


HELP = "import runpy, sys; sys.argv = ['optrace', '--help']; runpy.run_module('optrace', run_name='__main__')"


@pytest.mark.parametrize("command", ["import optrace", HELP])
def test_import_and_help_load_nothing_heavy(command):
    code = (
        "import sys\n"
        f"try:\n    exec({command!r})\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'pandas', 'pyarrow', 'numpy', 'rich') if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_public_names_are_listed_once_and_documented():
    for name in optrace.__all__:
        thing = getattr(optrace, name)
        assert name == "__version__" or (thing.__doc__ or "").strip(), f"optrace.{name} has no docstring"


def test_every_file_says_what_it_is_for():
    for source in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(source.read_text())), f"{source} has no opening sentence"


def test_rooms_are_where_the_design_says():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and not p.name.startswith(("_", "."))}
    assert rooms <= ALL
    importlib.import_module("optrace.errors")


def test_test_files_have_names_of_their_own():
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py") if "projects" not in path.parts]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
