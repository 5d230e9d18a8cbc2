"""Parameters bear the names that their model or their program gives them, the same every time, and no two the same."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optrace
from optrace.recorder.names import ParamNames


def names_of(*groups: Any) -> list[str]:
    """Names for an optimizer over these lists of parameters, in order."""
    optimizer = torch.optim.SGD([{"params": list(group)} for group in groups], lr=0.1)
    del groups  # a variable of ours would name them, too
    found = ParamNames().name(3, optimizer.param_groups)
    return [found[id(param)] for group in optimizer.param_groups for param in group["params"]]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 1, bias=False)


EXPECTED = ["first.weight", "first.bias", "second.weight"]


def test_qualified_names_of_the_model() -> None:
    model = Block()
    assert names_of(model.parameters()) == EXPECTED


def test_names_do_not_depend_on_the_order_of_groups_or_the_choice_of_parameters() -> None:
    model = Block()
    assert names_of([model.second.weight], [model.first.bias]) == ["second.weight", "first.bias"]


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_do_not_show(wrap: Any) -> None:
    model = Block()
    wrapped = wrap(model)
    assert names_of(wrapped.parameters()) == EXPECTED


def test_a_module_that_is_called_module_keeps_its_name() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Block()

    model = Own()
    assert names_of(model.parameters()) == [f"module.{name}" for name in EXPECTED]


def test_distributed_wrapper_does_not_show(tmp_path: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Block())
        assert names_of(model.parameters()) == EXPECTED
        del model
        gc.collect()
    finally:
        dist.destroy_process_group()


def test_the_outermost_model_names_its_parts() -> None:
    parts = nn.ModuleDict({"generator": Block(), "critic": Block()})
    assert names_of(parts["critic"].parameters()) == [f"critic.{name}" for name in EXPECTED]


def test_several_models_in_one_optimizer_are_told_apart_by_their_variables() -> None:
    policy, value = Block(), Block()
    found = names_of([*policy.parameters(), *value.parameters()])
    assert found == [f"policy.{name}" for name in EXPECTED] + [f"value.{name}" for name in EXPECTED]


def test_models_that_no_variable_holds_are_told_apart_by_class_and_number() -> None:
    class Keeper:
        """Shows its models to no search through attributes."""

        __slots__ = ("pair",)

    keeper = Keeper()
    keeper.pair = (Block(), Block())
    found = names_of([*keeper.pair[0].parameters(), *keeper.pair[1].parameters()])
    assert found == [f"Block0.{name}" for name in EXPECTED] + [f"Block1.{name}" for name in EXPECTED]


def test_a_model_and_a_loose_parameter() -> None:
    model = Block()
    temperature = nn.Parameter(torch.ones(()))
    assert names_of([*model.parameters(), temperature]) == [*EXPECTED, "temperature"]


def test_tied_parameters_bear_the_first_of_their_names() -> None:
    model = Block()
    model.tied = nn.Linear(2, 2, bias=False)
    model.tied.weight = model.first.weight
    assert names_of(model.parameters()) == EXPECTED


def test_modules_that_hold_each_other() -> None:
    outer, inner = Block(), nn.Linear(1, 1)
    outer.inner = inner
    inner.outer = outer
    assert names_of(outer.parameters()) == [*EXPECTED, "inner.weight", "inner.bias"]


def test_dead_models_do_not_name_living_parameters() -> None:
    model = Block()
    wrapper = nn.Sequential(model)
    del wrapper
    assert names_of(model.parameters()) == EXPECTED


def test_variables_name_loose_parameters() -> None:
    w = torch.ones(1, requires_grad=True)
    b = torch.ones(1, requires_grad=True)
    params = [w, b]
    assert names_of(params) == ["w", "b"]
    assert params


def test_containers_name_what_no_variable_holds() -> None:
    weights = {"w1": torch.ones(1), "layers": [torch.ones(2), torch.ones(3)]}
    params = [weights["w1"], *weights["layers"]]
    found = names_of(params)
    assert len(set(found)) == 3
    del params
    assert names_of([weights["w1"], *weights["layers"]]) == ["weights.w1", "weights.layers.0", "weights.layers.1"]


def test_loop_variables_do_not_name_the_last_parameter() -> None:
    params = [torch.ones(1), torch.ones(2), torch.ones(3)]
    for p in params:
        p.requires_grad_()
    assert names_of(params) == ["params.0", "params.1", "params.2"]


class Plain:
    """A model without torch.nn."""

    def __init__(self) -> None:
        self.weight = torch.ones(1, requires_grad=True)
        self.bias = torch.ones(1, requires_grad=True)

    def fit(self) -> list[str]:
        return names_of([self.weight, self.bias])


def test_attributes_name_the_parameters_of_a_plain_object() -> None:
    model = Plain()
    assert names_of([model.weight, model.bias]) == ["model.weight", "model.bias"]
    del model
    assert Plain().fit() == ["weight", "bias"]


def test_what_nothing_names_is_named_by_its_place() -> None:
    found = names_of([torch.ones(1)], [torch.ones(1), torch.ones(1)])
    assert found == ["optimizer3.group0.param0", "optimizer3.group1.param0", "optimizer3.group1.param1"]


def test_names_of_the_group_come_first_and_are_never_twice_the_same() -> None:
    model = Block()
    groups = [
        {"params": [model.first.weight], "param_names": ["a"]},
        {"params": [model.first.bias, model.second.weight], "param_names": ["a", "b"]},
    ]
    found = ParamNames().name(0, groups)
    assert [found[id(p)] for g in groups for p in g["params"]] == ["a", "a#2", "b"]


def test_names_that_were_given_stay(tmp_path: Path) -> None:
    model = Block()
    optimizer = torch.optim.SGD(model.first.parameters(), lr=0.1)
    with optrace.record(tmp_path / "run", quiet=True, strict=True):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        outer = nn.ModuleDict({"outer": model})
        optimizer.add_param_group({"params": [outer["outer"].second.weight]})
        optimizer.step()
    assert list(optrace.open(tmp_path / "run").params.param) == EXPECTED


PROGRAM = """
import gc, random, sys, torch, optrace
from torch import nn

