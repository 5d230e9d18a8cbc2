"""Hyper-parameters other than lr, and which parameter is in which group or in none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from optrace.compare.arrow import integers
from optrace.compare.causes.case import Case, few
from optrace.compare.causes.cause import Cause
from optrace.compare.hyper import MISSING, HyperDifference
from optrace.compare.orphans import nameless, twins, without_grad
from optrace.compare.source import param_rows
from optrace.compare.words import count_words, value_words

Link = tuple[int, int]
LR_NAMES = ("lr", "learning_rate", "eta")


def moved_links(case: Case, pair: int) -> dict[Link, str]:
    """Links (group of A, of B) that exist because parameters sit in another group; with the option that tells.

    A link is a move when B's group also holds parameters of another group of A whose options it shares, so that the
    parameters of this link are the ones that came from elsewhere.
    """
    links = Counter((cell.group_a, cell.group_b) for _, cell in case.cells(pair))
    unequal: dict[Link, set[str]] = defaultdict(set)
    for found in case.hyper.differences.values():
        if found.pair == pair and found.decides:
            unequal[found.group_a, found.group_b].add(found.key)
    moved = {}
    for link, keys in unequal.items():
        partners_b = [other for other in links if other[1] == link[1] and other != link]
        partners_a = [other for other in links if other[0] == link[0] and other != link]
        for key in sorted(keys):
            shared = any(key not in unequal.get(other, ()) for other in partners_b)
            stayed = any(key not in unequal.get(other, ()) for other in partners_a)
            if shared and (stayed or not partners_a):
                moved[link] = key
                break
    return moved


def membership(case: Case) -> Iterator[Cause]:
    """Parameters that are in a group with other options than in A."""
    for pair in range(len(case.matching.pairs)):
        for link, key in moved_links(case, pair).items():
            found = _difference(case, pair, link, key)
            params = [cell.param_a for _, cell in case.cells(pair) if (cell.group_a, cell.group_b) == link]
            a, b = value_words(found.a), value_words(found.b)
            yield Cause(
                "group-membership",
                f"{few(params)} {'is' if len(params) == 1 else 'are'} in the group with {key} {b} in {{B}},"
                f" in the one with {a} in {{A}}",
                f"in {{B}} put {'it' if len(params) == 1 else 'them'} into the group with {key}={a}",
                (
                    f"group {link[1]} of {{B}} has the {key} of the rest of its parameters in {{A}};"
                    f" {count_words(len(params), 'parameter')} of group {link[0]} of {{A}} came into it",
                ),
                steps=(found.step, found.step + found.count - 1),
                params=tuple(params),
            )


def late_params(case: Case) -> Iterator[Cause]:
    """Parameters that come to one side's optimizer at a later step than to the other's."""
    first = case.first
    assert first is not None
    rows = case.at(first.step)
    for side, name in ((1, "{B}"), (0, "{A}")):
        other, late = ("{B}", "{A}")[side], {}
        for n, cell in case.cells():
            own, theirs = ({quantity for c, quantity in rows[s] if c == n} for s in (side, 1 - side))
            if not own and "param" in theirs:
                late[cell.param_a] = _arrives(case, side, cell.param_b if side else cell.param_a)
        if not late:
            continue
        step = min((s for s in late.values() if s is not None), default=None)
        until = f"before step {step}" if step is not None else "from then on"
        them = "it" if len(late) == 1 else "them"
        yield Cause(
            "param-missing",
            f"{few(list(late))} {'is' if len(late) == 1 else 'are'} in no optimizer of {name} {until}, and in one of"
            f" {other} at step {first.step}",
            f"call add_param_group for {them} at the same step in both",
            (f"nothing of {them} is recorded in {name} at step {first.step}, neither gradient nor state",),
            steps=(first.step, first.step if step is None else step - 1),
            params=tuple(late),
        )


def _arrives(case: Case, side: int, param: str) -> int | None:
    """A's number of the first step after the first divergence at which a side holds a parameter."""
    assert case.first is not None
    shift = case.offset(case.pair) if side else 0
    matched = case.matching.pairs[case.pair]
    index = matched.b if side else matched.a
    table = case.sources[side].trace.arrow("tensors", optimizer=index, param=param, quantity="param", columns=["step"])
    steps = integers(table.column("step")) + shift
    later = steps[steps > case.first.step]
    return int(later.min()) if len(later) else None


