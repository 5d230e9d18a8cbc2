"""Conformance over torch's own optimizers and a few of a library: what does not hold is in docs/findings.md."""

import pytest
import torch
from sweep import judge, subject, torch_subjects

BROKEN = {
    "ASGD": {"lr_change"},
    "Adafactor": {"shape_grid"},
    "Adam": {"float16"},
    "AdamW": {"float16"},
    "LBFGS": {"deepcopy", "pickled", "groups", "late_group"},  # the last two by design: it takes one group
    "Muon": {"shape_grid"},  # by design: matrices only
    "NAdam": {"float16"},
    "RMSprop": {"float16"},
    "Rprop": {"lr_change"},
    "SparseAdam": {"float16", "shape_grid"},  # 0-d gradients cannot be sparse
}
COPIES = {"deepcopy", "pickled"}
OF_A_LIBRARY = {
    "lion": COPIES,
    "adan": COPIES | {"maximize"},
    "lars": COPIES | {"keeps_grads"},
    "apollodqn": COPIES | {"groups", "lr_change"},
}


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="findings of torch 2.13")
@pytest.mark.parametrize(("name", "thing"), [pytest.param(*pair, id=pair[0]) for pair in torch_subjects()])
@pytest.mark.filterwarnings("ignore")
def test_every_optimizer_of_torch_has_every_property_but_for_the_findings(name, thing):
    found = judge(thing)
    assert set(found) == BROKEN.get(name, set()), found


@pytest.mark.filterwarnings("ignore")
def test_a_library_breaks_what_the_findings_say():
    library = pytest.importorskip("pytorch_optimizer")
    for name, broken in OF_A_LIBRARY.items():
        found = judge(subject(library.load_optimizer(name)))
        assert broken <= set(found), (name, found)
        assert not any("could not be tried" in why for why in found.values()), found
