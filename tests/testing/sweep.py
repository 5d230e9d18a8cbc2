"""Conformance over every optimizer of torch and of pytorch_optimizer, as a table: `python tests/testing/sweep.py`."""

from __future__ import annotations

import json
import sys
import time
import warnings

import torch

from optrace.testing.conformance import OptimizerConformance, verdict
from optrace.testing.properties import PROPERTIES
from optrace.testing.subject import NotApplicable

MATRICES = ((8, 8), (9, 8))


def subject(kind, **settings):
    """A conformance subject of a class, with options, shapes and closures as it needs them."""
    options = settings.pop("options", {})
    body = {"optimizer": kind, "options": options, **settings}
    return type(kind.__name__, (OptimizerConformance,), body)()


def with_closure(self, params, step):
    OptimizerConformance.backward(self, params, step)
    fixed = [p.grad.clone() if p.grad is not None else None for p in params]

    def closure():
        for p, g in zip(params, fixed, strict=True):
            p.grad = None if g is None else g.clone()
        return sum((p * g).sum() for p, g in zip(params, fixed, strict=True) if g is not None)

    return closure


def sparse(self, params, step):
    OptimizerConformance.backward(self, params, step)
    for p in params:
        if p.grad is not None:
            p.grad = p.grad.to_sparse(1) if p.dim() else p.grad


def with_graph(self, params, step):
    params = [p for p in params if p.requires_grad]
    loss = sum(((p - 0.01 * step) ** 2).sum() for p in params)
    loss.backward(create_graph=True)


def torch_subjects():
    special = {
        "LBFGS": {"backward": with_closure},
        "SparseAdam": {"backward": sparse, "shapes": MATRICES},
        "Muon": {"shapes": MATRICES},
        "SGD": {"options": {"lr": 0.01, "momentum": 0.9, "nesterov": True}},
    }
    for name in sorted(vars(torch.optim)):
        kind = getattr(torch.optim, name)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer:
            yield name, subject(kind, **special.get(name, {}))


def library_subjects():
    import pytorch_optimizer

    for name in sorted(pytorch_optimizer.get_supported_optimizers()):
        try:
            kind = pytorch_optimizer.load_optimizer(name)
        except Exception as error:
            print(f"{name:<20} cannot be loaded: {error}", flush=True)
            continue
        settings = {}
        if name in ("muon", "adamuon", "adago"):
            settings["shapes"] = MATRICES
        yield name, subject(kind, **settings)


def judge(thing):
    """Property -> why it does not hold, for those that do not."""
    found = {}
    for name in PROPERTIES:
        try:
            why = verdict(name, thing)
        except NotApplicable:
            continue
        if why is not None:
            found[name] = why
    return found


def main(which):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {}
    for name, thing in torch_subjects() if which == "torch" else library_subjects():
        start = time.perf_counter()
        found[name] = judge(thing)
        print(
            f"{name:<20} {len(found[name]):>2} {time.perf_counter() - start:5.1f} s  {' '.join(found[name])}",
            flush=True,
        )
    json.dump(found, open(f"/tmp/sweep-{which}.json", "w"), indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
