"""Measures one optimizer's steps on the device where its parameters lie; the rows come later, and nothing waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from optrace.recorder import hyper
from optrace.recorder.capture import Capture, Options, Tell
from optrace.recorder.device import Arrival, Device, cuda_device
from optrace.recorder.device_find import DeviceFinder
from optrace.recorder.device_plans import AfterDevice, BeforeDevice, DeviceCopies, HookPlan
from optrace.recorder.device_step import Begun, Described, Measured, Nothing, all_as_recorded
from optrace.recorder.edits import Extra, Last
from optrace.recorder.finding import StateFound
from optrace.recorder.finished import Finished
from optrace.recorder.jobs import Rows, measure_now
from optrace.recorder.later import Slot, Slots, Tensors
from optrace.recorder.memory import Budget
from optrace.recorder.micro import MicroGradients
from optrace.recorder.names import ParamNames
from optrace.recorder.plans import Label, Located, make_label
from optrace.recorder.settings import Settings
from optrace.recorder.tensors import NOTHING, quiet_torch
from optrace.trace.measure import STAT


class DeviceCapture(Capture):
    """The recording of one optimizer whose parameters lie on one device.

    What is measured, and what becomes a row, is as in `Capture`. Both hooks only launch kernels on the current stream
    (`optrace.recorder.device` says why there), and the second one has all results of the step copied to the host. The
    rows are made when those have arrived. So what was edited between two steps is not known when its statistics would
    have to be taken: those of parameters and state before the step are taken always, and thrown away where nothing was
    edited.

    Waits for the device: step 0; gradients after each backward (`--micro`); whatever torch itself waits for (making a
    sparse gradient dense, a learning rate that is a tensor there, `found_inf` of a fused step under a GradScaler).
    """

    def __init__(
        self, index: int, settings: Settings, names: ParamNames, budget: Budget, tell: Tell, device: Device
    ) -> None:
        """As `Capture`; `budget` is for the device's memory."""
        super().__init__(index, settings, names, budget, tell)
        self._device = device
        self._finder = DeviceFinder(self.inventory, self._wanted, self._tell_once, device)
        self._copies: DeviceCopies = DeviceCopies(budget, device)
        self._before_plan: BeforeDevice | None = None
        self._after_plan: AfterDevice | None = None
        self._labels: tuple[Any, ...] = ()
        self._begun: Begun | None = None
        self._told_how = False
        self._numbers = self.slots = Slots()

    def release(self) -> None:
        """Give memory back: the optimizer is gone. Steps that wait keep what they need."""
        super().release()
        self._begun = self._before_plan = self._after_plan = None

    def forget(self) -> None:
        """Drop a step that did not come to its end."""
        self._begun = None

    # ---- step 0 ----

    def world(self, optimizer: Any) -> Finished:
        """Step 0: every parameter and the state that exists, before the optimizer's first step."""
        keep: list[Any] = []
        self._finder.scalars.clear()
        with quiet_torch():
            params, located = self._look(optimizer, keep)
            state = self._finder.state(optimizer, params, keep, False)
            labels = self._param_labels("param", located.numels, located.kinds) if self._wanted.param else []
            split = len(labels)
            labels += self._state_labels("state", state)
            found = [*(located if split else ()), *state.located]
            measured = self._launch(found)
            measured.fill(self._send([measured], []).wait())
        rows = measured.rows
        self._keep_in_mind(self._of_params(located), self._of_state(state), rows[:split], rows[split:])
        if self._settings.values == "none":
            rows["sample"] = np.nan
        for group in optimizer.param_groups:
            for option in hyper.unread_options(group):
                self._tell_once("option not recorded", option)
        tensors = (self._layout_of(labels), rows, np.ones(len(labels), np.bool_)) if labels else None
        return Finished([], tensors, {}, [])

    def _launch(self, found: Sequence[Any]) -> Measured:
        """Measure a few tensors once."""
        operations = [(STAT, one, row, 0, 0) for row, one in enumerate(found)]
        plan = HookPlan(self._device, self._tell_once, operations, len(operations))
        return self._run(plan, [one[0] for one in found])

    def _run(self, plan: HookPlan, addresses: Sequence[int]) -> Measured:
        first = self._device.mark()
        rows, found = plan.run(addresses, torch.get_num_threads())
        return Measured(plan, rows, found, (first, self._device.mark()))

    def _send(self, measured: Sequence[Measured], numbers: Sequence[torch.Tensor]) -> Arrival:
        """Have everything that was found, and then the numbers, copied to the host in one piece."""
        parts = [one.found for one in measured if one.found is not None]
        if numbers:
            where = (parts or numbers)[0].device
            values = [number.detach().reshape(()).to(where, torch.float64, non_blocking=True) for number in numbers]
            parts.append(torch.stack(values).view(torch.int64))
        if not parts:
            return Nothing()
        with self._device.current():
            return self._device.send(torch.cat(parts))

    # ---- before the rule ----

    def before(
        self, optimizer: Any, step: int, scale: torch.Tensor | None = None, micro: Sequence[MicroGradients] = ()
    ) -> None:
        """Launch what measures what the rule is given; arguments as for `Capture.before`."""
        keep: list[Any] = []
        self._finder.scalars.clear()
        options: Options = [hyper.scalars_of_group(group) for group in optimizer.param_groups]
        wanted = self._wanted
        with quiet_torch():
            params, located = self._look(optimizer, keep)
            grads = self._finder.grads(params, keep, scale)
            state = self._finder.state(optimizer, params, keep, False)
            copies = None
            if wanted.update:
                if self._copies.fit(located) and self._copies.missing:
                    self._say_short_of_memory()
                copies = self._copies.addresses
            parts = (grads, located, state.located)
            plan = self._before_plan
            if plan is None or not plan.fits(parts, copies):
                with_params = wanted.param or wanted.update
                plan = self._before_plan = BeforeDevice(self._device, self._tell_once, parts, copies, with_params)
            measured = self._run(plan.plan, plan.addresses(parts))
        extra = Extra()
        if micro:
            self._add_micro(params, located, extra, micro)
        self._begun = Begun(
            params,
            located,
            options,
            plan,
            measured,
            grads,
            None,
            plan.present,
            self._of_params(located),
            self._of_state(state),
            extra,
            scale,
        )
        self._say_how()

    def _of_params(self, located: Located) -> Described:
        names, groups = self.inventory.names, self.inventory.groups
        return Described("param_in", names, groups, (), located, all_as_recorded(located))

    def _of_state(self, state: StateFound) -> Described:
        owners = [index for index, _ in state.labels]
        groups = self.inventory.groups
        return Described("state_in", state.names, groups, owners, state.located, all_as_recorded(state.located))

    def evaluated(self, optimizer: Any = None) -> None:
        """Measure the gradients anew: a closure has just evaluated them."""
        begun = self._begun
        if begun is None or not self._wanted.grad:
            return
        keep: list[Any] = []
        with quiet_torch():
            begun.grads = self._finder.grads(begun.params, keep, begun.scale)
            begun.evaluated = self._launch(list(begun.grads))
        begun.present = np.array([kind is not None for kind in begun.grads.kinds], np.bool_)

    # ---- after the rule ----

    def after(self, optimizer: Any) -> Finished:
        """Launch what measures what the rule made of it; RuntimeError if `before` was not called."""
        begun, self._begun = self._begun, None
        if begun is None:
            raise RuntimeError("a step ended that had not begun")
        keep: list[Any] = []
        self._finder.scalars.clear()
        with quiet_torch():
            located = self._finder.same_params(begun.params, keep)
            state = self._finder.state(optimizer, begun.params, keep, False)
            scalars = self._locate_group_numbers(optimizer, begun.options)
            copies = self._copies.addresses if self._wanted.update else None
            parts = (begun.located, located, state.located, scalars)
            labels = (self.inventory.names, begun.grads.numels, begun.grads.kinds, state.labels, self._group_keys)
            plan = self._after_plan
            if plan is None or self._labels != labels or not plan.fits(parts, copies):
                plan = self._after_plan = self._plan(parts, begun.grads, state, copies)
                self._labels = (*labels[:4], list(self._group_keys))
            measured = [begun.measured, *([begun.evaluated] if begun.evaluated else [])]
            measured.append(self._run(plan.plan, plan.addresses(parts)))
            taken = self._numbers.take()
            arrival = self._send(measured, [number for number, _ in taken])
        step = _DeviceStep(
            self,
            arrival,
            begun,
            plan,
            measured,
            [slot for _, slot in taken],
            self._of_params(located),
            self._of_state(state),
        )
        return Finished(list(enumerate(begun.options)), None, waiting=step)

    def _plan(
        self,
        parts: tuple[Located, Located, Located, Located],
        grads: Located,
        state: StateFound,
        copies: list[int | None] | None,
    ) -> AfterDevice:
        wanted = self._wanted
        _, params, _, scalars = parts
        kinds = [kind if kind is not None else params.kinds[i] for i, kind in enumerate(grads.kinds)]
        sizes = [size if grads.kinds[i] is not None else params.numels[i] for i, size in enumerate(grads.numels)]
        labels = (
            self._param_labels("grad", sizes, kinds) if wanted.grad else [],
            self._param_labels("update", params.numels, params.kinds) if wanted.update else [],
            self._param_labels("param", params.numels, params.kinds) if wanted.param else [],
            self._state_labels("state", state),
            [
                make_label(group, "", f"group.{key}", numel, kind)
                for (group, key), (_, numel, kind) in zip(self._group_keys, scalars, strict=True)
            ],
        )
        return AfterDevice(self._device, self._tell_once, parts, copies, labels)

    # ---- when the results are there ----

    def complete(self, step: _DeviceStep) -> Tensors | None:
        """The rows of a step from what has arrived; steps are completed in their order."""
        begun, plan = step.begun, step.plan
        results = step.arrival.wait()
        for measured in step.measured:
            results = measured.fill(results)
            step.seconds += self._device.seconds(*measured.marks)
        for slot, value in zip(step.slots, results.view(np.float64).tolist(), strict=True):
            slot.value = value
        before, rows = begun.measured.rows, step.measured[-1].rows
        grads = begun.evaluated.rows if begun.evaluated is not None else before[begun.plan.grads]
        labels, edited, there = self._edits(begun, before[begun.plan.params], before[begun.plan.state])
        present = np.ones(plan.total, np.bool_)
        present[: plan.n_grads] = begun.present[: plan.n_grads]
        whole = plan.complete(rows, grads, before[begun.plan.params])
        self._keep_in_mind(step.params, step.state, rows[plan.params], rows[plan.state])
        if not plan.labels and not labels:
            return None
        whole = np.concatenate([whole, edited])
        if self._settings.values == "none":
            whole["sample"] = np.nan
        return self._layout_of(plan.labels + labels), whole, np.concatenate([present, there])

    def _edits(self, begun: Begun, params: Rows, state: Rows) -> tuple[list[Label], Rows, npt.NDArray[np.bool_]]:
        """Rows of what is not, bit for bit, as the last recorded rows have it, and of each backward's gradients."""
        labels: list[Label] = []
        rows = [params[:0]]
        there: list[bool] = []
        wanted, names = self._wanted, begun.param_in.names
        if wanted.param and wanted.param_in:
            which = self._last_params.changed(names, begun.param_in.kinds, params["fingerprint"])
            labels += map(begun.param_in.label, which)
            rows.append(params[which])
        which = self._last_state.changed(begun.state_in.names, begun.state_in.kinds, state["fingerprint"])
        which = [i for i in which if wanted.has(f"state_in.{begun.state_in.names[i][1]}")]
        labels += map(begun.state_in.label, which)
        rows.append(state[which])
        there += [True] * len(labels)
        lost = [
            (begun.param_in.groups[names.index(name)], name, f"state_in.{key}", "float32", 0)
            for name, key in self._last_state.lost(begun.state_in.names)
            if name in names and wanted.has(f"state_in.{key}")
        ]
        rows.append(measure_now([NOTHING] * len(lost), 1))
        there += [False] * len(lost)
        labels += lost
        if begun.micro.rows is not None:
            labels += begun.micro.labels
            rows.append(begun.micro.rows)
            there += [found[2] is not None for found in begun.micro.found]
        return labels, np.concatenate(rows), np.array(there, np.bool_)

    def _keep_in_mind(self, params: Described, state: Described, param_rows: Rows, state_rows: Rows) -> None:
        """Keep the fingerprints of the rows that have just been recorded."""
        if self._wanted.param:
            self._last_params = Last(params.names, params.kinds, param_rows["fingerprint"].copy())
        self._last_state = Last(state.names, state.kinds, state_rows["fingerprint"].copy())

    def _say_how(self) -> None:
        """Say once in the trace where and by what is measured."""
        if not self._told_how:
            self._told_how = True
            by = "triton" if self._device.has_triton else "torch"
            self._tell("measured on the device", device=self._device.name, by=by)


