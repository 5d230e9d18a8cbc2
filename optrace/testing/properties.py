"""What training code relies on in a torch optimizer, one property a function; its docstring is what breaks else."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

from optrace.testing.parameter_kinds import bfloat16, float16, float64, foreach, fused, shape_grid, strides
from optrace.testing.subject import (
    STEPS,
    Broken,
    NotApplicable,
    Subject,
    equal,
    failing_with,
    finite,
    new_params,
    one_step,
    train,
    trained,
    values,
)


def moves(subject: Subject) -> None:
    """Without it nothing is trained: every parameter that has a gradient moves, and stays finite."""
    start = new_params(subject.shapes)
    params, _ = trained(subject)
    idle = [n for n, (p, q) in enumerate(zip(params, start, strict=True)) if equal([p], [q])]
    if idle:
        raise Broken(f"after {STEPS} steps parameter {idle[0]} {tuple(params[idle[0]].shape)} has not moved")
    if not finite(params):
        raise Broken(f"after {STEPS} steps a parameter is not finite")


def deterministic(subject: Subject) -> None:
    """Two runs from the same numbers must give the same bits; else no run can be reproduced, and no bug either."""
    import torch

    torch.manual_seed(0)
    a, _ = trained(subject)
    torch.manual_seed(0)
    b, _ = trained(subject)
    if not equal(a, b):
        raise Broken("two runs from the same numbers and seed end in other parameters")


def none_grad(subject: Subject) -> None:
    """A frozen or unused layer has `grad` None: it must stay where it is, and the step must not raise."""
    params = new_params(subject.shapes)
    optimizer = subject.make(params)

    def edit(params: list[Any], step: int) -> None:
        params[-1].grad = None

    before = values(params)
    with failing_with("a step with a gradient that is None raises"):
        train(subject, params, optimizer, edit=edit)
    if not equal(params[-1:], before[-1:]):
        raise Broken("a parameter without gradient was changed")


def late_grad(subject: Subject) -> None:
    """A layer that is unfrozen later gets its first gradient at a later step, when the others have state already."""
    params = new_params(subject.shapes)
    optimizer = subject.make(params)

    def edit(params: list[Any], step: int) -> None:
        if step < 3:
            params[-1].grad = None

    with failing_with("a parameter whose first gradient comes at step 3 makes the step raise"):
        train(subject, params, optimizer, edit=edit)
    if equal(params[-1:], new_params(subject.shapes)[-1:]) or not finite(params):
        raise Broken("a parameter whose first gradient comes at step 3 does not move, or is not finite")


def zero_grad_finite(subject: Subject) -> None:
    """Dead units and padded embeddings have gradients of zero: a division by their norm makes the model NaN."""
    params = new_params(subject.shapes)
    optimizer = subject.make(params)

    def edit(params: list[Any], step: int) -> None:
        for p in params:
            p.grad = p.grad * 0 if p.grad is not None else None

    with failing_with("gradients of zero make the step raise"):
        train(subject, params, optimizer, edit=edit)
    if not finite(params):
        raise Broken("gradients of zero make a parameter NaN or infinite")


def keeps_grads(subject: Subject) -> None:
    """Gradients belong to the caller: accumulation, logging and a second optimizer read them after the step."""
    params = new_params(subject.shapes)
    optimizer = subject.make(params)
    for step in range(1, STEPS + 1):
        if subject.backward(params, step) is not None:
            raise NotApplicable("the closure makes the gradients")
        before = [None if p.grad is None else p.grad.detach().clone() for p in params]
        subject.before_step(optimizer)
        optimizer.step()
        for n, (p, old) in enumerate(zip(params, before, strict=True)):
            if old is not None and (p.grad is None or not equal([p.grad], [old])):
                raise Broken(f"step {step} changed the gradient of parameter {n}")


def zero_grad(subject: Subject) -> None:
    """`optimizer.zero_grad()` must clear the gradient of every parameter; else they add up over the steps."""
    params, optimizer = trained(subject, 1)
    optimizer.zero_grad()
    if any(p.grad is not None and bool(p.grad.any()) for p in params):
        raise Broken("after zero_grad() a gradient is not None or zero")


def closure(subject: Subject) -> None:
    """Lightning and loops for several optimizers call `step(closure)`: it runs with grad on, its loss comes back."""
    import torch

    params, plain = new_params(subject.shapes), new_params(subject.shapes)
    optimizer, other = subject.make(params), subject.make(plain)
    seen: list[bool] = []
    has_own = False
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        own: list[Any] = []

        def run(step: int = step, own: list[Any] = own) -> Any:
            seen.append(torch.is_grad_enabled())
            inner = subject.backward(params, step)
            own.append(inner)
            if inner is not None:
                inner()
            return torch.tensor(2.5)

        subject.before_step(optimizer)
        with failing_with("step(closure) raises"):
            loss = optimizer.step(run)
        if not seen or not all(seen):
            raise Broken("the closure runs without grad" if seen else "step(closure) does not call the closure")
        if loss is None or float(loss) != 2.5:
            raise Broken(f"step(closure) returns {loss!r}, not the closure's loss")
        has_own = has_own or any(inner is not None for inner in own)
        if not has_own:
            one_step(subject, plain, other, step)
            if len(seen) == step and not equal(params, plain):
                raise Broken("step(closure) does not do what step() does with the gradients that the closure makes")


def resume(subject: Subject) -> None:
    """A job that is stopped and resumed from `state_dict()` must go on as if nothing had happened."""
    _resumed(subject, lambda saved: saved)


def resume_from_file(subject: Subject) -> None:
    """Checkpoints go through `torch.save` and `torch.load(weights_only=True)`, torch's default since 2.6."""
    import torch

    def through_file(saved: Any) -> Any:
        file = io.BytesIO()
        torch.save(saved, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    _resumed(subject, through_file)


def _resumed(subject: Subject, way: Callable[[Any], Any]) -> None:
    import torch

    torch.manual_seed(0)
    params, optimizer = trained(subject)
    with failing_with("saving and loading the state raises"):
        again = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = subject.make(again)
        other.load_state_dict(way(copy.deepcopy(optimizer.state_dict())))
    generator = torch.get_rng_state()
    train(subject, params, optimizer, first=STEPS + 1)
    torch.set_rng_state(generator)
    with failing_with("a step after loading the state raises"):
        train(subject, again, other, first=STEPS + 1)
    if not equal(params, again):
        raise Broken(f"resumed after step {STEPS}, the parameters differ from those of the run that went on")


def deepcopy(subject: Subject) -> None:
    """`copy.deepcopy` of model and optimizer together (for rollbacks, population training) gives a working pair."""
    _copied(subject, copy.deepcopy, "deepcopy")


def pickled(subject: Subject) -> None:
    """Spawned workers and Ray actors receive the optimizer pickled."""
    _copied(subject, lambda pair: pickle.loads(pickle.dumps(pair)), "pickle")


def _copied(subject: Subject, way: Callable[[Any], Any], word: str) -> None:
    import torch

    torch.manual_seed(0)
    params, optimizer = trained(subject)
    for p in params:
        p.grad = None
    with failing_with(f"{word} of the optimizer raises"):
        again, other = way((params, optimizer))
    generator = torch.get_rng_state()
    train(subject, params, optimizer, first=STEPS + 1)
    torch.set_rng_state(generator)
    with failing_with(f"a step after {word} raises"):
        train(subject, again, other, first=STEPS + 1)
    if not equal(params, again):
        raise Broken(f"after {word} the copy does not train as the original does")


def groups(subject: Subject) -> None:
    """Groups with their own lr (heads, layers, no decay for biases): each lr must act on its parameters alone."""
    ends = []
    for factor in (1.0, 0.5):
        params = new_params([*subject.shapes, *subject.shapes])
        half = len(subject.shapes)
        with failing_with("two groups with options of their own raise"):
            optimizer = subject.make([{"params": params[:half]}, {"params": params[half:]}])
            optimizer.param_groups[1]["lr"] = optimizer.param_groups[1]["lr"] * factor
            train(subject, params, optimizer)
        ends.append((params[:half], params[half:]))
    if not equal(ends[0][0], ends[1][0]):
        raise Broken("the lr of the second group acts on the parameters of the first")
    if equal(ends[0][1], ends[1][1]):
        raise Broken("the lr of the second group has no effect on its parameters")


def lr_change(subject: Subject) -> None:
    """Schedulers write `group["lr"]` between steps: the next step must use it."""
    ends = []
    for factor in (1.0, 0.5):
        params, optimizer = trained(subject, 2)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        train(subject, params, optimizer, 1, first=3)
        ends.append(params)
    if equal(*ends):
        raise Broken("after group['lr'] was halved the next step is the same as if it had not been")


def scheduler(subject: Subject) -> None:
    """Schedulers of torch take the optimizer as it is, and warn of nothing when used in the documented order."""
    import torch

    params = new_params(subject.shapes)
    optimizer = subject.make(params)
    with failing_with("a LambdaLR over it raises or warns"), warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)
        for step in range(1, STEPS + 1):
            one_step(subject, params, optimizer, step)
            schedule.step()


