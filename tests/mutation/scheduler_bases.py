"""Right schedulers, written once more: the sources that the mutants are edits of."""

from __future__ import annotations

FRAME = """
import math
from bisect import bisect_right
from collections import Counter


class Scheduler:
    def begin(self, optimizer, last_epoch=-1):
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self.fresh = True
        self.step()
        self.fresh = False

    def step(self, epoch=None):
        if epoch is None:
            self.last_epoch += 1
            lrs = self.chained()
        else:
            self.last_epoch = epoch
            lrs = self.closed()
        for group, lr in zip(self.optimizer.param_groups, lrs):
            group["lr"] = lr

    @property
    def lrs(self):
        return [group["lr"] for group in self.optimizer.param_groups]

    def closed(self):
        return self.chained()

    def state_dict(self):
        return {key: value for key, value in self.__dict__.items() if key != "optimizer"}

    def load_state_dict(self, state):
        self.__dict__.update(state)
"""

LAMBDALR = """
class Mine(Scheduler):
    def __init__(self, optimizer, lr_lambda, last_epoch=-1):
        n = len(optimizer.param_groups)
        self.functions = lr_lambda if isinstance(lr_lambda, list) else [lr_lambda] * n
        self.begin(optimizer, last_epoch)

    def chained(self):
        return [base * f(self.last_epoch) for base, f in zip(self.base_lrs, self.functions)]
"""

MULTIPLICATIVELR = """
class Mine(Scheduler):
    def __init__(self, optimizer, lr_lambda, last_epoch=-1):
        n = len(optimizer.param_groups)
        self.functions = lr_lambda if isinstance(lr_lambda, list) else [lr_lambda] * n
        self.begin(optimizer, last_epoch)

    def chained(self):
        if self.fresh:
            return self.lrs
        return [lr * f(self.last_epoch) for lr, f in zip(self.lrs, self.functions)]
"""

STEPLR = """
class Mine(Scheduler):
    def __init__(self, optimizer, step_size, gamma=0.1, last_epoch=-1):
        self.step_size, self.gamma = step_size, gamma
        self.begin(optimizer, last_epoch)

    def chained(self):
        if self.fresh or self.last_epoch % self.step_size != 0:
            return self.lrs
        return [lr * self.gamma for lr in self.lrs]

    def closed(self):
        return [base * self.gamma ** (self.last_epoch // self.step_size) for base in self.base_lrs]
"""

MULTISTEPLR = """
class Mine(Scheduler):
    def __init__(self, optimizer, milestones, gamma=0.1, last_epoch=-1):
        self.milestones, self.gamma = Counter(milestones), gamma
        self.begin(optimizer, last_epoch)

    def chained(self):
        if self.last_epoch not in self.milestones:
            return self.lrs
        return [lr * self.gamma ** self.milestones[self.last_epoch] for lr in self.lrs]

    def closed(self):
        passed = bisect_right(sorted(self.milestones.elements()), self.last_epoch)
        return [base * self.gamma**passed for base in self.base_lrs]
"""

CONSTANTLR = """
class Mine(Scheduler):
    def __init__(self, optimizer, factor=1.0 / 3, total_iters=5, last_epoch=-1):
        self.factor, self.total_iters = factor, total_iters
        self.begin(optimizer, last_epoch)

    def chained(self):
        if self.last_epoch == 0:
            return [lr * self.factor for lr in self.lrs]
        if self.last_epoch == self.total_iters:
            return [lr * (1.0 / self.factor) for lr in self.lrs]
        return self.lrs

    def closed(self):
        return [base * (self.factor if self.last_epoch < self.total_iters else 1.0) for base in self.base_lrs]
"""

