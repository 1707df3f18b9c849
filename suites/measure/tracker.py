"""Every storage that comes and goes during a call, and the peak of their sum by category.

A dispatch mode below autograd sees the arguments and results of every operator; a weak reference tells when a storage
is gone. The events are only logged while the call runs. Afterwards, when it is known what each storage became (a
gradient, optimizer state), the log is replayed: the peak and its categories are exact, and storages that existed
before the call count from its start.

Not seen: workspace that a compiled kernel takes and returns within one operator, random-number states that activation
checkpointing keeps, and what an allocator adds (rounding, caching). Foreign operators whose kernel is written in
Python (bitsandbytes on a CPU) are looked into.

This is the only file that uses private parts of torch's autograd and storages.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from results.schema import Peak
from suites.measure.live import held_tensors, is_sharded_type, storages, tensors_in

Category = Literal["parameter", "buffer", "gradient", "activation", "temporary", "optimizer", "other"]
Phase = Literal["start", "forward", "backward", "optimizer"]
T = TypeVar("T")
Owned = Iterable[tuple[Category, Tensor]]

NATIVE_NAMESPACES = frozenset({"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "fsdp"})
"""Operators that are looked at from outside alone; what processes exchange is among them."""


class Event(NamedTuple):
    """One change of the bytes that a storage holds, in the order of time; or, without a change, a phase that began."""

    storage: int | None
    delta_bytes: int
    phase: Phase


class Mark(NamedTuple):
    """The event index at which the forward of a block of layers began, or its backward (its output's gradient came)."""

    event: int
    phase: Literal["forward", "backward"]
    block: int


class Note(NamedTuple):
    """The event index at which `note` was called, and with what."""

    event: int
    what: object


@dataclass(frozen=True)
class Trace:
    """What happened during one call: the events (those of phase "start" first), and what each storage was."""

    events: tuple[Event, ...]
    categories: Mapping[int, Category]
    marks: tuple[Mark, ...] = ()
    notes: tuple[Note, ...] = ()


def note(what: object) -> None:
    """Let a trace that is being made, if one is, say that this was the moment of something."""
    if _watching:
        _watching[-1].note(what)


def peak_of(trace: Trace, phase: Phase | None = None) -> Peak:
    """Return the bytes by category at the first moment of the highest total, over the call or within one phase.

    A phase lasts until the next one begins: "forward" with a module's forward, "backward" (clipping after it included)
    with backward, "optimizer" with `optimizer.step`.
    A call without `phase` has a peak of zero there.
    """
    start = sum(event.phase == "start" for event in trace.events)
    total = sum(event.delta_bytes for event in trace.events[:start])
    highest, end = (total, start) if phase is None else (-1, 0)
    for index, event in enumerate(trace.events[start:], start=start):
        total += event.delta_bytes
        # What goes first thing in a phase was not needed there: a total before a release belongs to an earlier event.
        if phase in (None, event.phase) and event.delta_bytes >= 0 and total > highest:
            highest, end = total, index + 1
    sums: dict[Category, int] = dict.fromkeys(get_args(Category), 0)
    for event in trace.events[:end]:
        if event.storage is not None:
            sums[trace.categories[event.storage]] += event.delta_bytes
    peak = Peak(total_bytes=sum(sums.values()), **{f"{category}_bytes": size for category, size in sums.items()})
    assert end == 0 or peak.total_bytes == highest
    return peak


def track_step(model: nn.Module, optimizer: Optimizer | None, step: Callable[[], object]) -> Peak:
    """Return the peak of `track` over the whole call."""
    return peak_of(track(model, optimizer, step))


def track(
    model: nn.Module,
    optimizer: Optimizer | None,
    step: Callable[[], object],
    look_into_foreign: bool = True,
    blocks: Iterable[nn.Module] = (),
) -> Trace:
    """Run `step` once and return its trace; storages on the device type of the model count, others do not.

    Categories: parameters and buffers of the model and parameters of the optimizer; gradients that were in `.grad`
    at any time of the call; optimizer state (`measure.held_tensors`), also where it is created during the call;
    activations, created in a forward (also one recomputed during backward) or with gradients on; temporaries, created
    in backward, in `optimizer.step`, or without gradients outside any module; other: what an operator read that was
    made before the call (or without operators) and is none of these, such as the batch.

    With `look_into_foreign` false, foreign operators allocate their results alone, as compiled ones do. Where `blocks`
    (layers that run one after the other) begin is marked in the trace. Cycle collection is off during the call, so
    that two runs agree to the byte.

    Raises:
        ValueError: the model has no parameter.
    """
    first = next(model.parameters(), None)
    if first is None:
        raise ValueError(f"{type(model).__name__} has no parameter: there is nothing to track")
    recorder = Recorder(first.device.type, look_into_foreign)
    recorder.own(owned_tensors(model, optimizer))
    with recorder.watching(all_parameters(model, optimizer), blocks), _no_cycle_collection(), recorder:
        step()
    recorder.own(owned_tensors(model, optimizer))
    return recorder.trace()


def track_load(
    build: Callable[[], T], parts: Callable[[T], tuple[nn.Module, Optimizer | None]], device_type: str = "cpu"
) -> tuple[T, Peak]:
    """Run `build` and return what it made and the peak of making it; `parts` names model and optimizer in it.

    What other threads allocate counts where it ends up in the model, and from the start on.
    """
    recorder = Recorder(device_type)
    with _no_cycle_collection(), recorder:
        made = build()
    recorder.own(owned_tensors(*parts(made)))
    return made, peak_of(recorder.trace())


def all_parameters(model: nn.Module, optimizer: Optimizer | None) -> list[Tensor]:
    """Return the parameters of the model, and those that the optimizer alone holds, each once."""
    groups = optimizer.param_groups if optimizer is not None else []
    held = [parameter for group in groups for parameter in group["params"]]
    return list({id(parameter): parameter for parameter in [*model.parameters(), *held]}.values())


def owned_tensors(model: nn.Module, optimizer: Optimizer | None) -> Iterator[tuple[Category, Tensor]]:
    """Yield every tensor that the model and the optimizer hold now, with its category."""
    parameters = all_parameters(model, optimizer)
    yield from (("parameter", parameter) for parameter in parameters)
    yield from (("parameter", weight) for weight in gathered_weights(model))
    yield from (("buffer", buffer) for buffer in model.buffers())
    yield from (("gradient", parameter.grad) for parameter in parameters if parameter.grad is not None)
    if optimizer is not None:
        yield from (("optimizer", tensor) for _, tensor in held_tensors(optimizer, model))


def gathered_weights(model: nn.Module) -> Iterator[Tensor]:
    """Yield what FSDP2 gathers the shards of a model's weights into; empty storages between their uses."""
    for module in model.modules():
        state = getattr(module, "_get_fsdp_state", None)
        if state is not None:
            for group in state()._fsdp_param_groups:
                for parameter in group.fsdp_params:
                    yield from parameter.all_gather_outputs


class Recorder(TorchDispatchMode):
    """Logs the storages that operators take and return. One use each: `own`, run within `watching`, `own`, `trace`."""

    def __init__(self, device_type: str, look_into_foreign: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device_type = device_type
        self._foreign = look_into_foreign
        self._before: list[Event] = []
        self._during: list[Event] = []
        self._created: dict[int, Category] = {}
        self._owned: dict[int, Category] = {}
        self._live: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._sizes: dict[int, int] = {}
        self._last_phase: Phase = "forward"
        self._modules = 0
        self._steps = 0
        self._marks: list[Mark] = []
        self._notes: list[Note] = []

    def trace(self) -> Trace:
        """End the log and return it; what a storage became outranks what it was created as."""
        self._live.clear()
        start = len(self._before)
        marks = tuple(mark._replace(event=start + mark.event) for mark in self._marks)
        notes = tuple(note._replace(event=start + note.event) for note in self._notes)
        return Trace((*self._before, *self._during), {**self._created, **self._owned}, marks, notes)

    def note(self, what: object) -> None:
        """Keep what happens now."""
        self._notes.append(Note(len(self._during), what))

    def own(self, tensors: Owned) -> None:
        """Say what tensors are; ones never seen before are taken to have existed from the start."""
        for category, tensor in tensors:
            for serial in self._see(tensor, "other"):
                self._owned.setdefault(serial, category)

    @contextmanager
    def watching(self, parameters: Iterable[Tensor], blocks: Iterable[nn.Module] = ()) -> Iterator[None]:
        """Follow module forwards, optimizer steps and arriving gradients while the context lasts; mark `blocks`."""
        with ExitStack() as stack:
            stack.enter_context(self._watching_sizes())
            stack.enter_context(_unseen_waits())
            _watching.append(self)
            stack.callback(_watching.pop)
            for index, block in enumerate(blocks):
                for handle in self._mark_hooks(block, index):
                    stack.callback(handle.remove)
            for handle in (
                register_module_forward_pre_hook(lambda *_: self._enter_module(1)),
                register_module_forward_hook(lambda *_: self._enter_module(-1), always_call=True),
                register_optimizer_step_pre_hook(lambda *_: self._enter_step(1)),
                register_optimizer_step_post_hook(lambda *_: self._enter_step(-1)),
            ):
                stack.callback(handle.remove)
            for parameter in parameters:
                if parameter.requires_grad and parameter.is_leaf:
                    stack.callback(self._watch_gradient(parameter))
            yield

    @contextmanager
    def _watching_sizes(self) -> Iterator[None]:
        """Follow storages that are emptied and filled without an operator, as FSDP2 does with gathered weights."""
        plain = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            result = plain(storage, size)
            if storage._cdata in self._live:
                self._see_storage(storage, "other")
            return result

        torch.UntypedStorage.resize_ = resize_  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            torch.UntypedStorage.resize_ = plain  # type: ignore[method-assign]

    def _mark_hooks(self, block: nn.Module, index: int) -> Iterator[torch.utils.hooks.RemovableHandle]:
        def mark(phase: Literal["forward", "backward"]) -> None:
            self._marks.append(Mark(len(self._during), phase, index))

        def before(*_: object) -> None:
            # A block that is computed again during backward does not begin anew.
            if torch._C._current_graph_task_id() == -1:
                mark("forward")

        def after(_: nn.Module, __: object, output: object) -> None:
            result = next(tensors_in(output))
            if result.requires_grad and torch._C._current_graph_task_id() == -1:
                result.register_hook(lambda _: mark("backward"))

        yield block.register_forward_pre_hook(before)
        yield block.register_forward_hook(after)

    def _watch_gradient(self, parameter: Tensor) -> Callable[[], None]:
        remove: Callable[[], None] = hook_first(parameter, self._gradient_arrived).remove
        return remove

    def _gradient_arrived(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.own([("gradient", parameter.grad)])

    def _enter_module(self, step: int) -> None:
        self._modules += step

    def _enter_step(self, step: int) -> None:
        self._steps += step

    def _phase(self) -> Phase:
        if self._steps:
            self._last_phase = "optimizer"
        elif torch._C._current_graph_task_id() != -1:
            self._last_phase = "backward"
        elif self._modules:
            self._last_phase = "forward"
        return self._last_phase

    def _category(self) -> Category:
        # Backward and clipping run with gradients off; so does autograd.Function.forward, but inside a module.
        forward = self._modules > 0 or (torch.is_grad_enabled() and not self._steps)
        return "activation" if forward else "temporary"

    def _see(self, tensor: Tensor, created: Category) -> list[int]:
        """Log the storages of a tensor where they are new or changed their size; return their serial numbers."""
        if tensor.device.type != self._device_type:
            return []
        return [self._see_storage(storage, created) for storage in storages(tensor)]

    def _see_storage(self, storage: torch.UntypedStorage, created: Category) -> int:
        size = storage.nbytes()
        known = self._live.get(storage._cdata)
        if known is None:
            serial = len(self._sizes)
            self._live[storage._cdata] = (serial, weakref.ref(storage, self._gone(storage._cdata, serial)))
            self._created[serial] = created
            self._sizes[serial] = size
            existed = created == "other"
            log = self._before if existed else self._during
            log.append(Event(serial, size, "start" if existed else self._phase()))
            return serial
        serial = known[0]
        if self._sizes[serial] != size:
            self._during.append(Event(serial, size - self._sizes[serial], self._phase()))
            self._sizes[serial] = size
        return serial

    def _gone(self, key: int, serial: int) -> Callable[[object], None]:
        def log(_: object) -> None:
            del self._live[key]
            self._during.append(Event(serial, -self._sizes[serial], self._phase()))

        return log

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(map(is_sharded_type, types)):
            # Its own operators on shards come here next.
            return NotImplemented
        if func.namespace == "prim":  # a question, such as for the device of a tensor without values
            return func(*args, **kwargs)
        if not self._during or self._during[-1].phase != self._phase():
            self._during.append(Event(None, 0, self._phase()))
        for tensor in tensors_in((args, kwargs)):
            self._see(tensor, "other")
        result = self._call(func, args, kwargs)
        category = self._category()
        for tensor in tensors_in(result):
            self._see(tensor, category)
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator so that the operators it is made of are seen too, where it is made of operators."""
        if self._foreign and func.namespace not in NATIVE_NAMESPACES:
            key = getattr(torch._C.DispatchKey, self._device_type.upper())
            # Without values, an operator with results is run by its shape rule: its kernel may be compiled code.
            if func.has_kernel_for_dispatch_key(key) and not (active_fake_mode() and func._schema.returns):
                with self:
                    return func.redispatch(torch._C.DispatchKeySet(key), *args, **kwargs)
        if torch.is_inference_mode_enabled():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


_watching: list[Recorder] = []


def hook_first(parameter: Tensor, arrived: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    """Call `arrived` with a parameter whose gradient has come, before any hook that is there already.

    One that steps the optimizer inside backward would free the gradient unseen.
    """
    handle: torch.utils.hooks.RemovableHandle = parameter.register_post_accumulate_grad_hook(arrived)
    hooks: dict[int, Any] = parameter._post_accumulate_grad_hooks
    earlier = {key: hook for key, hook in hooks.items() if key != handle.id}
    for key in earlier:
        del hooks[key]
    hooks.update(earlier)
    return handle


@contextmanager
def _unseen_waits() -> Iterator[None]:
    """Hide what a backend works on while it is waited for: gloo's copy of what it sums, which no operator made."""
    if not torch.distributed.is_available():
        yield
        return
    kind: Any = torch.distributed.Work
    plain = kind.wait

    def wait(work: Any, *given: Any, **options: Any) -> Any:
        with _disable_current_modes():
            return plain(work, *given, **options)

    kind.wait = wait
    try:
        yield
    finally:
        kind.wait = plain


@contextmanager
def _no_cycle_collection() -> Iterator[None]:
    """Leave garbage in cycles alone: when the collector runs depends on what the process did before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
