"""Drives an optimizer class in torch's manner, `C(params, lr=..., ...)` with `step()`, over torch tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class TorchDriver:
    """A class of torch's shape; state is read from `optimizer.state` where it has one."""

    def __init__(self, make: Callable[..., Any], dtype: str, sparse: bool = False) -> None:
        """Drive `make(param_groups)`; `dtype` is torch's name of the parameters' dtype."""
        self._make, self._dtype, self._sparse = make, dtype, sparse
        self._tensors: dict[str, Any] = {}
        self._groups: list[tuple[Mapping[str, Any], list[str]]] = []
        self.optimizer: Any = None

    def start(self, params: Mapping[str, Array], groups: list[tuple[Mapping[str, Any], list[str]]]) -> None:
        """Build the optimizer over leaf tensors."""
        self._groups = groups
        self._build({name: self._tensor(values) for name, values in params.items()})

    def _tensor(self, values: Array) -> Any:
        import torch

        return torch.from_numpy(np.array(values)).to(getattr(torch, self._dtype))

    def _build(self, tensors: dict[str, Any]) -> None:
        self._tensors = {name: tensor.clone().requires_grad_(True) for name, tensor in tensors.items()}
        self.optimizer = self._make(
            [{"params": [self._tensors[name] for name in names], **options} for options, names in self._groups]
        )

    def write_option(self, group: int, name: str, value: Any) -> None:
        """Write into `param_groups`."""
        self.optimizer.param_groups[group][name] = value

    def save_and_load(self) -> None:
        """`state_dict()` of the old into `load_state_dict` of a new one."""
        saved = copy.deepcopy(self.optimizer.state_dict())
        self._build({name: tensor.detach() for name, tensor in self._tensors.items()})
        self.optimizer.load_state_dict(saved)

    def step(self, grads: Mapping[str, Array | None]) -> None:
        """Set every `.grad` and step."""
        for name, grad in grads.items():
            tensor = None if grad is None else self._tensor(grad)
            if tensor is not None and self._sparse:
                tensor = tensor.to_sparse(1)
            self._tensors[name].grad = tensor
        self.optimizer.step()

    def params(self) -> dict[str, Array]:
        """Copies, bf16 widened to float32."""
        return {name: as_numpy(tensor) for name, tensor in self._tensors.items()}

    def state(self) -> dict[str, dict[str, Array]]:
        """Tensors and numbers of `optimizer.state`."""
        found: dict[str, dict[str, Array]] = {}
        for name, tensor in self._tensors.items():
            entries = getattr(self.optimizer, "state", {}).get(tensor) or {}
            found[name] = {key: as_numpy(value) for key, value in entries.items() if _is_numeric(value)}
        return found


def _is_numeric(value: Any) -> bool:
    return isinstance(value, int | float) or hasattr(value, "detach")


def as_numpy(value: Any) -> Array:
    """A copy as an ndarray; low precision is widened to float32, numbers become 0-d float64."""
    if isinstance(value, int | float):
        return np.array(float(value))
    import torch

    tensor = value.detach().to("cpu")
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    return np.array(tensor.numpy())
