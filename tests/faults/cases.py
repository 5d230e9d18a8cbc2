"""The faults: which program, what is replaced in it, where the runs part first, and the code that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint as _checkpoint

from tests.faults.optimizers import OwnAdam, OwnAdamW, OwnSGD
from tests.faults.programs import (
    DIGITS,
    REGRESSION,
    SCALED,
    TRANSFORMER,
    Digits,
    Recipe,
    State,
    checkpoint,
    clip_norm,
    decay_groups,
    restore,
    shuffled,
    two_groups,
    warm_up,
)

lr_scheduler = torch.optim.lr_scheduler


@dataclass(frozen=True)
class Fault:
    """One fault in one program."""

    name: str
    case: str
    """The real case, or `own`."""
    codes: tuple[str, ...]
    """Codes that are right; none: nothing may be blamed on the optimizer."""
    where: tuple[int, str] | None
    """First divergence: A's step, and how its quantity begins; None: there is none."""
    a: Callable[[], Recipe]
    b: Callable[[], Recipe]


FAULTS: list[Fault] = []


def fault(name: str, case: str, codes: str, where: tuple[int, str] | None, a: Any, b: Any) -> None:
    """Add a fault; `a` and `b` are recipes or make them."""
    make = [part if callable(part) else (lambda part=part: part) for part in (a, b)]
    FAULTS.append(Fault(name, case, tuple(codes.split()), where, *make))


# --- learning rates -----------------------------------------------------------------------------------------------


def sequential(optimizer: Any, milestone: int = 4, late: int = 0) -> Any:
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, 1.0, milestone),
        lr_scheduler.CosineAnnealingLR(optimizer, 30),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[milestone + late])


def resumed(recipe: Recipe, at: int, load: Callable[[State, dict[str, Any]], None], **parts: Any) -> Recipe:
    """The recipe from step `at` on, in a new process that loads what `load` loads."""
    saved = checkpoint(recipe, at)
    return recipe.but(built=lambda state: load(state, saved), resume_at=at, steps=recipe.steps - at, **parts)


def per_micro(recipe: Recipe) -> Recipe:
    def after(state: State) -> None:
        state.scheduler.step()

    return recipe.but(after_micro=after, after_step=lambda state: None)


def stretched(recipe: Recipe) -> Recipe:
    """Enough steps and a schedule that shows in them."""
    return recipe.but(schedule=lambda optimizer: warm_up(optimizer, 3, 40), steps=16)


def rebuilt_scheduler(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved, scheduler=False)
    for group in state.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    state.scheduler = state.recipe.schedule(state.optimizer)


def base_after_load(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved, scheduler=False)
    for group in state.optimizer.param_groups:
        del group["initial_lr"]
    state.scheduler = state.recipe.schedule(state.optimizer)
    state.scheduler.load_state_dict({**saved["scheduler"], "base_lrs": state.scheduler.base_lrs})


def step_lr(optimizer: Any) -> Any:
    return lr_scheduler.StepLR(optimizer, 3, 0.5)


fault(
    "sequential-milestone",
    "pytorch#185872",
    "lr-value lr-shift",
    (5, "hyper.lr"),
    REGRESSION.but(schedule=sequential, steps=14),
    REGRESSION.but(schedule=lambda o: sequential(o, late=1), steps=14),
)
fault(
    "scheduler-without-optimizer",
    "pytorch#29697",
    "lr-reset state-reset",
    (6, "state"),
    DIGITS.but(schedule=step_lr),
    lambda: resumed(DIGITS.but(schedule=step_lr), 6, lambda s, c: restore(s, c, optimizer=False)),
)
fault(
    "scheduler-after-load",
    "yolov5#292",
    "lr-reset",
    (7, "hyper.lr"),
    DIGITS.but(schedule=step_lr),
    lambda: resumed(DIGITS.but(schedule=step_lr), 6, rebuilt_scheduler),
)
fault(
    "scheduler-per-micro-batch",
    "Lightning#1476",
    "lr-rate",
    (1, "hyper.lr"),
    stretched(TRANSFORMER),
    lambda: per_micro(stretched(TRANSFORMER)),
)
fault(
    "base-lr-after-load",
    "nanotron#256",
    "lr-value",
    (8, "hyper.lr"),
    REGRESSION,
    lambda: resumed(REGRESSION, 6, base_after_load),
)
fault(
    "one-cycle-betas",
    "DeepSpeed#8495",
    "group-option",
    (1, "hyper.betas"),
    DIGITS.but(schedule=lambda o: lr_scheduler.OneCycleLR(o, 3e-3, 40, cycle_momentum=False)),
    DIGITS.but(schedule=lambda o: lr_scheduler.OneCycleLR(o, 3e-3, 40)),
)
fault(
    "lost-multiplier",
    "Megatron-LM#882",
    "lr-value",
    (1, "hyper.lr"),
    REGRESSION,
    REGRESSION.but(
        optimizer=lambda n: torch.optim.SGD(
            [{"params": n.first.parameters()}, {"params": n.second.parameters()}],
            lr=0.05,
            momentum=0.9,
            weight_decay=0.01,
        )
    ),
)

