"""What a recording does as a whole: settings, files, notebooks, forks, failures, and nothing to the training."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from independent import fingerprint

import optrace
from optrace.errors import OptraceError, RecordError
from optrace.recorder import recording as sessions


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    optrace.stop()


def sgd(steps: int = 6, after: Callable[[], Any] = lambda: None, **options: Any) -> torch.Tensor:
    """A small training; its weights at the end."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1))
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})
    inputs = torch.randn(8, 4)
    for _ in range(steps):
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()
    after()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def recorded(path: Path, train: Callable[[], Any] = sgd, **settings: Any) -> Any:
    with optrace.record(path, **{"quiet": True, "strict": True, **settings}):
        train()
    trace = optrace.open(path)
    assert trace.problems == []
    return trace


# ---- training is what it was ----


@pytest.mark.parametrize("values", ["none", "sample", "grad", "full"])
def test_weights_and_generators_are_those_of_the_bare_run(tmp_path: Path, values: str) -> None:
    expected = sgd()
    state = torch.get_rng_state()
    with optrace.record(tmp_path / "run", quiet=True, strict=True, values=values):
        assert torch.equal(sgd(), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_and_state_die_with_their_optimizer(tmp_path: Path) -> None:
    with optrace.record(tmp_path / "run", quiet=True, strict=True) as run:
        model = torch.nn.Linear(3, 3)
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
        gradient = weakref.ref(model.weight.grad)
        optimizer.zero_grad()
        assert gradient() is None
        held = [
            weakref.ref(model.weight),
            weakref.ref(optimizer),
            weakref.ref(optimizer.state[model.weight]["exp_avg"]),
        ]
        del model, optimizer
        gc.collect()
        assert [ref() for ref in held] == [None, None, None]
        assert run._steps.held == 0


def test_state_that_was_replaced_is_not_kept_alive(tmp_path: Path) -> None:
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        model = torch.nn.Linear(3, 3)
        optimizer = torch.optim.Adam(model.parameters())
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        optimizer.step()
        old = weakref.ref(optimizer.state[model.weight]["exp_avg"])
        optimizer.state.clear()
        assert old() is None


def test_a_failing_recorder_stops_and_the_program_goes_on(tmp_path: Path, capsys: Any) -> None:
    expected = sgd()
    path = tmp_path / "run"

    def breaking() -> torch.Tensor:
        (path / "rank=00000").mkdir(parents=True)
        return sgd()

    with optrace.record(path) as run:
        assert torch.equal(breaking(), expected)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("optrace: recording stopped, the program goes on: ")
    assert run.failure is not None


def test_strict_raises_instead(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with pytest.raises(OptraceError), optrace.record(path, strict=True):
        path.mkdir()
        (path / "foreign").touch()
        sgd()


# ---- settings ----


def steps_of(trace: Any) -> list[int]:
    return sorted(set(trace.tensors.step))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every": 4}, [0, 1, 4, 8]),
        ({"steps": (3, 5)}, [0, 3, 4, 5]),
        ({"steps": "7:"}, [0, 7, 8, 9]),
        ({"steps": (None, 2)}, [0, 1, 2]),
    ],
)
def test_every_and_steps_choose_steps(tmp_path: Path, settings: dict[str, Any], expected: list[int]) -> None:
    trace = recorded(tmp_path / "run", lambda: sgd(9), **settings)
    assert steps_of(trace) == expected
    assert sorted(set(trace.events[trace.events.kind == "step"].step)) == expected[1:]
    assert sorted(trace.steps.step) == expected[1:]