def late_group(subject: Subject) -> None:
    """Progressive unfreezing calls `add_param_group` between steps: the new parameters must train."""
    params, optimizer = trained(subject, 2)
    late = new_params(subject.shapes)
    with failing_with("add_param_group between steps raises"):
        optimizer.add_param_group({"params": late})
        train(subject, [*params, *late], optimizer, 2, first=3)
    if equal(late, new_params(subject.shapes)) or not finite(late):
        raise Broken("parameters added between steps do not move, or are not finite")


def frozen(subject: Subject) -> None:
    """Fine-tuning passes `model.parameters()` with frozen ones among them: they are taken and stay as they are."""
    params = new_params(subject.shapes)
    params[-1].requires_grad_(False)
    before = values(params)
    with failing_with("a parameter that does not require grad raises"):
        train(subject, params, subject.make(params))
    if not equal(params[-1:], before[-1:]):
        raise Broken("a parameter that does not require grad was changed")


def hooks_once(subject: Subject) -> None:
    """Step hooks (profilers, FSDP, optrace) fire once a step; a subclass that calls `super().step()` fires twice."""
    params = new_params(subject.shapes)
    optimizer = subject.make(params)
    fired: list[int] = []
    with failing_with("register_step_post_hook raises"):
        optimizer.register_step_post_hook(lambda *_: fired.append(1))
    train(subject, params, optimizer)
    if len(fired) != STEPS:
        raise Broken(f"in {STEPS} steps the post hook fired {len(fired)} times")


