"""Events of clipping, GradScaler, schedulers and loaders, in real training loops."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from listening import Listening, listening, mse, small_data, small_model
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from optrace.trace.measure import fingerprint

torch.set_num_threads(1)
DATA = small_data()
MASK = (1 << 64) - 1


# ---- clipping ----


def norm_of_gradients(model: torch.nn.Module) -> float:
    squares = [param.grad.double().square().sum() for param in model.parameters() if param.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def test_clip_tells_limit_and_norm_before_clipping() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        mse(model, DATA).backward()
        before = norm_of_gradients(model)
        returned = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.001)
        torch.nn.utils.clip_grad_value_(model.parameters(), 1e-4)
        optimizer.step()
    first, second, third = heard.of("clip")
    assert first == {"kind": "norm", "max_norm": 0.01, "norm_type": 2.0, "total_norm": returned.item()}
    assert second["max_norm"] == 0.001
    assert second["total_norm"] == pytest.approx(0.01, rel=1e-4)
    assert third == {"kind": "value", "clip_value": 1e-4}
    assert heard.taken()[0]["grad_norm"] == returned.item()
    assert returned.item() == pytest.approx(before, rel=1e-6)


def test_clip_in_two_calls_is_told_with_the_given_norm() -> None:
    if not hasattr(torch.nn.utils, "get_total_norm"):
        pytest.skip("this torch clips in one call only")
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        mse(model, DATA).backward()
        norm = torch.nn.utils.get_total_norm([param.grad for param in model.parameters()])
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), 0.01, norm)
        optimizer.step()
    assert heard.of("clip") == [{"kind": "norm", "max_norm": 0.01, "total_norm": norm.item()}]
    assert heard.taken()[0]["grad_norm"] == norm.item()


def test_step_without_clip_has_no_norm_and_the_next_step_forgets_it() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        for clip in (True, False):
            mse(model, DATA).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
            optimizer.step()
    assert [taken["grad_norm"] is None for taken in heard.taken()] == [False, True]


def test_clip_belongs_to_the_optimizer_whose_parameters_it_got() -> None:
    with listening() as heard:
        one, two = small_model(1), small_model(2)
        first, second = SGD(one.parameters(), lr=0.1), SGD(two.parameters(), lr=0.1)
        (mse(one, DATA) + mse(two, DATA)).backward()
        norm = torch.nn.utils.clip_grad_norm_(two.parameters(), 0.01)
        first.step()
        second.step()
    assert [(kind, owner is second) for kind, owner, _ in heard.events if kind == "clip"] == [("clip", True)]
    assert [taken["grad_norm"] for taken in heard.taken()] == [None, norm.item()]


@pytest.mark.parametrize("optimizers", [1, 2])
def test_clip_of_an_exhausted_generator_warns_as_without_us(optimizers: int) -> None:
    with listening():
        kept = [SGD(small_model().parameters(), lr=0.1) for _ in range(optimizers)]
        with pytest.warns(UserWarning, match="empty generator") as caught:
            torch.nn.utils.clip_grad_norm_((param for param in ()), 1.0)
    assert len(kept) == optimizers
    assert caught[0].filename == __file__


# ---- GradScaler ----


def scaled_loop(heard: Listening, make: Callable[[Any], torch.optim.Optimizer], clip: str = "") -> list[float]:
    """Four steps with a planted inf in the second; returns the true losses of the steps that were made."""
    model = small_model()
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    losses = []
    for number in range(4):
        optimizer.zero_grad()
        loss = mse(model, DATA) * (float("inf") if number == 1 else 1.0)
        scaler.scale(loss).backward()
        if clip == "before unscale":
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if clip == "after unscale":
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if number != 1:
            losses.append(loss.item())
    return losses


def test_scaler_that_skips_a_step_is_told_and_losses_are_unscaled() -> None:
    with listening() as heard:
        losses = scaled_loop(heard, lambda params: SGD(params, lr=0.01))
    one = ["zero_grad", "backward", "unscale"]
    assert heard.kinds() == [*one, "step", *one, "step_skipped", *one, "step", *one, "step"]
    assert heard.of("unscale") == [{"scale": scale} for scale in (1024.0, 1024.0, 512.0, 512.0)]
    assert heard.of("step_skipped") == [{"scale": 1024.0, "why": "inf or nan in the gradients"}]
    assert [taken["loss"] for taken in heard.taken()] == losses
    assert [taken["n_skipped"] for taken in heard.taken()] == [0, 1, 0]
    assert [taken["n_backward"] for taken in heard.taken()] == [1, 2, 1]


def test_fused_optimizer_unscales_itself_and_its_skip_is_left_to_the_hooks() -> None:
    with listening() as heard:
        losses = scaled_loop(heard, lambda params: Adam(params, fused=True))
    assert heard.of("unscale") == [{"scale": scale, "by": "step"} for scale in (1024.0, 1024.0, 512.0, 512.0)]
    assert "step_skipped" not in heard.kinds()
    assert [taken["loss"] for taken in heard.taken()] == losses


def test_clip_before_unscale_sees_scaled_gradients_and_after_it_true_ones() -> None:
    norms = {}
    for clip in ("before unscale", "after unscale"):
        with listening() as heard:
            scaled_loop(heard, lambda params: SGD(params, lr=0.01), clip)
        kinds = [kind for kind in heard.kinds() if kind in ("clip", "unscale")][:2]
        assert kinds == (["clip", "unscale"] if clip == "before unscale" else ["unscale", "clip"])
        norms[clip] = heard.taken()[0]["grad_norm"]
    assert norms["before unscale"] == pytest.approx(1024 * norms["after unscale"], rel=1e-6)


def test_disabled_scaler_tells_nothing() -> None:
    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        loss = mse(model, DATA)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert heard.kinds() == ["backward", "step"]
    assert heard.losses(optimizer) == [loss.item()]


# ---- schedulers ----

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: schedulers.StepLR(o, 2),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [1, 2]),
    "ConstantLR": lambda o: schedulers.ConstantLR(o),
    "LinearLR": lambda o: schedulers.LinearLR(o),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=10),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o), schedulers.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.05),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o),
}


def test_the_table_below_has_every_scheduler_of_torch() -> None:
    known = {name for name in schedulers.__all__ if name != "LRScheduler"} | {"SWALR"}
    assert known == set(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_tells_one_event_a_step_and_none_when_made(name: str) -> None:
    rates: dict[str, list[float]] = {}
    for mode in ("bare", "observed"):
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

        def train(optimizer: Any = optimizer, model: Any = model, mode: str = mode) -> None:
            scheduler = SCHEDULERS[name](optimizer)
            for _ in range(4):
                loss = mse(model, DATA)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step(*([loss.item()] if name == "ReduceLROnPlateau" else []))
                rates.setdefault(mode, []).append(optimizer.param_groups[0]["lr"])

        if mode == "bare":
            train()
        else:
            with listening() as heard:
                train()
            last_epochs = [None] * 4 if name == "ChainedScheduler" else [1, 2, 3, 4]
            assert heard.of("scheduler_step") == [{"class": name, "last_epoch": last} for last in last_epochs]
            assert all(owner is optimizer for kind, owner, _ in heard.events if kind == "scheduler_step")
            assert [kind for kind in heard.kinds() if kind in ("step", "scheduler_step")] == [
                "step",
                "scheduler_step",
            ] * 4
    assert rates["bare"] == rates["observed"]


def test_scheduler_class_made_while_observed_is_seen_and_its_super_step_not_told_twice() -> None:
    with listening() as heard:

        class Mine(schedulers.StepLR):
            def step(self, epoch: int | None = None) -> None:
                super().step(epoch)

        class OnPlateau(schedulers.ReduceLROnPlateau):
            def step(self, metrics: float, epoch: int | None = None) -> None:
                super().step(metrics, epoch)

        optimizer = SGD(small_model().parameters(), lr=0.1)
        scheduler, plateau = Mine(optimizer, 2), OnPlateau(optimizer)
        optimizer.step()
        scheduler.step()
        plateau.step(1.0)
    assert [data["class"] for data in heard.of("scheduler_step")] == ["Mine", "OnPlateau"]


def test_warning_of_a_scheduler_names_the_line_of_the_program_and_comes_as_often() -> None:
    def provoke() -> list[tuple[str, int]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                optimizer = SGD(small_model().parameters(), lr=0.1)
                schedulers.StepLR(optimizer, 2).step()
        return [(warning.filename, warning.lineno) for warning in caught]

    bare = provoke()
    with listening():
        observed = provoke()
    assert len(bare) == 2
    assert bare[0][0] == __file__
    assert observed == bare


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
def test_generators_that_have_not_moved_are_not_hashed_again_and_others_are(draw: Callable[[], object]) -> None:
    from optrace.recorder import generators

    assert generators._engine(torch) is not None
    generators.generator_fingerprint()
    draw()
    kept, generators._TORCH = generators._TORCH, generators._Torch()
    anew = generators.generator_fingerprint()
    generators._TORCH = kept
    assert [generators.generator_fingerprint() for _ in range(2)] == [anew, anew]


# ---- all together ----


def test_weights_are_bitwise_those_of_the_bare_run() -> None:
    def train() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        optimizer = AdamW(model.parameters(), lr=0.01)
        scheduler = schedulers.OneCycleLR(optimizer, 0.1, total_steps=20)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for _ in range(4):
            for inputs, targets in DataLoader(TensorDataset(*small_data(12)), batch_size=4, shuffle=True):
                loss = mse(model, (inputs + np.random.RandomState(1).rand() + random.random() * 0, targets))
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                scheduler.step()
            optimizer.load_state_dict(optimizer.state_dict())
        return [param.detach().clone() for param in model.parameters()]

    bare = train()
    with listening():
        observed = train()
    assert all(torch.equal(a, b) for a, b in zip(bare, observed, strict=True))


@pytest.mark.parametrize("passed", [iter, list, tuple])
def test_a_clip_is_told_of_the_optimizer_whose_parameters_it_clips(passed: Any) -> None:
    def params(model: torch.nn.Module) -> Any:
        return (param for param in model.parameters()) if passed is iter else passed(model.parameters())

    with listening() as heard:
        first, second = small_model(), small_model(1)
        of_first, of_second = SGD(first.parameters(), lr=0.1), SGD(second.parameters(), lr=0.1)
        mse(first, DATA).backward()
        mse(second, DATA).backward()
        norm = torch.nn.utils.clip_grad_norm_(params(second), 0.01)
        torch.nn.utils.clip_grad_value_(parameters=params(first), clip_value=1e-4)
        of_first.step()
        of_second.step()
    assert [taken["grad_norm"] for taken in heard.taken()] == [None, norm.item()]
    assert all(param.grad is not None and param.grad.abs().max() <= 1e-4 for param in first.parameters())


def test_a_generator_that_fails_inside_a_clip_fails_as_without_us() -> None:
    def params() -> Any:
        yield from model.parameters()
        raise LookupError("the second half")

    with listening() as heard:
        model = small_model()
        optimizer = SGD(model.parameters(), lr=0.1)
        mse(model, DATA).backward()
        with pytest.raises(LookupError, match="the second half"):
            torch.nn.utils.clip_grad_norm_(params(), 0.01)
        optimizer.step()
    assert heard.of("clip") == []