def test_what_changed_in_a_gap_is_recorded_after_it(tmp_path: Path) -> None:
    full = recorded(tmp_path / "full", lambda: sgd(6)).tensors
    gaps = recorded(tmp_path / "gaps", lambda: sgd(6), every=3).tensors
    for quantity, before in [("param_in", "param"), ("state_in.momentum_buffer", "state.momentum_buffer")]:
        found = gaps[(gaps.step == 6) & (gaps.quantity == quantity)].set_index("param").fingerprint
        expected = full[(full.step == 5) & (full.quantity == before)].set_index("param").fingerprint
        assert len(found) == 4
        assert (found.sort_index() == expected.sort_index()).all()
    assert not full.quantity.str.contains("_in").any()


def test_params_and_quantities_choose_rows(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "run", params="*.weight", quantities="grad,state.*")
    assert set(trace.tensors.param) == {"0.weight", "2.weight"}
    assert set(trace.tensors.quantity) == {"grad", "state.momentum_buffer"}
    assert set(trace.params.param) == {"0.weight", "2.weight"}


def test_update_alone_equals_update_among_all(tmp_path: Path) -> None:
    alone = recorded(tmp_path / "alone", quantities=["update"]).tensors
    among = recorded(tmp_path / "all").tensors
    among = among[among.quantity == "update"].reset_index(drop=True)
    assert set(alone.quantity) == {"update"}
    assert (alone.fingerprint.reset_index(drop=True) == among.fingerprint).all()


@pytest.mark.parametrize("quantities", ["grads", ["param", "momentum_buffer"], "x*", "param,,stat"])
def test_quantities_that_cannot_be_are_refused_as_on_the_command_line(tmp_path: Path, quantities: Any) -> None:
    with pytest.raises(RecordError, match=r"--quantities '\S+' matches no quantity; choose among param, grad, update"):
        optrace.start(tmp_path / "run", quantities=quantities)


def test_micro_gradients_are_kept_with_gradients(tmp_path: Path) -> None:
    for chosen in ("grad", "grad_micro.*, update"):
        trace = recorded(tmp_path / "run", quantities=chosen, micro=True, overwrite=True)
        assert "grad_micro.1" in set(trace.tensors.quantity)


def test_hyper_parameters_alone(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "run", quantities=["group.*"])
    assert len(trace.tensors) == 0
    assert list(trace.groups.step) == [1, 2, 3, 4, 5, 6]


def test_values_none_keeps_no_samples(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "run", values="none")
    assert np.isnan(np.stack(list(trace.tensors["sample"]))).all()
    assert (trace.tensors.l2 > 0).any()


@pytest.mark.parametrize("values", ["grad", "full"])
def test_whole_values_are_the_rows_values(tmp_path: Path, values: str) -> None:
    trace = recorded(tmp_path / "run", values=values, every=3)
    wanted = {0: ["param"], 3: ["grad", "param_in", "state_in.momentum_buffer"]}
    if values == "full":
        wanted[3] += ["param", "state.momentum_buffer"]
    for step, quantities in wanted.items():
        for quantity in quantities:
            for name in ("0.weight", "2.bias"):
                array = trace.value(step, name, quantity)
                frame = trace.tensors
                row = frame[(frame.step == step) & (frame.param == name) & (frame.quantity == quantity)].iloc[0]
                assert fingerprint(array.reshape(-1)) == row.fingerprint, (step, quantity, name)
    assert trace.value(0, "0.weight", "param").shape == (20, 4)


def test_memory_bound_steps_down_to_samples_and_says_so(tmp_path: Path, capsys: Any) -> None:
    whole = recorded(tmp_path / "whole").tensors
    capsys.readouterr()
    held = []
    with optrace.record(tmp_path / "bound", memory=128, strict=True) as run:
        sgd(after=lambda: held.append(run._steps.held))
    assert held == [128]
    assert "updates of 3 parameters come from samples" in capsys.readouterr().err
    trace = optrace.open(tmp_path / "bound")
    told = [event.data for event in trace.events.itertuples() if event.data.get("what") == "memory"]
    assert told[0]["sampled"] == ["0.weight", "2.weight", "2.bias"]
    bound = trace.tensors
    keys = ["step", "param", "quantity"]
    pairs = whole.merge(bound, on=keys, suffixes=("", "_b"))
    assert len(pairs) == len(whole) == len(bound)
    sampled = (pairs.quantity == "update") & pairs.param.isin(told[0]["sampled"])
    assert sampled.any()
    assert (pairs.fingerprint == pairs.fingerprint_b)[~sampled].all()
    assert (pairs.n_nan_b == -1)[sampled].all()
    np.testing.assert_array_equal(np.stack(list(pairs["sample"])), np.stack(list(pairs["sample_b"])))


