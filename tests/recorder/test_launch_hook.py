"""The wait for torch: invisible until torch is there, then one start, whatever way the program imports it."""

from __future__ import annotations

import sys
import venv

import pytest
from launching import RECORD, assert_same, both, environment, run

from optrace.recorder.launch import AUTOSTART


@pytest.fixture
def stub(tmp_path):
    """Write a package `torch` beside the program, with this source."""

    def write(source):
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text(source)

    return write


@pytest.mark.parametrize(
    "source",
    [
        "raise ImportError('libcudart.so: cannot open shared object file')",
        "1 / 0",
        "import torch.missing",
        "raise KeyboardInterrupt",
        "raise SystemExit(4)",
        "def (:",
    ],
)
def test_a_torch_that_cannot_be_imported_fails_with_the_same_traceback(tmp_path, stub, source):
    stub(source)
    (tmp_path / "train.py").write_text("def main():\n    import torch\n\nmain()\n")
    alone, recorded = both(["train.py"], tmp_path)
    assert alone.returncode != 0
    assert_same(alone, recorded)


def test_no_torch_at_all_is_the_same_error(tmp_path):
    (tmp_path / "train.py").write_text("import sys\nsys.path[1:] = []\nimport torch\n")
    assert_same(*both(["train.py"], tmp_path))


def test_a_program_may_try_again_after_a_failed_import(tmp_path, stub):
    stub("import os\nif not os.path.exists('second'):\n    os.mkdir('second')\n    raise ImportError('at first')\n")
    (tmp_path / "train.py").write_text(
        "try:\n    import torch\nexcept ImportError:\n    import torch\nprint('through')\n"
    )
    done = run([sys.executable, *RECORD, "train.py"], tmp_path)
    assert done.stdout == b"through\n"
    # this torch has no optim: that the recorder says so shows that it was started, once
    assert done.stderr.count(b"optrace: not recording: ") == 1


@pytest.mark.parametrize(
    "ways",
    [
        "import torch",
        "import importlib.util as u; assert u.find_spec('torch').loader; import torch",
        "import pkgutil; [m.name for m in pkgutil.iter_modules()]; __import__('torch')",
        "import importlib; importlib.import_module('torch'); importlib.reload(importlib.import_module('torch'))",
        "import torch.sub",
        "import importlib.util as u, sys; s = u.find_spec('torch'); s.loader = u.LazyLoader(s.loader); "
        "t = u.module_from_spec(s); sys.modules['torch'] = t; s.loader.exec_module(t); t.name",
        "import threading; t = threading.Thread(target=lambda: __import__('torch')); t.start(); t.join()",
        "import torch, sys; del sys.modules['torch']; import torch",
    ],
    ids=range(8),
)
def test_however_torch_is_imported_the_recorder_starts_once(tmp_path, stub, ways):
    stub("name = 'stub'\n")
    (tmp_path / "torch" / "sub.py").write_text("")
    (tmp_path / "train.py").write_text(
        f"import sys\n{ways}\nimport inspect, torch\n"
        "print(type(torch).__name__, vars(torch.__loader__), torch.__spec__.origin, inspect.getsource(torch))\n"
        "print([f for f in sys.meta_path if 'Torch' in type(f).__name__])\n"
    )
    alone = run([sys.executable, "train.py"], tmp_path)
    recorded = run([sys.executable, *RECORD, "-q", "train.py"], tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert (recorded.stdout, recorded.returncode) == (alone.stdout, 0)
    assert recorded.stderr.count(b"optrace: not recording: ") == 1


def test_strict_lets_the_failure_reach_the_program(tmp_path, stub):
    stub("")
    (tmp_path / "train.py").write_text("import torch\nprint('through')\n")
    done = run([sys.executable, *RECORD, "--strict", "train.py"], tmp_path)
    assert done.stdout == b"" and done.returncode == 1
    assert b"import torch" in done.stderr


def test_a_python_without_what_the_recorder_needs_says_so_and_runs_on(tmp_path, stub):
    venv.create(tmp_path / "env", symlinks=True)
    stub("")
    (tmp_path / "train.py").write_text("import torch\nprint('through')\n")
    python = str(tmp_path / "env" / "bin" / "python")
    done = run([sys.executable, *RECORD, "-q", "--", python, "train.py"], tmp_path)
    assert (done.returncode, done.stdout) == (0, b"through\n")
    assert done.stderr.startswith(b"optrace: not recording: ModuleNotFoundError: No module named ")
    assert python.encode() in done.stderr


def test_a_file_called_like_us_in_the_programs_folder_does_not_get_in_the_way(tmp_path, stub):
    stub("")
    (tmp_path / "optrace.py").write_text("raise RuntimeError('this is not the recorder')\n")
    (tmp_path / "train.py").write_text("import torch, sys\nprint(sys.modules['optrace'].__spec__.origin)\n")
    done = run([sys.executable, "-P", *RECORD, "-q", "--", sys.executable, "train.py"], tmp_path)
    assert b"this is not the recorder" not in done.stderr
    assert done.stdout.decode().strip().endswith("optrace/__init__.py")


def test_a_process_without_the_settings_waits_for_nothing(tmp_path, stub):
    stub("")
    code = (
        "import sys, torch; print([f for f in sys.meta_path if 'Torch' in type(f).__name__], 'optrace' in sys.modules)"
    )
    done = run([sys.executable, "-c", code], tmp_path, environment(PYTHONPATH=AUTOSTART))
    assert (done.stdout, done.stderr) == (b"[] False\n", b"")


def test_a_process_without_torch_imports_nothing_for_us(tmp_path):
    code = "import sys; print(sorted(sys.modules)); print([type(f).__name__ for f in sys.meta_path][:1])"
    command = [sys.executable, "-c", code]
    alone = run(command, tmp_path).stdout.splitlines()
    recorded = run([sys.executable, *RECORD, "-q", "--", *command], tmp_path).stdout.splitlines()
    assert recorded[0] == alone[0]
    assert recorded[1] == b"['_TorchFinder']"
