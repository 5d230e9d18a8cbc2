"""The plugin: light until used, one test a golden case, one a property, runs and their baselines."""

import subprocess
import sys

import pytest
import torch

from optrace.testing import OptimizerConformance, assert_traces_close, check_same
from optrace.testing.properties import PROPERTIES


def lines(result):
    return result.stdout.str() + result.stderr.str()


def test_plugin_imports_nothing_heavy_until_a_fixture_is_used(tmp_path):
    (tmp_path / "test_light.py").write_text(
        "import sys\ndef test_light():\n"
        "    assert 'optrace.testing.plugin' in sys.modules\n"
        "    assert not {'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)\n"
    )
    code = (
        "import sys, pytest, optrace.testing.plugin as p; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider'], [p]))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_alone())
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_name_that_the_plugin_takes_begins_with_its_own(pytestconfig):
    """So that it clashes with no other plugin."""
    import optrace.testing.plugin as plugin

    fixtures = [name for name, thing in vars(plugin).items() if type(thing).__name__ == "FixtureFunctionDefinition"]
    marks = [line for line in pytestconfig.getini("markers") if "golden" in line or "conformance" in line]
    options = [group for group in pytestconfig._parser._groups if group.name == "optrace"]
    assert {name.partition("_")[0] for name in fixtures} == {"optrace"}
    assert [line.startswith("optrace_") for line in marks] == [True, True]
    assert [name for o in options[0].options for name in o.names()] == ["--optrace-regen"]


def _alone():
    import os

    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def test_golden_mark_fails_the_right_cases_skips_what_is_lacking_and_names_the_cases(project):
    project.average()
    project.write(
        test_mine="import pytest, torch\nfrom mine import MySGD\n"
        "@pytest.mark.optrace_golden('sgd', dtype='float64', cases=['plain', 'momentum', 'nesterov'])\n"
        "def test_mine(optrace_golden):\n    optrace_golden.check(MySGD)\n"
        "@pytest.mark.optrace_golden('sgd', cases=['plain', 'momentum', 'nesterov'])\n"
        "def test_torch(optrace_golden):\n    optrace_golden.check(torch.optim.SGD)\n"
    )
    result = project.run("-v")
    result.stdout.fnmatch_lines_random(
        [
            "*test_mine[[]sgd/plain[]] PASSED*",
            "*test_mine[[]sgd/momentum[]] FAILED*",
            "*test_mine[[]sgd/nesterov[]] SKIPPED*",
            "*test_torch[[]sgd/nesterov-float32[]] PASSED*",
        ]
    )
    assert "rule-momentum-form" in lines(result)
    project.run("-k", "test_torch and nesterov-float32").assert_outcomes(passed=1, deselected=8)


def test_golden_mark_takes_a_folder_that_golden_make_wrote(project):
    from optrace.goldens.make_own import make_goldens

    make_goldens(torch.optim.AdamW, "adamw", project.path / "own")
    project.write(
        test_mine="import pytest, torch\n"
        "@pytest.mark.optrace_golden(folder='own', cases=['plain'])\n"
        "def test_same(optrace_golden):\n    optrace_golden.check(torch.optim.AdamW)\n"
        "@pytest.mark.optrace_golden(folder='own', cases=['plain'], dtype='float64')\n"
        "def test_other(optrace_golden):\n    optrace_golden.check(torch.optim.Adam)\n"
    )
    project.run().assert_outcomes(passed=2, failed=1)


TRAINING = """
import torch

def train(lr=0.01, kind=torch.optim.SGD):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=lr, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        model(torch.full((2, 3), 0.5 + step)).square().mean().backward()
        optimizer.step()
"""


def test_run_is_recorded_by_a_function_or_a_block_and_compared(project):
    project.write(
        training=TRAINING,
        test_mine="import pytest\nfrom training import train\nfrom optrace.testing import assert_traces_close\n"
        "def test_same(optrace_record):\n"
        "    a = optrace_record(train)\n"
        "    with optrace_record() as run:\n        train()\n"
        "    assert a.last_step(0) == 4\n"
        "    assert_traces_close(a, run.trace, exact=True)\n"
        "def test_other(optrace_record):\n"
        "    with pytest.raises(AssertionError, match='lr'):\n"
        "        assert_traces_close(optrace_record(train), optrace_record(lambda: train(lr=0.02)))\n",
    )
    project.run().assert_outcomes(passed=2)


def test_a_function_that_never_steps_fails_in_one_sentence_without_our_frames(project):
    project.write(test_mine="def test_it(optrace_record):\n    optrace_record(lambda: None)\n")
    text = lines(project.run())
    assert "TraceError: no optimizer step was recorded into" in text
    assert "plugin.py" not in text


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("optrace_golden('sdg')", "optrace_golden: there are no goldens of a rule 'sdg'; did you mean sgd or asgd?"),
        ("optrace_conformance([3])", "optrace_conformance: 3 is no optimizer class; write [Lion,"),
    ],
)
def test_a_mark_that_makes_no_sense_is_one_line_of_the_collection(project, mark, words):
    fixture = mark.partition("(")[0]
    project.write(test_mine=f"import pytest\n@pytest.mark.{mark}\ndef test_it({fixture}):\n    pass\n")
    text = lines(project.run())
    assert f"test_mine.py::test_it: {words}" in text
    assert "plugin.py" not in text


