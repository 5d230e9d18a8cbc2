"""A project's own tolerances: which parameters and quantities may lie further apart, or are not looked at at all."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optrace.compare.columns import Ints
from optrace.compare.grid import after_name
from optrace.compare.match import Cell
from optrace.compare.tolerance import Tolerance
from optrace.compare.words import count_words
from optrace.errors import CompareError

_NUMBERS = ("rtol", "atol", "eps")
_KEYS = ("param", "quantity", *_NUMBERS, "ignore")


@dataclass(frozen=True)
class PatternRule:
    """What holds for the rows whose parameter and quantity (A's names) fit two globs; None leaves what was asked."""

    param: str = "*"
    quantity: str = "*"
    rtol: float | None = None
    atol: float | None = None
    eps: float | None = None
    ignore: bool = False

    def fits(self, param: str | None, quantity: str) -> bool:
        """Whether the rule is for a row; `state.*` is also for `state_in.*`; None: a hyper-parameter of a group."""
        if not (fnmatchcase(quantity, self.quantity) or fnmatchcase(after_name(quantity), self.quantity)):
            return False
        return self.param == "*" if param is None else fnmatchcase(param, self.param)

    def __str__(self) -> str:
        where = [f"{name} {glob}" for name, glob in (("param", self.param), ("quantity", self.quantity)) if glob != "*"]
        what = [f"{name} {getattr(self, name):g}" for name in _NUMBERS if getattr(self, name) is not None]
        return f"{', '.join(where) or 'everything'}: {'ignore' if self.ignore else ', '.join(what)}"


@dataclass
class PatternRules:
    """The rules of a comparison; of several that fit a row the first one counts."""

    rules: tuple[PatternRule, ...] = ()
    origin: str = "rules"
    applied: Counter[int] = field(default_factory=Counter)
    """Number of a rule to how many rows that differ it was applied to."""

    @classmethod
    def parse(cls, tables: Any, origin: str = "rules") -> PatternRules:
        """Rules from tables like `{"param": "*.bias", "rtol": 1e-3}`; CompareError that names the table if one is bad.

        `origin` is what the messages call the place that the tables come from.
        """
        if not isinstance(tables, Sequence) or isinstance(tables, str):
            raise CompareError(f"{origin} is {tables!r}; write a list of tables, each with param or quantity and rtol")
        return cls(tuple(_rule(table, f"{origin} {n}") for n, table in enumerate(tables, 1)), origin)

    def number(self, param: str | None, quantity: str) -> int:
        """Number of the rule for a row, from 0; -1 when there is none."""
        return next((n for n, rule in enumerate(self.rules) if rule.fits(param, quantity)), -1)

    def ignores(self, param: str | None, quantity: str) -> bool:
        """Whether a row is not to be looked at; counted where it is not."""
        number = self.number(param, quantity)
        if number < 0 or not self.rules[number].ignore:
            return False
        self.applied[number] += 1
        return True

    def notes(self) -> list[str]:
        """Which rules were applied, and to how much."""
        return [
            f"{self.origin} {number + 1} applied ({self.rules[number]}): {count_words(count, 'row')} that"
            f" {'differs' if count == 1 else 'differ'}"
            for number, count in sorted(self.applied.items())
            if count
        ]


def nearest_rules(folder: Path) -> PatternRules:
    """The rules of the nearest pyproject.toml at or above a folder; none where it has no `[tool.optrace.diff]`.

    CompareError when that file cannot be read or its table is malformed.
    """
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        path = place / "pyproject.toml"
        if path.is_file():
            return _from_file(path)
    return PatternRules()


def _from_file(path: Path) -> PatternRules:
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CompareError(f"{path} cannot be read: {error}") from None
    table: Any = project
    for key in ("tool", "optrace", "diff"):
        table = table.get(key, {}) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping) or set(table) - {"rules"}:
        odd = f"{sorted(set(table) - {'rules'})[0]!r}" if isinstance(table, Mapping) else f"{table!r}"
        raise CompareError(f"[tool.optrace.diff] of {path} holds {odd}; it may hold [[tool.optrace.diff.rules]] only")
    return PatternRules.parse(table.get("rules", []), f"{path.name} rule")