def missing_params(case: Case) -> Iterator[Cause]:
    """Parameters that one side's optimizer does not hold, or that another one does."""
    elsewhere = case.matching.elsewhere
    yield from _in_another_optimizer(case, elsewhere)
    late = []
    for side, words in enumerate((case.matching.only_in_a, case.matching.only_in_b)):
        known = {names[side] for names in elsewhere}
        params = [name for word in words if word.startswith("param ") and (name := word[6:]) not in known]
        if not params:
            continue
        has, lacks = ("{A}", "{B}")[side], ("{B}", "{A}")[side]
        verb = "is" if len(params) == 1 else "are"
        them = "it" if len(params) == 1 else "them"
        evidence = [f"{has} holds {count_words(len(params), 'parameter')} more"]
        fix = (
            f"give {them} to the optimizer of {{B}} (all parameters that require grad, after the model has its final"
            " modules)"
        )
        if has == "{B}":
            fix = f"leave {them} out of the optimizer of {{B}}, or see why {{A}} has {them} not (a tied weight?)"
        source = case.sources[side]
        for name, twin in list(twins(source, params).items())[:2]:
            evidence.append(f"{name} begins as a copy of {twin} in {has}: in {lacks} the two may be one (tied)")
            if has == "{B}":
                fix = f"in {{B}} tie {name} to {twin} as {{A}} does, before the optimizer is made"
        if without_grad(source, params):
            evidence.append(f"no gradient of {them} was seen in {has} at any step")
            if nameless(params):
                yield _orphaned(has, params, evidence)
                continue
        late.append(
            Cause(
                "param-missing",
                f"{few(params)} {verb} in no optimizer of {lacks} that was compared, and in one of {has}",
                fix,
                tuple(evidence),
                params=tuple(params),
            )
        )
    yield from late


def _orphaned(side: str, params: Sequence[str], evidence: Sequence[str]) -> Cause:
    what = "a parameter" if len(params) == 1 else "parameters"
    return Cause(
        "param-missing",
        f"an optimizer of {side} holds {what} ({few(params)}) that no module of {side} has any more: replaced in the"
        " model after the optimizer was made, or the model or the optimizer was copied",
        f"in {side} make the optimizer after the model has its final modules (resized, tied, copied, wrapped)",
        tuple(evidence),
        params=tuple(params),
    )


def _in_another_optimizer(case: Case, both: Sequence[tuple[str, str]]) -> Iterator[Cause]:
    """Parameters that both sides train, with optimizers that were not compared with each other."""
    if not both:
        return
    names = [name for name, _ in both]
    holders = []
    for side, source in enumerate(case.sources):
        own = {pair[side] for pair in both}
        rows = [row for row in param_rows(source) if row["param"] in own]
        holders.append(dict.fromkeys((row["optimizer"], row.get("optimizer_class")) for row in rows))
    of_a, of_b = (", ".join(f"{index} ({kind})" for index, kind in held) for held in holders)
    first_a, first_b = (next(iter(held))[0] for held in holders)
    are, them = ("is", "it") if len(names) == 1 else ("are", "them")
    yield Cause(
        "group-membership",
        f"{few(names)} {are} in optimizer {of_a} of {{A}}, and in optimizer {of_b} of {{B}}",
        f"in {{B}} give {them} to the same optimizer as in {{A}}, or compare {{A}}@{first_a} with {{B}}@{first_b}",
        ("optimizers are matched one to one, by the parameters that they share",),
        params=tuple(names),
    )


def options(case: Case) -> Iterator[Cause]:
    """Other hyper-parameters, one cause an option over all groups."""
    by_key: dict[str, list[HyperDifference]] = defaultdict(list)
    for found in case.hyper.differences.values():
        if not found.decides or found.key in LR_NAMES or found.a is MISSING or found.b is MISSING:
            continue
        if (found.group_a, found.group_b) not in moved_links(case, found.pair):
            by_key[found.key.partition(".")[0]].append(found)
    own = [key for key, several in by_key.items() if any(map(case.hyper.set_by_user, several))]
    for key, several in by_key.items():
        if cycled(case, key) or (own and key not in own):  # what the step makes of an option follows from it
            continue
        several.sort(key=lambda found: (found.step, found.group_a))
        yield _option(case, key, several)


def lacking(case: Case) -> Iterator[HyperDifference]:
    """Options that one side's groups do not have at all, and that are not neutral on the other."""
    for found in case.hyper.differences.values():
        if found.decides and (found.a is MISSING or found.b is MISSING):
            yield found


def lacking_option(found: HyperDifference) -> Cause:
    """The cause for an option that one side does not have, where no replay says what it does instead."""
    has, lacks = ("{A}", "{B}") if found.b is MISSING else ("{B}", "{A}")
    value = value_words(found.a if found.b is MISSING else found.b)
    return Cause(
        "group-option",
        f"{found.key} is {value} in {has}; {lacks} has no such option",
        f"in {lacks} use {found.key}={value}, or record it as an option of the group",
        (f"groups {found.group_a} and {found.group_b}, since step {found.step}",),
        steps=(found.step, found.step + found.count - 1),
    )


