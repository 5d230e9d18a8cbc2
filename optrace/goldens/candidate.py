"""What a candidate for the golden check is, and how each kind of it is driven through a case.

A candidate is a class like torch's, `C(params, lr=..., ...)` with `step()`; a NumPy class with `update(params, grads)`;
a function `f(w, dw, config) -> (w, config)`; a pure rule `(param, grad, state, hyper) -> (param, state)`; or anything
callable that returns an object of the first kind.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optrace.errors import GoldenError

OBJECT, UPDATE, CONFIG, RULE = "object", "update", "config", "rule"


@dataclass(frozen=True)
class Candidate:
    """A thing to be checked, and what can be read off it without running it."""

    thing: Callable[..., Any]
    kind: str
    """OBJECT, UPDATE, CONFIG or RULE."""
    name: str
    accepts: tuple[str, ...] = ()
    """Names of the options it takes when it is built."""
    takes_any: bool = False
    """It takes `**kwargs` besides."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Options of its own that it always gets (`fused=True`)."""


def load(text: str) -> Any:
    """The thing that `module:Class` or `path/file.py:Class` names, with the current folder importable.

    Raises:
        GoldenError: nothing is there, or importing it fails.
    """
    module_name, colon, attribute = text.rpartition(":")
    if not colon or not module_name or not attribute:
        raise GoldenError(f"{text!r} names no candidate; {_as_a_candidate(text.strip(':'))}")
    with _importable(Path.cwd()):
        try:
            module = _module(module_name)
        except GoldenError:
            raise
        except SystemExit as end:
            raise GoldenError(
                f"importing {module_name} ends the program with {end.code!r}; put what does so below"
                " `if __name__ == '__main__':`"
            ) from None
        except Exception as error:
            raise GoldenError(f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
            raise GoldenError(f"{module_name} has no {attribute!r}; it has {', '.join(known[:12]) or 'nothing'}")
        found = getattr(found, part)
    return found


def _module(name: str) -> Any:
    path = Path(name)
    if path.suffix != ".py":
        return importlib.import_module(name)
    if not path.is_file():
        raise GoldenError(f"there is no file {name}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    with _importable(path.resolve().parent):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    text = os.fspath(folder)
    if text in sys.path:
        yield
        return
    sys.path.insert(0, text)
    try:
        yield
    finally:
        sys.path.remove(text)


def _as_a_candidate(text: str) -> str:
    """How to name what was meant by a text without a module or without a class."""
    module, dot, attribute = text.rpartition(".")
    if text.endswith(".py"):
        return f"name the class in it: {text}:Class"
    if dot and module and attribute[:1].isupper():
        return f"write {module}:{attribute}"
    return "write module:Class or path/to/file.py:Class"


def _short(thing: Any) -> str:
    """An object as a message quotes it."""
    text = " ".join(repr(thing).split())
    return text if len(text) <= 40 else f"{text[:36]} ..."


def recognise(thing: Any, extra: Mapping[str, Any] | None = None) -> Candidate:
    """Say what kind of candidate a thing is.

    Raises:
        GoldenError: it is none.
    """
    name = name_of(thing)
    step = getattr(thing, "step", None)
    if not callable(thing) and callable(step) and len(_required(step)) == 4:  # a Rule
        return Candidate(step, RULE, name, extra=extra or {})
    if not callable(thing):
        raise GoldenError(f"the candidate is {_short(thing)}, no class or function; give the class, not an object")
    base = thing
    while isinstance(base, functools.partial):
        base = base.func
    accepts, takes_any = _options(thing)
    common: Any = {"name": name, "accepts": accepts, "takes_any": takes_any, "extra": extra or {}}
    if isinstance(base, type):
        if callable(getattr(base, "step", None)):
            return Candidate(thing, OBJECT, **common)
        if callable(getattr(base, "update", None)):
            return Candidate(thing, UPDATE, **common)
        raise GoldenError(f"{name} has neither step() nor update(params, grads), so it is no optimizer")
    required = _required(thing)
    if len(required) == 4:
        return Candidate(thing, RULE, **common)
    if len(required) in (2, 3) and len(_positional(thing)) == 3:
        return Candidate(thing, CONFIG, **common)
    if required and (len(required) == 1 or required[0].name.startswith("param")):
        return Candidate(thing, OBJECT, **common)
    raise GoldenError(
        f"{name}{_signature_text(thing)} is no candidate; it can be a class with step() or update(params, grads), "
        "a function f(w, dw, config) or (param, grad, state, hyper), or one that makes an optimizer of its parameters"
    )


def name_of(thing: Any) -> str:
    """A short name for reports."""
    if isinstance(thing, functools.partial):
        return name_of(thing.func)
    return str(getattr(thing, "__name__", None) or getattr(thing, "name", None) or type(thing).__name__)


def _parameters(thing: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(thing).parameters.values())
    except (TypeError, ValueError):
        raise GoldenError(f"{name_of(thing)} has no signature that Python can show") from None


def _positional(thing: Any) -> list[inspect.Parameter]:
    return [p for p in _parameters(thing) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _required(thing: Any) -> list[inspect.Parameter]:
    return [p for p in _positional(thing) if p.default is p.empty]


def _options(thing: Any) -> tuple[tuple[str, ...], bool]:
    parameters = _parameters(thing)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in parameters if p.kind in named), any(p.kind is p.VAR_KEYWORD for p in parameters)


def _signature_text(thing: Any) -> str:
    return str(inspect.signature(thing))