# --- rules --------------------------------------------------------------------------------------------------------


def adamw_groups(mistake: str, lr: float = 3e-3, **options: Any) -> Callable[[nn.Module], Any]:
    return lambda net: OwnAdamW(decay_groups(net), lr=lr, mistake=mistake, **options)


def own_sgd(mistake: str, **options: Any) -> Callable[[nn.Module], Any]:
    options = {"momentum": 0.9, "weight_decay": 0.01, **options}
    return lambda net: OwnSGD(two_groups(net), lr=0.05, mistake=mistake, **options)


def torch_sgd(**options: Any) -> Callable[[nn.Module], Any]:
    options = {"momentum": 0.9, "weight_decay": 0.01, **options}
    return lambda net: torch.optim.SGD(two_groups(net), lr=0.05, **options)


BIG_DECAY = DIGITS.but(optimizer=lambda n: torch.optim.AdamW(decay_groups(n), lr=3e-2))
BIG_EPS = DIGITS.but(optimizer=lambda n: torch.optim.AdamW(decay_groups(n), lr=3e-3, eps=1e-4))

fault(
    "decay-after-update",
    "transformers#14539",
    "rule-decay-order",
    (1, "update"),
    BIG_DECAY,
    BIG_DECAY.but(optimizer=adamw_groups("decay-after", 3e-2)),
)
fault(
    "adam-in-adamw",
    "FlagGems#4988",
    "rule-decay-coupling",
    (1, "update"),
    DIGITS,
    DIGITS.but(optimizer=adamw_groups("coupling")),
)
fault(
    "eps-before-correction",
    "nanochat#353",
    "rule-eps",
    (1, "update"),
    BIG_EPS,
    BIG_EPS.but(optimizer=adamw_groups("eps-early", eps=1e-4)),
)
fault(
    "nesterov-sign",
    "Paddle#12231",
    "rule-nesterov",
    (1, "update"),
    REGRESSION.but(optimizer=torch_sgd(nesterov=True)),
    REGRESSION.but(optimizer=own_sgd("nesterov-sign", nesterov=True)),
)
fault(
    "eps-inside-root",
    "Paddle#42234",
    "rule-eps",
    (1, "update"),
    DIGITS,
    DIGITS.but(optimizer=adamw_groups("eps-inside")),
)


def none_grads(state: State) -> None:
    if state.step in (1, 4):
        state.net.outside.weight.grad = None


WITH_NONE = BIG_DECAY.but(before_step=none_grads)
fault(
    "decay-where-grad-is-none",
    "Muon#54",
    "rule-none-grad",
    (1, "update"),
    WITH_NONE,
    WITH_NONE.but(optimizer=adamw_groups("none-grad", 3e-2)),
)
fault(
    "counter-ahead",
    "Megatron-LM#5974",
    "step-counter",
    (1, "update"),
    DIGITS,
    DIGITS.but(optimizer=adamw_groups("counter")),
)

# --- groups -------------------------------------------------------------------------------------------------------


