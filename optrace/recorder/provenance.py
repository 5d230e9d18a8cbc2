"""Says what a run was: its command and code (trace.json), and all that its numbers can depend on (rank.json)."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optrace
from optrace.recorder.distributions import imported_distributions
from optrace.recorder.settings import Settings
from optrace.trace.measure import kernel_name
from optrace.trace.secrets import redact

GIT_SECONDS = 2.0
"""Longer than this nobody waits for git."""

_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_LAUNCH_BLOCKING",
    "KMP_AFFINITY",
    "MKL_CBWR",
    "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NVIDIA_TF32_OVERRIDE",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_CUDNN_V8_API_DISABLED",
)
"""Environment variables that change numbers; no others are kept."""


def run_info(settings: Settings) -> dict[str, Any]:
    """Return what trace.json holds beside the format, as JSON.

    Keys: run (a random id), job (what the launcher calls it, or None), started (UTC), command (argv with secrets
    removed), code (git: commit and dirty, or None; script: path and sha256, or None), optrace (its version), settings.
    """
    from optrace.recorder.identity import Job

    job = Job.of(os.environ)
    return {
        "run": uuid.uuid4().hex,
        "job": None if job is None else job.id,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact(sys.orig_argv),
        "code": code_identity(),
        "optrace": optrace.__version__,
        "settings": asdict(settings),
    }


def code_identity() -> dict[str, Any]:
    """Return git's commit of the script's folder, whether tracked files differ from it, and the script's sha256."""
    script = script_path()
    folder = script.resolve().parent if script is not None else Path.cwd()
    known = None if script is None else {"path": str(script), "sha256": _sha256(script)}
    return {"git": git_identity(folder), "script": known}


def script_path() -> Path | None:
    """The program's main file; None in a notebook, for `-c` and for a program read from a pipe."""
    main = sys.modules.get("__main__")
    file = getattr(main, "__file__", None)
    if not isinstance(file, str) or not os.path.isfile(file):
        return None
    return Path(file)


def git_identity(folder: Path, seconds: float = GIT_SECONDS) -> dict[str, Any] | None:
    """Return {"commit", "dirty"} of the work tree that holds `folder`; None outside one, without git, or out of time.

    dirty: whether a tracked file differs from the commit. git is asked once, takes no locks, starts no daemon, asks
    nobody, and is ended after `seconds`. Nothing is asked where no folder above holds a `.git`.
    """
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder)]
    command += ["status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=all"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.decode(errors="replace").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    if done.returncode or commit is None:
        return None
    dirty = any(not line.startswith("#") for line in lines)
    return {"commit": None if commit == "(initial)" else commit, "dirty": dirty}


def environment() -> dict[str, Any]:
    """Return what rank.json holds of this process, as JSON: DESIGN section 9, and the process's pid and host.

    What cannot be told is None or absent; nothing here starts CUDA, and nothing is changed by asking.
    """
    info: dict[str, Any] = {
        "pid": os.getpid(),
        "host": platform.node(),
        "optrace": {"version": optrace.__version__, "kernel": kernel_name()},
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "os": {
            "system": platform.system(),
            "release": platform.release(),
            "libc": " ".join(platform.libc_ver()),
        },
        "cpu": cpu(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "distributions": imported_distributions(),
    }
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        info["numpy_blas"] = _try(lambda: _numpy_blas(numpy))
    torch = sys.modules.get("torch")
    if torch is not None:
        from optrace.recorder.torch_environment import torch_environment

        info |= torch_environment(torch)
    return info


def cpu() -> dict[str, Any]:
    """Return architecture, model, cores, and whether the processor has a fused multiply-add."""
    model, flags = _processor()
    machine = platform.machine()
    if machine.lower() in ("arm64", "aarch64"):
        fma: bool | None = True  # part of the architecture
    else:
        fma = "fma" in flags if flags else None
    return {"architecture": machine, "model": model, "cores": os.cpu_count(), "fma": fma}


def _processor() -> tuple[str | None, frozenset[str]]:
    """Model name and feature flags, from Linux's /proc/cpuinfo where there is one."""
    found: Mapping[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            found = _first_block(file.read(1 << 16))
    except OSError:
        pass
    model = found.get("model name") or found.get("Processor")
    return model, frozenset((found.get("flags") or found.get("Features") or "").split())


def _first_block(text: str) -> dict[str, str]:
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _numpy_blas(numpy: Any) -> str:
    blas = numpy.__config__.CONFIG["Build Dependencies"]["blas"]
    return f"{blas['name']} {blas['version']}"


def _try(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except Exception:  # a question that this version does not know
        return None


def _sha256(file: Path) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None
