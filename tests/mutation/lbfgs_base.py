"""A right L-BFGS, written once more as people write it: the source that the mutants of `lbfgs_mutants` are edits of."""

from __future__ import annotations

LBFGS = """
import copy

import torch


class Point:
    def __init__(self, t, loss, grad, slope):
        self.t, self.loss, self.grad, self.slope = t, loss, grad, slope


class Optimizer:
    def __init__(self, params, lr=1, max_iter=20, max_eval=None, tolerance_grad=1e-7, tolerance_change=1e-9,
                 history_size=100, line_search_fn=None):
        self.params = list(params)
        self.param_groups = [
            dict(params=self.params, lr=lr, max_iter=max_iter,
                 max_eval=max_iter * 5 // 4 if max_eval is None else max_eval, tolerance_grad=tolerance_grad,
                 tolerance_change=tolerance_change, history_size=history_size, line_search_fn=line_search_fn)
        ]
        self.state = {self.params[0]: dict(func_evals=0, n_iter=0)}

    def state_dict(self):
        options = {k: v for k, v in self.param_groups[0].items() if k != "params"}
        return {"state": self.state[self.params[0]], "options": options}

    def load_state_dict(self, saved):
        saved = copy.deepcopy(saved)
        self.state = {self.params[0]: saved["state"]}
        self.param_groups[0].update(saved["options"])

    def evaluate(self, closure, x):
        start = 0
        for p in self.params:
            with torch.no_grad():
                p.copy_(x[start : start + p.numel()].view_as(p))
            start += p.numel()
        loss = closure()
        return loss, float(loss), torch.cat([p.grad.reshape(-1) for p in self.params])

    def step(self, closure):
        h = self.param_groups[0]
        state = self.state[self.params[0]]
        x = torch.cat([p.detach().reshape(-1) for p in self.params])
        first, loss, g = self.evaluate(closure, x)
        evaluations, iterations = 1, 0
        state["func_evals"] += 1
        if g.abs().max() <= h["tolerance_grad"]:
            return first
        while iterations < h["max_iter"]:
            iterations += 1
            state["n_iter"] += 1
            if state["n_iter"] == 1:
                state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1)
                t = min(1.0, 1.0 / g.abs().sum()) * h["lr"]
            else:
                y, s = g - state["prev_flat_grad"], state["t"] * state["d"]
                ys = y.dot(s)
                if ys > 1e-10:
                    if len(state["ro"]) == h["history_size"]:
                        for memory in ("old_dirs", "old_stps", "ro"):
                            state[memory].pop(0)
                    state["old_dirs"].append(y)
                    state["old_stps"].append(s)
                    state["ro"].append(1 / ys)
                    state["H_diag"] = ys / y.dot(y)
                t = h["lr"]
            d = -g
            factors = []
            for y, s, rho in zip(state["old_dirs"][::-1], state["old_stps"][::-1], state["ro"][::-1]):
                factors.append(rho * s.dot(d))
                d = d - factors[-1] * y
            d = state["H_diag"] * d
            for y, s, rho, a in zip(state["old_dirs"], state["old_stps"], state["ro"], factors[::-1]):
                d = d + (a - rho * y.dot(d)) * s
            state.update(d=d, t=t, prev_flat_grad=g, prev_loss=loss)
            slope = g.dot(d)
            if slope > -h["tolerance_change"]:
                break
            before = loss
            used = 0
            if h["line_search_fn"] == "strong_wolfe":
                here = Point(0, loss, g, slope)

                def along(t):
                    _, there, gradient = self.evaluate(closure, x + t * d)
                    return Point(t, there, gradient, gradient.dot(d))

                best, used = search(along, t, here, h["max_eval"] - evaluations, d.abs().max())
                loss, g, t = best.loss, best.grad, best.t
                state["t"] = t
            x = x + t * d
            if h["line_search_fn"] is None and iterations < h["max_iter"]:
                _, loss, g = self.evaluate(closure, x)
                used = 1
            evaluations += used
            state["func_evals"] += used
            if iterations == h["max_iter"]:
                break
            if evaluations >= h["max_eval"]:
                break
            if g.abs().max() <= h["tolerance_grad"]:
                break
            if (t * d).abs().max() <= h["tolerance_change"]:
                break
            if abs(loss - before) < h["tolerance_change"]:
                break
        with torch.no_grad():
            start = 0
            for p in self.params:
                p.copy_(x[start : start + p.numel()].view_as(p))
                start += p.numel()
        return first


def search(along, t, here, most, size, c1=1e-4, c2=0.9):
    last, now, n = here, along(t), 0
    low = high = None
    while n < most:
        if now.loss > here.loss + c1 * now.t * here.slope or (n > 1 and now.loss >= last.loss):
            low, high = last, now
            break
        if abs(now.slope) <= -c2 * here.slope:
            return now, n + 1
        if now.slope >= 0:
            low, high = last, now
            break
        t = cubic(last, now, now.t + 0.01 * (now.t - last.t), 10 * now.t)
        last, now = now, along(t)
        n += 1
    if n == most:
        low, high = here, now
    if high.loss < low.loss:
        low, high = high, low
    stalled = False
    while n < most:
        left, right = min(low.t, high.t), max(low.t, high.t)
        if (right - left) * size < 1e-9:
            break
        t = cubic(*((low, high) if low.t <= high.t else (high, low)), left, right)
        edge = 0.1 * (right - left)
        if min(right - t, t - left) < edge:
            if stalled or t >= right or t <= left:
                t = right - edge if abs(t - right) < abs(t - left) else left + edge
                stalled = False
            else:
                stalled = True
        else:
            stalled = False
        now = along(t)
        n += 1
        if now.loss > here.loss + c1 * now.t * here.slope or now.loss >= low.loss:
            high = now
            if high.loss < low.loss:
                low, high = high, low
        else:
            if abs(now.slope) <= -c2 * here.slope:
                return now, n + 1
            if now.slope * (high.t - low.t) >= 0:
                high = low
            low = now
    return low, n + 1


def cubic(a, b, least, most):
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if square < 0:
        return (least + most) / 2
    d2 = square.sqrt()
    t = b.t - (b.t - a.t) * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)
    return min(max(t, least), most)
"""