def test_stop_after_ends_the_block_and_the_program_goes_on(tmp_path: Path) -> None:
    done = []
    with optrace.record(tmp_path / "run", stop_after=3, quiet=True):
        sgd(9)
        done.append("never")
    assert done == []
    trace = optrace.open(tmp_path / "run")
    assert trace.last_step(0) == 3
    assert trace.rank_info["end"] == "clean"


def test_stop_after_waits_for_the_other_optimizer(tmp_path: Path) -> None:
    w, v = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    one, two = torch.optim.SGD([w], lr=0.1), torch.optim.SGD([v], lr=0.1)
    with optrace.record(tmp_path / "run", stop_after=2, quiet=True):
        for _ in range(5):
            w.grad, v.grad = torch.ones(1), torch.ones(1)
            one.step()
            two.step()
    trace = optrace.open(tmp_path / "run")
    assert (trace.last_step(0), trace.last_step(1)) == (2, 2)


def test_max_size_stops_recording_with_a_word(tmp_path: Path, capsys: Any) -> None:
    expected = sgd(50)
    with optrace.record(tmp_path / "run", max_size=60_000) as run:
        assert torch.equal(sgd(50), expected)
    assert run.failure is not None
    assert "60000 bytes" in capsys.readouterr().err
    trace = optrace.open(tmp_path / "run")
    assert trace.problems == []
    assert 0 < trace.last_step(0) < 50
    assert sum(file.stat().st_size for file in (tmp_path / "run").rglob("*-*")) <= 60_000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"evry": 2}, "optrace.record has no setting evry; it has every, max_size, memory, micro, overwrite, params,"),
        ({"values": "all"}, "--values 'all' is not one of none, sample, grad, full"),
        ({"every": 0}, "--every is 0; it counts steps from 1"),
        ({"every": 2.5}, "--every is 2.5; it counts"),
        ({"every": True}, "--every is True; it counts"),
        ({"stop_after": "3"}, "--stop-after is '3'; it counts"),
        ({"max_size": "2 apples"}, "'2 apples' is no size"),
        ({"max_size": -5}, "--max-size is -5; write bytes, or a size like '64MB'"),
        ({"memory": 1.5}, "--memory is 1.5; write bytes"),
        ({"steps": (1, 2, 3)}, "steps (1, 2, 3) is no range of steps; give FIRST and LAST"),
        ({"steps": slice(1, 3)}, "is no range of steps"),
        ({"steps": ("1", "2")}, "--steps '1':'2' is no range of steps"),
        ({"params": 3}, "params is 3; give a name or a glob"),
        ({"params": ["w", 3]}, "--params holds 3; it takes names and globs"),
        ({"overwrite": "no"}, "overwrite is 'no'; give True or False"),
        ({"quiet": None}, "quiet is None; give True or False"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RecordError, match=re.escape(words)), optrace.record(tmp_path / "run", **settings):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", [5, b"run", "", " ", "a\0b"], ids=repr)
def test_what_names_no_folder_is_refused(path: Any) -> None:
    with pytest.raises(RecordError, match=r"name one, like 'run_a'"), optrace.record(path):
        pass


def test_a_mistake_is_told_before_the_block_is_entered() -> None:
    with pytest.raises(RecordError, match="has no setting valuse"):
        optrace.record("run", valuse="full")
    with pytest.raises(RecordError, match="a run's folder is a path, not <function"):

        @optrace.record  # type: ignore[arg-type]
        def train() -> None:
            pass


