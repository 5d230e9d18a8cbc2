"""Drive a reference optimizer and torch's over the same parameters and gradients, and compare bit for bit."""

import numpy as np
import torch

import optrace.reference as reference
from optrace.reference import Parameter, rounding

SHAPES = [(), (1,), (7,), (16,), (33,), (3, 5), (100,), "strided", (41, 37)]
STEPS = 200
FUSED = torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def tensor_of(array):
    """The array as a tensor of the same strides, on which the order of torch's sums depends."""
    return torch.from_numpy(np.asarray(array))


def torch_sqrt(array):
    return tensor_of(array).sqrt().numpy()


def torch_norm(array, axis=None):
    if axis is None:
        return tensor_of(array).norm(2).numpy()
    return torch.norm(tensor_of(array), dim=axis, keepdim=True).numpy()


def torch_bfloat16_matmul(a, b, addend=None, beta=0, alpha=1):
    a, b = tensor_of(a).bfloat16(), tensor_of(b).bfloat16()
    if addend is None:
        return (a @ b).float().numpy()
    return torch.addmm(tensor_of(addend).bfloat16(), a, b, beta=beta, alpha=alpha).float().numpy()


TORCHS_OWN = {
    "sqrt": torch_sqrt,
    "total": lambda array: tensor_of(array).sum().numpy()[()],
    "dot": lambda a, b: tensor_of(a).dot(tensor_of(b)).numpy()[()],
    "norm": torch_norm,
    "mean": lambda array, axis: tensor_of(array).mean(dim=axis, keepdim=True).numpy(),
    "bfloat16_matmul": torch_bfloat16_matmul,
}


def make(shape, dtype, rng):
    """An array of standard normals; "strided" is every second column of a transposed 12x9 array."""
    values = rng.standard_normal((12, 9) if shape == "strided" else shape)
    if np.dtype(dtype).kind == "c":
        values = values + 1j * rng.standard_normal(values.shape)
    values = np.asarray(values).astype(dtype)
    return values.T[::2] if shape == "strided" else values


