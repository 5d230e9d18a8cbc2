"""Small programs that do something out of the ordinary around their steps."""

from __future__ import annotations

import copy
import gc
import threading

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import optrace

STEPS = 20


class Plain:
    """One optimizer, a schedule and a loss."""

    def __init__(self, make=None):
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        make = make or (lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9))
        self.optimizer = make(self.net.parameters())
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 4, gamma=0.5)
        self.x, self.y = torch.randn(8, 3), torch.randn(8, 1)

    def loss(self):
        return (self.net(self.x) - self.y).square().mean()

    def zero(self):
        self.optimizer.zero_grad()

    def backward(self):
        self.loss().backward()

    def step(self, number):
        self.zero()
        self.backward()
        self.optimizer.step()
        self.schedule.step()


class Scheduled(Plain):
    """An lr that changes with each step, and other options at times, one of them during a step."""

    def __init__(self):
        super().__init__(lambda params: torch.optim.AdamW(params, lr=0.1, betas=(0.9, 0.99)))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.2, total_steps=STEPS + 1)

    def backward(self):
        super().backward()
        group = self.optimizer.param_groups[0]
        self.count = getattr(self, "count", 0) + 1
        if self.count == 6:
            group["maximize"] = True
        if self.count == 8:
            group["lr"] = 0.0
        if self.count == 10:
            group["weight_decay"] = 1


class Accumulates(Plain):
    """Two backwards a step, and gradients that are cleared between some."""

    def backward(self):
        self.loss().backward()
        (2 * self.loss()).backward()

    def step(self, number):
        if number % 3 == 0:
            self.loss().backward()  # thrown away
        super().step(number)


class ZeroesInPlace(Plain):
    """`zero_grad` with arguments, at times by the module."""

    def zero(self):
        self.count = getattr(self, "count", 0) + 1
        if self.count % 3 == 0:
            self.net.zero_grad()
        elif self.count % 3 == 1:
            self.optimizer.zero_grad(set_to_none=False)
        else:
            self.optimizer.zero_grad(False)


class Clips(Plain):
    """A clip between backward and step."""

    def backward(self):
        super().backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 0.3)


class ManyRoots(Plain):
    """Backwards from several roots, with gradients given, of float64 and bfloat16."""

    def step(self, number):
        self.zero()
        loss = self.loss()
        if number % 4 == 0:
            torch.autograd.backward([loss, 2 * self.loss()])
        elif number % 4 == 1:
            loss.double().backward()
        elif number % 4 == 2:
            loss.bfloat16().backward()
        else:
            self.net(self.x).backward(torch.ones(8, 1))
        self.optimizer.step()


class Fails(Plain):
    """Backwards and steps of schedules that raise, calls inside of calls."""

    def step(self, number):
        self.zero()
        if number % 3 == 0:
            with pytest.raises(RuntimeError):
                torch.zeros(()).backward()
        hook = self.net[0].weight.register_post_accumulate_grad_hook(self.nested)
        self.backward()
        hook.remove()
        self.optimizer.step()
        self.schedule.step()

    def nested(self, _):
        with torch.enable_grad():
            inner = torch.ones((), requires_grad=True)
            (inner * 2).backward()


class Sub(torch.optim.SGD):
    """Overrides what is observed, and calls what it overrides."""

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)

    def step(self, closure=None):
        return super().step(closure)


class Subclassed(Plain):
    """An optimizer whose methods call those of torch."""

    def __init__(self):
        super().__init__(lambda params: Sub(params, lr=0.1, momentum=0.9))
        inner = torch.optim.lr_scheduler.ConstantLR(self.optimizer, 0.5, 3)
        self.schedule = torch.optim.lr_scheduler.SequentialLR(self.optimizer, [inner, self.schedule], [5])


class Closure(Plain):
    """A closure that does everything, several times a step."""

    def __init__(self):
        super().__init__(lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3))

    def step(self, number):
        def closure():
            self.zero()
            loss = self.loss()
            loss.backward()
            return loss

        self.optimizer.step(closure)


class Two(Plain):
    """Two optimizers that step in turn, the second made late."""

    def step(self, number):
        super().step(number)
        if number == 4:
            self.other = Plain(lambda params: torch.optim.AdamW(params, lr=0.01))
        if number >= 4:
            self.other.step(number)


class Draws(Plain):
    """Random numbers between the steps, and a schedule at times."""

    def step(self, number):
        self.zero()
        self.x = torch.randn(8, 3)
        self.backward()
        self.optimizer.step()
        if number % 2:
            self.schedule.step()


class Watched(Plain):
    """A mode that sees torch's functions while some backwards run."""

    def backward(self):
        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                return func(*args, **(kwargs or {}))

        with Mode():
            super().backward()


class Threads(Plain):
    """Steps in one thread and then another, each with its own."""

    def step(self, number):
        if number % 3 == 2:
            thread = threading.Thread(target=super().step, args=(number,))
            thread.start()
            thread.join()
        else:
            super().step(number)