def test_a_function_is_recorded_at_each_call(tmp_path: Path) -> None:
    train = optrace.record(tmp_path / "run", quiet=True)(lambda: sgd(2))
    train()
    train()
    assert [optrace.open(tmp_path / name).last_step(0) for name in ("run", "run~1")] == [2, 2]


def test_a_run_below_the_home_folder_is_named_as_the_shell_does(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recorded("~/run")  # type: ignore[arg-type]
    assert optrace.open("~/run").path == tmp_path / "run"


# ---- notebooks, several recordings, words ----


def test_a_cell_may_run_again(tmp_path: Path) -> None:
    for _ in range(3):
        with optrace.record(tmp_path / "run", quiet=True, strict=True):
            sgd(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run~1", "run~2"]
    assert optrace.open(tmp_path / "run").last_step(0) == 2


def test_start_ends_a_recording_that_runs(tmp_path: Path) -> None:
    first = optrace.start(tmp_path / "a", quiet=True, strict=True)
    sgd(2)
    second = optrace.start(tmp_path / "b", quiet=True, strict=True)
    sgd(3)
    second.stop()
    second.stop()
    optrace.stop()
    sgd(1)
    assert (first.active, second.active) == (False, False)
    assert optrace.open(tmp_path / "a").last_step(0) == 2
    assert optrace.open(tmp_path / "b").last_step(0) == 3


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    recorded(tmp_path / "run")
    sessions.recorded_here.clear()
    other = tmp_path / "other"
    os.rename(tmp_path / "run", other)
    with pytest.raises(RecordError, match="overwrite=True"), optrace.record(other):
        pass
    recorded(other, overwrite=True)
    assert (tmp_path / "other~1").exists()


def test_without_a_step_there_are_no_files(tmp_path: Path) -> None:
    with optrace.record(tmp_path / "run", quiet=True) as run:
        pass
    assert run.path is None
    assert not (tmp_path / "run").exists()


def test_lines_say_where_what_it_costs_and_what_next(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with optrace.record("run"):
        sgd()
    captured = capsys.readouterr()
    assert captured.out == ""
    where, price, following = captured.err.splitlines()
    assert where == "optrace: recording to run"
    assert price.startswith("optrace: a step costs 16 rows, ")
    assert following == "optrace: 6 steps are in run; see them with: optrace show run"


def test_globs_that_fit_no_parameter_are_told_of(tmp_path: Path, capsys: Any) -> None:
    with optrace.record(tmp_path / "run", params="nothing*"):
        sgd()
    assert "no parameter is called nothing*: no tensor was recorded; " in capsys.readouterr().err
    with optrace.record(tmp_path / "other", params=["nothing*", "*weight"]):
        sgd()
    assert "no parameter is called" not in capsys.readouterr().err


def test_user_events(tmp_path: Path) -> None:
    def train() -> None:
        sgd(2)
        optrace.event("eval", loss=0.25, at=torch.tensor(3))

    events = recorded(tmp_path / "run", train).events
    found = events[events.kind == "user"].iloc[0]
    assert found.data == {"name": "eval", "loss": 0.25, "at": 3}
    optrace.event("nobody listens")


def test_a_user_event_that_is_no_json_is_refused_in_its_place() -> None:
    with pytest.raises(RecordError, match="object"):
        optrace.event("eval", loss=object())
    with pytest.raises(RecordError, match="the kind of an event is a word, like 'eval', not 3"):
        optrace.event(3)  # type: ignore[arg-type]


def test_an_exception_of_the_program_is_named_in_rank_json(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), optrace.record(tmp_path / "run", quiet=True):
        sgd(2)
        raise ZeroDivisionError
    assert optrace.open(tmp_path / "run").rank_info["end"] == "error: ZeroDivisionError"


def test_rank_json_names_the_implementation(tmp_path: Path) -> None:
    def train() -> None:
        sgd(1, foreach=True)
        sgd(1, fused=True)
        sgd(1, differentiable=False, lr=torch.tensor(0.1))

    found = recorded(tmp_path / "run", train).rank_info["optimizers"]
    assert [(one["implementation"], one["lr"]) for one in found] == [
        ("foreach", "float"),
        ("fused", "float"),
        ("for-loop", "Tensor"),
    ]


# ---- processes ----


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = folder / "program.py"
    program.write_text(textwrap.dedent(code))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPTRACE_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(optrace.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, program], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_forked_child_writes_a_run_of_its_own(tmp_path: Path) -> None:
    result = run_python(
        """
        import multiprocessing, os, torch, optrace

        def train(steps):
            w = torch.ones(3, requires_grad=True)
            optimizer = torch.optim.SGD([w], lr=0.1)
            for _ in range(steps):
                w.sum().backward()
                optimizer.step()

        if __name__ == "__main__":
            torch.set_num_threads(1)
            with optrace.record("run", quiet=True, strict=True):
                train(2)
                silent = os.fork()
                if silent == 0:
                    os._exit(0)
                os.waitpid(silent, 0)
                child = multiprocessing.get_context("fork").Process(target=train, args=(5,))
                child.start()
                child.join()
                assert child.exitcode == 0
                train(3)
        """,
        tmp_path,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    parent = optrace.open(tmp_path / "run")
    assert parent.problems == []
    assert [parent.last_step(index) for index, _ in parent.optimizers] == [2, 3]
    (child,) = parent.children
    trace = optrace.open(child)
    assert trace.last_step(0) == 5
    assert trace.rank_info["end"] == "clean"


def test_a_recording_that_nobody_stopped_ends_with_the_process(tmp_path: Path) -> None:
    result = run_python(
        """
        import torch, optrace
        optrace.start("run", quiet=True, strict=True)
        w = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        w.sum().backward()
        optimizer.step()
        raise SystemExit(3)
        """,
        tmp_path,
    )
    assert result.returncode == 3
    assert optrace.open(tmp_path / "run").rank_info["end"] == "clean"


def test_step_failure_that_ends_the_program_is_on_disk(tmp_path: Path) -> None:
    result = run_python(
        """
        import torch, optrace
        optrace.start("run", quiet=True, strict=True)
        w = torch.ones(3, requires_grad=True)

        class Odd(torch.optim.SGD):
            def step(self, closure=None):
                if self.state:
                    raise RuntimeError("no more")
                super().step()

        optimizer = Odd([w], lr=0.1, momentum=0.9)
        while True:
            w.sum().backward()
            optimizer.step()
        """,
        tmp_path,
    )
    assert result.returncode == 1
    assert result.stderr.endswith("RuntimeError: no more\n")
    trace = optrace.open(tmp_path / "run")
    assert trace.rank_info["end"] == "error: RuntimeError"
    assert list(trace.events.kind)[-1] == "step_failed"


def test_an_event_that_cannot_be_written_stops_the_recording_and_not_the_program(tmp_path: Path, capsys: Any) -> None:
    with optrace.record(tmp_path / "run", max_size=20_000) as run:
        sgd(1)
        for number in range(200):
            optrace.event("progress", number=number, text="x" * 100)
    assert run.failure is not None
    assert "20000 bytes" in capsys.readouterr().err
    assert optrace.open(tmp_path / "run").problems == []


def test_a_session_tells_what_it_is(tmp_path):
    param = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([param], lr=0.1)
    with optrace.record(tmp_path / "run", quiet=True) as session:
        assert repr(session) == "<optrace recording: no step yet>"
        param.grad = torch.ones(2)
        optimizer.step()
        assert repr(session).startswith("<optrace recording to ") and repr(session).endswith("run: last step 1>")
    assert repr(session).startswith("<optrace recorded to ")
