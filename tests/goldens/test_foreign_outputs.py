"""Outputs written by another language in the golden format, with as little as a port keeps, are judged and named."""

from __future__ import annotations

import csv
import io
import json

import pytest

import optrace
from optrace.goldens.library import golden_folder


def ported_adamw(text: str, decay_after: bool) -> str:
    """The CSV with the outputs of an AdamW in plain Python, as a port to another language would write it: no step."""
    lines = text.splitlines()
    head = [line for line in lines if line.startswith("#")]
    (hyper,) = json.loads(next(line for line in head if line.startswith("# hyper:")).removeprefix("# hyper:"))
    (first, second), lr, eps, decay = hyper["betas"], hyper["lr"], hyper["eps"], hyper["weight_decay"]
    p: dict[str, list[float]] = {}
    m: dict[str, list[float]] = {}
    v: dict[str, list[float]] = {}
    out = io.StringIO()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        name, values = row["param"], [float(value) for value in row["values"].split()]
        if row["quantity"] == "param" and row["step"] == "0":
            p[name], m[name], v[name] = values, [0.0] * len(values), [0.0] * len(values)
        elif row["quantity"] == "grad":
            t = int(row["step"])
            for i, g in enumerate(values):
                m[name][i] = first * m[name][i] + (1 - first) * g
                v[name][i] = second * v[name][i] + (1 - second) * g * g
                if not decay_after:
                    p[name][i] -= lr * decay * p[name][i]
                p[name][i] -= lr * (m[name][i] / (1 - first**t)) / ((v[name][i] / (1 - second**t)) ** 0.5 + eps)
                if decay_after:
                    p[name][i] -= lr * decay * p[name][i]
        elif row["quantity"] == "state.step":
            continue
        else:
            made = {"param": p, "state.exp_avg": m, "state.exp_avg_sq": v}[row["quantity"]][name]
            row["values"] = " ".join(map(repr, made))
        writer.writerow(row)
    return "\n".join(head) + "\n" + out.getvalue()


@pytest.mark.parametrize("decay_after", [False, True])
def test_a_port_without_a_step_count_is_judged_and_its_mistake_named(tmp_path, decay_after):
    text = (golden_folder() / "adamw" / "plain.csv").read_text(encoding="utf-8")
    (tmp_path / "port.csv").write_text(ported_adamw(text, decay_after), encoding="utf-8")
    report = optrace.diff("golden:adamw/plain", tmp_path / "port.csv")
    assert report.same is not decay_after
    if decay_after:
        assert report.causes[0].code == "rule-decay-order"
