"""Rules about which parameters an optimizer holds, and whose gradients it finds."""

from __future__ import annotations

from collections.abc import Iterator

from optrace.compare.lint.finding import Finding
from optrace.compare.lint.look import Look, few, stretch


def grads_never_zeroed(look: Look) -> Iterator[Finding]:
    """The gradients of one step were still there, and added to, at the next."""
    kept = [e for e in look.events if e.kind == "recorder" and e.data.get("what") == "gradients kept"]
    if not kept:
        return
    steps = [int(event.data.get("step", event.step)) for event in kept]
    yield Finding(
        "grads-never-zeroed",
        f"{look.title} stepped with gradients that still held those of the step before",
        "call optimizer.zero_grad() once before the first backward of each step",
        (
            f"no gradient was cleared or replaced before the backward of {stretch(min(steps), max(steps))}"
            " (the first steps are watched)",
        ),
        look.index,
        steps=(min(steps), max(steps)),
    )


def params_in_no_group(look: Look) -> Iterator[Finding]:
    """Parameters of the same model that got a gradient and are in no optimizer."""
    held = set(look.run.trace.params["param"])
    for event in look.events:
        if event.kind != "recorder" or event.data.get("what") != "unheld":
            continue
        listed = [name for name in event.data.get("params", ()) if isinstance(name, str)]
        names = [name for name in listed if name not in held]
        if not names:
            continue
        count = int(event.data.get("count", len(listed))) - len(listed) + len(names)
        one = count == 1
        yield Finding(
            "params-in-no-group",
            f"{few(names)} {'requires' if one else 'require'} grad, {'gets' if one else 'get'} one, and"
            f" {'is' if one else 'are'} in no optimizer",
            "give all parameters to the optimizer after the model has its final modules, or set requires_grad=False for"
            " those that are to stay as they are",
            (
                f"when {look.title} took its first step, {count:,} parameter{'' if one else 's'} of the model that it"
                f" trains had a gradient and {'was' if one else 'were'} held by no optimizer",
            ),
            look.index,
            tuple(names),
            (1, 1),
        )


def param_twice(look: Look) -> Iterator[Finding]:
    """A parameter that is held twice: by one optimizer, or by two that step in turn."""
    yield from _twice_here(look)
    for other in look.run.looks:
        if other.index > look.index:
            yield from _shared(look, other)


def _twice_here(look: Look) -> Iterator[Finding]:
    told = [e for e in look.events if e.kind == "recorder" and e.data.get("what") == "held twice"]
    names = [name for event in told[:1] for name in event.data.get("params", ()) if isinstance(name, str)]
    if names:
        yield Finding(
            "param-twice",
            f"{few(names)} {'is' if len(names) == 1 else 'are'} in the groups of {look.title} twice, and"
            f" {'is' if len(names) == 1 else 'are'} updated twice a step",
            "list every parameter once: tied weights come twice from modules that are listed one by one",
            ("seen at the first step",),
            look.index,
            tuple(names),
            (1, 1),
        )


def _shared(look: Look, other: Look) -> Iterator[Finding]:
    shapes = dict(zip(look.params["param"], look.params["shape"], strict=True))
    both = [
        name
        for name, shape in zip(other.params["param"], other.params["shape"], strict=True)
        if name in shapes and shapes[name] == shape
    ]
    if not both or not _in_turn(look, other):
        return
    names = [name for name in both if _hands_over(look, other, name) or _hands_over(other, look, name)]
    if names:
        one = len(names) == 1
        yield Finding(
            "param-twice",
            f"{few(names)} {'is' if one else 'are'} moved by two optimizers: {look.title} and {other.title}",
            "give every parameter to one optimizer",
            ("what one leaves is, bit for bit, what the other begins from, and both step in turn",),
            look.index,
            tuple(names),
        )


def _in_turn(look: Look, other: Look) -> bool:
    """Whether neither was done before the other began."""
    ours = [event.seq for event in look.events if event.kind == "step"]
    theirs = [event.seq for event in other.events if event.kind == "step"]
    return bool(ours and theirs) and min(ours) < max(theirs) and min(theirs) < max(ours)


def _hands_over(giver: Look, taker: Look, name: str) -> bool:
    """Whether some value that the taker found changed is one that the giver made."""
    found = taker.tensors(["fingerprint"], param=name.translate(_LITERAL), quantity="param_in")["fingerprint"]
    if not len(found):
        return False
    made = giver.tensors(["fingerprint"], param=name.translate(_LITERAL), quantity="param")["fingerprint"]
    return bool(set(found) & set(made))


_LITERAL = str.maketrans({"[": "[[]", "*": "[*]", "?": "[?]"})
"""A name as a glob that matches nothing else."""
