"""Says which code an optimizer runs: its class, its source, its implementation in torch."""

from __future__ import annotations

import hashlib
import inspect
import sys
from types import FrameType
from typing import Any

import torch


def optimizer_facts(optimizer: Any) -> dict[str, Any]:
    """What rank.json keeps of an optimizer, as JSON.

    Keys: class, module, source (sha256 of the class's source file, None where there is none), implementation (as
    `implementation_of`, and `compiled` where torch.compile made the code of the step that runs: it rounds otherwise),
    lr (`float` or `Tensor`), dtypes and devices of the parameters.
    """
    kind = type(optimizer)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    rates = sorted(
        {
            "Tensor" if isinstance(group["lr"], torch.Tensor) else "float"
            for group in optimizer.param_groups
            if "lr" in group
        }
    )
    return {
        "class": kind.__name__,
        "module": kind.__module__,
        "source": _source_hash(kind),
        "implementation": implementation_of(optimizer) + (" compiled" if _is_compiled() else ""),
        "lr": rates[0] if len(rates) == 1 else rates or None,
        "dtypes": sorted({str(param.dtype).removeprefix("torch.") for param in params}),
        "devices": sorted({str(param.device) for param in params}),
    }


def implementation_of(optimizer: Any) -> str:
    """`for-loop`, `foreach` or `fused`, then `capturable`, `differentiable` where set; of several groups the first.

    None for `foreach` and `fused` is resolved as torch does: foreach where all parameters are plain tensors on a
    device that has it, never fused. Optimizers that know neither option count as for-loop.
    """
    if not optimizer.param_groups:
        return "for-loop"
    group = optimizer.param_groups[0]
    words = []
    if group.get("fused"):
        words.append("fused")
    elif group.get("foreach") or ("foreach" in group and _is_foreach_default(group)):
        words.append("foreach")
    else:
        words.append("for-loop")
    words += [flag for flag in ("capturable", "differentiable") if group.get(flag)]
    return " ".join(words)


def _is_compiled() -> bool:
    """Whether the step that is running was called within what torch.compile compiled, by the frames that it adds."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name.startswith("torch_dynamo_resume_in_"):
            return True
        if code.co_name == "compile_wrapper" and code.co_filename.endswith("eval_frame.py"):
            return True
        frame = frame.f_back
    return False


def _is_foreach_default(group: dict[str, Any]) -> bool:
    if group["foreach"] is not None or group.get("fused") is not None or group.get("differentiable"):
        return False
    try:
        from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices as supported
    except ImportError:
        return False
    devices = supported()
    params = group["params"]
    return bool(params) and all(
        type(param) in (torch.Tensor, torch.nn.Parameter) and param.device.type in devices for param in params
    )


def _source_hash(kind: type) -> str | None:
    try:
        file = inspect.getsourcefile(kind)
        if file is None:
            return None
        with open(file, "rb") as source:
            return hashlib.sha256(source.read()).hexdigest()
    except (OSError, TypeError):
        return None
