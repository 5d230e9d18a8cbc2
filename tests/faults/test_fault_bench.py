"""Every fault of the bench is located and named, and nothing else is; every control blames no optimizer."""

from __future__ import annotations

import pytest

import optrace
from tests.faults.cases import FAULTS, Fault
from tests.faults.findings import FINDINGS
from tests.faults.table import table, try_fault

pytestmark = [
    pytest.mark.usefixtures("only_what_is_new"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),  # what the per-micro-batch fault does
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_cause_is_found_and_no_other(tmp_path, fault: Fault):
    result = try_fault(fault, tmp_path)
    assert result.located, f"{fault.where} expected:\n{result.report}"
    assert result.named, f"{fault.codes} expected, {result.said} said:\n{result.report}"
    assert not result.wrong, f"{fault.codes} expected, {result.said} said:\n{result.report}"
    for side, expected in (("right", ()), ("wrong", FINDINGS.get(fault.name, ()))):
        found = optrace.lint(tmp_path / side)
        assert found.codes == expected, f"{side} run:\n{found}"


def test_the_table_counts_what_was_found(tmp_path):
    fault = next(fault for fault in FAULTS if fault.name == "nesterov-sign")
    lines = table([try_fault(fault, tmp_path)])
    assert "| nesterov-sign | Paddle#12231 | 1 update | rule-nesterov | rule-nesterov | yes | yes | no |" in lines
    assert lines[-1].startswith("1 faults: located 1, named 1 (100%), wrongly named 0")


def test_the_linter_is_asked_about_faults_of_the_bench_alone():
    assert set(FINDINGS) <= {fault.name for fault in FAULTS if fault.codes}


def test_names_are_unique_and_most_faults_are_real_or_controls():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    real = [fault for fault in FAULTS if "#" in fault.case]
    assert len(real) >= 25
    assert sum(fault.case == "own" for fault in FAULTS) >= 25
