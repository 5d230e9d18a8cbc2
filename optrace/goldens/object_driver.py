"""Drives an optimizer object, `step()` over tensors with `.grad`, whose tensors are torch's or NumPy's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from optrace.goldens.drive import Array, Group, NotCovered, State
from optrace.goldens.rule_driver import numeric, sparse_grad
from optrace.reference.parameter import Parameter


class Tensors(Protocol):
    """How parameters and gradients of one library are made and read."""

    def parameter(self, values: Array, strided: bool) -> Any:
        """A parameter that holds a copy of these values; `strided`: column by column in memory."""

    def copy(self, parameter: Any) -> Any:
        """A new parameter with the values of another, in the same memory layout."""

    def give(self, parameter: Any, grad: Array | None, step: int) -> None:
        """Set the gradient; into the memory of the last one, where there is one, as autograd does."""

    def read(self, value: Any) -> Array:
        """A copy as an ndarray; low precision is widened to float32."""

    def scalar(self, value: Any) -> Any:
        """A 0-d tensor of the library, as a closure returns its loss."""


class TorchTensors:
    """torch tensors on the CPU."""

    def __init__(self, dtype: str, sparse: bool = False, requires_grad: bool = True) -> None:
        """`dtype` is torch's name of it; `sparse` gradients hold their nonzero rows, at even steps in two halves."""
        self._dtype, self._sparse, self._requires_grad = dtype, sparse, requires_grad

    def _tensor(self, values: Array) -> Any:
        import torch

        return torch.from_numpy(np.array(values)).to(getattr(torch, self._dtype))

    def parameter(self, values: Array, strided: bool) -> Any:
        """A leaf tensor."""
        tensor = self._tensor(values)
        if strided:
            tensor = tensor.t().contiguous().t()
        return tensor.requires_grad_(self._requires_grad)

    def copy(self, parameter: Any) -> Any:
        """A leaf tensor with the same strides."""
        return parameter.detach().clone().requires_grad_(self._requires_grad)

    def give(self, parameter: Any, grad: Array | None, step: int) -> None:
        """Set `.grad`."""
        if grad is None:
            parameter.grad = None
        elif self._sparse:
            tensor = self._tensor(grad).to_sparse(1)
            parameter.grad = tensor if step % 2 else _in_halves(tensor)
        elif parameter.grad is None:
            import torch

            parameter.grad = torch.empty_like(parameter).detach().copy_(self._tensor(grad))  # strides as autograd's
        else:
            parameter.grad.detach().copy_(self._tensor(grad))

    def read(self, value: Any) -> Array:
        """A copy."""
        import torch

        tensor = value.detach().to("cpu")
        if tensor.is_sparse:
            tensor = tensor.to_dense()
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()
        return np.array(tensor.numpy())

    def scalar(self, value: Any) -> Any:
        """A 0-d tensor."""
        return self._tensor(np.asarray(value))


def _in_halves(tensor: Any) -> Any:
    """The same sparse gradient with every row stored twice, half each: as a backward leaves it that saw a row twice."""
    import torch

    tensor = tensor.coalesce()
    indices, values = tensor.indices(), tensor.values() / 2
    return torch.sparse_coo_tensor(
        torch.cat([indices, indices], 1), torch.cat([values, values]), tensor.shape, check_invariants=True
    )


class NumpyTensors:
    """`optrace.reference.Parameter`: an ndarray as `.data` and one as `.grad`."""

    def __init__(self, sparse: bool = False) -> None:
        """`sparse` gradients become a `SparseGrad`."""
        self._sparse = sparse

    def parameter(self, values: Array, strided: bool) -> Any:
        """A `Parameter`."""
        return Parameter(np.array(values.T, order="C").T if strided else np.array(values))

    def copy(self, parameter: Any) -> Any:
        """A `Parameter`."""
        return Parameter(np.array(parameter.data))

    def give(self, parameter: Any, grad: Array | None, step: int) -> None:
        """Set `.grad`."""
        if grad is None or self._sparse:
            parameter.grad = None if grad is None else sparse_grad(grad)
        elif parameter.grad is None:
            parameter.grad = np.array(grad)
        else:
            parameter.grad[...] = grad

    def read(self, value: Any) -> Array:
        """A copy."""
        return np.array(value.data if isinstance(value, Parameter) else value)

    def scalar(self, value: Any) -> Any:
        """The number itself."""
        return value


Build = Callable[[list[tuple[list[Any], Mapping[str, Any]]]], Any]
"""From (parameters, options) of each group to an optimizer."""


class ObjectDriver:
    """An optimizer with `step()`; state is read from `optimizer.state` where it has one."""

    def __init__(self, build: Build, tensors: Tensors, strided: frozenset[str] = frozenset()) -> None:
        """`build` makes the optimizer."""
        self._make, self._tensors, self._strided = build, tensors, strided
        self._params: dict[str, Any] = {}
        self._groups: tuple[Group, ...] = ()
        self._steps = 0
        self.optimizer: Any = None

    def start(self, params: Mapping[str, Array], groups: tuple[Group, ...]) -> None:
        """Build the optimizer."""
        self._groups, self._steps = groups, 0
        self._params = {name: self._tensors.parameter(values, name in self._strided) for name, values in params.items()}
        self._build()

    def _build(self) -> None:
        self.optimizer = self._make([([self._params[name] for name in g.params], g.options) for g in self._groups])

    def write_option(self, group: int, name: str, value: Any) -> None:
        """Write into `param_groups`."""
        self.optimizer.param_groups[group][name] = value

    def save_and_load(self) -> None:
        """`state_dict()` of the old into `load_state_dict` of a new one."""
        if not (hasattr(self.optimizer, "state_dict") and hasattr(self.optimizer, "load_state_dict")):
            raise NotCovered("state_dict and load_state_dict")
        saved = copy.deepcopy(self.optimizer.state_dict())
        self._params = {name: self._tensors.copy(parameter) for name, parameter in self._params.items()}
        self._build()
        self.optimizer.load_state_dict(saved)

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """Set every `.grad` and step."""
        self._steps += 1
        for name, grad in grads.items():
            self._tensors.give(self._params[name], grad, self._steps)
        self.optimizer.step()

    def params(self) -> dict[str, Array]:
        """Copies."""
        return {name: self._tensors.read(parameter) for name, parameter in self._params.items()}

    def state(self) -> State:
        """Tensors and numbers of `optimizer.state`."""
        state = getattr(self.optimizer, "state", None)
        if not isinstance(state, Mapping):
            return {}
        found: State = {}
        for name, parameter in self._params.items():
            entries = state.get(parameter)
            if isinstance(entries, Mapping):
                found[name] = entries_of(self._tensors, entries)
        return found


def entries_of(tensors: Tensors, entries: Mapping[str, Any]) -> dict[str, Array]:
    """The tensors and numbers among the entries of a parameter's state, as copies, in their order."""
    read = {str(k): tensors.read(v) for k, v in entries.items() if hasattr(v, "detach")}
    read |= numeric({k: v for k, v in entries.items() if not hasattr(v, "detach")})
    return {str(k): read[str(k)] for k in entries if str(k) in read}
