"""Rules about the numbers themselves: what precision loses, and a count that is off from the start."""

from __future__ import annotations

from collections.abc import Iterator

from optrace.compare.lint.finding import Finding
from optrace.compare.lint.look import Look, few

HALF = ("bfloat16", "float16")
BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}
LOST_SHARE = 0.5
"""Share of elements with a gradient that do not move; a parameter that has come to rest loses fewer than this."""
LOST_STEPS = 3


def init_counted(look: Look) -> Iterator[Finding]:
    """A `step()` that only created state still counts in the optimizer's own step counter."""
    made = False
    for event in look.events:
        if event.kind == "state_init":
            made = True
        elif event.kind == "load_state_dict":
            made = False
        elif event.kind == "step":
            break
    if not made or look.n_steps < 1:
        return
    rows = look.tensors(["param", "mean"], step=1, quantity="state.step")
    ahead = rows[rows["mean"] > 1]
    if len(ahead):
        count = ahead["mean"].iloc[0]
        yield Finding(
            "init-counted",
            f"the step that only created the state of {look.title} counts: at its first real step its counter is"
            f" {count:g}",
            "load the checkpoint after the state was created, or set state['step'] back to 0",
            (
                f"state_init comes before step 1 and no load_state_dict after it; state.step of"
                f" {ahead['param'].iloc[0]} is {count:g} after step 1, so that bias corrections are one step ahead",
            ),
            look.index,
            tuple(ahead["param"]),
            (1, look.n_steps),
        )


def update_rounded(look: Look) -> Iterator[Finding]:
    """Updates of half-precision parameters that are too small to change them."""
    small = look.params[look.params["dtype"].isin(HALF)]["param"].tolist()
    if not small:
        return
    columns = ["step", "group", "param", "quantity", "numel", "n_zero", "present", "dtype"]
    rows = look.tensors(columns, step=(1, None), quantity=("update", "grad"))
    rows = rows[rows["param"].isin(small) & (rows["n_zero"] >= 0)]
    keys = ["step", "group", "param"]
    update = rows[rows["quantity"] == "update"].set_index(keys)
    grad = rows[(rows["quantity"] == "grad") & rows["present"]].set_index(keys)
    of_grad = grad["n_zero"].rename("n_zero_grad")
    both = update[["numel", "n_zero"]].join(of_grad, how="inner").reset_index()
    if "lr" in look.groups and len(both):
        both = both.merge(look.groups[["step", "group", "lr"]], on=["step", "group"], how="left")
        both = both[both["lr"] != 0]
    both["moved_by_grad"] = both["numel"] - both["n_zero_grad"]
    both["lost"] = (both["n_zero"] - both["n_zero_grad"]).clip(lower=0)
    sums = both.groupby("param", sort=False).agg(
        lost=("lost", "sum"), all=("moved_by_grad", "sum"), steps=("step", "nunique")
    )
    bad = sums[(sums["steps"] >= LOST_STEPS) & (sums["lost"] > LOST_SHARE * sums["all"])]
    if len(bad):
        names = [str(name) for name in bad.index]
        dtypes = ", ".join(sorted({str(d) for d in look.params["dtype"] if d in HALF}))
        yield Finding(
            "update-rounded",
            f"most updates of {few(names)} round to nothing in {dtypes}",
            "let the optimizer hold float32 parameters and compute in half precision under autocast, or use an"
            " optimizer that rounds stochastically or keeps the rest",
            (
                f"{bad['lost'].sum() / bad['all'].sum():.0%} of the elements that had a gradient did not move, over"
                f" {int(bad['steps'].max()):,} steps and {len(bad):,} parameters",
            ),
            look.index,
            tuple(names),
            (1, look.n_steps),
        )


def state_precision(look: Look) -> Iterator[Finding]:
    """Moments that are kept less precisely than the parameters they move."""
    if look.n_steps < 1:
        return
    kinds = {
        name: (str(dtype), int(numel))
        for name, dtype, numel in zip(look.params["param"], look.params["dtype"], look.params["numel"], strict=True)
    }
    rows = look.tensors(["param", "quantity", "dtype", "numel"], step=look.n_steps, quantity="state.*")
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, quantity, dtype, numel in rows.itertuples(index=False):
        of_param, size = kinds.get(name, ("", -1))
        if size > 1 and numel == size and BITS.get(dtype, 64) < BITS.get(of_param, 0):
            found.setdefault((quantity.removeprefix("state."), dtype, of_param), []).append(name)
    for (key, dtype, of_param), names in found.items():
        yield Finding(
            "state-precision",
            f"{key} of {few(names)} is {dtype} while the parameters are {of_param}",
            f"keep the state of {look.title} in {of_param}; a checkpoint that was saved from {dtype} parameters brings"
            " its precision with it",
            (f"{len(names):,} parameters, at step {look.n_steps:,}",),
            look.index,
            tuple(names),
            (look.n_steps, look.n_steps),
        )