LINEARLR = """
class Mine(Scheduler):
    def __init__(self, optimizer, start_factor=1.0 / 3, end_factor=1.0, total_iters=5, last_epoch=-1):
        self.start, self.end, self.total = start_factor, end_factor, total_iters
        self.begin(optimizer, last_epoch)

    def chained(self):
        if self.last_epoch == 0:
            return [lr * self.start for lr in self.lrs]
        if self.fresh or self.last_epoch > self.total:
            return self.lrs
        ratio = 1.0 + (self.end - self.start) / (
            self.total * self.start + (self.last_epoch - 1) * (self.end - self.start)
        )
        return [lr * ratio for lr in self.lrs]

    def closed(self):
        factor = self.start + (self.end - self.start) * min(self.total, self.last_epoch) / self.total
        return [base * factor for base in self.base_lrs]
"""

EXPONENTIALLR = """
class Mine(Scheduler):
    def __init__(self, optimizer, gamma, last_epoch=-1):
        self.gamma = gamma
        self.begin(optimizer, last_epoch)

    def chained(self):
        if self.fresh:
            return self.lrs
        return [lr * self.gamma for lr in self.lrs]

    def closed(self):
        return [base * self.gamma**self.last_epoch for base in self.base_lrs]
"""

POLYNOMIALLR = """
class Mine(Scheduler):
    def __init__(self, optimizer, total_iters=5, power=1.0, last_epoch=-1):
        self.total, self.power = total_iters, power
        self.begin(optimizer, last_epoch)

    def chained(self):
        if self.fresh or self.last_epoch > self.total:
            return self.lrs
        ratio = ((1.0 - self.last_epoch / self.total) / (1.0 - (self.last_epoch - 1) / self.total)) ** self.power
        return [lr * ratio for lr in self.lrs]

    def closed(self):
        left = 1.0 - min(self.total, self.last_epoch) / self.total
        return [base * left**self.power for base in self.base_lrs]
"""

COSINEANNEALINGLR = """
class Mine(Scheduler):
    def __init__(self, optimizer, T_max, eta_min=0.0, last_epoch=-1):
        self.T_max, self.eta_min = T_max, eta_min
        self.begin(optimizer, last_epoch)

    def chained(self):
        if self.fresh:
            return self.lrs
        if (self.last_epoch - 1 - self.T_max) % (2 * self.T_max) == 0:
            rise = (1 - math.cos(math.pi / self.T_max)) / 2
            return [lr + (base - self.eta_min) * rise for base, lr in zip(self.base_lrs, self.lrs)]
        above = 1 + math.cos(math.pi * self.last_epoch / self.T_max)
        below = 1 + math.cos(math.pi * (self.last_epoch - 1) / self.T_max)
        return [above / below * (lr - self.eta_min) + self.eta_min for lr in self.lrs]

    def closed(self):
        height = 1 + math.cos(math.pi * self.last_epoch / self.T_max)
        return [self.eta_min + (base - self.eta_min) * height / 2 for base in self.base_lrs]
"""

COSINEANNEALINGWARMRESTARTS = """
class Mine(Scheduler):
    def __init__(self, optimizer, T_0, T_mult=1, eta_min=0.0):
        self.T_0, self.T_i, self.T_mult, self.eta_min, self.T_cur = T_0, T_0, T_mult, eta_min, -1
        self.begin(optimizer)

    def step(self, epoch=None):
        if epoch is None and self.last_epoch < 0:
            epoch = 0
        if epoch is None:
            epoch = self.last_epoch + 1
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur -= self.T_i
                self.T_i *= self.T_mult
        elif epoch < self.T_0:
            self.T_i, self.T_cur = self.T_0, epoch
        elif self.T_mult == 1:
            self.T_cur = epoch % self.T_0
        else:
            n = int(math.log(epoch / self.T_0 * (self.T_mult - 1) + 1, self.T_mult))
            self.T_cur = epoch - self.T_0 * (self.T_mult**n - 1) / (self.T_mult - 1)
            self.T_i = self.T_0 * self.T_mult**n
        self.last_epoch = math.floor(epoch)
        height = 1 + math.cos(math.pi * self.T_cur / self.T_i)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = self.eta_min + (base - self.eta_min) * height / 2
"""

