"""What recording takes of the program's address space: a fixed sum, and within `--memory` what grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from launching import environment

BOUND = 8 * 2**20
SLACK = 4 * 2**20
"""Pages that the allocator rounds up to."""

PROGRAM = """
import contextlib, json, os, resource, sys, torch
import optrace
from optrace.recorder import provenance, session, steps, wrappers  # imported before the measure, in all of them
from optrace.trace import writer

torch.set_num_threads(1)


def train(layers, settings):
    model = torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(layers)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    settings = {"quiet": True, "strict": True, **settings}
    with optrace.record(settings.pop("path"), **settings) if "path" in settings else contextlib.nullcontext():
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 1024)).square().mean().backward()
            optimizer.step()


def in_child(layers, settings, limit=None):
    reader, writing = os.pipe()
    child = os.fork()
    if child == 0:
        if limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            train(layers, dict(settings))
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            said = {"peak": int(status["VmPeak"].split()[0]) * 1024}
        except (MemoryError, RuntimeError) as error:
            said = {"error": str(error).splitlines()[0]}
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reader) as answer:
        return json.loads(answer.read() or '{"error": "it died"}')


BOUND, SLACK = int(sys.argv[1]), int(sys.argv[2])
found, most = {}, {}
for size, layers in (("small", 1), ("large", 24)):
    bare, recorded = [], []
    for turn in range(2):  # where the allocator puts things differs by up to 13 MB from one bare process to the next
        bare.append(in_child(layers, {}))
        recorded.append(in_child(layers, {"path": f"run_{size}_{turn}", "memory": BOUND}))
    found[f"{size} bare"] = min(bare, key=lambda said: said["peak"])
    found[f"{size} recorded"] = min(recorded, key=lambda said: said["peak"])
    most[size] = [max(said["peak"] for said in turns) for turns in (bare, recorded)]
fixed = most["small"][1] - found["small bare"]["peak"]  # the limited process is one more, and differs as they do
limit = most["large"][0] + fixed + BOUND + SLACK
found["large recorded, limited"] = in_child(24, {"path": "run_limited", "memory": BOUND}, limit)
found["large bare, too little"] = in_child(24, {}, (found["small bare"]["peak"] + found["large bare"]["peak"]) // 2)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """The most address space, in bytes, that children of one process had, or the error that ended them."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    folder = tmp_path_factory.mktemp("memory")
    command = [sys.executable, "-c", PROGRAM, str(BOUND), str(SLACK)]
    variables = environment(MALLOC_ARENA_MAX="1")
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def test_memory_that_grows_with_the_model_stays_within_the_bound(peaks):
    taken = {size: peaks[f"{size} recorded"]["peak"] - peaks[f"{size} bare"]["peak"] for size in ("small", "large")}
    assert taken["large"] - taken["small"] <= BOUND + SLACK, taken
    assert peaks["large bare"]["peak"] - peaks["small bare"]["peak"] > 5 * BOUND, "a copy of all would have shown"


def test_a_program_that_fits_in_its_limit_fits_when_recorded_but_for_the_bound(peaks):
    assert "error" not in peaks["large recorded, limited"], peaks["large recorded, limited"]
    assert "error" in peaks["large bare, too little"], "the limit is one that a program can run into"
