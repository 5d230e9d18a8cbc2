"""Measures one optimizer's step: what the rule is given before it runs, and what it made of it after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from optrace.recorder import hyper, whole
from optrace.recorder.edits import Extra, Last
from optrace.recorder.finding import Finder, StateFound
from optrace.recorder.finished import Finished
from optrace.recorder.inventory import Inventory
from optrace.recorder.jobs import Rows, measure_now
from optrace.recorder.later import Slots
from optrace.recorder.memory import Budget, Copies
from optrace.recorder.micro import MicroGradients
from optrace.recorder.names import ParamNames
from optrace.recorder.openmp import join_team
from optrace.recorder.plans import AfterPlan, BeforePlan, Label, Located, StateLabel, make_label
from optrace.recorder.selection import Quantities
from optrace.recorder.settings import Settings
from optrace.recorder.shards import Piece, Shard
from optrace.recorder.steady import DIFFERENT, OPTIONS, Steady
from optrace.recorder.tensors import NOTHING, Kind
from optrace.trace.writer import TensorLayout

Tell = Callable[..., None]
Present = npt.NDArray[np.bool_]
Options = list[dict[str, hyper.Scalar]]

_LAYOUTS = 64
_PATIENCE = 1024
"""So many steps at most until an optimizer that does not stay as it is is tried again."""
_NO_NUMBERS = Located([], [], [])


@dataclass
class _Gradients:
    """The gradients that the rule was given, measured."""

    located: Located
    rows: Rows
    present: Present
    values: whole.Values


@dataclass
class _Running:
    """What is known between the hooks before and after a step."""

    params: list[torch.Tensor]
    located: Located
    options: Options
    gradients: _Gradients
    extra: Extra
    scale: torch.Tensor | None
    keyframe: bool
    keep: list[Any]
    groups: list[tuple[int, dict[str, hyper.Scalar]]] = field(init=False)
    steady: bool = False
    """Whether all was as at the step before; then `params` are left out."""

    def __post_init__(self) -> None:
        self.set_options(self.options)

    def set_options(self, options: Options) -> None:
        """Take other options of the groups."""
        self.options = options
        self.groups = list(enumerate(options))


class Capture:
    """The recording of one optimizer; `before` and `after` bracket each recorded step."""

    slots: Slots | None = None
    """Where numbers on a device that a step tells of are put, if its rows come later."""

    def __init__(self, index: int, settings: Settings, names: ParamNames, budget: Budget, tell: Tell) -> None:
        """`tell(what, line=None, **data)` says something in the trace, and on stderr if there is a line."""
        self.index = index
        self.inventory = Inventory(index, names, settings.params)
        self.params_changed = False
        """Whether the table `params` must be written again."""
        self._settings = settings
        self._whole = settings.values in ("grad", "full")
        self._no_samples = settings.values == "none"
        self._wanted = Quantities(settings.quantities)
        self._tell = tell
        self._copies = Copies(budget)
        self._finder = Finder(self.inventory, self._wanted, self._tell_once)
        self._before: BeforePlan | None = None
        self._after: AfterPlan | None = None
        self._after_labels: tuple[list[StateLabel], list[tuple[int, str]]] = ([], [])
        self._layouts: dict[tuple[Label, ...], TensorLayout] = {}
        self._layout: TensorLayout | None = None
        self._last_params = Last()
        self._last_state = Last()
        self._group_keys: list[tuple[int, str]] = []
        self._running: _Running | None = None
        self._steady: Steady | None = None
        self._as_ever: _Running | None = None
        self._same: Finished | None = None
        """The last step that was as the one before it: the next one is measured into the same rows."""
        self._wait = self._patience = 1
        self._told: set[str] = set()
        self._pieces: dict[str, dict[str, Piece]] = {}

    @property
    def held(self) -> int:
        """Bytes held for copies of parameters."""
        return self._copies.held

    @property
    def known_steps(self) -> int:
        """So many steps, up to the last, were as the one before them and known in one look."""
        return 0 if self._steady is None else self._steady.steps

    def release(self) -> None:
        """Give memory back: the optimizer is gone."""
        self._running = self._before = self._after = self._steady = self._as_ever = self._same = None
        self._copies.release()

    def params_table(self, optimizer_class: str) -> list[dict[str, Any]]:
        """The rows of the table `params`."""
        rows = self.inventory.rows(optimizer_class)
        for row in rows:
            blocks: dict[Piece, list[str]] = {}
            for quantity, piece in self._pieces.get(row["param"], {}).items():
                blocks.setdefault(piece, []).append(quantity)
            if blocks:
                row["pieces"] = [{"quantities": names, **piece.as_dict()} for piece, names in blocks.items()]
            whole_shape = next((piece.whole for piece in blocks if piece.whole is not None), None)
            if whole_shape is not None:
                strides = [math.prod(whole_shape[i + 1 :]) for i in range(len(whole_shape))]
                row |= {"shape": list(whole_shape), "stride": strides, "numel": math.prod(whole_shape)}
                row["placement"] = "(FlatShard(),)"
        return rows

    # ---- step 0 ----

    def world(self, optimizer: Any) -> Finished:
        """Step 0: every parameter and the state that exists, before the optimizer's first step."""
        keep: list[Any] = []
        self._finder.scalars.clear()
        params, located = self._look(optimizer, keep)
        state = self._finder.state(optimizer, params, keep, self._whole)
        labels = self._param_labels("param", located.numels, located.kinds) if self._wanted.param else []
        split = len(labels)
        labels += self._state_labels("state", state)
        rows = measure_now([*(located if split else ()), *state.located], torch.get_num_threads())
        self._remember(located, rows["fingerprint"][:split], state, rows["fingerprint"][split:])
        if self._no_samples:
            rows["sample"] = np.nan
        for group in optimizer.param_groups:
            for option in hyper.unread_options(group):
                self._tell_once("option not recorded", option)
        values: whole.Values = {}
        if self._whole:
            values = whole.copied(self._whole_params("param", params, located) | self._whole_state("state", state))
        tensors = (self._layout_of(labels), rows, np.ones(len(labels), np.bool_)) if labels else None
        return Finished([], tensors, values, [])

    # ---- before the rule ----

    def before(
        self, optimizer: Any, step: int, scale: torch.Tensor | None = None, micro: Sequence[MicroGradients] = ()
    ) -> None:
        """Measure what the rule is given.

        Args:
            optimizer: any object with torch's `param_groups` and `state`.
            step: the number that the step will have.
            scale: the gradients are so many times too large (a fused step's).
            micro: the gradients after each backward since the last step, which become rows `grad_micro.<k>`.
        """
        if self._steady is not None:
            if scale is not None or micro:
                self._no_longer()
            elif self.again(optimizer):
                return
        keep: list[Any] = []
        self._finder.scalars.clear()
        options: Options = [hyper.scalars_of_group(group) for group in optimizer.param_groups]
        wanted, threads = self._wanted, torch.get_num_threads()
        params, located = self._look(optimizer, keep)
        grads = self._finder.grads(params, keep, scale)
        state = self._finder.state(optimizer, params, keep, self._whole)
        copies = None
        if wanted.update:
            if self._copies.fit(located) and self._copies.missing:
                self._say_short_of_memory()
            copies = self._copies.addresses
        plan = self._before
        if plan is None or not plan.fits(grads, located, state.located, copies):
            plan = self._before = BeforePlan(grads, located, state.located, copies, wanted.param)
        plan.run(grads, located, state.located, threads)
        gradients = _Gradients(grads, plan.grad_rows, plan.present, self._whole_grads(params, grads))
        extra = self._edited(params, located, state, plan, threads)
        if micro:
            self._add_micro(params, located, extra, micro)
        keyframe = self._settings.values == "full" or (self._whole and step % whole.KEYFRAME == 0)
        self._running = _Running(params, located, options, gradients, extra, scale, keyframe, keep)

    def again(self, optimizer: Any) -> bool:
        """Measure what the rule is given with what is known from the step before.

        False where something has changed, or where the step may be none (every lr is 0): then nothing has begun.
        """
        steady, running = self._steady, self._as_ever
        if steady is None or running is None:
            return False
        found = steady.before(optimizer, torch.get_num_threads())
        if found == DIFFERENT or (found == OPTIONS and not self.other_options(optimizer)) or steady.idle:
            self._no_longer()
            return False
        self._running = running
        return True

    def other_options(self, optimizer: Any) -> bool:
        """Take over the floats that a look has found changed; False where every lr is 0 now: the step may be none."""
        steady, running = self._steady, self._as_ever
        if steady is None or running is None or steady.is_idle():
            return False
        running.set_options([hyper.scalars_of_group(group) for group in optimizer.param_groups])
        return True

    def known_parts(self) -> tuple[Steady, _Running, Finished] | None:
        """What the kernel needs to record a step like the last, if that was one; None: it cannot."""
        steady, running, same = self._steady, self._as_ever, self._same
        if steady is None or running is None or same is None or steady.sampled or steady.idle:
            return None
        return None if self._no_samples and same.tensors is not None else (steady, running, same)

    def known_again(self, running: _Running) -> Finished:
        """A step whose numbers have been measured into the rows of the one before."""
        same = self._same
        if same is None or same.groups is not running.groups or self._no_samples:
            assert self._after is not None
            same = self._same = Finished(running.groups, self._tensors(self._after, running.extra))
        return same

    def _no_longer(self) -> None:
        """Look for everything again, now that something has changed; what changes often is tried the later again."""
        steady, self._steady, self._as_ever, self._same = self._steady, None, None, None
        held = 0
        if steady is not None:
            held = steady.steps
            words, split = np.frombuffer(steady.words(), np.int64), len(self._last_params.fingerprints)
            self._last_params.fingerprints, self._last_state.fingerprints = words[:split], words[split:]
        self._wait = self._patience = min(2 * self._patience, _PATIENCE) if held < self._patience else 1

    def ends_step(self, optimizer: Any) -> bool:
        """Whether the running call of `step()` is the last of a step: it is."""
        return True

    def evaluated(self, optimizer: Any) -> None:
        """Measure the gradients anew: a closure has just evaluated them."""
        running = self._running
        if running is None or not self._wanted.grad:
            return
        running = self._running = self._found_again(optimizer, running)
        keep: list[Any] = []
        grads = self._finder.grads(running.params, keep, running.scale)
        rows = measure_now(list(grads), torch.get_num_threads())
        present = np.array([kind is not None for kind in grads.kinds], np.bool_)
        running.gradients = _Gradients(grads, rows, present, self._whole_grads(running.params, grads))

    def _found_again(self, optimizer: Any, running: _Running) -> _Running:
        """What is known of the running step, with the parameters."""
        if not running.steady:
            return running
        return replace(running, params=self.inventory.current(optimizer)[0], steady=False)

    def forget(self) -> None:
        """Drop a step that did not come to its end."""
        self._running = None

    # ---- after the rule ----

    def after(self, optimizer: Any) -> Finished:
        """Measure what the rule made of it; RuntimeError if `before` was not called."""
        running, self._running = self._running, None
        if running is None or self._before is None:
            raise RuntimeError("a step ended that had not begun")
        if running.steady and self._steady is not None and self._after is not None:
            if self._steady.after(optimizer, torch.get_num_threads()):
                return self.known_again(running)
        if self._steady is not None:
            self._no_longer()
        running = self._found_again(optimizer, running)
        keep: list[Any] = []
        wanted = self._wanted
        self._finder.scalars.clear()
        located = self._finder.same_params(running.params, keep)
        state = self._finder.state(optimizer, running.params, keep, self._whole)
        scalars = self._locate_group_numbers(optimizer, running.options)
        copies = self._copies.addresses if wanted.update else None
        grads = running.gradients.located
        plan = self._after
        if (
            plan is None
            or self._layout is None
            or self._after_labels != (state.labels, self._group_keys)
            or not plan.fits(running.located, grads, located, state.located, scalars, copies)
        ):
            plan = self._after = self._plan_after(running, grads, located, state, scalars, copies)
        plan.run(
            (running.gradients.rows, running.gradients.present),
            located,
            state.located,
            scalars,
            self._before.param_rows,
            torch.get_num_threads(),
        )
        self._remember(located, plan.param_fingerprints, state, plan.state_fingerprints)
        values: whole.Values = {}
        if self._whole:
            values = running.gradients.values | running.extra.values
            if running.keyframe:
                values |= self._whole_params("param", running.params, located) | self._whole_state("state", state)
        tensors = self._tensors(plan, running.extra)
        join_team(optimizer, located.numels)
        self._look_for_steady(optimizer, running, located, state, (self._before, plan))
        return Finished(running.groups, tensors, values, keep)

    def _look_for_steady(
        self,
        optimizer: Any,
        running: _Running,
        located: Located,
        state: StateFound,
        plans: tuple[BeforePlan, AfterPlan],
    ) -> None:
        """Be ready to know the next step in one look, if it is like this one; not at once after that has failed."""
        if self._wait:
            self._wait -= 1
            return
        plan, grads = plans[0], running.gradients.located
        copies = self._copies.addresses if self._wanted.update else None
        if (
            self._whole
            or running.scale is not None
            or running.extra.labels
            or self._group_keys
            or running.gradients.rows is not plan.grad_rows
            or not self._finder.plain
            or not plan.fits(grads, located, state.located, copies)
        ):
            return
        plan.fill(located, state.located)
        kinds = grads if self._wanted.grad else None
        self._steady = Steady.of(optimizer, plans, running.params, located, kinds, self._wanted.state)
        if self._steady is not None:
            self._as_ever = replace(running, params=[], located=located, keep=[], steady=True)
        else:
            self._no_longer()

    def _plan_after(
        self,
        running: _Running,
        grads: Located,
        located: Located,
        state: StateFound,
        scalars: Located,
        copies: list[int | None] | None,
    ) -> AfterPlan:
        wanted = self._wanted
        group_labels = [
            make_label(group, "", f"group.{key}", numel, kind)
            for (group, key), (_, numel, kind) in zip(self._group_keys, scalars, strict=True)
        ]
        self._after_labels = (list(state.labels), list(self._group_keys))
        plan = AfterPlan(
            self._param_labels,
            self._state_labels("state", state),
            group_labels,
            running.located,
            grads,
            located,
            state.located,
            scalars,
            copies,
            (wanted.grad, wanted.update, wanted.param),
        )
        self._layout = self._layout_of(plan.labels)
        return plan

    def _tensors(self, plan: AfterPlan, extra: Extra) -> tuple[TensorLayout, Rows, Present] | None:
        """The step's rows with their layout; None when there are none."""
        layout, rows, present = self._layout, plan.rows, plan.present
        if extra.labels:
            layout = self._layout_of(plan.labels + extra.labels)
            assert extra.rows is not None
            rows = np.concatenate([rows, extra.rows])
            there = np.array([found[2] is not None for found in extra.found], np.bool_)
            present = np.concatenate([present, there])
        if layout is None or not len(layout):
            return None
        if self._no_samples:
            rows["sample"] = np.nan
        return layout, rows, present

    # ---- edits between two steps ----

    def _edited(
        self, params: list[torch.Tensor], located: Located, state: StateFound, plan: BeforePlan, threads: int
    ) -> Extra:
        """`param_in` and `state_in` of what is not, bit for bit, as the last recorded rows have it."""
        extra = Extra()
        names, groups = self.inventory.names, self.inventory.groups
        if self._wanted.param:
            for i in self._last_params.changed(names, located.kinds, plan.param_fingerprints):
                if self._wanted.param_in:
                    _, numel, kind = located[i]
                    extra.labels.append(make_label(groups[i], names[i], "param_in", numel, kind))
                    extra.found.append(located[i])
                    if self._whole:
                        extra.values |= whole.view_of(f"{self.index}/param_in/{names[i]}", params[i], located[i])
        labels = state.names
        for i in self._last_state.changed(labels, state.located.kinds, plan.state_fingerprints):
            index, key = state.labels[i]
            if self._wanted.has(f"state_in.{key}"):
                _, numel, kind = state.located[i]
                label = make_label(self._group_of(index), labels[i][0], f"state_in.{key}", numel, kind)
                extra.labels.append(label)
                extra.found.append(state.located[i])
                if self._whole:
                    name = f"{self.index}/state_in.{key}/{labels[i][0]}"
                    extra.values |= whole.view_of(name, state.things[i], state.located[i])
        for name, key in self._last_state.lost(labels):
            if name in names and self._wanted.has(f"state_in.{key}"):
                extra.labels.append((groups[names.index(name)], name, f"state_in.{key}", "float32", 0))
                extra.found.append(NOTHING)
        if extra.labels:
            extra.rows = measure_now(extra.found, threads)
            extra.values = whole.copied(extra.values)
        return extra

    def _add_micro(
        self, params: list[torch.Tensor], located: Located, extra: Extra, micro: Sequence[MicroGradients]
    ) -> None:
        """Rows of the gradients after each backward."""
        rows = [] if extra.rows is None else [extra.rows]
        for one in micro:
            if not self._wanted.has(one.quantity):
                continue
            chosen = [i for i, param in enumerate(params) if id(param) in one.place]
            for i in chosen:
                found = one.found[one.place[id(params[i])]]
                _, numel, kind = found if found[2] is not None else located[i]
                name = self.inventory.names[i]
                extra.labels.append(make_label(self.inventory.groups[i], name, one.quantity, numel, kind))
                extra.found.append(found)
            rows.append(one.rows[[one.place[id(params[i])] for i in chosen]])
        extra.rows = np.concatenate(rows) if rows else None

    def _remember(
        self,
        located: Located,
        params: npt.NDArray[np.int64],
        state: StateFound,
        state_fingerprints: npt.NDArray[np.int64],
    ) -> None:
        """Keep the fingerprints of the rows that have just been recorded."""
        if self._wanted.param:
            self._last_params = Last(self.inventory.names, located.kinds, params.copy())
        self._last_state = Last(state.names, state.located.kinds, state_fingerprints.copy())

    # ---- where things lie ----

    def _look(self, optimizer: Any, keep: list[Any]) -> tuple[list[torch.Tensor], Located]:
        """The parameters before the step; plans are dropped when they have changed."""
        params, located = self._finder.params(optimizer, keep)
        if self._finder.changed:
            self._finder.changed = False
            self.params_changed = True
            self._before = self._after = self._layout = None
            self._layouts.clear()
        return params, located

    def _locate_group_numbers(self, optimizer: Any, before: Options) -> Located:
        """Numbers of the groups that `step()` wrote, in this step or an earlier one."""
        after: Options = [hyper.scalars_of_group(group) for group in optimizer.param_groups]
        if after != before:
            for group, (old, new) in enumerate(zip(before, after, strict=False)):
                for key in hyper.written_by_step(old, new):
                    if (group, key) not in self._group_keys and self._wanted.has(f"group.{key}"):
                        self._group_keys.append((group, key))
        if not self._group_keys:
            return _NO_NUMBERS
        numbers = [
            (group, key, after[group].get(key) if group < len(after) else None) for group, key in self._group_keys
        ]
        numbers = [(group, key, value) for group, key, value in numbers if isinstance(value, float | int)]
        self._group_keys = [(group, key) for group, key, _ in numbers]
        return Located.of([self._finder.scalars.place(value) for _, _, value in numbers])  # type: ignore[arg-type]

    # ---- names of rows, whole values, words ----

    def _group_of(self, index: int) -> int:
        return self.inventory.groups[index] if index >= 0 else -1

    def _param_labels(self, quantity: str, numels: Sequence[int], kinds: Sequence[Kind]) -> list[Label]:
        for name, kind in zip(self.inventory.names, kinds, strict=True):
            self._note_piece(name, quantity, kind)
        rows = zip(self.inventory.groups, self.inventory.names, numels, kinds, strict=True)
        return [make_label(group, name, quantity, numel, kind) for group, name, numel, kind in rows]

    def _state_labels(self, quantity: str, state: StateFound) -> list[Label]:
        for (name, key), kind in zip(state.names, state.located.kinds, strict=True):
            self._note_piece(name, f"{quantity}.{key}", kind)
        rows = zip(state.labels, state.names, state.located, strict=True)
        return [
            make_label(self._group_of(index), name, f"{quantity}.{key}", numel, kind)
            for (index, key), (name, _), (_, numel, kind) in rows
        ]

    def _note_piece(self, name: str, quantity: str, kind: Kind) -> None:
        """Remember for the table `params` which block of the whole this rank holds, if not all of it."""
        piece = kind.piece if isinstance(kind, Shard) else None
        known = self._pieces.get(name, {})
        if known.get(quantity) != piece and (piece is not None or isinstance(kind, torch.dtype)):
            if piece is None:
                del known[quantity]
            else:
                self._pieces.setdefault(name, {})[quantity] = piece
            self.params_changed = True

    def _layout_of(self, labels: list[Label]) -> TensorLayout:
        key = tuple(labels)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _LAYOUTS:
                self._layouts.clear()
            columns = list(zip(*labels, strict=True)) or [()] * 5
            layout = self._layouts[key] = TensorLayout(self.index, *columns)
        return layout

    def _whole_params(self, quantity: str, params: list[torch.Tensor], located: Located) -> whole.Values:
        if not self._wanted.has(quantity):
            return {}
        keys = [f"{self.index}/{quantity}/{name}" for name in self.inventory.names]
        return whole.views_of(keys, params, located)

    def _whole_state(self, quantity: str, state: StateFound) -> whole.Values:
        labels = zip(state.labels, state.names, strict=True)
        keys = [f"{self.index}/{quantity}.{key}/{name}" for (_, key), (name, _) in labels]
        return whole.views_of(keys, state.things, state.located)

    def _whole_grads(self, params: list[torch.Tensor], grads: Located) -> whole.Values:
        """Copies of the gradients: the rule may overwrite them."""
        if not self._whole or not grads:
            return {}
        keys = [f"{self.index}/grad/{name}" for name in self.inventory.names]
        return whole.copied(whole.views_of(keys, params, grads))

    def _tell_once(self, what: str, which: str) -> None:
        if f"{what} {which}" not in self._told:
            self._told.add(f"{what} {which}")
            self._tell(what, which=which)

    def _say_short_of_memory(self) -> None:
        count = sum(address is None for address in self._copies.addresses)
        self._tell(
            "memory",
            f"updates of {count} parameters come from samples: copies of {self._copies.missing} bytes more would pass "
            "the memory bound (--memory)",
            sampled=[name for name, at in zip(self.inventory.names, self._copies.addresses, strict=True) if at is None],
        )
