"""Fingerprints of the batches that loaders yield and of the random state, with the steps that they go into."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from listening import listening, mse, small_data, small_model
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from optrace.trace.measure import fingerprint

torch.set_num_threads(1)
DATA = small_data()


# ---- loaders ----


def word(values: Any) -> int:
    return fingerprint(np.asarray(values))


def batch_word(*leaves: int) -> int:
    """Fingerprint of a batch from those of its leaves, through the NumPy implementation of the hash."""
    return fingerprint(np.array(leaves, dtype=np.uint64))


def as_signed(number: int) -> int:
    return int(np.uint64(number).astype(np.int64))


class Countdown(IterableDataset[torch.Tensor]):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(12.0).flip(0).reshape(12, 1))


class Named(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((4,), float(index)), "label": index, "text": f"item {index}"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_batches_are_fingerprinted_as_they_were_yielded(workers: int, persistent: bool) -> None:
    if persistent and not workers:
        pytest.skip("nothing to persist")
    loader = DataLoader(
        TensorDataset(*small_data(12)),
        batch_size=4,
        shuffle=True,
        num_workers=workers,
        persistent_workers=persistent,
        generator=torch.Generator().manual_seed(3),
    )
    expected = []
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            for inputs, targets in loader:
                mse(model, (inputs, targets)).backward()
                optimizer.step()
                optimizer.zero_grad()
                expected.append(as_signed(batch_word(word(inputs), word(targets))))
    assert [taken["batch"] for taken in heard.taken()] == expected
    assert len(set(expected)) == 6


def test_batches_of_other_kinds_are_fingerprinted() -> None:
    class Backwards(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(5, -1, -1))

        def __len__(self) -> int:
            return 6

    expected = []
    with listening() as heard:
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = SGD([weight], lr=0.1)
        for batch in DataLoader(Countdown(), batch_size=6):
            (weight * batch).sum().backward()
            optimizer.step()
            expected.append(as_signed(batch_word(word(batch))))
        for batch in DataLoader(Named(), batch_size=3, sampler=Backwards()):
            (weight * batch["x"]).sum().backward()
            optimizer.step()
            keys = {key: word(np.frombuffer(key.encode(), np.uint8)) for key in batch}
            texts = [word(np.frombuffer(text.encode(), np.uint8)) for text in batch["text"]]
            leaves = [keys["x"], word(batch["x"]), keys["label"], word(batch["label"]), keys["text"], *texts]
            expected.append(as_signed(batch_word(*leaves)))
    assert [taken["batch"] for taken in heard.taken()] == expected


def test_several_batches_of_a_step_are_put_together_in_order_and_evaluation_is_left_out() -> None:
    loader = DataLoader(TensorDataset(*small_data(8)), batch_size=4)
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        words = []
        for inputs, targets in loader:
            mse(model, (inputs, targets)).backward()
            words.append(batch_word(word(inputs), word(targets)))
        with torch.no_grad():
            for _ in loader:
                pass
        optimizer.step()
        optimizer.step()
    assert [taken["batch"] for taken in heard.taken()] == [as_signed(batch_word(*words)), None]


def test_only_the_first_megabyte_of_a_tensor_counts() -> None:
    from optrace.recorder.fingerprints import batch_fingerprint

    big = torch.randn(3, 512, 400)
    limit = (1 << 20) // 4
    assert batch_fingerprint(big) == batch_word(word(big.reshape(-1)[:limit]))
    strided = big.transpose(1, 2)
    assert batch_fingerprint(strided) == batch_word(word(strided.reshape(-1)[:limit]))
    assert batch_fingerprint(big.numpy().transpose(0, 2, 1)) == batch_fingerprint(strided)
    changed = big.clone()
    changed[2, 511, 399] += 1
    assert batch_fingerprint(changed) == batch_fingerprint(big)


@pytest.mark.parametrize(
    "batch",
    [
        (1, 2.5, "text", b"bytes", None, True, 1 << 70),
        [*range(40)],
        [0.5] * 40,
        [*range(40), "mixed"],
        [[1, 2], [3]],
        torch.randn(3, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
        torch.randn(2).to(torch.float8_e4m3fn),
        torch.empty(0),
        np.array(["a", "b"], dtype=object),
        np.array("2020-01-01", dtype="datetime64[D]"),
        {"a": {"b": [torch.ones(2)]}},
        object(),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_any_batch_has_the_same_fingerprint_each_time(batch: Any) -> None:
    import copy

    from optrace.recorder.fingerprints import batch_fingerprint

    assert batch_fingerprint(copy.deepcopy(batch)) == batch_fingerprint(batch)


# ---- random generators ----


def test_generators_are_told_by_their_state_at_the_first_backward_of_a_step() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)

        def one(before: Callable[[], object], between: Callable[[], object] = lambda: None) -> int:
            torch.manual_seed(5)
            random.seed(6)
            np.random.seed(7)
            before()
            mse(model, DATA).backward()
            between()
            mse(model, DATA).backward()
            optimizer.step()
            number: int = heard.taken()[-1]["rng"]
            return number

        base = one(lambda: None)
        assert one(lambda: None, lambda: torch.rand(3)) == base
        draws: list[Callable[[], object]] = [
            lambda: torch.rand(1),
            random.random,
            np.random.rand,
            lambda: torch.randn(1),
        ]
        others = [one(draw) for draw in draws]
        assert one(lambda: None) == base
    assert len({base, *others}) >= len(draws)
    assert base not in others


def test_reading_the_generators_changes_none_of_them_and_is_the_same_in_every_process() -> None:
    import subprocess
    import sys

    from optrace.recorder.generators import generator_fingerprint

    code = (
        "import random, numpy, torch\n"
        "random.seed(1); numpy.random.seed(2); torch.manual_seed(3); torch.randn(7); numpy.random.rand(700)\n"
        "from optrace.recorder.generators import generator_fingerprint\n"
        "print(generator_fingerprint())"
    )
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    torch.randn(7)
    np.random.rand(700)
    expected = [random.Random(1).random(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]
    here = generator_fingerprint()
    assert [random.random(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()] == expected
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == here


def test_state_of_python_is_read_the_same_through_memory_and_through_its_door() -> None:
    from optrace.recorder import generators

    generator = generators._Host()
    fast = generators._crc(generator.parts())
    generator._python = None
    assert generators._crc(generator.parts()) == fast


@pytest.mark.parametrize(
    "draw",
    [
        lambda: None,
        lambda: torch.rand(3),
        lambda: torch.randn(1, dtype=torch.float64),  # keeps a second deviate
        lambda: torch.manual_seed(5),
        lambda: torch.set_rng_state(torch.get_rng_state()),
        lambda: random.random(),
        lambda: np.random.rand(),
    ],
    ids=["nothing", "uniform", "normal", "seed", "set", "python", "numpy"],
)
@pytest.mark.parametrize("unchanged", ["kernel", "python"])
def test_generators_that_have_not_moved_are_not_hashed_again_and_others_are(
    draw: Callable[[], object], unchanged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optrace.recorder import generators

    if unchanged == "python":
        monkeypatch.setattr(generators, "_unchanged", generators._unchanged_in_python)
    assert generators._engine(torch) is not None
    generators.generator_fingerprint()
    hashed = []
    monkeypatch.setattr(
        generators, "_torch_crc", lambda torch, crc=generators._torch_crc: (hashed.append(1), crc(torch))[1]
    )
    draw()
    found = [generators.generator_fingerprint() for _ in range(3)]
    assert len(hashed) <= 1
    generators.LAST.clear()
    monkeypatch.setattr(generators, "_TORCH", generators._Torch())
    assert found == [generators.generator_fingerprint()] * 3
    assert len(hashed) >= 1
