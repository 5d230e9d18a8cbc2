"""Says which torch computes, on what, and in which of its modes; asking starts no device and changes nothing."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from optrace.recorder.living import living


def torch_environment(torch: Any) -> dict[str, Any]:
    """Return the entries of rank.json that come from an imported torch: DESIGN section 9.

    Keys: torch, blas, threads, modes, gpu (None while CUDA is not in use), distributed (None outside a process group).
    """
    return {
        "torch": {"version": torch.__version__, "git": torch.version.git_version, "variant": variant(torch)},
        "cpu_capability": ask(lambda: torch.backends.cpu.get_cpu_capability()),
        "blas": blas(torch),
        "threads": {"intra": torch.get_num_threads(), "inter": torch.get_num_interop_threads()},
        "modes": modes(torch),
        "gpu": gpu(torch) if torch.cuda.is_initialized() else None,
        "distributed": distributed(),
    }


def ask(question: Callable[[], Any]) -> Any:
    """The answer, or None where this torch does not know the question or refuses to answer."""
    try:
        return question()
    except Exception:
        return None


def variant(torch: Any) -> str:
    """What torch was built for: `cpu`, `cuda 12.8`, `rocm 6.3`, `xpu`."""
    for name in ("cuda", "hip", "xpu"):
        version = getattr(torch.version, name, None)
        if version:
            return f"{'rocm' if name == 'hip' else name} {version}"
    return "cpu"


def blas(torch: Any) -> dict[str, str]:
    """Which linear algebra torch was built with, and the versions that it tells."""
    text = torch.__config__.show()
    patterns = {
        "library": r"BLAS_INFO=(\w+)",
        "mkl": r"Math Kernel Library Version (\S+)",
        "openblas": r"OpenBLAS[ /]v?([\d.]+)",
        "onednn": r"MKL-DNN v?([\d.]+)",
    }
    return {name: match[1] for name, pattern in patterns.items() if (match := re.search(pattern, text))}


def modes(torch: Any) -> dict[str, Any]:
    """Global switches that change numbers, by name; None where torch refuses to say."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    devices = ["cpu", *(["cuda"] if torch.cuda.is_initialized() else [])]
    return {
        "default_dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "matmul_precision": ask(torch.get_float32_matmul_precision),
        "tf32_matmul": ask(torch._C._get_cublas_allow_tf32),
        "tf32_cudnn": ask(torch._C._get_cudnn_allow_tf32),
        "fp32_precision_matmul": ask(lambda: str(cuda.matmul.fp32_precision)),
        "fp32_precision_conv": ask(lambda: str(cudnn.conv.fp32_precision)),
        "fp16_reduced_precision": ask(lambda: _plain(cuda.matmul.allow_fp16_reduced_precision_reduction)),
        "bf16_reduced_precision": ask(lambda: _plain(cuda.matmul.allow_bf16_reduced_precision_reduction)),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn_deterministic": ask(lambda: cudnn.deterministic),
        "cudnn_benchmark": ask(lambda: cudnn.benchmark),
        "mkldnn": ask(lambda: torch._C._get_mkldnn_enabled()),
        "sdpa": ask(lambda: sdpa(torch)),
        "autocast": {device: autocast(torch, device) for device in devices},
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | str) else str(value)


def sdpa(torch: Any) -> list[str]:
    """Names of the scaled-dot-product kernels that are allowed."""
    switches = {
        "flash": torch._C._get_flash_sdp_enabled,
        "mem_efficient": torch._C._get_mem_efficient_sdp_enabled,
        "math": torch._C._get_math_sdp_enabled,
        "cudnn": getattr(torch._C, "_get_cudnn_sdp_enabled", bool),
    }
    return [name for name, enabled in switches.items() if enabled()]


def autocast(torch: Any, device: str) -> str | None:
    """Dtype that autocast uses on a device at this moment; None while it is off."""
    if not torch.is_autocast_enabled(device):
        return None
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.")


def gpu(torch: Any) -> dict[str, Any]:
    """Models, driver and libraries of a CUDA (or ROCm) that is in use."""
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "model": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory": properties.total_memory,
            }
        )
    nccl = ask(torch.cuda.nccl.version)
    return {
        "devices": devices,
        "current": torch.cuda.current_device(),
        "driver": _driver(),
        "cuda_driver": ask(torch._C._cuda_getDriverVersion),
        "cuda_runtime": torch.version.cuda or torch.version.hip,
        "cudnn": ask(torch.backends.cudnn.version),
        "nccl": ".".join(map(str, nccl)) if isinstance(nccl, tuple) else nccl,
    }


def _driver() -> str | None:
    """Version of NVIDIA's kernel driver."""
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            line = file.readline()
    except OSError:
        return None
    match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", line)
    return match[1] if match else None


def distributed() -> dict[str, Any] | None:
    """World size, rank, backend and device meshes of the default process group; None without one."""
    group = sys.modules.get("torch.distributed")
    if group is None or not group.is_available() or not group.is_initialized():
        return None
    return {
        "world_size": group.get_world_size(),
        "rank": group.get_rank(),
        "backend": group.get_backend(),
        "meshes": _meshes(),
    }


def _meshes() -> list[str]:
    """Every device mesh of the process as torch writes it; looking through the live objects takes 0.1 s at worst."""
    module = sys.modules.get("torch.distributed.device_mesh")
    kind = getattr(module, "DeviceMesh", None)
    if not isinstance(kind, type):
        return []
    meshes = [str(thing) for thing in living(kind) if type(thing) is kind]
    return sorted(set(meshes))[:16]
