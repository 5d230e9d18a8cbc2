"""The observers cannot be told from their absence: names, tracebacks, warnings, pickles, compiled code, removal."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
import threading
import traceback
import types
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from listening import Listening, listening, mse, small_data, small_model
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedulers
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import dataloader as loader_module

import optrace
from optrace.recorder import wrappers
from optrace.recorder.living import subclasses
from optrace.recorder.patching import UNSEEN

torch.set_num_threads(1)
DATA = small_data()
NAMED: list[tuple[Any, str]] = [
    (Optimizer, "__init__"),
    (Optimizer, "zero_grad"),
    (Optimizer, "state_dict"),
    (Optimizer, "load_state_dict"),
    (Optimizer, "add_param_group"),
    (torch.nn.Module, "zero_grad"),
    (torch.autograd, "backward"),
    (LRScheduler, "step"),
    (LRScheduler, "_initial_step"),
    (schedulers.ReduceLROnPlateau, "step"),
    (schedulers.SequentialLR, "step"),
    (schedulers.ChainedScheduler, "step"),
    (torch.amp.GradScaler, "scale"),
    (torch.amp.GradScaler, "unscale_"),
    (torch.amp.GradScaler, "step"),
    (torch.nn.utils, "clip_grad_norm_"),
    (torch.nn.utils, "clip_grad_value_"),
    (torch.nn.utils.clip_grad, "clip_grad_norm_"),
    (torch.nn.utils.clip_grad, "clip_grad_value_"),
    (loader_module._BaseDataLoaderIter, "__next__"),
]


def small_step() -> None:
    model = small_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    mse(model, DATA).backward()
    optimizer.step()


def everything() -> dict[tuple[str, str], int]:
    """Identity of every attribute of the modules and classes that are touched, and of this module."""
    small_step()  # torch hooks classes and imports modules at their first use
    owners = {owner for owner, _ in NAMED} | {torch.optim, sys.modules[__name__]}
    for base in (Optimizer, LRScheduler, torch.amp.GradScaler):
        owners |= set(subclasses(base))
    return {(repr(owner), name): id(value) for owner in owners for name, value in list(vars(owner).items())}


def test_removal_leaves_every_attribute_the_object_that_it_was() -> None:
    before = everything()
    listener = Listening()
    wrappers.install(listener)
    changed = {key for key, value in everything().items() if before.get(key) != value}
    assert {(repr(owner), name) for owner, name in NAMED} <= changed
    wrappers.remove(listener)
    assert everything() == before


def test_installing_twice_and_inside_another_is_safe() -> None:
    before = everything()
    outer, inner = Listening(), Listening()
    wrappers.install(outer)
    wrappers.install(outer)
    model = small_model()
    optimizer = SGD(model.parameters(), lr=0.1)
    wrappers.install(inner)
    optimizer.zero_grad()
    wrappers.remove(inner)
    wrappers.remove(inner)
    optimizer.zero_grad()
    wrappers.remove()
    wrappers.remove()
    optimizer.zero_grad()
    assert (len(outer.events), len(inner.events)) == (2, 1)
    assert everything() == before


def test_what_somebody_put_on_top_of_us_stays() -> None:
    listener = Listening()
    original = SGD.zero_grad
    wrappers.install(listener)
    ours = Optimizer.zero_grad

    def theirs(self: Any, set_to_none: bool = True) -> None:
        ours(self, set_to_none)

    Optimizer.zero_grad = theirs  # type: ignore[method-assign]
    try:
        wrappers.remove(listener)
        assert Optimizer.zero_grad is theirs
        SGD(small_model().parameters(), lr=0.1).zero_grad()
        assert listener.events == []
    finally:
        Optimizer.zero_grad = original  # type: ignore[method-assign]


def test_observed_functions_keep_name_signature_and_source() -> None:
    before = [(vars(owner)[name], inspect.signature(vars(owner)[name])) for owner, name in NAMED]
    with listening():
        for (owner, name), (raw, signature) in zip(NAMED, before, strict=True):
            observed = vars(owner)[name]
            assert observed is not raw
            assert isinstance(observed, types.FunctionType)
            assert inspect.signature(observed) == signature
            for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
                assert getattr(observed, attribute) == getattr(raw, attribute)
        optimizer = SGD(small_model().parameters(), lr=0.1)
        assert optimizer.zero_grad.__func__ is Optimizer.zero_grad
        assert inspect.getsource(Optimizer.zero_grad).lstrip().startswith(("@torch._disable_dynamo", "def zero_grad"))
        assert pickle.loads(pickle.dumps(torch.nn.utils.clip_grad_norm_)) is torch.nn.utils.clip_grad_norm_


def test_names_imported_before_and_during_recording_are_observed_and_put_back() -> None:
    early = types.ModuleType("early_importer")
    exec("from torch.nn.utils import clip_grad_norm_ as clip", vars(early))
    late = types.ModuleType("late_importer")
    sys.modules["early_importer"] = early
    raw = early.clip
    try:
        with listening() as heard:
            exec("from torch.nn.utils import clip_grad_norm_ as clip", vars(late))
            model = small_model()
            optimizer = SGD(model.parameters(), lr=0.1)
            for module in (early, late):
                mse(model, DATA).backward()
                module.clip(model.parameters(), 1.0)
            optimizer.step()
        assert len(heard.of("clip")) == 2
        assert early.clip is raw
        with listening() as again:  # a name taken in an earlier recording works in the next one
            late.clip(model.parameters(), 1.0)
        assert len(again.of("clip")) == 1
        late.clip(model.parameters(), 1.0)
    finally:
        del sys.modules["early_importer"]


def failing(what: str) -> str:
    """The traceback of an exception that passes through an observed function."""
    optimizer = SGD(small_model().parameters(), lr=0.1)

    class Broken(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            raise KeyError(f"no item {index}")

    def parameters() -> Iterator[torch.Tensor]:
        yield torch.nn.Parameter(torch.ones(1))
        raise KeyError("no more")

    programs = {
        "backward": lambda: torch.tensor(1.0).backward(),
        "load": lambda: optimizer.load_state_dict({"state": {}, "param_groups": []}),
        "load nothing": lambda: optimizer.load_state_dict(),  # type: ignore[call-arg]
        "init": lambda: SGD([], lr=0.1),
        "group": lambda: optimizer.add_param_group({"params": [1]}),
        "scheduler": lambda: schedulers.StepLR(optimizer, 1).step(1, 2),  # type: ignore[call-arg]
        "next": lambda: next(iter(DataLoader(Broken()))),
        "scaler": lambda: torch.amp.GradScaler("cpu").step(optimizer),
        "clip": lambda: torch.nn.utils.clip_grad_norm_([1], 1.0),  # type: ignore[list-item]
        "clip of a generator": lambda: torch.nn.utils.clip_grad_norm_(parameters(), 1.0),
        "clip nothing": lambda: torch.nn.utils.clip_grad_norm_(),  # type: ignore[call-arg]
    }
    try:
        programs[what]()
    except Exception:
        return traceback.format_exc()
    raise AssertionError("it did not fail")


@pytest.mark.parametrize(
    "what",
    [
        "backward",
        "load",
        "load nothing",
        "init",
        "group",
        "scheduler",
        "next",
        "scaler",
        "clip",
        "clip of a generator",
        "clip nothing",
    ],
)
def test_traceback_of_the_program_is_that_of_the_bare_run(what: str) -> None:
    bare = failing(what)
    with listening():
        observed = failing(what)
        kept = SGD(small_model().parameters(), lr=0.1), SGD(small_model().parameters(), lr=0.1)
        with_two = failing(what)
    assert len(kept) == 2
    assert observed == bare
    assert with_two == bare


def test_failure_of_ours_never_reaches_the_program() -> None:
    class Failing(Listening):
        def emit(self, kind: str, optimizer: Any, data: dict[str, Any]) -> None:
            raise ZeroDivisionError(kind)

    listener = Failing()
    wrappers.install(listener)
    try:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        scheduler = schedulers.StepLR(optimizer, 2)
        optimizer.zero_grad()
        mse(model, DATA).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
    finally:
        wrappers.remove(listener)
    assert norm > 0
    assert scheduler.last_epoch == 1
    kinds = ["zero_grad", "backward", "clip", "scheduler_step", "state_dict", "load_state_dict"]
    assert [str(error) for error in listener.errors] == kinds
    with listening() as heard:  # and the next recording finds all calls closed
        optimizer.zero_grad()
        mse(model, DATA).backward()
    assert heard.kinds() == ["zero_grad", "backward"]


def test_modes_that_watch_torch_see_no_more_than_without_us(tmp_path: Path) -> None:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(getattr(func, "__name__", repr(func)))
            return func(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    def train() -> None:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = schedulers.StepLR(optimizer, 2)
        for batch in DataLoader(TensorDataset(*DATA), batch_size=8):
            optimizer.zero_grad()
            mse(model, (batch[0], batch[1])).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()

    lists = []
    for observed in (nullcontext, listening, lambda: optrace.record(tmp_path / "run", quiet=True, strict=True)):
        seen: list[str] = []
        with observed(), Functions(), Operators():
            train()
        lists.append(seen)
    assert lists[0]
    assert lists[1] == lists[2] == lists[0]


def test_backward_under_fake_tensors_is_passed_on() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with listening() as heard, FakeTensorMode():
        model = torch.nn.Linear(4, 1)
        optimizer = SGD(model.parameters(), lr=0.1)
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        optimizer.state_dict()
    assert heard.taken()[0]["loss"] is None
    assert heard.taken()[0]["n_backward"] == 1


def test_observed_functions_compile_whole() -> None:
    """Inside compiled code we keep out of the way: the graph is not broken, results are those of torch."""

    def clip_and_scale(parameters: list[torch.Tensor]) -> torch.Tensor:
        norm = torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        return norm * 2

    def gradients() -> list[torch.Tensor]:
        model = small_model()
        mse(model, DATA).backward()
        return list(model.parameters())

    bare = gradients()
    expected = clip_and_scale(bare)
    with listening() as heard:
        compiled = torch.compile(clip_and_scale, backend="eager", fullgraph=True)
        observed = gradients()
        found = compiled(observed)
    torch._dynamo.reset()
    assert found.item() == expected.item()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(bare, observed, strict=True) if a.grad is not None)
    assert heard.of("clip") == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of its own functions
def test_compiled_step_tells_its_backward_and_changes_no_weight() -> None:
    """Compiled code breaks its graph at backward and calls it as Python; none of our own functions is compiled."""

    def train() -> list[torch.Tensor]:
        torch._dynamo.reset()
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            mse(model, DATA).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()

        compiled = torch.compile(step, backend="eager")
        for _ in range(3):
            compiled()
        return [param.detach().clone() for param in model.parameters()]

    bare = train()
    with listening() as heard:
        observed = train()
        compiled = [code() for code in torch._dynamo.convert_frame.input_codes.seen]
    torch._dynamo.reset()
    assert all(torch.equal(a, b) for a, b in zip(bare, observed, strict=True))
    assert [taken["n_backward"] for taken in heard.taken()] == [1, 1, 1]
    assert all(taken["loss"] is not None for taken in heard.taken())
    assert heard.kinds().count("zero_grad") == 3
    files = {code.co_filename for code in compiled if code is not None}
    ours = str(Path(wrappers.__file__).parents[1])
    assert __file__ in files
    assert [file for file in files if file.startswith((ours, UNSEEN))] == []


def test_optimizers_can_be_copied_and_pickled_while_observed() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        mse(model, DATA).backward()
        optimizer.step()
        again = pickle.loads(pickle.dumps(optimizer))
        copied = copy.deepcopy(optimizer)
        for one in (again, copied):
            one.zero_grad()
            one.step()
    assert heard.kinds().count("step") == 3
    assert vars(again).keys() == vars(copied).keys()


def test_backwards_in_two_threads_are_both_counted() -> None:
    with listening() as heard:
        models = [small_model(seed) for seed in (1, 2)]
        optimizers = [SGD(model.parameters(), lr=0.1) for model in models]

        def train(model: torch.nn.Module, optimizer: Optimizer) -> None:
            for _ in range(20):
                mse(model, DATA).backward()
                optimizer.step()

        threads = [threading.Thread(target=train, args=pair) for pair in zip(models, optimizers, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert heard.kinds().count("backward") == 40
    assert len(heard.steps) == 40
    assert all(taken["n_backward"] >= 1 for taken in heard.taken())


def test_importing_optrace_does_not_import_torch_through_us() -> None:
    import subprocess

    code = "import sys, optrace.recorder.events_data, optrace.recorder.generators; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
