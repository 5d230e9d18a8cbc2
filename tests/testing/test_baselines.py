"""Baselines of optimizers: missing, made, compared, made anew, refused, unused."""

import shutil

import pytest

from optrace.testing.properties import PROPERTIES


def lines(result):
    return result.stdout.str() + result.stderr.str()


def test_missing_baseline_fails_names_the_command_and_writes_nothing(project):
    result = project.run()
    result.assert_outcomes(failed=1)
    assert "there is no baseline optrace_baselines/test_mine/test_sgd.csv; make it on your machine and" in lines(result)
    assert "pytest test_mine.py::test_sgd --optrace-regen=new" in lines(result)
    assert not project.stored.exists()


def test_made_baseline_passes_and_is_small_text(project):
    made = project.run("--optrace-regen=new")
    made.assert_outcomes(passed=1)
    assert "written  optrace_baselines/test_mine/test_sgd.csv" in lines(made)
    file = project.stored / "test_sgd.csv"
    assert file.stat().st_size < 7000
    assert b"\r" not in file.read_bytes()
    project.run().assert_outcomes(passed=1)


def test_changed_optimizer_fails_with_the_diffs_report_and_keeps_the_actual_run(project):
    project.run("--optrace-regen=new").assert_outcomes(passed=1)
    before = (project.stored / "test_sgd.csv").read_bytes()
    project.average()
    text = lines(project.run("--basetemp=kept"))
    assert "rule-momentum-form" in text
    assert "fix " in text
    assert "since step 1" in text
    assert "FAILED test_mine.py::test_sgd - Failed: actual differs from test_sgd" in text  # in pytest's summary
    assert "none ->" not in text  # the file knows nothing of where it was made
    assert "--optrace-regen=failed" in text
    shown = next(line for line in text.splitlines() if line.startswith("actual: "))
    folder = project.path / "kept"
    assert str(folder) in shown
    assert list(folder.glob("test_sgd*/optrace/actual/trace.json"))
    assert (project.stored / "test_sgd.csv").read_bytes() == before


@pytest.mark.parametrize("mode", ["new", "failed", "all"])
def test_regen_writes_what_it_says_and_leaves_passing_files_alone(project, mode):
    project.write(test_other="from mine import MySGD\ndef test_it(optrace_baseline):\n optrace_baseline.check(MySGD)\n")
    project.write(
        test_torch="import torch\ndef test_it(optrace_baseline):\n optrace_baseline.check(torch.optim.AdamW)\n"
    )
    project.run("--optrace-regen=new", "test_mine.py", "test_torch.py").assert_outcomes(passed=2)
    passing = project.path / "optrace_baselines" / "test_torch" / "test_it.csv"
    changed, missing = (
        project.stored / "test_sgd.csv",
        project.path / "optrace_baselines" / "test_other" / "test_it.csv",
    )
    stamp, old = passing.stat().st_mtime_ns, changed.read_bytes()
    project.average()
    result = project.run(f"--optrace-regen={mode}")
    assert missing.exists()
    assert passing.stat().st_mtime_ns == stamp
    assert (changed.read_bytes() == old) == (mode == "new")
    result.assert_outcomes(passed=2, failed=1) if mode == "new" else result.assert_outcomes(passed=3)


def test_regen_all_writes_again_what_passes_with_other_bits(project):
    project.write(
        test_mine="import torch\ndef test_sgd(optrace_baseline):\n optrace_baseline.check(torch.optim.AdamW)\n"
    )
    project.run("--optrace-regen=new")
    file = project.stored / "test_sgd.csv"
    text = file.read_text()
    row = next(line for line in text.splitlines() if line.startswith("5,0,w,param"))
    first = row.split(",")[-1].split(" ")[0]
    file.write_text(text.replace(row, row.replace(first, repr(float(first) * (1 + 1.2e-7)))))
    project.run().assert_outcomes(passed=1)
    project.run("--optrace-regen=failed").assert_outcomes(passed=1)
    assert file.read_text() != text
    project.run("--optrace-regen=all").assert_outcomes(passed=1)
    assert file.read_text() == text


