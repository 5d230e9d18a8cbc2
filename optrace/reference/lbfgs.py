"""L-BFGS: a quasi-Newton step from a short memory of gradient differences, with or without a line search."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from optrace.errors import OptionError
from optrace.reference.arithmetic import Array, absolute, add, dot, mul, neg, total
from optrace.reference.linesearch import Number, quotient, strong_wolfe
from optrace.reference.optimizer import Optimizer, check_option, hyper_of
from optrace.reference.parameter import grad_of, values_of
from optrace.reference.rule import Hyper, Rule
from optrace.reference.sparse import SparseGrad

Evaluate = Callable[[Array], tuple[float, Array]]


def step(
    param: Array, evaluate: Evaluate | None, state: Mapping[str, Any], hyper: Hyper
) -> tuple[Array, dict[str, Any]]:
    r"""One step of L-BFGS: up to max_iter iterations on all parameters together.

    With x all parameters as one vector, f the loss, g its gradient, and memories y_i, s_i, rho_i of at most
    history_size past iterations, one iteration is:

        y = g - g_before;  s = t * d;  if y.s > 1e-10: remember y, s and rho = 1 / y.s; H = y.s / y.y
        q <- -g;  newest to oldest:  a_i = rho_i * s_i.q;  q <- q - a_i * y_i
        d <- H * q;  oldest to newest:  d <- d + (a_i - rho_i * y_i.d) * s_i
        t <- lr;  in the very first iteration d = -g and t = min(1, 1 / sum|g|) * lr
        stop if g.d > -tolerance_change
        x <- x + t * d                     with line_search_fn "strong_wolfe", t is first improved from there
        f, g <- evaluate(x)                without line search not after the last iteration
        stop after max_iter iterations; after max_eval evaluations; if max|g| <= tolerance_grad;
            if max|t * d| <= tolerance_change; if f changed by less than tolerance_change

    Memory and direction go on in the next step, in which iterations continue to be counted.

    Args:
        param: all parameters as one real vector.
        evaluate: unlike other rules' grad, a function: from a vector like param to the loss and the gradient there.
            None: nothing happens.
        state: func_evals, n_iter, d, t, old_dirs (the y), old_stps (the s), ro, H_diag, prev_flat_grad, prev_loss,
            al, as torch keeps them: vectors, numbers and lists. `{}` before the first step.
        hyper: lr, max_iter, max_eval (None: 5/4 of max_iter), tolerance_grad, tolerance_change, history_size,
            line_search_fn.

    Returns:
        The new vector and state: bit for bit those of torch 2.13 (CPU) when torch's own inner products and sums are
        substituted, and when there is a single element. An inner product of n terms is the BLAS's in torch, off by
        at most n/2 eps * |a|.|b|, and rounded once here; how an iteration carries that on depends on the condition
        of the problem, and a line search compares, so there is no bound that holds for every problem.

    Raises:
        RuntimeError: a line_search_fn other than None and "strong_wolfe".

    References:
        Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4, 3.5 and 3.6.
        torch 2.13, torch/optim/lbfgs.py.
    """
    if evaluate is None:
        return param, dict(state)
    new: dict[str, Any] = {"func_evals": 0, "n_iter": 0} | dict(state)
    for memory in ("old_dirs", "old_stps", "ro", "al"):
        if memory in new:
            new[memory] = list(new[memory])
    loss, grad = evaluate(param)
    new["func_evals"] += 1
    if _largest(grad) <= hyper["tolerance_grad"]:
        return param, new

    max_iter, max_eval = hyper["max_iter"], hyper["max_eval"]
    max_eval = max_iter * 5 // 4 if max_eval is None else max_eval
    evaluations, iterations = 1, 0
    while iterations < max_iter:
        iterations += 1
        new["n_iter"] += 1
        new["d"] = direction = _direction(grad, new, hyper["history_size"])
        new["prev_flat_grad"], new["prev_loss"] = np.array(grad), loss
        new["t"] = length = _first_length(grad) * hyper["lr"] if new["n_iter"] == 1 else hyper["lr"]

        slope = dot(grad, direction)
        if slope > -hyper["tolerance_change"]:
            break
        before = loss
        found = 0
        if hyper["line_search_fn"] is not None:
            if hyper["line_search_fn"] != "strong_wolfe":
                raise RuntimeError(f"line_search_fn is 'strong_wolfe' or None, not {hyper['line_search_fn']!r}")
            loss, grad, length, found = strong_wolfe(
                functools.partial(_evaluate_along, evaluate, param, direction),
                length,
                direction,
                loss,
                grad,
                slope,
                max_evaluations=max_eval - evaluations,
            )
            new["t"] = length
        param = add(param, direction, alpha=length)
        if hyper["line_search_fn"] is None and iterations != max_iter:
            loss, grad = evaluate(param)
            found = 1
        evaluations += found
        new["func_evals"] += found

        if iterations == max_iter or evaluations >= max_eval or _largest(grad) <= hyper["tolerance_grad"]:
            break
        if _largest(mul(direction, length)) <= hyper["tolerance_change"]:
            break
        if abs(loss - before) < hyper["tolerance_change"]:
            break
    return param, new


def _evaluate_along(evaluate: Evaluate, param: Array, direction: Array, t: Number) -> tuple[float, Array]:
    return evaluate(add(param, direction, alpha=t))


def _direction(grad: Array, new: dict[str, Any], history_size: int) -> Array:
    """The direction of the next iteration; puts the last one into the memories."""
    if new["n_iter"] == 1:
        new["old_dirs"], new["old_stps"], new["ro"], new["H_diag"] = [], [], [], 1
        return neg(grad)
    changes, moves, inverses = new["old_dirs"], new["old_stps"], new["ro"]
    y = add(grad, new["prev_flat_grad"], alpha=-1)
    s = mul(new["d"], new["t"])
    curvature = dot(y, s)
    if curvature > 1e-10:
        if len(changes) == history_size:
            for memory in (changes, moves, inverses):
                memory.pop(0)
        changes.append(y)
        moves.append(s)
        inverses.append(quotient(1.0, curvature))
        new["H_diag"] = quotient(curvature, dot(y, y))

    factors = new.setdefault("al", [None] * history_size)
    q = neg(grad)
    for i in reversed(range(len(changes))):
        factors[i] = dot(moves[i], q) * inverses[i]
        q = add(q, changes[i], alpha=-factors[i])
    d = mul(q, new["H_diag"])
    for i in range(len(changes)):
        d = add(d, moves[i], alpha=factors[i] - dot(changes[i], d) * inverses[i])
    return d


def _first_length(grad: Array) -> Number:
    return min(1.0, quotient(1.0, total(absolute(grad))))


def _largest(a: Array) -> Any:
    return np.max(np.abs(a))


RULE = Rule(
    name="lbfgs",
    defaults={
        "lr": 1,
        "max_iter": 20,
        "max_eval": None,
        "tolerance_grad": 1e-7,
        "tolerance_change": 1e-9,
        "history_size": 100,
        "line_search_fn": None,
    },
    state_keys=(
        "func_evals",
        "n_iter",
        "d",
        "t",
        "old_dirs",
        "old_stps",
        "ro",
        "H_diag",
        "prev_flat_grad",
        "prev_loss",
        "al",
    ),
    elementwise=False,
    step=step,
)


class LBFGS(Optimizer):
    """L-BFGS over one group of parameters, with the options of `torch.optim.LBFGS`; the maths is in `step` above.

    The state is kept with the first parameter. A parameter without a gradient counts as one with zeros; complex
    parameters count as pairs of real numbers.

    Raises:
        OptionError: a negative lr; more than one param group.
    """

    rule = RULE
    takes_sparse = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        check_option("learning rate", lr, lr >= 0, "at least 0")
        super().__init__(
            params,
            {
                "lr": lr,
                "max_iter": max_iter,
                "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
                "tolerance_grad": tolerance_grad,
                "tolerance_change": tolerance_change,
                "history_size": history_size,
                "line_search_fn": line_search_fn,
            },
        )
        if len(self.param_groups) != 1:
            raise OptionError(f"LBFGS takes one param group, not {len(self.param_groups)}")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Minimize for one step; `closure` clears the gradients, computes the loss, calls backward, returns the loss.

        Returns:
            What the first call of `closure` returned.

        Raises:
            TypeError: no closure.
        """
        if closure is None:
            raise TypeError("LBFGS evaluates the loss many times in a step: call step(closure)")
        parameters = self.param_groups[0]["params"]
        losses: list[Any] = []

        def evaluate(x: Array) -> tuple[float, Array]:
            self._spread(x)
            loss = closure()
            losses.append(loss)
            return float(loss.detach() if hasattr(loss, "detach") else loss), self._flat_grad()

        start = _flatten([values_of(parameter) for parameter in parameters])
        state = self.state.get(parameters[0], {})
        end, self.state[parameters[0]] = step(start, evaluate, state, hyper_of(self.param_groups[0]))
        self._spread(end)
        return losses[0]

    def _spread(self, x: Array) -> None:
        offset = 0
        for parameter in self.param_groups[0]["params"]:
            values = values_of(parameter)
            part = x[offset : offset + values.size * (2 if np.iscomplexobj(values) else 1)]
            offset += part.size
            values[...] = part.view(values.dtype).reshape(values.shape)

    def _flat_grad(self) -> Array:
        grads = []
        for parameter in self.param_groups[0]["params"]:
            grad = grad_of(parameter)
            if grad is None:
                grad = np.zeros_like(values_of(parameter))
            grads.append(grad.dense() if isinstance(grad, SparseGrad) else grad)
        return _flatten(grads)

    def _unpack(self, parameter: Any, key: str, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._unpack(parameter, key, item) for item in value]
        if value is None or isinstance(value, (int, float)):
            return value
        array = super()._unpack(parameter, key, value)
        return array if array.ndim else array[()]


def _flatten(arrays: list[Array]) -> Array:
    vectors = [array.reshape(-1) for array in arrays]
    return np.concatenate([v.view(v.real.dtype) if np.iscomplexobj(v) else v for v in vectors])
