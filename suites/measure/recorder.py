"""The log of every storage that comes and goes: a dispatch mode below autograd, and weak references to storages.

This is the only file that uses private parts of torch's autograd and storages.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from suites.measure.live import is_sharded_type, storages, tensors_in
from suites.measure.replies import UNKNOWN, FakeTensor, remembered
from suites.measure.trace import Category, Event, Mark, Note, Phase, Trace

Owned = Iterable[tuple[Category, Tensor]]

DEVICE = torch.ops.prim.device.default
NATIVE_NAMESPACES = frozenset({"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional", "fsdp"})
"""Operators that are looked at from outside alone; what processes exchange is among them."""


class Moment(NamedTuple):
    """How far a log has come, and as what it would write down a new storage now."""

    events: int
    storages: int
    notes: int
    marks: int
    kind: tuple[Phase, Category]


class Said(NamedTuple):
    """A stretch of a log: its events, with storages by the order of their making; category and size of each; which of
    them are still there; its notes."""

    events: list[Event]
    made: list[tuple[Category, int]]
    left: list[int]
    notes: list[Note]


def watched() -> Recorder | None:
    """Return the log of the call that is being traced, if one is."""
    return _watching[-1] if _watching else None


def note(what: object) -> None:
    """Let a trace that is being made, if one is, say that this was the moment of something."""
    if _watching:
        _watching[-1].note(what)


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
        self._begun: Phase | None = None
        self._modules = 0
        self._steps = 0
        self._marks: list[Mark] = []
        self._notes: list[Note] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # No call that is traced compiles anything, and a guard against that would be passed at every operator.
        return False

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

    def moment(self, tensors: Iterable[Tensor]) -> Moment:
        """Return where the log is, `tensors` seen and the phase begun."""
        for tensor in tensors:
            self._see(tensor, "other")
        self._begin_phase()
        place = (len(self._during), len(self._sizes), len(self._notes), len(self._marks))
        return Moment(*place, (self._phase(), self._category()))

    def said_since(self, since: Moment, left: Sequence[Tensor]) -> Said | None:
        """Return the log since a moment, to `say_again`; None unless all it made is gone but `left`, new and whole."""
        first, events = since.storages, self._during[since.events :]
        held = dict.fromkeys(range(first, len(self._sizes)), 0)
        for event in events:
            if event.storage is not None:
                held[event.storage] = held.get(event.storage, 0) + event.delta_bytes
        kept = [self._live[tensor.untyped_storage()._cdata][0] for tensor in left]
        here = [serial for serial, size in held.items() if size]
        if min(held, default=first) < first or sorted(kept) != here or len(self._marks) > since.marks:
            return None
        return Said(
            [each if each.storage is None else each._replace(storage=each.storage - first) for each in events],
            [(self._created[serial], self._sizes[serial]) for serial in held],
            [serial - first for serial in kept],
            [each._replace(event=each.event - since.events) for each in self._notes[since.notes :]],
        )

    def say_again(self, said: Said, left: Sequence[Tensor]) -> None:
        """Write a stretch once more, with `left` for what it left."""
        first, start = len(self._sizes), len(self._during)
        for serial, (category, size) in enumerate(said.made, first):
            self._created[serial], self._sizes[serial] = category, size
        for place, tensor in zip(said.left, left, strict=True):
            self._keep(tensor.untyped_storage(), first + place)
        self._during += [
            each if each.storage is None else each._replace(storage=first + each.storage) for each in said.events
        ]
        self._notes += [each._replace(event=start + each.event) for each in said.notes]

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

    def _begin_phase(self) -> None:
        phase = self._phase()
        # Not by the last event's phase: that may be a release, whose total belongs to an earlier moment.
        if phase != self._begun:
            self._during.append(Event(None, 0, phase))
            self._begun = phase

    def _category(self) -> Category:
        # Backward and clipping run with gradients off; so does autograd.Function.forward, but inside a module.
        forward = self._modules > 0 or (torch.is_grad_enabled() and not self._steps)
        return "activation" if forward else "temporary"

    def _see(self, tensor: Tensor, created: Category) -> list[int]:
        """Log the storages of a tensor where they are new or changed their size; return their serial numbers."""
        if type(tensor) is FakeTensor and tensor.layout is torch.strided:
            on_device = tensor.fake_device.type == self._device_type
            return [self._see_storage(tensor.untyped_storage(), created)] if on_device else []
        if tensor.device.type != self._device_type:
            return []
        return [self._see_storage(storage, created) for storage in storages(tensor)]

    def _see_storage(self, storage: torch.UntypedStorage, created: Category) -> int:
        size = storage.nbytes()
        known = self._live.get(storage._cdata)
        if known is None:
            serial = len(self._sizes)
            self._keep(storage, serial)
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

    def _keep(self, storage: torch.UntypedStorage, serial: int) -> None:
        self._live[storage._cdata] = (serial, weakref.ref(storage, self._gone(storage._cdata, serial)))

    def _gone(self, key: int, serial: int) -> Callable[[object], None]:
        def log(_: object) -> None:
            del self._live[key]
            self._during.append(Event(serial, -self._sizes[serial], self._phase()))

        return log

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE and isinstance(args[0], FakeTensor):
            # Two calls in three are autograd's question where a tensor without values is.
            return args[0].fake_device
        kwargs = kwargs or {}
        if any(map(is_sharded_type, types)):
            # Its own operators on shards come here next.
            return NotImplemented
        if func.namespace == "prim":
            return func(*args, **kwargs)
        self._begin_phase()
        tensors = list(tensors_in((args, kwargs)))
        for tensor in tensors:
            self._see(tensor, "other")
        result = remembered(func, args, kwargs, tensors)
        if result is UNKNOWN:
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
