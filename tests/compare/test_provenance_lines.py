"""What differs in how two runs came to be: what may matter first, packages that were merely imported in one line."""

from __future__ import annotations

import json

import torch

import optrace

torch.set_num_threads(1)


def recorded(path, lr, **distributions):
    p = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=lr)
    with optrace.record(path, quiet=True):
        p.grad = torch.ones(3)
        optimizer.step()
    told = path / "rank=00000" / "rank.json"
    rank = json.loads(told.read_text())
    names = {name.replace("_", "-"): version for name, version in distributions.items()}
    told.write_text(json.dumps(rank | {"distributions": names}))
    return path


def differs(report):
    lines = str(report).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("  differs"))
    end = next((i for i in range(first + 1, len(lines)) if not lines[i].startswith("   ")), len(lines))
    return [line[10:] for line in lines[first:end]]


def test_packages_that_one_side_merely_imported_share_a_line(tmp_path):
    a = recorded(tmp_path / "a", 0.1, numpy="2.0.0", pandas="2.2.2", rich="13.0", tqdm="4.6")
    b = recorded(tmp_path / "b", 0.2, numpy="2.1.0", pandas="2.2.3", wandb="0.17", flash_attn="2.5")
    report = optrace.diff(a, b)
    assert differs(report) == [
        "distributions.numpy: 2.0.0 -> 2.1.0",
        "distributions.pandas: 2.2.2 -> 2.2.3",
        "distributions.flash-attn: none -> 2.5",
        "imported by a alone: rich, tqdm",
        "imported by b alone: wandb",
    ]
    assert {d.key for d in report.provenance} >= {"distributions.rich", "distributions.wandb"}


def test_many_of_them_are_counted(tmp_path):
    a = recorded(tmp_path / "a", 0.1)
    b = recorded(tmp_path / "b", 0.2, **{f"package{i}": "1" for i in range(9)})
    (line,) = differs(optrace.diff(a, b))
    assert line == "imported by b alone: package0, package1, package2, package3, package4 and 4 more"