gc.set_threshold(int(sys.argv[2]))
junk = [[i] for i in range(int(sys.argv[2]))]
a, b = nn.Linear(2, 2), nn.Linear(2, 2)
wrapped = [nn.Sequential(a), nn.Sequential(a)]
loose = torch.ones(1, requires_grad=True)
{freeze}
with optrace.record(sys.argv[1], quiet=True, strict=True):
    optimizer = torch.optim.SGD([*a.parameters(), *b.parameters(), loose], lr=0.1)
    (a(torch.ones(2)).sum() + b(torch.ones(2)).sum() + loose).sum().backward()
    optimizer.step()
"""


@pytest.mark.parametrize("freeze", ["", "gc.collect(); gc.freeze()"], ids=["", "frozen"])
def test_the_same_script_gives_the_same_names(tmp_path: Path, freeze: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM).format(freeze=freeze))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPTRACE_")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(optrace.__file__).parents[1])}
    found = []
    for threshold in ("10", "100000"):
        run = tmp_path / f"run{threshold}"
        subprocess.run([sys.executable, program, run, threshold], env=environment, check=True, timeout=300)
        found.append(list(optrace.open(run).params.param))
    assert found[0] == found[1]
    assert len(set(found[0])) == 5
    assert found[0][-1] == "loose"


def test_looking_at_variables_keeps_none_of_them_alive() -> None:
    w = torch.ones(1, requires_grad=True)
    batch = torch.ones(1)
    dead = weakref.ref(batch)
    assert names_of([w]) == ["w"]
    del batch
    assert dead() is None


def test_a_programs_own_locals_are_left_alone() -> None:
    w = torch.ones(1, requires_grad=True)
    own = locals()
    assert names_of([w]) == ["w"]
    assert own["w"] is w
