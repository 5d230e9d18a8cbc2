"""What trace.json and rank.json say of a run, against independent ways of asking."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import optrace
from optrace.recorder import provenance, torch_environment
from optrace.recorder.distributions import imported_distributions
from optrace.recorder.settings import Settings

torch.set_num_threads(1)


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "train.py").write_text("print('hello')\n")
    git(tmp_path, "add", "train.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_git_identity_is_commit_and_whether_tracked_files_differ(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    deeper = repository / "a" / "b"
    deeper.mkdir(parents=True)
    (deeper / "new.txt").write_text("untracked")
    assert provenance.git_identity(deeper) == {"commit": commit, "dirty": False}
    (repository / "train.py").write_text("print('other')\n")
    assert provenance.git_identity(repository) == {"commit": commit, "dirty": True}
    git(repository, "add", "train.py")
    assert provenance.git_identity(repository) == {"commit": commit, "dirty": True}


def test_git_identity_of_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.git_identity(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert provenance.git_identity(tmp_path) == {"commit": None, "dirty": False}
    (tmp_path / ".git" / "HEAD").write_text("damaged")
    assert provenance.git_identity(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_identity(tmp_path) is None


def test_git_that_hangs_is_not_waited_for(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path_factory.mktemp("slow")
    (slow / "git").write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    (slow / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(slow))
    begun = time.monotonic()
    assert provenance.git_identity(repository, seconds=0.3) is None
    assert time.monotonic() - begun < 10


SCRIPT = """
import json, sys
from optrace.recorder.provenance import run_info
from optrace.recorder.settings import Settings
print(json.dumps(run_info(Settings(steps=(1, None), params=("*.weight",)))))
"""


def run_script(folder: Path, *arguments: str, **variables: str) -> dict[str, Any]:
    script = folder / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(optrace.__file__).parents[1]), **variables}
    done = subprocess.run(
        [sys.executable, "-u", "train.py", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    info: dict[str, Any] = json.loads(done.stdout)
    return info


def test_run_info_names_command_code_and_settings(repository: Path) -> None:
    info = run_script(repository, "--lr", "0.1", "--api-key", "sekret-value", "--url=https://me:hunter2@example.org/x")
    assert info["command"][1:6] == ["-u", "train.py", "--lr", "0.1", "--api-key"]
    assert "sekret-value" not in json.dumps(info)
    assert "hunter2" not in json.dumps(info)
    assert info["code"]["git"] == {"commit": git(repository, "rev-parse", "HEAD"), "dirty": True}
    digest = hashlib.sha256((repository / "train.py").read_bytes()).hexdigest()
    assert info["code"]["script"] == {"path": str(repository / "train.py"), "sha256": digest}
    assert info["settings"]["steps"] == [1, None]
    assert info["optrace"] == optrace.__version__
    assert info["job"] is None


def test_run_info_names_the_job_of_a_launcher_and_has_an_id_of_its_own(tmp_path: Path) -> None:
    job = {"TORCHELASTIC_RUN_ID": "job-7", "MASTER_ADDR": "localhost", "MASTER_PORT": "29512", "RANK": "0"}
    first, second = run_script(tmp_path, **job), run_script(tmp_path, **job)
    assert "job-7" in first["job"]
    assert first["job"] == second["job"]
    assert first["run"] != second["run"]


def test_environment_keeps_no_variable_that_does_not_change_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "sekret-value")
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    found = provenance.environment()
    assert found["variables"]["MKL_CBWR"] == "AVX2"
    assert "sekret-value" not in json.dumps(found)


def test_environment_is_strict_json_and_complete() -> None:
    found = json.loads(json.dumps(provenance.environment(), allow_nan=False))
    assert found["pid"] == os.getpid()
    assert found["torch"]["version"] == torch.__version__
    assert found["torch"]["git"] in torch.__config__.show()
    assert found["torch"]["variant"] == ("cpu" if torch.version.cuda is None else f"cuda {torch.version.cuda}")
    assert found["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["threads"] == {"intra": torch.get_num_threads(), "inter": torch.get_num_interop_threads()}
    assert found["cpu_capability"] in torch.__config__.show()
    assert set(found["cpu"]) == {"architecture", "model", "cores", "fma"}
    assert found["optrace"]["kernel"] in ("c", "numpy")
    assert found["distributed"] is None
    if not torch.cuda.is_initialized():
        assert found["gpu"] is None


def test_environment_follows_the_switches_of_torch() -> None:
    before = torch_environment.modes(torch)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.enable_flash_sdp(False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            changed = torch_environment.modes(torch)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before["matmul_precision"])
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = before["cudnn_benchmark"]
        torch.backends.cuda.enable_flash_sdp(True)
    assert changed["default_dtype"] == "float64"
    assert changed["matmul_precision"] == "high"
    assert (changed["deterministic"], changed["deterministic_warn_only"]) == (True, True)
    assert changed["cudnn_benchmark"] is True
    assert "flash" not in changed["sdpa"]
    assert changed["autocast"]["cpu"] == "bfloat16"
    after = torch_environment.modes(torch)
    written = "fp32_precision_matmul"  # torch keeps what the older switch wrote into the newer one
    assert {**after, written: None} == {**before, written: None}


def test_mixed_switches_that_torch_refuses_to_tell_are_none() -> None:
    """In a process of its own: there is no way back from a mix of torch's old and new switches."""
    code = (
        "import torch, json\n"
        "from optrace.recorder import torch_environment\n"
        "if hasattr(torch.backends.cuda.matmul, 'fp32_precision'):\n"
        "    torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "print(json.dumps(torch_environment.modes(torch)))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    modes = json.loads(done.stdout)
    assert modes["default_dtype"] == "float32"
    assert modes["fp32_precision_matmul"] in (None, "tf32")


def test_imported_distributions_are_those_that_own_imported_modules() -> None:
    owners = metadata.packages_distributions()
    tops = {name for name in sys.modules if "." not in name}
    expected = {name: metadata.version(name) for top in tops for name in owners.get(top, ())}
    found = imported_distributions()
    assert found["torch"] == torch.__version__
    assert found["numpy"] == metadata.version("numpy")
    assert set(found) <= set(expected)
    assert all(found[name] == expected[name] for name in found)
    assert {name for name in expected if name.lower() in tops} <= set(found)


def test_distribution_whose_module_has_another_name_is_found(tmp_path: Path) -> None:
    for name, module, listed in (("Odd-Name", "odd", True), ("plain", "plain", False), ("absent", "absent", False)):
        info = tmp_path / f"{name.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "RECORD").write_text(f"{module}/__init__.py,,\n{info.name}/METADATA,,\n" if listed else "")
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").touch()
    code = (
        "import odd, plain, json\n"
        "from optrace.recorder.distributions import imported_distributions\n"
        "print(json.dumps(imported_distributions()))"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(optrace.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found["Odd-Name"], found["plain"]) == ("1.5", "1.5")
    assert "absent" not in found


def test_process_group_is_told_with_its_meshes() -> None:
    code = (
        "import json, torch, torch.distributed as dist\n"
        "from torch.distributed.device_mesh import init_device_mesh\n"
        "from optrace.recorder.torch_environment import torch_environment\n"
        "dist.init_process_group('gloo', init_method='tcp://127.0.0.1:0', rank=0, world_size=1)\n"
        "mesh = init_device_mesh('cpu', (1, 1), mesh_dim_names=('dp', 'tp'))\n"
        "print(json.dumps(torch_environment(torch)['distributed']))\n"
        "dist.destroy_process_group()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert (told["world_size"], told["rank"], told["backend"]) == (1, 0, "gloo")
    assert any("dp" in mesh and "tp" in mesh for mesh in told["meshes"])


def test_settings_of_every_kind_are_json() -> None:
    info = provenance.run_info(Settings(output="x", max_size=5))
    assert json.loads(json.dumps(info, allow_nan=False))["settings"]["max_size"] == 5
