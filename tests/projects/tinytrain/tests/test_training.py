"""The optimizer of the training script does at each step what it did."""

from tinytrain.train import train


def test_optimizer_of_the_script_stays(optrace_record, optrace_baseline):
    optrace_baseline.check(optrace_record(train))


def test_two_runs_are_the_same(optrace_record):
    from optrace.testing import assert_traces_close

    assert_traces_close(optrace_record(train), optrace_record(train), exact=True)