CYCLICLR = """
class Mine(Scheduler):
    def __init__(self, optimizer, base_lr, max_lr, step_size_up=2000, step_size_down=None, mode="triangular",
                 gamma=1.0, scale_fn=None, scale_mode="cycle", cycle_momentum=True, base_momentum=0.8,
                 max_momentum=0.9):
        n = len(optimizer.param_groups)
        spread = lambda value: value if isinstance(value, list) else [value] * n
        for group, lr in zip(optimizer.param_groups, spread(base_lr)):
            group["lr"] = lr
        self.max_lrs = spread(max_lr)
        self.up = float(step_size_up)
        self.down = float(step_size_up if step_size_down is None else step_size_down)
        self.mode, self.gamma, self.scale_fn = mode, gamma, scale_fn
        self.by_cycle = scale_mode == "cycle" if scale_fn else mode != "exp_range"
        self.cycle_momentum = cycle_momentum
        self.low, self.high = spread(base_momentum), spread(max_momentum)
        self.begin(optimizer)

    def scale(self, x):
        if self.scale_fn:
            return self.scale_fn(x)
        return {"triangular": 1.0, "triangular2": 1 / (2.0 ** (x - 1)), "exp_range": self.gamma**x}[self.mode]

    def chained(self):
        total = self.up + self.down
        share = self.up / total
        cycle = math.floor(1 + self.last_epoch / total)
        x = 1.0 + self.last_epoch / total - cycle
        rise = x / share if x <= share else (x - 1) / (share - 1)
        scale = self.scale(cycle if self.by_cycle else self.last_epoch)
        if self.cycle_momentum:
            for group, low, high in zip(self.optimizer.param_groups, self.low, self.high):
                momentum = high - (high - low) * rise * scale
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum
        return [base + (high - base) * rise * scale for base, high in zip(self.base_lrs, self.max_lrs)]
"""

ONECYCLELR = """
class Mine(Scheduler):
    def __init__(self, optimizer, max_lr, total_steps=None, epochs=None, steps_per_epoch=None, pct_start=0.3,
                 anneal_strategy="cos", cycle_momentum=True, base_momentum=0.85, max_momentum=0.95, div_factor=25.0,
                 final_div_factor=1e4, three_phase=False, last_epoch=-1):
        n = len(optimizer.param_groups)
        spread = lambda value: value if isinstance(value, list) else [value] * n
        self.total = total_steps or epochs * steps_per_epoch
        self.top = spread(max_lr)
        self.first = [top / div_factor for top in self.top]
        self.final = [first / final_div_factor for first in self.first]
        if last_epoch == -1:
            self.low, self.high = spread(base_momentum), spread(max_momentum)
            for group, lr in zip(optimizer.param_groups, self.first):
                group["lr"] = group["initial_lr"] = lr
        else:
            self.low = [group["base_momentum"] for group in optimizer.param_groups]
            self.high = [group["max_momentum"] for group in optimizer.param_groups]
            self.first = [group["initial_lr"] for group in optimizer.param_groups]
            self.top = [group["max_lr"] for group in optimizer.param_groups]
            self.final = [group["min_lr"] for group in optimizer.param_groups]
        self.linear, self.cycle_momentum = anneal_strategy == "linear", cycle_momentum
        end = float(pct_start * self.total) - 1
        self.phases = [(end, "first", "top", "high", "low")]
        if three_phase:
            self.phases += [(float(2 * pct_start * self.total) - 2, "top", "first", "low", "high"),
                            (self.total - 1, "first", "final", "high", "high")]
        else:
            self.phases += [(self.total - 1, "top", "final", "low", "high")]
        self.begin(optimizer, last_epoch)

    def anneal(self, start, end, share):
        if self.linear:
            return (end - start) * share + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)

    def chained(self):
        begin = 0.0
        for i, (end, *names) in enumerate(self.phases):
            if self.last_epoch <= end or i == len(self.phases) - 1:
                share = (self.last_epoch - begin) / (end - begin)
                break
            begin = end
        lrs = []
        for i, group in enumerate(self.optimizer.param_groups):
            a, b, m0, m1 = (getattr(self, name)[i] for name in names)
            lrs.append(self.anneal(a, b, share))
            if self.cycle_momentum:
                momentum = self.anneal(m0, m1, share)
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum
        return lrs
"""

