"""JAX: a network trained by optax, alone and then telling a recording of each step; what was told goes to a file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optrace

HYPER = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
optimizer = optax.adamw(HYPER["lr"], *HYPER["betas"], eps=HYPER["eps"], weight_decay=HYPER["weight_decay"])


def start():
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = {"kernel": jax.random.normal(keys[0], (3, 20)), "bias": jnp.zeros(20)}
    return {"hidden": hidden, "out": jax.random.normal(keys[1], (20,)).astype(jnp.bfloat16)}


def loss_of(params, x):
    return jnp.mean((jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"]) @ params["out"]) ** 2)


@jax.jit
def update(params, state, x):
    loss, grads = jax.value_and_grad(loss_of)(params, x)
    changes, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, changes), state, grads, loss


def named(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def train(tell=lambda **step: None):
    params = start()
    state = optimizer.init(params)
    x = jax.random.normal(jax.random.key(1), (8, 3))
    for _ in range(5):
        before = named(params)
        params, state, grads, loss = update(params, state, x)
        adam = state[0]
        first, second = named(adam.mu), named(adam.nu)
        moments = {name: {"exp_avg": first[name], "exp_avg_sq": second[name], "step": adam.count} for name in first}
        tell(params=named(params), grads=named(grads), state=moments, hyper=HYPER, loss=loss, before=before)
    return named(params)


alone = train()
told = []
with optrace.record("run", quiet=True, strict=True) as run:

    def tell(**step):
        told.append(step)
        run.step(**step, optimizer="adamw")

    recorded = train(tell)

assert all((alone[name] == recorded[name]).all() for name in alone)
wide = {}
for number, step in enumerate(told, 1):
    for quantity, tree in (("param", step["params"]), ("grad", step["grads"]), ("before", step["before"])):
        wide |= {f"{number}/{quantity}/{name}": np.asarray(value, np.float32) for name, value in tree.items()}
    for name, entry in step["state"].items():
        arrays = {key: np.asarray(value, np.float32 if value.ndim else None) for key, value in entry.items()}
        wide |= {f"{number}/state.{key}/{name}": array for key, array in arrays.items()}
    wide[f"{number}/loss/"] = np.asarray(step["loss"])
np.savez("told.npz", **wide)
