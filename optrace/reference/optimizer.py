"""The part that all reference optimizers share: param groups, state, `zero_grad`, `step`, `state_dict`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from optrace.errors import OptionError
from optrace.reference.arithmetic import Array
from optrace.reference.parameter import as_array, grad_of, is_parameter, values_of
from optrace.reference.rule import Rule
from optrace.reference.sparse import SparseGrad

_ONE_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


class Optimizer:
    """A rule, applied to the parameters of every group.

    Subclasses name their `rule` and hand over `defaults`, the options of a group that does not bring its own.

    Attributes:
        param_groups: list of dicts: `"params"`, and every option by name. Options may be changed between steps.
        state: what the rule remembers, by parameter: a dict of ndarrays (state scalars are 0-d).
        defaults: the options that the constructor was given.
    """

    rule: ClassVar[Rule]
    takes_sparse: ClassVar[bool] = False
    takes_complex: ClassVar[bool] = True

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        """Take parameters as an iterable of them, of `(name, parameter)` pairs, or of dicts with options of their own.

        Raises:
            TypeError: `params` is one array or tensor, or holds something that is no parameter.
            OptionError: `params` is empty, or an option asks for one of torch's other implementations.
        """
        if isinstance(params, np.ndarray) or is_parameter(params):
            raise TypeError(f"params must be an iterable of parameters or of dicts, but is one {type(params).__name__}")
        for name in _ONE_IMPLEMENTATION:
            if defaults.get(name):
                raise OptionError(
                    f"{name}={defaults[name]!r} chooses one of torch's implementations; "
                    f"a reference optimizer has one, the for-loop: leave {name} out"
                )
        self.defaults = defaults
        self.state: dict[Any, dict[str, Any]] = {}
        self.param_groups: list[dict[str, Any]] = []
        groups = list(params)
        if not groups:
            raise OptionError("the optimizer got an empty list of parameters")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name != "params"]
        return "\n".join([*lines, ")"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: `{"params": parameters or (name, parameter) pairs, option: value, ...}`; the rest are defaults.

        Raises:
            TypeError: not a dict, its params an unordered set, or something in it is no parameter.
            OptionError: a parameter is in another group already, or only some parameters are named.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"a param group must be a dict, but is a {type(param_group).__name__}")
        members = param_group["params"]
        if isinstance(members, (set, frozenset)):
            raise TypeError("a param group needs its parameters in an order that stays the same: a list, not a set")
        members = [members] if is_parameter(members) else list(members)
        names = [member[0] for member in members if isinstance(member, tuple)]
        members = [member[1] if isinstance(member, tuple) else member for member in members]
        for member in members:
            self._check_parameter(member)

        if names and len(names) != len(members):
            raise OptionError(f"only {len(names)} of {len(members)} parameters have a name: name all of them or none")
        for group in self.param_groups:
            if ("param_names" in group) != bool(names):
                raise OptionError("either all param groups have parameter names or none has")
        if len({id(member) for member in members}) != len(members):
            warnings.warn("a param group holds the same parameter twice; it will be updated twice", stacklevel=2)
        taken = {id(member) for group in self.param_groups for member in group["params"]}
        if any(id(member) in taken for member in members):
            raise OptionError("a parameter appears in more than one param group")

        param_group["params"] = members
        if names:
            param_group["param_names"] = names
        for name, default in self.defaults.items():
            param_group.setdefault(name, default)
        self.param_groups.append(param_group)

    def _check_parameter(self, member: Any) -> None:
        if not is_parameter(member):
            raise TypeError(
                f"an optimizer updates parameters, but got a {type(member).__name__}; "
                "wrap an array as optrace.reference.Parameter(array)"
            )
        if not (getattr(member, "is_leaf", True) or getattr(member, "retains_grad", False)):
            raise OptionError("cannot optimize a tensor that was computed from others (a non-leaf)")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget every gradient, or (`set_to_none=False`) overwrite it with zeros, with which a step still acts."""
        for group in self.param_groups:
            for parameter in group["params"]:
                grad = grad_of(parameter)
                if set_to_none or grad is None:
                    parameter.grad = None
                elif isinstance(grad, SparseGrad):
                    grad.values[...] = 0
                else:
                    grad[...] = 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; `closure` recomputes the loss first and gives the result."""
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            hyper = self._hyper(group)
            for parameter in group["params"]:
                grad = grad_of(parameter)
                if grad is not None:
                    self._update(parameter, grad, hyper)
        return loss

    def _hyper(self, group: dict[str, Any]) -> dict[str, Any]:
        return hyper_of(group)

    def _update(self, parameter: Any, grad: Array | SparseGrad, hyper: Mapping[str, Any]) -> None:
        values = values_of(parameter)
        if isinstance(grad, SparseGrad) and not self.takes_sparse:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        if values.dtype.kind == "c" and not self.takes_complex:
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters")
        moved, state = self.rule.step(values, grad, self.state.get(parameter, {}), hyper)
        if state:
            self.state[parameter] = dict(state)
        values[...] = moved

    def state_dict(self, wrap: Callable[[Array], Any] | None = None) -> dict[str, Any]:
        """State and options in torch's layout: `{"state": {index: {key: value}}, "param_groups": [...]}`.

        Parameters are numbered through all groups in order. Arrays are copies.

        Args:
            wrap: applied to every array; `torch.from_numpy` makes it a state dict that torch's optimizer loads.
        """
        index: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            for parameter in group["params"]:
                index.setdefault(id(parameter), len(index))
            packed = {name: value for name, value in group.items() if name != "params"}
            groups.append(packed | {"params": [index[id(parameter)] for parameter in group["params"]]})
        state = {
            index[id(parameter)]: {key: _pack(value, wrap) for key, value in entries.items()}
            for parameter, entries in self.state.items()
        }
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state and options of a `state_dict()`, of this class or of torch's optimizer of the same name.

        As in torch, state is matched to parameters by position and, except `step`, cast to the parameter's dtype;
        that includes state scalars such as NAdam's `mu_product`.

        Raises:
            OptionError: another number of groups, or of parameters in one of them.
        """
        saved_groups = copy.deepcopy(list(state_dict["param_groups"]))
        sizes = [len(group["params"]) for group in self.param_groups]
        saved_sizes = [len(group["params"]) for group in saved_groups]
        if sizes != saved_sizes:
            raise OptionError(
                f"the state dict has groups of {saved_sizes} parameters, the optimizer has groups of {sizes}; "
                "they are matched by position, so build the optimizer with the same groups"
            )
        parameters: dict[Any, Any] = {}
        for group, saved in zip(self.param_groups, saved_groups, strict=True):
            parameters |= dict(zip(saved["params"], group["params"], strict=True))
            saved["params"] = group["params"]
            if "param_names" in group:
                saved.setdefault("param_names", group["param_names"])
            for name, default in self.rule.defaults.items():
                if isinstance(default, bool):  # options younger than the checkpoint
                    saved.setdefault(name, default)
        self.state = {
            parameters[number]: {key: self._unpack(parameters[number], key, value) for key, value in entries.items()}
            for number, entries in state_dict["state"].items()
        }
        self.param_groups = saved_groups

    def _unpack(self, parameter: Any, key: str, value: Any) -> Any:
        if value is None:  # torch before 2.0 kept a momentum_buffer of None until the first gradient
            return None
        if isinstance(value, (int, float)):  # torch before 1.12 kept state scalars as Python numbers
            return np.array(value, np.float32)
        array = np.array(as_array(value))
        dtype = values_of(parameter).dtype
        return array if key == "step" or dtype.kind == "c" else array.astype(dtype)


def _pack(value: Any, wrap: Callable[[Array], Any] | None) -> Any:
    if isinstance(value, list):
        return [_pack(item, wrap) for item in value]
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind == "i" and value.ndim == 0:  # SparseAdam's step is a Python int
        return int(value)
    return value.copy() if wrap is None else wrap(value.copy())


def hyper_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a param group as plain numbers: a one-element tensor or array becomes a scalar of its dtype."""
    return {name: _plain(value) for name, value in group.items() if name not in ("params", "param_names")}


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_plain(item) for item in value)
    if hasattr(value, "detach") or isinstance(value, np.ndarray):
        return as_array(value).reshape(())[()]
    return value


def check_option(name: str, value: Any, valid: bool, wanted: str) -> None:
    """Refuse an option outside its domain.

    Raises:
        OptionError: `valid` is false; says what is `wanted`.
    """
    if not valid:
        raise OptionError(f"invalid {name}: {value!r}; it must be {wanted}")


def check_betas(betas: Any) -> None:
    """Refuse decay rates of running averages outside [0, 1).

    Raises:
        OptionError: one of the two is; says which.
    """
    for index in (0, 1):
        check_option(f"beta at index {index}", betas[index], 0 <= betas[index] < 1, "at least 0 and below 1")
