"""Optimizers that hold parameters which their model no longer has, or has twice: resized, tied, copied."""

from __future__ import annotations

import copy

import pytest
import torch

import optrace
from optrace.errors import CompareError

pytestmark = pytest.mark.usefixtures("only_what_is_new")


class Net(torch.nn.Module):
    """An embedding and a head of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(6, 4)
        self.head = torch.nn.Linear(4, 6, bias=False)

    def forward(self, x):
        return self.head(self.embed(x))


def train(path, *, before=None, after=None, midway=None):
    """Four steps; the net is changed before or after the optimizer is made, the optimizer before step 3."""
    torch.manual_seed(0)
    net = Net()
    net = before(net) if before else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net = after(net) if after else net
    tokens = torch.randint(0, 6, (4, 8))
    with optrace.record(path, quiet=True):
        for step in range(4):
            if midway and step == 2:
                optimizer = midway(optimizer)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(tokens[step]), tokens[step]).backward()
            optimizer.step()
    return path


def grown(net):
    weight = torch.cat([net.embed.weight.detach(), torch.ones(1, 4)])
    net.embed = torch.nn.Embedding.from_pretrained(weight, freeze=False)
    return net


def tied(net):
    net.head.weight = net.embed.weight
    return net


def equal_but_two(net):
    net.head.weight = torch.nn.Parameter(net.embed.weight.detach().clone())
    return net


def test_an_optimizer_made_before_the_embedding_was_resized_holds_what_no_module_has(tmp_path):
    first = optrace.diff(train(tmp_path / "a", before=grown), train(tmp_path / "b", after=grown)).causes[0]
    assert first.code == "param-missing"
    assert first.summary.startswith(
        "an optimizer of b holds a parameter (optimizer0.group0.param0) that no module of b"
    )
    assert "no gradient of it was seen in b at any step" in first.evidence
    assert first.fix.startswith("in b make the optimizer after the model has its final modules")


def test_a_weight_that_is_no_longer_tied_is_told_by_its_twin(tmp_path):
    first = optrace.diff(train(tmp_path / "a", before=tied), train(tmp_path / "b", before=equal_but_two)).causes[0]
    assert first.code == "param-missing"
    assert "head.weight begins as a copy of embed.weight in b: in a the two may be one (tied)" in first.evidence
    assert first.fix == "in b tie head.weight to embed.weight as a does, before the optimizer is made"


def test_a_parameter_of_its_own_values_is_no_twin(tmp_path):
    first = optrace.diff(train(tmp_path / "a", before=tied), train(tmp_path / "b")).causes[0]
    assert first.code == "param-missing"
    assert first.evidence == ("b holds 1 parameter more",)


def test_an_optimizer_that_was_copied_holds_what_no_module_has(tmp_path):
    first = optrace.diff(train(tmp_path / "a"), train(tmp_path / "b", midway=copy.deepcopy)).causes[0]
    assert first.code == "param-missing"
    assert "or the model or the optimizer was copied" in first.summary


def test_a_model_copied_after_its_optimizer_was_made_is_told_where_no_name_is_common(tmp_path):
    a, b = train(tmp_path / "a"), train(tmp_path / "b", after=copy.deepcopy)
    with pytest.raises(CompareError, match=r"those of b's optimizer .* none has a gradient at any step; make the"):
        optrace.diff(a, b)