def _option(case: Case, key: str, several: list[HyperDifference]) -> Cause:
    first = several[0]
    whole = [found for found in several if (found.pair, found.group_a) == (first.pair, first.group_a)]
    a = ", ".join(value_words(found.a) for found in sorted(whole, key=lambda found: found.key))
    b = ", ".join(value_words(found.b) for found in sorted(whole, key=lambda found: found.key))
    names = ", ".join(sorted(found.key for found in whole))
    groups = sorted({found.group_a for found in several})
    where = f"group {groups[0]}" if len(groups) == 1 else f"groups {', '.join(map(str, groups))}"
    n_groups = len({cell.group_a for _, cell in case.cells(first.pair)})
    where = "" if len(groups) == n_groups == 1 else f" of {where}"
    since = "" if first.step <= min(case.steps, default=1) else f" since step {first.step}"
    evidence = [f"differs at {count_words(first.count, 'step')}, first at step {first.step}"]
    schedulers, missed = _writers(case, key, first), _writers(case, key, first, 0)
    if missed:
        evidence.append(
            f"{missed} steps in {{A}} and writes {key} into the groups (cycle_momentum); {{B}}'s stay as they are"
        )
        fix = f"in {{B}} use {missed} with cycle_momentum=True, as {{A}} does, or cycle_momentum=False in both"
    elif schedulers:
        evidence.append(f"{schedulers} steps in {{B}} and writes {key} into the groups (cycle_momentum)")
        fix = f"in {{B}} build {schedulers} with cycle_momentum=False, or do so in both"
    else:
        fix = f"in {{B}} set {names} to {a}{where}"
        course = [value for value in _course(case, key, first, 0).values() if isinstance(value, int | float)]
        late = _late(_course(case, key, first, 0), _course(case, key, first, 1))
        if len(set(course)) > 1:
            ends = f"from {value_words(course[0])} to {value_words(course[-1])}"
            fix = f"in {{B}} move {names}{where} as {{A}} does: {ends}"
        if late:
            word = f"{count_words(abs(late), 'step')} {'late' if late > 0 else 'early'}"
            evidence.append(f"{names} of {{B}} is {{A}}'s, {word}")
            fix = f"in {{B}} set {names} {count_words(abs(late), 'step')} {'earlier' if late > 0 else 'later'}{where}"
    summary = f"{names}{where} is {b} in {{B}}, {a} in {{A}}{since}"
    if names == key and len({(found.a, found.b) for found in several}) > 1:
        head, *rest = [(found.group_a, value_words(found.b), value_words(found.a)) for found in several]
        more = "".join(f"; of group {group} {y} in {{B}}, {x} in {{A}}" for group, y, x in rest)
        summary = f"{names} of group {head[0]} is {head[1]} in {{B}}, {head[2]} in {{A}}{more}{since}"
        if fix == f"in {{B}} set {names} to {a}{where}":
            given = [f"to {value_words(found.a)} of group {found.group_b}" for found in several]
            fix = f"in {{B}} set {names} {' and '.join(given)}"
    return Cause(
        "group-option",
        summary,
        fix,
        tuple(evidence),
        steps=(first.step, max(found.step + found.count - 1 for found in several)),
        params=tuple(cell.param_a for _, cell in case.cells(first.pair) if cell.group_a in groups),
    )


def _course(case: Case, key: str, found: HyperDifference, side: int) -> dict[int, object]:
    """An option of a side's group by step."""
    group = found.group_b if side else found.group_a
    options = case.options(side, found.pair)
    return {step: groups[group][key] for step, groups in sorted(options.items()) if key in groups.get(group, {})}


def _late(a: dict[int, object], b: dict[int, object]) -> int:
    """By how many steps B's course of an option is A's, late (positive) or early; 0 where it is not."""
    for k in (1, -1, 2, -2):
        both = [step for step in b if step - k in a]
        if len({b[step] for step in both}) >= 3 and all(b[step] == a[step - k] for step in both):
            return k
    return 0


def cycled(case: Case, key: str) -> bool:
    """Whether an option moves with lr on both sides, by the same scheduler, and so differs as lr does."""
    lr_differs = any(found.decides and found.key in LR_NAMES for found in case.hyper.differences.values())
    own, other = _cycling(case)
    return key.partition(".")[0] in ("momentum", "betas") and lr_differs and bool(own & other)


def _cycling(case: Case) -> tuple[set[str], set[str]]:
    """Schedulers of both sides that are known to write momentum or betas."""
    a, b = ({str(e.data.get("class")) for e in side.read(side.of("scheduler_step"))} for side in case.events)
    return a & {"OneCycleLR", "CyclicLR"}, b & {"OneCycleLR", "CyclicLR"}


def _writers(case: Case, key: str, found: HyperDifference, side: int = 1) -> str:
    """A side's scheduler that is known to write momentum or betas, where its value moves and the other's does not."""
    if key not in ("momentum", "betas"):
        return ""
    values = [
        {value for by_group in case.options(own, found.pair).values() if (value := by_group.get(group, {}).get(key))}
        for own, group in ((0, found.group_a), (1, found.group_b))
    ]
    return next(iter(sorted(_cycling(case)[side])), "") if len(values[1 - side]) < 2 <= len(values[side]) else ""


def _difference(case: Case, pair: int, link: Link, key: str) -> HyperDifference:
    return next(
        found
        for found in case.hyper.differences.values()
        if found.decides and (found.pair, found.group_a, found.group_b, found.key) == (pair, *link, key)
    )