REDUCELRONPLATEAU = """
class Mine(Scheduler):
    def __init__(self, optimizer, mode="min", factor=0.1, patience=10, threshold=1e-4, threshold_mode="rel",
                 cooldown=0, min_lr=0, eps=1e-8):
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.relative, self.cooldown, self.eps = threshold, threshold_mode == "rel", cooldown, eps
        self.min_lrs = min_lr if isinstance(min_lr, list) else [min_lr] * len(optimizer.param_groups)
        self.best = math.inf if mode == "min" else -math.inf
        self.bad = self.left = 0

    def better(self, metric):
        if self.mode == "min":
            return metric < (self.best * (1.0 - self.threshold) if self.relative else self.best - self.threshold)
        return metric > (self.best * (1.0 + self.threshold) if self.relative else self.best + self.threshold)

    def step(self, metric):
        if self.better(metric):
            self.best, self.bad = metric, 0
        else:
            self.bad += 1
        if self.left > 0:
            self.left -= 1
            self.bad = 0
        if self.bad > self.patience:
            for group, least in zip(self.optimizer.param_groups, self.min_lrs):
                lr = max(group["lr"] * self.factor, least)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr
            self.left, self.bad = self.cooldown, 0
"""

SWALR = """
class Mine(Scheduler):
    def __init__(self, optimizer, swa_lr, anneal_epochs=10, anneal_strategy="cos"):
        self.targets = swa_lr if isinstance(swa_lr, list) else [swa_lr] * len(optimizer.param_groups)
        self.epochs, self.linear = anneal_epochs, anneal_strategy == "linear"
        self.begin(optimizer)

    def alpha(self, count):
        t = max(0, min(1, count / max(1, self.epochs)))
        return t if self.linear else (1 - math.cos(math.pi * t)) / 2

    def chained(self):
        count = self.last_epoch + (self.epochs == 0)
        before, now = self.alpha(count - 1), self.alpha(count)
        lrs = []
        for group, target in zip(self.optimizer.param_groups, self.targets):
            start = target if before == 1 else (group["lr"] - before * target) / (1 - before)
            lrs.append(target * now + start * (1 - now))
        return lrs
"""

SEQUENTIALLR = """
from torch.optim.lr_scheduler import *


class Mine(Scheduler):
    def __init__(self, optimizer, schedulers, milestones):
        self.optimizer, self.schedulers, self.milestones, self.last_epoch = optimizer, schedulers, milestones, 0
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        for scheduler in schedulers:
            scheduler.last_epoch -= 1
        schedulers[0]._initial_step()

    def step(self):
        self.last_epoch += 1
        i = bisect_right(self.milestones, self.last_epoch)
        if i > 0 and self.milestones[i - 1] == self.last_epoch:
            self.schedulers[i].step(0)
        else:
            self.schedulers[i].step()

    def state_dict(self):
        return {"last_epoch": self.last_epoch, "children": [s.state_dict() for s in self.schedulers]}

    def load_state_dict(self, state):
        self.last_epoch = state["last_epoch"]
        for scheduler, child in zip(self.schedulers, state["children"]):
            scheduler.load_state_dict(child)
"""

CHAINEDSCHEDULER = """
from torch.optim.lr_scheduler import *


class Mine(Scheduler):
    def __init__(self, schedulers):
        self.schedulers = schedulers

    def step(self):
        for scheduler in self.schedulers:
            scheduler.step()

    def state_dict(self):
        return {"children": [s.state_dict() for s in self.schedulers]}

    def load_state_dict(self, state):
        for scheduler, child in zip(self.schedulers, state["children"]):
            scheduler.load_state_dict(child)
"""

BASES = {name.lower(): text for name, text in list(globals().items()) if name.isupper() and name != "FRAME"}


def source_of(rule: str) -> str:
    """The whole source of a right scheduler."""
    return FRAME + BASES[rule]
