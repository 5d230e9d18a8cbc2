"""The pytest plugin (entry point `optrace`): options, marks, fixtures; nothing heavy is imported until one is used."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from optrace.errors import NothingCovered, OptraceError, TraceError
from optrace.testing.book import MODES, Book, folder_of, settle, short, stem_of

if TYPE_CHECKING:
    from optrace import Trace

BOOK = pytest.StashKey[Book]()
OFF_IN_CI = "OPTRACE_REGEN_IN_CI"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--optrace-regen`."""
    parser.getgroup("optrace").addoption(
        "--optrace-regen",
        choices=MODES,
        default=None,
        help="Write optrace baselines: 'new' those that are missing; 'failed' these and those that fail; 'all' these "
        "and those whose bits differ.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks; refuse to write baselines where several processes would, or where nobody looks."""
    config.addinivalue_line(
        "markers",
        "optrace_golden(rule, *, folder=None, dtype=None, cases=None): one test for each golden case of a rule",
    )
    config.addinivalue_line(
        "markers",
        "optrace_conformance(optimizers, *, skip=None): one test for each optimizer and each property",
    )
    config.stash[BOOK] = Book()
    mode = config.getoption("optrace_regen")
    if mode is None:
        return
    if hasattr(config, "workerinput") or config.getoption("dist", "no") != "no" or config.getoption("numprocesses", 0):
        raise pytest.UsageError("--optrace-regen writes files, so it is refused under xdist; run it without -n")
    if _in_ci() and os.environ.get(OFF_IN_CI) != "1":
        raise pytest.UsageError(
            f"--optrace-regen is refused under CI, where nobody looks at what it writes; set {OFF_IN_CI}=1 to allow it"
        )


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false") or bool(os.environ.get("BUILD_NUMBER"))


# --- what is recorded ---------------------------------------------------------------------------------------------


class Recording:
    """What the context manager of `optrace_record` yields; `trace` is there once the block has ended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def trace(self) -> Trace:
        """The recorded run; TraceError if nothing stepped."""
        __tracebackhide__ = True
        import optrace

        if not self.path.exists():
            raise TraceError(f"no optimizer step was recorded into {self.path}, so there is no trace")
        return optrace.open(self.path)


class Recorder:
    """`optrace_record(train)` returns the trace of what `train()` did; `with optrace_record() as run:` is the block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(self, train: Callable[[], Any] | None = None, *, name: str | None = None, **settings: Any) -> Any:
        """Record a function, or with none, the block behind `with`; settings as of `optrace.record`.

        Raises:
            TraceError: no optimizer stepped.
            RecordError: a setting makes no sense, or the name is taken.
        """
        __tracebackhide__ = True
        self._count += 1
        path = self._folder / (name or (f"run{self._count}" if self._count > 1 else "run"))
        if train is None:
            return self._block(path, settings)
        with self._block(path, settings) as recording:
            train()
        return recording.trace

    @contextmanager
    def _block(self, path: Path, settings: dict[str, Any]) -> Iterator[Recording]:
        import optrace

        with optrace.record(path, **{"quiet": True, **settings}):
            yield Recording(path)


@pytest.fixture
def optrace_record(tmp_path: Path) -> Recorder:
    """Record what a function or a block trains, into the test's folder."""
    return Recorder(tmp_path / "optrace")


# --- baselines ----------------------------------------------------------------------------------------------------


class Baselines:
    """`check(x)`: x does what is stored of it; x is a factory of an optimizer, or a trace of a training run."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request, self._folder = request, folder
        self._names: dict[str, str] = {}
        """File, in lower case as some file systems have it, to the name of the check."""

    def check(
        self,
        x: Any,
        name: str | None = None,
        *,
        shapes: dict[str, tuple[int, ...]] | None = None,
        steps: int | None = None,
        dtype: str | None = None,
        eps: float = 4.0,
        free_running: bool = False,
    ) -> None:
        """Compare with the stored baseline; fail with the diff's report where they differ.

        Args:
            x: a function from a list of torch parameters to an optimizer (a class with defaults will do), driven over
                stored gradients; or a trace of a training run, each stored step of which is replayed.
            name: tells several checks of one test apart.
            shapes: of the parameters of a new optimizer baseline, by name; default w 2x3 and b 2.
            steps: of a new optimizer baseline; default 12.
            dtype: of a new optimizer baseline: float32 (default) or float64.
            eps: what a number may be off after a step, in eps of its dtype and scale.
            free_running: compare the numbers as they drifted, instead of step by step.
        """
        __tracebackhide__ = True
        item = self._request.node
        key = name or ""
        file = "".join(c if c.isalnum() or c in "_-" else "-" for c in key)
        other = self._names.get(file.casefold())
        if other is not None:
            same = f"the same name {key!r}" if other == key else f"the names {other!r} and {key!r}, which are one file"
            pytest.fail(f"two checks of {item.name} have {same}; give check(x, name=...)", pytrace=False)
        self._names[file.casefold()] = key
        mode = item.config.getoption("optrace_regen")
        if mode is not None and _is_xfail(item):
            pytest.fail(f"--optrace-regen={mode} is refused in a test marked xfail; nothing was written", pytrace=False)
        stem = folder_of(Path(item.path)) / (_stem(item) + (f".{file}" if file else ""))
        try:
            baseline = self._baseline(x, stem, shapes, steps, dtype, eps, free_running)
            failure = settle(
                baseline, mode, item.config.stash[BOOK], self._folder / f"actual-{file}".rstrip("-"), _run(item)
            )
        except OptraceError as error:
            failure = str(error)
        if failure is not None:
            pytest.fail(failure, pytrace=False)

    def _baseline(self, x: Any, stem: Path, shapes: Any, steps: Any, dtype: Any, eps: float, free: bool) -> Any:
        import optrace
        from optrace.testing.optimizer_baseline import OptimizerBaseline
        from optrace.testing.run_baseline import RunBaseline

        if isinstance(x, str | Path):
            x = optrace.open(x)
        if isinstance(x, optrace.Trace):
            return RunBaseline(x, stem.with_name(f"{stem.name}.trace"), eps, free)
        if not callable(x):
            raise OptraceError(
                f"check() takes a factory of an optimizer, `lambda params: MySGD(params, lr=0.1)`, or a trace, not a "
                f"{type(x).__name__}"
            )
        return OptimizerBaseline(x, stem.with_name(f"{stem.name}.csv"), shapes, steps, dtype, eps, free)


def _is_xfail(item: pytest.Item) -> bool:
    return any(not (mark.args and mark.args[0] is False) for mark in item.iter_markers("xfail"))


def _stem(item: Any) -> str:
    kind = getattr(item, "cls", None)
    return stem_of(kind.__qualname__ if kind is not None else None, item.name)


def _run(item: pytest.Item) -> str:
    return f"pytest {shlex.quote(item.nodeid)}"


@pytest.fixture
def optrace_baseline(request: pytest.FixtureRequest, tmp_path: Path) -> Baselines:
    """Compare an optimizer or a training run with what is stored beside the test."""
    return Baselines(request, tmp_path / "optrace")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note which tests could use which baselines."""
    book = config.stash[BOOK]
    for item in items:
        folder = str(folder_of(Path(item.path)))
        stems = book.stems.setdefault(folder, set())
        if "optrace_baseline" in getattr(item, "fixturenames", ()):
            stems.add(_stem(item))
    for argument in config.args:
        if "::" in argument:
            book.partial.add(str(folder_of(Path(os.path.abspath(argument.partition("::")[0])))))


def pytest_deselected(items: list[pytest.Item]) -> None:
    """A module of which tests are left out says nothing about unused baselines."""
    for item in items:
        item.config.stash[BOOK].partial.add(str(folder_of(Path(item.path))))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note the tests that ran to their end."""
    report = yield
    if call.when == "call" and getattr(report, "passed", False):
        item.config.stash[BOOK].passed.add(f"{folder_of(Path(item.path))}/{_stem(item)}")
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist sends what its tests did."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["optrace"] = session.config.stash[BOOK].as_data()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """The controller of xdist takes it in."""
    data = getattr(node, "workeroutput", {}).get("optrace")
    if data is not None:
        node.config.stash[BOOK].add(data)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say which baselines were written and which nothing uses any more."""
    book = config.stash[BOOK]
    unused = book.unused()
    if book.written or unused:
        terminalreporter.section("optrace baselines", sep="-")
    for path in sorted(book.written):
        terminalreporter.write_line(f"written  {short(path)}")
    for path in unused:
        terminalreporter.write_line(f"unused   {short(path)}   (no test looks at it: delete it)")


# --- goldens and conformance --------------------------------------------------------------------------------------


class GoldenCase:
    """`check(MySGD)`: the candidate computes this case as torch did."""

    def __init__(self, rule: str | None, name: str) -> None:
        self._rule, self.name = rule, name

    def check(self, candidate: Any, **options: Any) -> None:
        """Drive the candidate through the case; fail with the report, skip what it has no option for.

        Args:
            candidate: as of `optrace.check_golden`.
            **options: given to its constructor each time.
        """
        __tracebackhide__ = True
        from optrace.testing.golden_cases import check_case

        try:
            report = check_case(self._rule, self.name, candidate, options)
        except NothingCovered as lacking:
            pytest.skip(str(lacking))
        except OptraceError as error:
            pytest.fail(str(error), pytrace=False)
        if not report.same:
            pytest.fail(str(report), pytrace=False)


@pytest.fixture
def optrace_golden(request: pytest.FixtureRequest) -> GoldenCase:
    """One golden case of the rule that the mark names."""
    if not hasattr(request, "param"):
        pytest.fail('the fixture optrace_golden needs the mark: @pytest.mark.optrace_golden("sgd")', pytrace=False)
    return GoldenCase(*request.param)


@pytest.fixture
def optrace_conformance(request: pytest.FixtureRequest) -> Any:
    """One property of one optimizer of the mark; `optrace_conformance.check()`."""
    if not hasattr(request, "param"):
        pytest.fail("the fixture needs the mark: @pytest.mark.optrace_conformance([Lion, ...])", pytrace=False)
    from optrace.testing.conformance import Marked

    return Marked(*request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case of the mark `optrace_golden`, one a property for `optrace_conformance`."""
    golden = metafunc.definition.get_closest_marker("optrace_golden")
    if golden is not None and "optrace_golden" in metafunc.fixturenames:
        from optrace.testing.golden_cases import cases_of

        try:
            found = cases_of(Path(metafunc.definition.path).parent, *golden.args, **golden.kwargs)
        except (OptraceError, TypeError) as error:
            raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: optrace_golden: {error}") from None
        metafunc.parametrize("optrace_golden", found, ids=[_case_id(name) for _, name in found], indirect=True)
    conformance = metafunc.definition.get_closest_marker("optrace_conformance")
    if conformance is not None and "optrace_conformance" in metafunc.fixturenames:
        from optrace.testing.conformance import id_of, marked

        try:
            tests = marked(*conformance.args, **conformance.kwargs)
        except (OptraceError, TypeError) as error:
            raise pytest.Collector.CollectError(f"{metafunc.definition.nodeid}: optrace_conformance: {error}") from None
        metafunc.parametrize("optrace_conformance", tests, ids=[id_of(test) for test in tests], indirect=True)


def _case_id(name: str) -> str:
    return name if "/" not in name or not Path(name).is_file() else Path(name).stem
