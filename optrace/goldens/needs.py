"""What a case asks for that not every candidate has: options, groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optrace.goldens.candidate import Candidate
from optrace.goldens.drive import Inputs, NotCovered
from optrace.goldens.format import Golden
from optrace.goldens.synonyms import Names, understand


def needed(golden: Golden, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a case that differ from torch's defaults somewhere in it, with a value that does."""
    found: dict[str, Any] = {}
    for group in Inputs(golden).groups:
        found |= {name: value for name, value in group.options.items() if value != defaults.get(name)}
    for row in golden.rows:
        if row.quantity == "hyper":
            found.setdefault(row.param, row.values)
    return found


def require(names: Names, golden: Golden, defaults: Mapping[str, Any]) -> None:
    """NotCovered with the options of a case that the candidate does not take."""
    missing = [name for name in needed(golden, defaults) if not names.has(name)]
    if missing:
        raise NotCovered(", ".join(missing))


def one_group(golden: Golden) -> Mapping[str, Any]:
    """The options of the only group; NotCovered where there are more."""
    groups = Inputs(golden).groups
    if len(groups) > 1:
        raise NotCovered("parameter groups")
    return groups[0].options


def names_of(candidate: Candidate, defaults: Mapping[str, Any]) -> Names:
    """Under which names the candidate takes the rule's options."""
    accepts = [name for name in candidate.accepts if name not in candidate.extra]
    known = understand(defaults, accepts)
    if candidate.takes_any:
        rest = {option: (option,) for option in defaults if not known.has(option) and option not in candidate.extra}
        known = Names({**known.of, **rest})
    return known