def bad_lr(subject: Subject) -> None:
    """A negative lr is a typing error that trains uphill; every optimizer of torch refuses it with ValueError."""
    params = new_params(subject.shapes)
    try:
        subject.make(params, lr=-1.0)
    except TypeError:
        raise NotApplicable("no option lr") from None
    except Exception:
        return
    raise Broken("lr=-1.0 is accepted")


def maximize(subject: Subject) -> None:
    """`maximize=True` is gradient ascent: the same as minimizing with the gradients negated."""

    def negate(params: list[Any], step: int) -> None:
        for p in params:
            p.grad = -p.grad

    down = new_params(subject.shapes)
    up = new_params(subject.shapes)
    try:
        ascending = subject.make(up, maximize=True)
    except TypeError:
        raise NotApplicable("no option maximize") from None
    train(subject, down, subject.make(down), edit=negate)
    train(subject, up, ascending)
    if not equal(up, down):
        raise Broken("maximize=True is not the same as negated gradients")


PROPERTIES: dict[str, Callable[[Subject], None]] = {
    "moves": moves,
    "deterministic": deterministic,
    "none_grad": none_grad,
    "late_grad": late_grad,
    "zero_grad_finite": zero_grad_finite,
    "keeps_grads": keeps_grads,
    "zero_grad": zero_grad,
    "closure": closure,
    "resume": resume,
    "resume_from_file": resume_from_file,
    "deepcopy": deepcopy,
    "pickled": pickled,
    "groups": groups,
    "lr_change": lr_change,
    "scheduler": scheduler,
    "late_group": late_group,
    "frozen": frozen,
    "hooks_once": hooks_once,
    "bad_lr": bad_lr,
    "maximize": maximize,
    "float64": float64,
    "bfloat16": bfloat16,
    "float16": float16,
    "shape_grid": shape_grid,
    "strides": strides,
    "foreach": foreach,
    "fused": fused,
}
"""Name -> property, in the order of the tests."""
