"""Which parameter, optimizer, group, option and state of A is which of B."""

from __future__ import annotations

import pytest
import torch
from hand_made import TorchHand, adamw, model, names_of, sgd, train
from hypothesis import given
from hypothesis import strategies as st

import optrace
from optrace.compare.names import Renaming, bare, match_names, suggest_rule
from optrace.compare.run import diff
from optrace.compare.source import open_source
from optrace.errors import CompareError, TraceError

NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "w", "module"]), min_size=1, max_size=4).map(".".join), unique=True
)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._fsdp_wrapped_module."])
def test_wrapper_prefixes_are_stripped(runs, prefix):
    report = diff(runs("a"), runs("b", prefix=prefix))
    assert report.same and report.extent.params == 4


def test_a_wrapper_inside_a_name_is_stripped_but_a_submodule_called_module_is_not():
    assert bare("encoder._orig_mod.fc.weight") == "encoder.fc.weight"
    assert bare("encoder.module.weight") == "encoder.module.weight"
    assert bare("module.module.weight") == "weight"
    assert bare("module") == "module"


@given(NAMES, NAMES)
def test_matching_is_one_to_one_and_never_by_position(names_a, names_b):
    found = match_names(names_a, names_b, Renaming())
    assert len(set(found.values())) == len(found)
    for a, b in found.items():
        assert a in names_a and b in names_b
        assert a == b or bare(a) == bare(b)
    for name in set(names_a) & set(names_b):
        assert found[name] == name


def test_no_common_parameter_is_trouble_and_suggests_the_rule(runs):
    with pytest.raises(CompareError, match=r"no parameter in common: 0\.weight.*--map '\^=net\.'"):
        diff(runs("a"), runs("b", prefix="net."))


def test_map_renames_by_regular_expression(runs):
    a, b = runs("a", prefix="model."), runs("b", prefix="net.")
    report = diff(a, b, map=["^model=net"])
    assert report.same and report.extent.params == 4
    assert suggest_rule(["model.0.w", "model.1.w"], ["net.0.w", "net.1.w"]) == "--map '^model\\.=net.'"


def test_map_that_fits_nothing_or_is_malformed_is_refused(runs):
    a, b = runs("a"), runs("b")
    with pytest.raises(CompareError, match="fits no name of A"):
        diff(a, b, map=["wieght=weight"])
    with pytest.raises(CompareError, match="is no OLD=NEW"):
        diff(a, b, map=["weight"])
    with pytest.raises(CompareError, match="regular expression"):
        diff(a, b, map=["(=x"])
    with pytest.raises(CompareError, match="gives two parameters"):
        diff(a, b, map=[".*=x"])


def test_parameter_on_one_side_only_is_a_difference_listed_first(runs, tmp_path):
    def without_bias(net):
        return torch.optim.SGD([p for n, p in net.named_parameters() if n != "2.bias"], lr=0.05)

    def everything(net):
        return torch.optim.SGD(net.parameters(), lr=0.05)

    report = diff(runs("a", everything), runs("b", without_bias))
    assert not report.same
    assert report.only_in_a == ("param 2.bias",) and report.only_in_b == ()
    assert (report.rows[0].kind, report.rows[0].param) == ("missing", "2.bias")
    assert report.exact.would_pass_at is None
    assert "the parameter 2.bias is only in a" in str(report).splitlines()[0]


def test_parameters_that_a_recorder_was_told_to_skip_are_not_missing(runs):
    def first_layer(net):
        return torch.optim.SGD(net[0].parameters(), lr=0.05)

    def everything(net):
        return torch.optim.SGD(net.parameters(), lr=0.05)

    a = runs("a", everything, steps=1)
    b = runs("b", first_layer, steps=1, settings={"params": ["0.*"]})
    report = diff(a, b)
    assert report.only_in_a == ()
    assert report.same


def test_groups_are_matched_by_what_they_hold(runs):
    def reversed_groups(net):
        optimizer = sgd()(net)
        optimizer.param_groups.reverse()
        return optimizer

    def different(net):
        optimizer = sgd()(net)
        optimizer.param_groups[0]["lr"] = 0.01
        return optimizer

    def different_reversed(net):
        optimizer = different(net)
        optimizer.param_groups.reverse()
        return optimizer

    assert diff(runs("a"), runs("b", reversed_groups)).same
    assert diff(runs("c", different), runs("d", different_reversed)).same