def norms_decayed(net: nn.Module) -> Any:
    decayed = [p for n, p in net.named_parameters() if p.ndim > 1 or "norm" in n]
    rest = [p for n, p in net.named_parameters() if not (p.ndim > 1 or "norm" in n)]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=3e-3)


def without_head(net: nn.Module) -> Any:
    groups = decay_groups(net)
    groups[0]["params"] = [p for p in groups[0]["params"] if p is not net.outside.weight]
    return torch.optim.AdamW(groups, lr=3e-3)


fault(
    "norms-decayed",
    "transformers#35927",
    "group-membership",
    (1, "hyper.weight_decay"),
    DIGITS,
    DIGITS.but(optimizer=norms_decayed),
)
fault(
    "not-in-the-optimizer", "accelerate#2665", "param-missing", (0, "param"), DIGITS, DIGITS.but(optimizer=without_head)
)

# --- gradients ----------------------------------------------------------------------------------------------------


def clip_too_early(state: State) -> None:
    nn.utils.clip_grad_norm_(state.net.parameters(), 0.5)


def token_weights(state: State, loss: torch.Tensor) -> torch.Tensor:
    """Sums over tokens divided by all tokens of the step: not the mean of the micro-batches' means."""
    return loss * (0.8 if state.i_micro == 0 else 1.2) / state.recipe.micro


def keep_first(state: State) -> None:
    if state.i_micro == 0:
        state.kept = [p.grad.clone() for p in state.net.parameters()]
    elif state.i_micro == state.recipe.micro - 1:
        for p, g in zip(state.net.parameters(), state.kept, strict=True):
            p.grad.copy_(g)


def zero_each(state: State) -> None:
    if state.i_micro < state.recipe.micro - 1:
        state.optimizer.zero_grad()


def not_zeroed(state: State) -> None:
    pass


fault("clip-before-unscale", "Lightning#9330", "grad-clip", (1, "grad"), SCALED, SCALED.but(before_step=clip_too_early))
fault(
    "mean-of-means",
    "transformers#34191",
    "grad-upstream",
    (1, "grad"),
    TRANSFORMER.but(weigh=token_weights, before_step=lambda s: None),
    TRANSFORMER.but(before_step=lambda s: None),
)
fault(
    "first-micro-batch-kept",
    "DeepSpeed#7967",
    "grad-upstream grad-partial",
    (1, "grad"),
    TRANSFORMER.but(before_step=lambda s: None),
    TRANSFORMER.but(before_step=lambda s: None, after_micro=keep_first),
)
fault("zero-grad-missing", "real", "grad-accumulated", (2, "grad"), DIGITS, DIGITS.but(zero=not_zeroed))

# --- resumes and precision ----------------------------------------------------------------------------------------


def swapped(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved)
    a, b = state.net.blocks[0].qkv.weight, state.net.blocks[1].qkv.weight
    state.optimizer.state[a], state.optimizer.state[b] = state.optimizer.state[b], state.optimizer.state[a]