@pytest.mark.parametrize(("variable", "value"), [("CI", "true"), ("CI", "1"), ("BUILD_NUMBER", "7")])
def test_regen_is_refused_under_ci_unless_allowed(project, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    result = project.run("--optrace-regen=new")
    assert result.ret == 4
    assert "OPTRACE_REGEN_IN_CI=1" in lines(result)
    assert not project.stored.exists()
    monkeypatch.setenv("OPTRACE_REGEN_IN_CI", "1")
    project.run("--optrace-regen=new", "--collect-only", "-q").assert_outcomes()
    monkeypatch.delenv("OPTRACE_REGEN_IN_CI")
    monkeypatch.setenv(variable, "false" if variable == "CI" else "")
    assert project.run("--optrace-regen=new", "--collect-only", "-q").ret == 0


def test_in_ci_the_comparison_is_the_local_one(project, monkeypatch):
    project.run("--optrace-regen=new").assert_outcomes(passed=1)
    monkeypatch.setenv("CI", "true")
    project.run().assert_outcomes(passed=1)
    project.average()
    numbers = []
    for value in ("true", ""):
        monkeypatch.setenv("CI", value)
        text = lines(project.run())
        numbers.append({line for line in text.splitlines() if line.startswith("  step ")})
    assert numbers[0]
    assert numbers[0] == numbers[1]


def test_regen_is_refused_with_xdist_workers(project):
    result = project.run("--optrace-regen=new", "-n", "2")
    assert result.ret == 4
    assert "refused under xdist" in lines(result)
    assert not project.stored.exists()


@pytest.mark.parametrize("mark", ["@pytest.mark.xfail", "@pytest.mark.xfail(True, reason='soon')"])
def test_regen_is_refused_under_xfail(project, mark):
    project.write(
        test_mine=f"import pytest\nfrom mine import MySGD\n{mark}\n"
        "def test_sgd(optrace_baseline):\n    optrace_baseline.check(MySGD)\n"
    )
    project.run("--optrace-regen=all").assert_outcomes(xfailed=1)
    assert not project.stored.exists()


@pytest.mark.parametrize("edit", ["param", "grad", "state.momentum_buffer", "step", "lr", "element"])
def test_what_is_dropped_from_either_side_fails(project, edit):
    project.run("--optrace-regen=new")
    file = project.stored / "test_sgd.csv"
    rows = file.read_text().splitlines(keepends=True)
    if edit == "step":
        rows = [row for row in rows if not row.startswith("12,")]
        project.write(
            test_mine="from mine import MySGD\ndef test_sgd(optrace_baseline):\n"
            "    optrace_baseline.check(lambda params: MySGD(params, lr=0.1), steps=12)\n"
        )
    elif edit == "lr":
        rows = [row.replace('"lr": 0.1, ', "") for row in rows]
    elif edit == "element":
        rows = [row.replace(",b,", ",c,") if row.startswith(("0,", "12,")) else row for row in rows]
    else:
        rows.remove(next(row for row in rows if row.startswith("7,") and f",{edit}," in row))
    file.write_text("".join(rows))
    result = project.run()
    result.assert_outcomes(failed=1)
    assert "INTERNALERROR" not in lines(result)


def test_state_that_the_optimizer_no_longer_keeps_fails(project):
    project.run("--optrace-regen=new")
    file = project.stored / "test_sgd.csv"
    rows = file.read_text().splitlines()
    extra = [r.replace("state.momentum_buffer", "state.second") for r in rows if "state.momentum_buffer" in r]
    file.write_text("\n".join(rows + extra) + "\n")
    result = project.run()
    assert "state.second of w (group 0) at 12 steps from 1 to 12 is stored and gone now" in lines(result)


def test_per_step_forgives_a_drift_that_free_running_shows(project):
    project.write(
        test_mine="from mine import MySGD\nimport torch\n"
        "class Noisy(MySGD):\n    def step(self, closure=None):\n        super().step()\n"
        "        with torch.no_grad():\n            for g in self.param_groups:\n"
        "                for p in g['params']:\n                    p.mul_(1 + FACTOR)\n"
        "FACTOR = 0.0\n"
        "def test_sgd(optrace_baseline):\n    optrace_baseline.check(Noisy)\n"
        "def test_free(optrace_baseline):\n    optrace_baseline.check(Noisy, free_running=True)\n"
    )
    project.run("--optrace-regen=new").assert_outcomes(passed=2)
    source = (project.path / "test_mine.py").read_text()
    (project.path / "test_mine.py").write_text(source.replace("FACTOR = 0.0", "FACTOR = 2.4e-7"))
    project.run().assert_outcomes(passed=2)
    (project.path / "test_mine.py").write_text(source.replace("FACTOR = 0.0", "FACTOR = 1e-5"))
    project.run().assert_outcomes(failed=2)


def test_another_default_of_an_option_fails_by_name(project):
    project.write(test_mine="from mine import MySGD\ndef test_sgd(optrace_baseline):\n optrace_baseline.check(MySGD)\n")
    project.run("--optrace-regen=new")
    source = (project.path / "mine.py").read_text()
    (project.path / "mine.py").write_text(source.replace("lr=0.1", "lr=0.2"))
    assert "the hyper-parameter lr of group 0 is 0.2, stored is 0.1" in lines(project.run())


def test_unused_files_are_reported_in_whole_runs_only(project):
    project.run("--optrace-regen=new")
    (project.stored / "test_gone.csv").write_text("old")
    (project.stored.parent / "test_module_gone").mkdir()
    text = lines(project.run())
    assert "unused   optrace_baselines/test_mine/test_gone.csv" in text
    assert "unused   optrace_baselines/test_module_gone" in text
    assert "test_sgd.csv" not in text
    assert "test_gone.csv" not in lines(project.run("test_mine.py::test_sgd"))
    project.write(test_mine=(project.path / "test_mine.py").read_text() + "\ndef test_plain():\n    pass\n")
    assert "test_gone.csv" not in lines(project.run("-k", "sgd"))


def test_parametrized_tests_classes_and_names_have_files_of_their_own(project):
    project.write(
        test_mine="import pytest\nfrom mine import MySGD\n"
        "class TestBoth:\n    @pytest.mark.parametrize('lr', [0.1, 0.2])\n"
        "    def test_sgd(self, lr, optrace_baseline):\n"
        "        optrace_baseline.check(lambda p: MySGD(p, lr=lr))\n"
        "        optrace_baseline.check(lambda p: MySGD(p, lr=lr, momentum=0.5), name='half')\n"
    )
    project.run("--optrace-regen=new").assert_outcomes(passed=2)
    assert len(list(project.stored.iterdir())) == 4
    for arguments in ((), ("--import-mode=importlib",)):
        result = project.run(*arguments)
        result.assert_outcomes(passed=2)
        assert "unused" not in lines(result)
    (project.stored / "test_gone.csv").write_text("old")
    result = project.run("-n", "2")
    result.assert_outcomes(passed=2)
    assert "unused   optrace_baselines/test_mine/test_gone.csv" in lines(result)
    assert lines(result).count("unused") == 1


EVERYTHING = """
import pytest, torch
from mine import MySGD

@pytest.mark.parametrize("lr", [0.1, 0.2, 0.3, 0.4])
def test_sgd(lr, optrace_baseline):
    optrace_baseline.check(lambda p: MySGD(p, lr=lr))

@pytest.mark.optrace_golden("sgd", cases=["plain", "momentum"])
def test_golden(optrace_golden):
    optrace_golden.check(torch.optim.SGD)

@pytest.mark.optrace_conformance([torch.optim.Adagrad])
def test_property(optrace_conformance):
    optrace_conformance.check()
"""


def test_order_and_seeds_of_pytest_randomly_change_no_baseline(project):
    project.write(test_mine=EVERYTHING)
    orders, stored = [], []
    for seed in (1, 2):
        shutil.rmtree(project.stored, ignore_errors=True)
        result = project.run("-v", f"--randomly-seed={seed}", "--optrace-regen=new")
        result.assert_outcomes(passed=8 + len(PROPERTIES))
        orders.append([line for line in lines(result).splitlines() if " PASSED" in line])
        stored.append({path.name: path.read_bytes() for path in project.stored.iterdir()})
    assert orders[0] != orders[1]
    assert stored[0] == stored[1]


def test_two_checks_of_one_file_are_refused(project):
    project.write(
        test_mine="from mine import MySGD\ndef test_sgd(optrace_baseline):\n"
        "    optrace_baseline.check(MySGD)\n    optrace_baseline.check(MySGD)\n"
        "def test_names(optrace_baseline):\n"
        "    optrace_baseline.check(MySGD, 'lr/2')\n    optrace_baseline.check(MySGD, 'LR:2')\n"
    )
    result = project.run("--optrace-regen=new")
    result.assert_outcomes(failed=2)
    assert "two checks of test_sgd have the same name ''; give check(x, name=...)" in lines(result)
    assert "test_names have the names 'lr/2' and 'LR:2', which are one file; give" in lines(result)


def test_an_optimizer_that_is_no_factory_is_refused_in_words(project):
    project.write(
        test_mine="import torch\ndef test_sgd(optrace_baseline):\n"
        "    optrace_baseline.check(torch.optim.SGD([torch.ones(1)], lr=1))\n"
    )
    assert "takes a factory of an optimizer" in lines(project.run())