def _rule(table: Any, where: str) -> PatternRule:
    if isinstance(table, PatternRule):
        return table
    if not isinstance(table, Mapping):
        raise CompareError(f"{where} is {table!r}; a rule is a table like {{param = '*.bias', rtol = 1e-3}}")
    for key, value in table.items():
        if key not in _KEYS:
            raise CompareError(f"{where} has the key {key!r}; a rule knows {', '.join(_KEYS)}")
        good = {"ignore": isinstance(value, bool)}.get(key, isinstance(value, str))
        if key in _NUMBERS:
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < np.inf
        if not good:
            wanted = "a number from 0" if key in _NUMBERS else "true or false" if key == "ignore" else "a glob"
            raise CompareError(f"{where}: {key} is {value!r}; it is {wanted}")
    given: dict[str, Any] = {key: float(value) if key in _NUMBERS else value for key, value in table.items()}
    rule = PatternRule(**given)
    numbers = [name for name in _NUMBERS if getattr(rule, name) is not None]
    if rule.ignore == bool(numbers):
        why = f"both ignore and {numbers[0]}" if numbers else "none of them"
        raise CompareError(f"{where} has {why}; a rule has rtol, atol or eps, or ignore = true")
    if rule.quantity.startswith("hyper.") and (numbers or rule.param != "*"):
        odd = numbers[0] if numbers else "param"
        raise CompareError(f"{where} gives {odd} for {rule.quantity}; hyper-parameters are compared exactly or ignored")
    return rule


class Limits:
    """What each row may differ by: what was asked for, and the rules where they fit."""

    def __init__(self, asked: Tolerance, rules: PatternRules, upstream_differs: bool) -> None:
        """`upstream_differs`: gradients may come from other kernels."""
        self.asked, self.rules, self.upstream_differs = asked, rules, upstream_differs
        self._table: NDArray[np.int64] = np.empty((0, 0), np.int64)
        self._names: tuple[str, ...] = ()

    def numbers(self, cells: Sequence[Cell], names: tuple[str, ...]) -> NDArray[np.int64]:
        """Number of the rule of each cell and quantity, [cells, quantities]; -1 where there is none."""
        if self._table.shape != (len(cells), len(names)) or self._names != names:
            self._table = np.full((len(cells), len(names)), -1, np.int64)
            if self.rules.rules:
                for c, cell in enumerate(cells):
                    self._table[c] = [self.rules.number(cell.param_a, name) for name in names]
            self._names = names
        return self._table

    def ignored(self, cells: Sequence[Cell], names: tuple[str, ...]) -> NDArray[np.bool_]:
        """Which are not to be looked at, [cells, quantities]."""
        ignore = np.array([*(rule.ignore for rule in self.rules.rules), False])
        return np.asarray(ignore[self.numbers(cells, names)])

    def tolerance(self, number: Ints) -> Tolerance:
        """The rtol and atol of rows, [n] each, by the number of their rule."""
        return Tolerance(self._of(number, "rtol", self.asked.rtol), self._of(number, "atol", self.asked.atol))

    def roundings(self, number: Ints, names: tuple[str, ...], quantity: Ints) -> NDArray[np.float64]:
        """The eps granted to rows, [n], by the number of their rule and their quantity."""
        plain = np.array([self.asked.roundings(name, self.upstream_differs) for name in names])[quantity]
        own = self._of(number, "eps", np.nan)
        return np.where(np.isnan(own), plain, own)

    def with_eps(self, number: Ints) -> NDArray[np.bool_]:
        """Which rows, by the number of their rule, have an eps of their own."""
        return ~np.isnan(self._of(number, "eps", np.nan))

    def _of(self, number: Ints, name: str, otherwise: Any) -> NDArray[np.float64]:
        given = [getattr(rule, name) for rule in self.rules.rules]
        return np.array([*(otherwise if value is None else value for value in given), otherwise])[number]