def in_bf16(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: make().to(torch.bfloat16)


TINY_LR = DIGITS.but(optimizer=lambda n: torch.optim.AdamW(decay_groups(n), lr=1e-6), schedule=None)
fault(
    "moments-lost",
    "KempnerForge#115",
    "state-reset",
    (6, "state"),
    DIGITS,
    lambda: resumed(DIGITS, 6, lambda s, c: (restore(s, c, optimizer=False), relive_lr(s, c))),
)
fault(
    "moments-exchanged",
    "pytorch#1489",
    "state-swapped",
    (6, "state"),
    TRANSFORMER,
    lambda: resumed(TRANSFORMER, 6, swapped),
)
fault(
    "bf16-never-moves",
    "speculators#765",
    "update-rounded param-dtype",
    (0, "param"),
    TINY_LR,
    TINY_LR.but(net=in_bf16(Digits)),
)
fault("all-bf16", "trl#3910", "param-dtype", (0, "param"), DIGITS, DIGITS.but(net=in_bf16(Digits)))


def relive_lr(state: State, saved: dict[str, Any]) -> None:
    for group, old in zip(state.optimizer.param_groups, saved["optimizer"]["param_groups"], strict=True):
        group["lr"] = old["lr"]


def repeated(recipe: Recipe, at: int) -> Recipe:
    part = resumed(recipe, at, restore)
    return part.but(
        order=lambda examples, count: [[]] * (at * recipe.micro) + shuffled(examples, count - at * recipe.micro)
    )


fault("batches-repeated", "accelerate#4071", "data-order", (7, "grad"), DIGITS, lambda: repeated(DIGITS, 6))


# --- faults of our own --------------------------------------------------------------------------------------------

PLAIN = REGRESSION.but(schedule=None)


def reordered(examples: int, count: int) -> list[list[int]]:
    batches = shuffled(examples, count)
    return batches[::2] + batches[1::2]


def other_data() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = DIGITS.data()
    return x * 1.01, y


def draws_once_more(state: State) -> None:
    torch.rand(3)


def scale_gradients(factor: float, since: int = 1) -> Callable[[State], None]:
    def change(state: State) -> None:
        if state.step >= since:
            for p in state.net.parameters():
                p.grad.mul_(factor)

    return change


def unscaled_sum(state: State, loss: torch.Tensor) -> torch.Tensor:
    return loss


def clip_values(state: State) -> None:
    nn.utils.clip_grad_value_(state.net.parameters(), 1e-2)


def own_clip(state: State) -> None:
    """A clip that no library function makes."""
    norm = torch.stack([p.grad.norm() for p in state.net.parameters()]).norm()
    for p in state.net.parameters():
        p.grad.mul_(min(1.0, 0.05 / norm.item()))


def drop_grad(state: State) -> None:
    if state.step >= 3:
        state.net.inside.bias.grad = None


def poison(state: State) -> None:
    if state.step == 4:
        state.net.outside.weight.grad[0, 0] = float("nan")


def nudge(state: State) -> None:
    if state.step == 4:
        with torch.no_grad():
            state.net.outside.weight.mul_(0.99)


def nudge_after(state: State) -> None:
    state.scheduler.step()
    nudge(state)


def freeze_first(state: State) -> None:
    state.net.inside.weight.requires_grad_(False)


def skip_update(state: State) -> None:
    if state.step != 5:
        state.optimizer.step()


class Lazy(torch.optim.SGD):
    """SGD that does nothing at its fifth step."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        return None if self.count == 5 else super().step(closure)


class Masked(torch.optim.SGD):
    """SGD that leaves the second half of the largest parameter alone."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        p = self.param_groups[0]["params"][0]
        old = p.clone()
        super().step(closure)
        p[len(p) // 2 :] = old[len(p) // 2 :]


def scaled_state(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved)
    for entry in state.optimizer.state.values():
        entry["exp_avg_sq"].mul_(0.5)


def counted_on(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved)
    for entry in state.optimizer.state.values():
        entry["step"] += 1


def other_checkpoint(state: State, saved: dict[str, Any]) -> None:
    restore(state, saved)
    with torch.no_grad():
        state.net.outside.weight.add_(0.01)


def adam_of(kind: Any, **options: Any) -> Callable[[nn.Module], Any]:
    return lambda net: kind(net.parameters(), lr=3e-3, **{"eps": 1e-4, **options})


ADAM = DIGITS.but(optimizer=adam_of(torch.optim.Adam, weight_decay=0.01), schedule=None)
AMSGRAD = DIGITS.but(optimizer=adam_of(torch.optim.Adam, amsgrad=True), schedule=None, steps=16)
NO_CLIP = TRANSFORMER.but(before_step=lambda state: None)


def cosine(optimizer: Any, total: int = 40) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, total)


fault(
    "schedule-early",
    "own",
    "lr-shift",
    (1, "hyper.lr"),
    REGRESSION,
    REGRESSION.but(built=lambda s: (s.optimizer.step(), s.scheduler.step(), s.scheduler.step())),
)
fault(
    "schedule-half-speed",
    "own",
    "lr-rate",
    (2, "hyper.lr"),
    REGRESSION,
    REGRESSION.but(after_step=lambda s: s.scheduler.step() if s.step % 2 == 0 else None),
)
fault(
    "schedule-never-steps", "own", "lr-frozen", (2, "hyper.lr"), REGRESSION, REGRESSION.but(after_step=lambda s: None)
)
fault(
    "schedule-of-another-length",
    "own",
    "lr-value",
    (2, "hyper.lr"),
    DIGITS,
    DIGITS.but(schedule=lambda o: cosine(o, 25)),
)
fault(
    "lr-ten-times",
    "own",
    "lr-value",
    (1, "hyper.lr"),
    PLAIN,
    PLAIN.but(optimizer=lambda n: torch.optim.SGD(two_groups(n, lr=0.5), lr=0.5, momentum=0.9, weight_decay=0.01)),
)
fault(
    "other-momentum", "own", "group-option", (1, "hyper.momentum"), PLAIN, PLAIN.but(optimizer=torch_sgd(momentum=0.8))
)
fault(
    "other-beta2",
    "own",
    "group-option",
    (1, "hyper.betas"),
    ADAM,
    ADAM.but(optimizer=adam_of(torch.optim.Adam, weight_decay=0.01, betas=(0.9, 0.99))),
)
fault("ema-momentum", "pytorch#94615", "rule-momentum-form", (1, "update"), PLAIN, PLAIN.but(optimizer=own_sgd("ema")))
fault(
    "lr-inside-momentum",
    "own",
    "rule-momentum-form",
    (1, "state.momentum_buffer"),
    REGRESSION.but(steps=14),
    REGRESSION.but(steps=14, optimizer=own_sgd("lr-inside")),
)
fault(
    "first-step-dampened",
    "own",
    "rule-dampening",
    (1, "update"),
    PLAIN.but(optimizer=torch_sgd(dampening=0.3)),
    PLAIN.but(optimizer=own_sgd("dampened-first", dampening=0.3)),
)
fault(
    "no-dampening",
    "own",
    "rule-dampening",
    (2, "update"),
    PLAIN.but(optimizer=torch_sgd(dampening=0.3)),
    PLAIN.but(optimizer=own_sgd("no-dampening", dampening=0.3)),
)
fault(
    "no-nesterov",
    "own",
    "rule-nesterov",
    (1, "update"),
    PLAIN.but(optimizer=torch_sgd(nesterov=True)),
    PLAIN.but(optimizer=own_sgd("no-nesterov", nesterov=True)),
)
fault(
    "sgd-decay-decoupled",
    "own",
    "rule-decay-coupling",
    (1, "state.momentum_buffer"),
    PLAIN,
    PLAIN.but(optimizer=own_sgd("decay-decoupled")),
)
fault("sgd-no-decay", "own", "rule-decay-missing", (1, "update"), PLAIN, PLAIN.but(optimizer=own_sgd("decay-missing")))
fault("sgd-decay-sign", "own", "rule-sign", (1, "update"), PLAIN, PLAIN.but(optimizer=own_sgd("decay-sign")))
fault(
    "no-bias-correction",
    "own",
    "rule-bias-correction",
    (1, "update"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="no-correction")),
)
fault(
    "first-moment-corrected",
    "own",
    "rule-bias-correction",
    (1, "update"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="first-corrected")),
)
fault(
    "betas-swapped",
    "own",
    "rule-betas",
    (1, ""),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="betas-swapped")),
)
fault(
    "hard-coded-beta2",
    "own",
    "rule-betas",
    (1, "state.exp_avg_sq"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="other-beta2")),
)
fault(
    "no-amsgrad",
    "own",
    "rule-amsgrad",
    (1, "state.max_exp_avg_sq"),
    AMSGRAD,
    AMSGRAD.but(optimizer=adam_of(OwnAdam, amsgrad=True, mistake="no-amsgrad")),
)
fault(
    "eps-missing",
    "own",
    "rule-eps",
    (1, "update"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="eps-missing")),
)
fault(
    "something-else",
    "own",
    "rule-unknown",
    (1, "update"),
    ADAM,
    ADAM.but(optimizer=adam_of(OwnAdam, weight_decay=0.01, mistake="unheard")),
)
fault(
    "adam-for-adamw",
    "own",
    "rule-decay-coupling",
    (1, "update"),
    ADAM.but(optimizer=adam_of(torch.optim.AdamW, weight_decay=0.01)),
    ADAM,
)
fault(
    "other-weight-decay",
    "own",
    "group-option",
    (1, "hyper.weight_decay"),
    DIGITS,
    DIGITS.but(optimizer=lambda n: torch.optim.AdamW(decay_groups(n, 0.01), lr=3e-3)),
)
fault("loss-not-divided", "own", "grad-scale", (1, "grad"), NO_CLIP, NO_CLIP.but(weigh=unscaled_sum))
fault(
    "gradients-scaled-later",
    "own",
    "grad-scale",
    (5, "grad"),
    DIGITS,
    DIGITS.but(before_step=scale_gradients(0.125, 5)),
)
fault(
    "not-unscaled",
    "own",
    "grad-scale",
    (1, "grad"),
    SCALED.but(before_step=lambda s: None),
    SCALED.but(before_step=lambda s: None, step=lambda s: s.optimizer.step()),
)
fault("clip-missing", "own", "grad-clip", (1, "grad"), TRANSFORMER, NO_CLIP)
fault(
    "clip-other-norm",
    "own",
    "grad-clip",
    (1, "grad"),
    TRANSFORMER,
    TRANSFORMER.but(before_step=lambda s: clip_norm(s, 0.25)),
)
fault("clip-by-value", "own", "grad-clip", (1, "grad"), DIGITS, DIGITS.but(before_step=clip_values))
fault("own-clip", "own", "grad-clip", (1, "grad"), DIGITS, DIGITS.but(before_step=own_clip))
fault("zero-grad-each-micro-batch", "own", "grad-partial", (1, "grad"), NO_CLIP, NO_CLIP.but(after_micro=zero_each))
fault("grad-becomes-none", "own", "grad-missing", (3, "grad"), DIGITS, DIGITS.but(before_step=drop_grad))
fault("grad-nan", "own", "grad-nonfinite", (4, "grad"), DIGITS, DIGITS.but(before_step=poison))
fault("frozen", "own", "param-frozen", (1, "grad"), DIGITS, DIGITS.but(built=freeze_first))
fault("other-seed", "own", "init", (0, "param"), DIGITS, DIGITS.but(seed=7))
fault("weights-edited", "own", "param-outside", (5, "param_in"), DIGITS, DIGITS.but(after_step=nudge_after))
fault(
    "step-does-nothing",
    "own",
    "update-skipped",
    (5, "update"),
    PLAIN,
    PLAIN.but(optimizer=lambda n: Lazy(two_groups(n), lr=0.05, momentum=0.9, weight_decay=0.01)),
)
fault(
    "half-a-parameter",
    "own",
    "update-partial",
    (1, "update"),
    PLAIN,
    PLAIN.but(optimizer=lambda n: Masked(two_groups(n), lr=0.05, momentum=0.9, weight_decay=0.01)),
)
fault("state-scaled", "own", "state-value", (6, "state"), DIGITS, lambda: resumed(DIGITS, 6, scaled_state))
fault("counter-loaded-ahead", "own", "step-counter", (6, "state"), DIGITS, lambda: resumed(DIGITS, 6, counted_on))
fault(
    "both-at-once",
    "own",
    "lr-value rule-decay-missing",
    (1, "hyper.lr"),
    PLAIN,
    PLAIN.but(
        optimizer=lambda n: OwnSGD(
            two_groups(n, lr=0.1), lr=0.1, momentum=0.9, weight_decay=0.01, mistake="decay-missing"
        )
    ),
)
fault("other-batches", "own", "data-content", (1, "grad"), DIGITS, DIGITS.but(data=other_data))