@dataclass
class _DeviceStep:
    """A step whose rows are on their way."""

    capture: DeviceCapture
    arrival: Arrival
    begun: Begun
    plan: AfterDevice
    measured: list[Measured]
    slots: list[Slot]
    params: Described
    state: Described
    seconds: float = 0.0
    """What the device took to measure them; 0 until they are complete."""

    def __post_init__(self) -> None:
        self.begun.params = []  # a step that waits keeps no tensor of the program alive
        for measured in self.measured:
            measured.found = None

    def ready(self) -> bool:
        """Whether the results have arrived."""
        return self.arrival.ready()

    def complete(self) -> Tensors | None:
        """The rows; waits for them where they have not arrived."""
        return self.capture.complete(self)


def capture_of(
    index: int,
    settings: Settings,
    names: ParamNames,
    budgets: dict[str, Budget],
    tell: Tell,
    first: Any,
    device: Device | None,
) -> Capture:
    """The recording of an optimizer whose first parameter is `first`: on its device, or on the host.

    On the host are those whose parameters are there, and all when whole values are recorded: they go through its memory
    anyway. `budgets`: bounds of the memory held on each device ("" for the host), which are added to.
    `device`: measure there whatever lies there, instead of asking `first`.
    """
    on = None if settings.values in ("grad", "full") else device or cuda_device(first)
    if on is None:
        return Capture(index, settings, names, budgets[""], tell)
    if on.name not in budgets:
        budgets[on.name] = Budget(on.memory if settings.memory is None else settings.memory)
    return DeviceCapture(index, settings, names, budgets[on.name], tell, on)