class UserEvents(Plain):
    """Words of the program's own between the calls, more than wait for a step."""

    def step(self, number):
        self.zero()
        for _ in range(300 if number == 5 else 1):
            self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()
        self.optimizer.state_dict()


class Moded(Plain):
    """Steps under a mode that sees torch's functions."""

    def step(self, number):
        class Mode(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                return func(*args, **(kwargs or {}))

        self.zero()
        self.backward()
        if number % 4 == 3:
            with Mode():
                self.optimizer.step()
        else:
            self.optimizer.step()
        self.schedule.step()


class Hooked(Plain):
    """Hooks of the program's own on the optimizer, and on all, from one step to another."""

    def step(self, number):
        if number == 8:
            self.hooks = [
                self.optimizer.register_step_pre_hook(lambda *_: None),
                self.optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.state_dict()),
            ]
        if number == 12:
            list(map(self.removed, self.hooks))
            self.hooks = [register_optimizer_step_pre_hook(lambda *_: None)]
        if number == 15:
            list(map(self.removed, self.hooks))
        super().step(number)

    @staticmethod
    def removed(hook):
        hook.remove()


class Raises(Plain):
    """Steps that raise, at times after the rule has begun, and are made again."""

    def step(self, number):
        self.zero()
        self.backward()
        if number % 5 == 4:
            self.optimizer.param_groups[0]["lr"], lr = "no number", self.optimizer.param_groups[0]["lr"]
            with pytest.raises(TypeError):
                self.optimizer.step()
            self.optimizer.param_groups[0]["lr"] = lr
        if number % 5 == 2:
            with pytest.raises(ZeroDivisionError):
                self.optimizer.step(lambda: 1 // 0)
        self.optimizer.step()


class Edits(Plain):
    """Edits of parameters, state and gradients between the calls, and a resume."""

    def step(self, number):
        self.zero()
        self.backward()
        weight = self.net[0].weight
        with torch.no_grad():
            if number == 8:
                weight.mul_(0.5)
            if number == 10:
                self.optimizer.state[weight]["momentum_buffer"].zero_()
            if number == 12:
                weight.grad = None
            if number == 14:
                weight.data = weight.data.clone()
            if number == 16:
                self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        self.optimizer.step()
        self.schedule.step()


class Grows(Plain):
    """A group more, then a copy of the optimizer that steps beside it."""

    def step(self, number):
        if number == 8:
            self.more = nn.Parameter(torch.ones(2))
            self.optimizer.add_param_group({"params": [self.more], "lr": 0.3})
        if number == 12:
            self.twin = copy.deepcopy(self.optimizer)
        super().step(number)
        if number >= 12:
            for group in self.twin.param_groups:
                for param in group["params"]:
                    param.grad = torch.ones_like(param)
            self.twin.step()


class Sweeps(Plain):
    """Optimizers that are made anew every few steps, and those before gone."""

    def step(self, number):
        if number % 7 == 6:
            del self.optimizer, self.schedule
            gc.collect()
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
            self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 4, gamma=0.5)
        super().step(number)


class Idles(Plain):
    """An lr that is 0 for some steps, and steps without a backward."""

    def step(self, number):
        if number in (8, 9, 14):
            self.optimizer.param_groups[0]["lr"] = 0.0
        if number == 11:
            self.optimizer.param_groups[0]["lr"] = 0.05
        if number % 6 != 5:
            self.zero()
            self.backward()
        self.optimizer.step()


class Nests(Plain):
    """A step inside another's rule."""

    def __init__(self):
        inner = Plain(lambda params: torch.optim.Adam(params, lr=0.01))

        class Outer(torch.optim.SGD):
            def step(self, closure=None):
                inner.backward()
                inner.optimizer.step()
                return super().step(closure)

        super().__init__(lambda params: Outer(params, lr=0.1, momentum=0.9))


class Scales(Plain):
    """A GradScaler, whose scale is too large at first."""

    def __init__(self):
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=3)

    def step(self, number):
        self.zero()
        loss = self.loss() * (float("inf") if number == 9 else 1.0)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


class Tells(Plain):
    """Words of the program's own, before and after steps, and batches of a loader."""

    def step(self, number):
        if number % 3 == 0:
            optrace.event("before", number=number, text="x" * (number * 20))
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(self.x, self.y), batch_size=4)
        for self.x, self.y in loader:
            super().step(number)
        if number % 4 == 1:
            optrace.event("after", number=float(number))


class Pickled(Plain):
    """State that is loaded into the optimizer by `__setstate__`."""

    def step(self, number):
        if number == 9:
            self.optimizer.__setstate__(self.optimizer.__getstate__())
        if number == 13:
            self.optimizer.param_groups = [dict(group) for group in self.optimizer.param_groups]
        super().step(number)


PROGRAMS = [
    Plain, Scheduled, Accumulates, ZeroesInPlace, Clips, ManyRoots, Fails, Subclassed, Closure, Two, Draws, Watched,
    Threads, UserEvents, Moded, Hooked, Raises, Edits, Grows, Sweeps, Idles, Nests, Scales, Tells, Pickled,
]  # fmt: skip