def test_one_group_where_the_other_has_two_is_a_note_when_options_agree(runs):
    report = diff(runs("a"), runs("b", lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)))
    assert report.same
    assert any("2 groups where b has 1" in note for note in report.notes)


def test_a_parameter_in_another_group_is_noted_and_its_options_compared(runs):
    def moved(net):
        groups = [
            {"params": [net[0].weight], "weight_decay": 0.1},
            {"params": [net[0].bias, net[2].weight, net[2].bias], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=0.05)

    def usual(net):
        groups = [
            {"params": [net[0].weight, net[2].weight], "weight_decay": 0.1},
            {"params": [net[0].bias, net[2].bias], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=0.05)

    report = diff(runs("a", usual), runs("b", moved))
    assert not report.same and report.first.quantity == "hyper.weight_decay"
    assert any(note.startswith("grouped otherwise: 2.weight") for note in report.notes)


def record_two(folder, order, classes=("SGD", "Adam")):
    torch.set_num_threads(1)
    nets = {"gen.": model(0), "disc.": model(1)}
    hand = TorchHand(folder)
    for index, prefix in enumerate(order):
        net = nets[prefix]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1 if prefix == "gen." else 0.2)
        hand.begin(index, optimizer, names_of(net, prefix), classes[index])
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.ones(2, 5)).sum().backward()
            hand.step(index, optimizer)
    return str(hand.close())


def test_optimizers_are_matched_by_the_parameters_they_hold_not_by_index(tmp_path):
    a = record_two(tmp_path / "a", ("gen.", "disc."))
    b = record_two(tmp_path / "b", ("disc.", "gen."), ("Adam", "SGD"))
    assert diff(a, b).same


def test_an_optimizer_of_a_run_is_chosen_by_index_or_class(tmp_path):
    a = record_two(tmp_path / "a", ("gen.", "disc."))
    assert open_source(f"{a}@1").optimizers == (1,)
    assert open_source(f"{a}@Adam").optimizers == (1,)
    assert open_source(f"{a}@sgd").optimizers == (0,)
    report = diff(f"{a}@0", f"{a}@1", map=["^gen=disc"])
    assert not report.same and report.first.step == 0
    for wrong, words in (("@2", "no optimizer 2"), ("@Lion", "'Lion' is no optimizer"), ("@rank=3", "no rank 3")):
        with pytest.raises((CompareError, TraceError), match=words):
            open_source(a + wrong)


def test_suffixes_combine_and_a_path_may_hold_an_at(tmp_path):
    folder = tmp_path / "me@home"
    folder.mkdir()
    a = record_two(folder / "a", ("gen.", "disc."))
    source = open_source(f"{a}@rank=0@SGD@1:2")
    assert (source.optimizers, source.steps, source.rank, source.name) == ((0,), (1, 2), 0, "a@rank=0@SGD@1:2")
    with pytest.raises(CompareError, match="holds no step"):
        open_source(f"{a}@5:2")


def test_state_under_another_name_is_found_by_value(tmp_path):
    def record(name, key):
        torch.set_num_threads(1)
        net = model()
        optimizer = sgd()(net)
        hand = TorchHand(tmp_path / name)
        rename = hand.state_rows
        hand.state_rows = lambda i, o: [(g, p, q.replace("momentum_buffer", key), *r) for g, p, q, *r in rename(i, o)]
        hand.begin(0, optimizer, names_of(net), "SGD" if key == "momentum_buffer" else "MySGD")
        for step in range(4):
            optimizer.zero_grad()
            net(torch.ones(2, 5)).sum().backward()
            hand.step(
                0,
                optimizer,
                (lambda: optimizer.state[net[0].weight]["momentum_buffer"].mul_(2))
                if name == "c" and step == 2
                else None,
            )
        return str(hand.close())

    a, b, c = record("a", "momentum_buffer"), record("b", "velocity"), record("c", "velocity")
    report = diff(a, b)
    assert report.same
    assert "velocity of b is momentum_buffer of a: equal values" in report.notes
    assert report.extent.rows == 4 + 4 * 4 * 4
    report = diff(a, c)
    assert (report.first.step, report.first.quantity) == (3, "state.momentum_buffer")
    assert diff(a, b, state=["momentum_buffer=velocity"]).same
    with pytest.raises(CompareError, match="A has no state 'velocity'"):
        diff(a, b, state=["velocity=momentum_buffer"])