UNITTEST = """
import unittest, pytest
from mine import MySGD

class TestMine(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def fixtures(self, optrace_baseline):
        self.baseline = optrace_baseline

    def test_sgd(self):
        self.baseline.check(MySGD)

    def test_lrs(self):
        for lr in (0.1, 0.2):
            with self.subTest(lr=lr):
                self.baseline.check(lambda p: MySGD(p, lr=lr), f"lr={lr}")
"""


def test_unittest_classes_take_the_fixture_through_an_autouse_one(project):
    project.write(test_mine=UNITTEST)
    project.run("--optrace-regen=new").assert_outcomes(passed=2)
    assert len(list(project.stored.iterdir())) == 3
    project.run().assert_outcomes(passed=2)
    project.average()
    assert "since step 1" in lines(project.run("-k", "test_sgd"))


def test_baseline_of_a_run_fails_for_another_lr_and_another_rule_but_not_for_another_implementation(project):
    project.write(
        training=TRAINING,
        test_mine="from training import train\nfrom mine import MySGD\nKIND = MySGD\nLR = 0.01\n"
        "def test_run(optrace_record, optrace_baseline):\n"
        "    optrace_baseline.check(optrace_record(lambda: train(LR, KIND)))\n",
    )
    project.run("--optrace-regen=new").assert_outcomes(passed=1)
    project.run().assert_outcomes(passed=1)
    source = (project.path / "test_mine.py").read_text()
    (project.path / "test_mine.py").write_text(source.replace("LR = 0.01", "LR = 0.02"))
    assert "the hyper-parameter lr of group 0 is 0.02, stored is 0.01" in lines(project.run())
    (project.path / "test_mine.py").write_text(source + "# once more\n")
    project.average()
    result = project.run()
    result.assert_outcomes(failed=1)
    assert "each step replayed from its stored inputs" in lines(result)


def test_check_same_tells_two_optimizers_apart_and_names_why():
    check_same(lambda p: torch.optim.AdamW(p, foreach=True), torch.optim.AdamW)
    with pytest.raises(AssertionError, match="rule-decay-coupling"):
        check_same(lambda p: torch.optim.Adam(p, weight_decay=0.1), lambda p: torch.optim.AdamW(p, weight_decay=0.1))


class TestTorchAdamW(OptimizerConformance):
    optimizer = torch.optim.AdamW
    skip = {"float16": "its eps of 1e-8 is zero in float16, so the first step divides by zero"}  # noqa: RUF012


def test_skip_of_a_property_that_holds_fails_and_an_unknown_one_too(project):
    project.write(
        test_mine="import pytest, torch\nfrom optrace.testing import OptimizerConformance\n"
        "class TestOne(OptimizerConformance):\n    optimizer = torch.optim.Adagrad\n    skip = {'resume': 'hard'}\n"
        "@pytest.mark.optrace_conformance([(torch.optim.Adagrad, {'lr': 0.1}, {'nonsense': 'x'})])\n"
        "def test_two(optrace_conformance):\n    optrace_conformance.check()\n"
    )
    result = project.run("-k", "(test_resume and not from_file) or Adagrad-moves")
    result.assert_outcomes(failed=2, deselected=2 * len(PROPERTIES) - 2)
    assert "resume holds: take it out of skip" in lines(result)
    assert "skip names no property: nonsense" in lines(result)


def test_broken_optimizer_fails_by_property_and_says_why_it_matters(project):
    project.average()
    project.write(
        test_mine="import pytest\nfrom mine import MySGD\n"
        "@pytest.mark.optrace_conformance([MySGD])\n"
        "def test_it(optrace_conformance):\n    optrace_conformance.check()\n"
    )
    result = project.run("-k", "MySGD-closure or MySGD-bad_lr or MySGD-groups")
    result.assert_outcomes(failed=2, passed=1, deselected=len(PROPERTIES) - 3)
    assert "step(closure) does not call the closure" in lines(result)
    assert "why it matters" in lines(result)


def test_every_property_has_its_section_in_the_docs():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    for name, check in PROPERTIES.items():
        assert f"## {name}\n" in page
        assert " ".join((check.__doc__ or "").split()) in " ".join(page.split())


def test_traces_of_one_program_are_close_and_exact(tmp_path):
    import optrace

    for name in ("a", "b"):
        with optrace.record(tmp_path / name, quiet=True):
            p = torch.nn.Parameter(torch.ones(3))
            optimizer = torch.optim.SGD([p], lr=0.1)
            p.grad = torch.ones(3)
            optimizer.step()
    assert_traces_close(tmp_path / "a", tmp_path / "b", exact=True)