class Wider(Digits):
    """Digits with one more hidden unit."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm, self.outside = nn.Linear(64, 25), nn.LayerNorm(25), nn.Linear(25, 10)


class HalfState(OwnAdamW):
    """AdamW that keeps its moments in bfloat16."""

    def step(self, closure: Any = None) -> None:
        for entry in self.state.values():
            entry.update({k: v.float() for k, v in entry.items()})
        super().step(closure)
        for entry in self.state.values():
            entry.update({k: v.bfloat16() for k, v in entry.items() if k != "step"})


def overflow(state: State) -> None:
    """A gradient that overflows at the fourth attempt, as with a loss scale that is too large."""
    if state.step == 4:
        state.net.outside.bias.grad[0] = float("inf")


fault(
    "one-hidden-unit-more",
    "own",
    "param-shape init",
    (0, "param"),
    DIGITS,
    DIGITS.but(net=Wider),
)
fault(
    "moments-in-bf16",
    "own",
    "state-dtype",
    (1, "state.exp_avg"),
    DIGITS.but(optimizer=adamw_groups("")),
    DIGITS.but(optimizer=lambda net: HalfState(decay_groups(net), lr=3e-3)),
)
fault(
    "scaler-skips",
    "own",
    "steps-missing",
    (4, "hyper.lr"),
    SCALED.but(before_step=lambda state: None),
    SCALED.but(before_step=overflow),
)
fault(
    "scaler-skips-at-constant-lr",
    "own",
    "steps-missing",
    (4, "grad"),
    SCALED.but(before_step=lambda state: None, schedule=None),
    SCALED.but(before_step=overflow, schedule=None),
)
fault(
    "schedule-slips-midway",
    "own",
    "lr-shift",
    (6, "hyper.lr"),
    REGRESSION,
    REGRESSION.but(after_step=lambda s: [s.scheduler.step() for _ in range(2 if s.step == 5 else 1)]),
)

# --- controls: nothing may be blamed on the optimizer -------------------------------------------------------------


def foreach(flag: str) -> Callable[[nn.Module], Any]:
    return lambda net: torch.optim.AdamW(decay_groups(net), lr=3e-3, **({flag: True} if flag else {}))


def with_threads(count: int) -> Callable[[State], None]:
    return lambda state: torch.set_num_threads(count)


class Rematerialised(Digits):
    """Digits whose activations are computed again in backward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = _checkpoint.checkpoint(lambda v: torch.relu(self.norm(self.inside(v))), x, use_reentrant=False)
        return self.outside(self.dropout(hidden))