def test_options_under_another_name_are_understood(tmp_path):
    def record(name, words, lr=None, also=None):
        torch.set_num_threads(1)
        net = model()
        optimizer = sgd()(net)
        if lr is not None:
            optimizer.param_groups[0]["lr"] = lr
        hand = TorchHand(tmp_path / name)
        hand.begin(0, optimizer, names_of(net), "SGD" if not words else "MySGD")
        write = hand.write

        def renamed(index, step, rows, hyper=None, steps=None):
            keep = ("lr", "momentum")
            hyper = [{words.get(k, k): v for k, v in g.items() if not words or k in keep} for g in hyper or []]
            hyper = [{**g, **(also or {})} for g in hyper]
            write(index, step, rows, hyper, steps)

        hand.write = renamed
        for _ in range(2):
            optimizer.zero_grad()
            net(torch.ones(2, 5)).sum().backward()
            hand.step(0, optimizer)
        return str(hand.close())

    a, b = record("a", {}), record("b", {"lr": "learning_rate", "momentum": "mu"})
    report = diff(a, b)
    assert report.same
    lacking = next(note for note in report.notes if note.startswith("b has no "))
    assert "dampening (0)" in lacking and "nesterov (False)" in lacking and "lr" not in lacking
    c = record("c", {"lr": "speed", "momentum": "mu"})
    report = diff(a, c)
    assert report.same
    assert "speed of c is lr of a: equal values" in report.notes
    assert diff(a, c, map=["^lr$=speed"]).same
    d = record("d", {"lr": "speed", "momentum": "mu"}, lr=0.0625)
    report = diff(a, d)
    assert not report.same and report.first.quantity in ("hyper.lr", "hyper.speed")
    e = record("e", {"lr": "lr", "momentum": "mu"}, also={"rho": 0.9})
    assert diff(a, e).same


def test_class_name_and_how_a_rule_is_carried_out_never_decide(runs):
    report = diff(runs("a", adamw()), runs("b", adamw(foreach=True), implementation="foreach"))
    assert report.same
    assert any(d.key == "optimizer.0.implementation" for d in report.provenance)


def test_one_run_with_itself_is_said_to_be_one(runs):
    a = runs("a")
    report = diff(a, a)
    assert report.same and "a (A) and a (B) are one and the same run" in report.notes


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    a, b = train(tmp_path / "x" / "run", sgd(), steps=1), train(tmp_path / "y" / "run", sgd(), steps=1)
    report = diff(a, b)
    assert (report.a, report.b) == ("x/run", "y/run")


def test_missing_run_and_foreign_folder_are_trouble(tmp_path):
    with pytest.raises(TraceError, match="no trace"):
        diff(tmp_path / "nothing", tmp_path / "nothing")
    with pytest.raises(TraceError, match=r"no trace.json"):
        open_source(tmp_path)


def test_rules_for_several_first_parts_are_suggested_where_they_leave_just_the_other_names():
    joint = ["gen.a.weight", "gen.b.weight", "dis.c.weight"]
    assert suggest_rule(joint, ["a.weight", "b.weight", "c.weight"]) == r"--map '^gen\.=' --map '^dis\.='"
    assert suggest_rule([*joint, "dis.a.weight"], ["a.weight", "b.weight", "c.weight", "a.weight"]) is None
    assert suggest_rule(joint, ["a.weight", "b.weight", "d.weight"]) is None


def test_renamed_parameters_in_another_optimizer_are_not_called_missing(tmp_path):
    def record(name, groups):
        torch.manual_seed(0)
        generator, critic = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
        params = dict(zip("abcd", (*generator.parameters(), *critic.parameters()), strict=True))
        optimizers = [torch.optim.SGD([(long, params[long[-1]]) for long in group], lr=0.1) for group in groups]
        with optrace.record(tmp_path / name, quiet=True):
            for _ in range(2):
                critic(generator(torch.ones(4, 2))).mean().backward()
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        return tmp_path / name

    a = record("a", [["gen.a", "gen.b", "dis.c", "dis.d"]])
    b = record("b", [["a", "b"], ["c", "d"]])
    (cause,) = diff(a, b, map=[r"^gen\.=", r"^dis\.="]).causes
    assert cause.code == "group-membership"
    assert cause.summary == "dis.c, dis.d are in optimizer 0 (SGD) of a, and in optimizer 1 (SGD) of b"
