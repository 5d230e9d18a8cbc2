"""Keeps torch.compile from compiling the recorder's own functions where they are called between compiled parts."""

from __future__ import annotations

import sys
from types import FunctionType
from typing import Any


def leave_uncompiled(function: Any, calls_too: bool) -> None:
    """Have torch's frame evaluator run a Python function as it is; `calls_too`: and whatever it calls.

    Compiled code breaks its graph at `backward()`, at hooks and at methods of optimizers, and calls them as Python; the
    evaluator would go on and compile the Python that those call, our bookkeeping too. Takes effect without importing
    the compiler; a torch that lacks the switch compiles our functions, which changes nothing but its time.
    """
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(function, FunctionType):
        return
    code = function.__code__
    try:
        evaluator: Any = torch._C._dynamo.eval_frame
    except AttributeError:
        return
    if hasattr(evaluator, "set_code_exec_strategy"):
        skip, default = evaluator._FrameAction.SKIP, evaluator._FrameAction.DEFAULT
        evaluator.set_code_exec_strategy(code, evaluator._FrameExecStrategy(skip, skip if calls_too else default))
    elif hasattr(evaluator, "skip_code"):  # before torch 2.7
        evaluator.skip_code(code)
