"""What training code relies on in an optimizer holds for ours."""

import pytest
from tinyoptim import SGD, CautiousAdamW, Lion


@pytest.mark.optrace_conformance(
    [(SGD, {"lr": 0.1}), Lion, (CautiousAdamW, {}, {"float16": "eps 1e-8 is zero in float16"})]
)
def test_conformance(optrace_conformance):
    optrace_conformance.check()