class LoRA(nn.Module):
    """A frozen layer with a low-rank one beside it whose second factor begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 10).requires_grad_(False)
        self.down = nn.Linear(64, 4, bias=False)
        self.up = nn.Linear(4, 10, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


class Experts(nn.Module):
    """Two experts of which the first examples choose one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(64, 10) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts[int(x[0, 0] > 0.5)](x)


fault("data-order", "control", "", (2, "grad"), DIGITS, DIGITS.but(order=reordered))
fault("dropout-seed", "control", "", (1, "grad"), DIGITS, DIGITS.but(built=draws_once_more))
fault("threads", "control", "", None, DIGITS, DIGITS.but(built=with_threads(2)))
fault("foreach", "control", "", None, DIGITS.but(optimizer=foreach("")), DIGITS.but(optimizer=foreach("foreach")))
fault("fused", "control", "", None, DIGITS.but(optimizer=foreach("")), DIGITS.but(optimizer=foreach("fused")))
fault("recomputation", "control", "", None, DIGITS, DIGITS.but(net=Rematerialised))
fault("twice", "control", "", None, TRANSFORMER, TRANSFORMER)
fault("resumed-rightly", "control", "", None, TRANSFORMER, lambda: resumed(TRANSFORMER, 6, restore))
fault(
    "lora",
    "control",
    "",
    None,
    DIGITS.but(net=LoRA, optimizer=adam_of(torch.optim.Adam)),
    DIGITS.but(net=LoRA, optimizer=adam_of(OwnAdam)),
)
fault(
    "experts",
    "control",
    "",
    None,
    DIGITS.but(net=Experts, optimizer=adam_of(torch.optim.Adam)),
    DIGITS.but(net=Experts, optimizer=adam_of(OwnAdam)),
)
fault(
    "own-implementation",
    "control",
    "",
    None,
    TRANSFORMER,
    TRANSFORMER.but(optimizer=adamw_groups("", 2e-3, betas=(0.9, 0.95))),
)
fault("own-sgd", "control", "", None, REGRESSION, REGRESSION.but(optimizer=own_sgd("")))