class Twins:
    """The same parameters twice, in one optimizer of torch's and one of ours."""

    def __init__(self, name, options, dtype=np.float32, shapes=SHAPES, groups=None, seed=0):
        self.name, self.options, self.dtype = name, options, dtype
        self.rng = np.random.default_rng(seed)
        self.ours = [Parameter(make(shape, dtype, self.rng)) for shape in shapes]
        self.theirs = []
        for mine in self.ours:
            tensor = torch.empty_strided(
                mine.data.shape,
                [stride // mine.data.itemsize for stride in mine.data.strides],
                dtype=torch.from_numpy(mine.data).dtype,
            )
            tensor.copy_(torch.from_numpy(mine.data))
            self.theirs.append(tensor.requires_grad_())
        self.group_options = groups or [{}]
        self.our_optimizer = self.build(reference, self.ours)
        self.their_optimizer = self.build(torch.optim, self.theirs)

    def build(self, library, params):
        n = len(self.group_options)
        groups = [{"params": params[index::n], **options} for index, options in enumerate(self.group_options)]
        options = dict(self.options)
        if library is torch.optim and self.name not in ("SparseAdam", "Muon", "LBFGS"):
            options["foreach"] = False
        return getattr(library, self.name)(groups, **options)

    def feed(self, step, missing=()):
        """Fresh gradients whose size depends on step and parameter; None for the indices in `missing`."""
        for index, (mine, tensor) in enumerate(zip(self.ours, self.theirs, strict=True)):
            if index in missing:
                mine.grad = tensor.grad = None
                continue
            size = 10.0 ** (((step * 7 + index * 3) % 9) / 2 - 3)  # 1e-3 ... 10
            grad = make(mine.data.shape, self.dtype, self.rng) * np.dtype(self.dtype).type(size)
            grad = np.array(grad, self.dtype, order="C")
            mine.grad, tensor.grad = grad, torch.from_numpy(grad.copy())

    def step(self):
        self.our_optimizer.step()
        self.their_optimizer.step()

    def set(self, **options):
        for optimizer in (self.our_optimizer, self.their_optimizer):
            for group in optimizer.param_groups:
                group.update(options)

    def scale_lr(self, factor):
        for optimizer in (self.our_optimizer, self.their_optimizer):
            for group in optimizer.param_groups:
                group["lr"] *= factor

    def resume(self):
        """Replace both optimizers by new ones that loaded the old ones' state dicts."""
        saved, their_saved = self.our_optimizer.state_dict(), self.their_optimizer.state_dict()
        self.our_optimizer, self.their_optimizer = (
            self.build(reference, self.ours),
            self.build(torch.optim, self.theirs),
        )
        self.our_optimizer.load_state_dict(saved)
        self.their_optimizer.load_state_dict(their_saved)

    def check(self, step, ulps=0):
        """Parameters, state keys, state dtypes and state bits are equal."""
        for index, (mine, tensor) in enumerate(zip(self.ours, self.theirs, strict=True)):
            where = f"{self.name} {self.options} step {step} param {index} {mine.data.shape}"
            assert_same(mine.data, tensor.detach().numpy(), where)
            state = self.our_optimizer.state.get(mine, {})
            their_state = self.their_optimizer.state.get(tensor, {})
            assert sorted(state) == sorted(their_state), where
            for key, value in their_state.items():
                assert_same(state[key], value.numpy() if isinstance(value, torch.Tensor) else value, f"{where} {key}")


def assert_same(ours, theirs, where):
    theirs = np.asarray(theirs)
    assert isinstance(ours, np.ndarray), where
    assert ours.dtype == theirs.dtype, f"{where}: {ours.dtype}, torch has {theirs.dtype}"
    assert ours.shape == theirs.shape, where
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    if not same.all():
        at = tuple(np.argwhere(~same)[0])
        raise AssertionError(f"{where} at {at}: {ours[at]!r}, torch has {theirs[at]!r} ({(~same).sum()} differ)")


def drive(name, options, dtype, steps=STEPS, groups=None, shapes=SHAPES, instead=TORCHS_OWN):
    """The long run: gradients missing at first and later, two lr changes, a resume; compared all the way."""
    twins = Twins(name, options, dtype, shapes, groups)
    with rounding(**instead):
        for step in range(1, steps + 1):
            twins.feed(step, missing=missing_at(step))
            if step in (steps // 4, steps // 2):
                twins.scale_lr(0.3 if step == steps // 4 else 2.5)
            if step == 3 * steps // 4:
                twins.resume()
            twins.step()
            if step < 12 or step % 8 == 0:  # a difference stays
                twins.check(step)
    return twins


def missing_at(step):
    return {1: (2, 5), 2: (2,), 4: (0, 6), 9: (1, 2, 3), 10: (1,)}.get(step, ())


def eps_per_step(name, options, dtype, steps=40, groups=None):
    """The largest distance after one step from torch's own state, in eps of DESIGN's scale (section 7).

    Returns:
        The worst over params, and the worst over state tensors, each over all steps.
    """
    twins = Twins(name, options, dtype, groups=groups)
    worst_param = worst_state = 0.0
    eps = np.finfo(dtype).eps
    for step in range(1, steps + 1):
        for mine, tensor in zip(twins.ours, twins.theirs, strict=True):
            mine.data[...] = tensor.detach().numpy()
        twins.our_optimizer.state = {
            mine: {
                key: np.array(value.numpy() if isinstance(value, torch.Tensor) else value)
                for key, value in twins.their_optimizer.state[tensor].items()
            }
            for mine, tensor in zip(twins.ours, twins.theirs, strict=True)
            if tensor in twins.their_optimizer.state
        }
        twins.feed(step, missing_at(step))
        befores = [mine.data.copy() for mine in twins.ours]
        states = {mine: dict(entries) for mine, entries in twins.our_optimizer.state.items()}
        twins.step()
        for mine, tensor, before in zip(twins.ours, twins.theirs, befores, strict=True):
            worst_param = max(worst_param, distance(mine.data, tensor.detach().numpy(), before) / eps)
            for key, value in twins.their_optimizer.state.get(tensor, {}).items():
                old = states.get(mine, {}).get(key, np.zeros(()))
                theirs = value.numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
                worst_state = max(worst_state, distance(twins.our_optimizer.state[mine][key], theirs, old) / eps)
    return worst_param, worst_state


def distance(ours, theirs, before):
    """The largest |ours - theirs| in units of DESIGN's scale, max(|ours|, |theirs|, |before|) + rms(change)."""
    ours, theirs, before = (x.view(x.real.dtype) if np.iscomplexobj(x) else x for x in (ours, theirs, before))
    ours, theirs, before = (np.asarray(x, np.float64) for x in (ours, theirs, before))
    finite = np.isfinite(theirs)
    np.testing.assert_array_equal(np.isfinite(ours), finite)
    ours, theirs, before = ours[finite], theirs[finite], np.broadcast_to(before, finite.shape)[finite]
    if not ours.size:
        return 0.0
    size = np.maximum(np.maximum(np.abs(ours), np.abs(theirs)), np.abs(before))
    scale = size + np.sqrt(np.mean((theirs - before) ** 2))
    return float(np.max(np.abs(ours - theirs) / np.where(scale == 0, 1, scale)))
