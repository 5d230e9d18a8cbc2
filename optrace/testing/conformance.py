"""Conformance tests of an optimizer: by inheritance (`OptimizerConformance`) or by the mark `optrace_conformance`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest

from optrace.errors import OptraceError
from optrace.testing.properties import PROPERTIES
from optrace.testing.subject import Broken, NotApplicable, set_grads

PAGE = "docs/conformance.md"


class OptimizerConformance:
    """Inherit to get one test a property:

        class TestLion(OptimizerConformance):
            optimizer = Lion
            options = {"lr": 1e-3}
            skip = {"float16": "its moments overflow"}

    A property that is listed in `skip` is tried too, and its test fails if it holds.
    """

    optimizer: ClassVar[Any] = None
    """The class (or set `make`)."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Given to it each time."""
    shapes: ClassVar[Sequence[tuple[int, ...]]] = ((8, 8), (8,))
    """Of the parameters; 2-D ones only where the rule needs it."""
    skip: ClassVar[Mapping[str, str]] = {}
    """property -> why it need not hold."""

    def make(self, params: Any, **options: Any) -> Any:
        """A new optimizer over a list of parameters, or of groups; override where it takes more: a model, a base."""
        kind = type(self).__dict__.get("optimizer", type(self).optimizer)
        if kind is None:
            raise OptraceError(f"{type(self).__name__} names no optimizer; set `optimizer` or define `make`")
        return kind(params, **{**self.options, **options})

    def before_step(self, optimizer: Any) -> None:
        """Called before each step: `optimizer.train()` of schedule-free ones."""

    def backward(self, params: list[Any], step: int) -> Callable[[], Any] | None:
        """Set the gradients of a step; return a closure where `step` needs one. Default: fixed numbers."""
        set_grads(params, step)
        return None


def _test(name: str) -> Callable[[OptimizerConformance], None]:
    def test(self: OptimizerConformance) -> None:
        __tracebackhide__ = True
        check_property(name, self, self.skip)

    test.__name__ = f"test_{name}"
    test.__qualname__ = f"OptimizerConformance.test_{name}"
    test.__doc__ = PROPERTIES[name].__doc__
    return test


for _name in PROPERTIES:
    setattr(OptimizerConformance, f"test_{_name}", _test(_name))


def verdict(name: str, subject: Any) -> str | None:
    """Why a property does not hold, None if it does; NotApplicable where it says nothing of this optimizer."""
    try:
        PROPERTIES[name](subject)
    except Broken as broken:
        return str(broken)
    except NotApplicable:
        raise
    except Exception as error:
        return f"the property could not be tried: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def check_property(name: str, subject: Any, skip: Mapping[str, str]) -> None:
    """Pass, skip or fail the running test by a property."""
    __tracebackhide__ = True
    unknown = sorted(set(skip) - set(PROPERTIES))
    if unknown:
        pytest.fail(f"skip names no property: {', '.join(unknown)}; there are {', '.join(PROPERTIES)}", pytrace=False)
    try:
        broken = verdict(name, subject)
    except NotApplicable as reason:
        if name in skip:
            pytest.fail(f"{name} does not apply ({reason}): take it out of skip", pytrace=False)
        pytest.skip(str(reason))
    if name in skip:
        if broken is None:
            pytest.fail(f"{name} holds: take it out of skip (there it says: {skip[name]})", pytrace=False)
        pytest.skip(f"{skip[name]} ({broken})")
    if broken is not None:
        why = (PROPERTIES[name].__doc__ or "").strip()
        pytest.fail(f"{name}: {broken}\nwhy it matters: {why}\nmore: {PAGE}, {name}", pytrace=False)


def marked(optimizers: Sequence[Any], *, skip: Mapping[str, str] | None = None) -> list[tuple[Any, ...]]:
    """The tests of a mark: `[Lion, (Prodigy, {"d0": 1e-6}), (Other, {}, {"resume": "why"})]`."""
    tests: list[tuple[Any, ...]] = []
    for entry in optimizers:
        kind, options, own = (*entry, {}, {})[:3] if isinstance(entry, tuple) else (entry, {}, {})
        if not callable(kind):
            raise OptraceError(f"{kind!r} is no optimizer class; write [Lion, (Prodigy, dict(d0=1e-6))]")
        tests += [(kind, dict(options), {**(skip or {}), **own}, name) for name in PROPERTIES]
    return tests


def id_of(test: tuple[Any, ...]) -> str:
    """`Lion-resume`."""
    return f"{getattr(test[0], '__name__', type(test[0]).__name__)}-{test[3]}"


class Marked(OptimizerConformance):
    """What the fixture `optrace_conformance` is: one property of one optimizer."""

    def __init__(self, kind: Any, options: Mapping[str, Any], skip: Mapping[str, str], name: str) -> None:
        self._kind, self._options, self._skip, self.name = kind, options, skip, name

    def make(self, params: Any, **options: Any) -> Any:
        """As the mark says."""
        return self._kind(params, **{**self._options, **options})

    def check(self) -> None:
        """Pass, skip or fail by the property."""
        __tracebackhide__ = True
        check_property(self.name, self, self._skip)
