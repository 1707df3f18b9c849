"""Every storage that comes and goes during a call, and the peak of their sum by category.

A dispatch mode below autograd sees the arguments and results of every operator; a weak reference tells when a storage
is gone. The events are only logged while the call runs. Afterwards, when it is known what each storage became (a
gradient, optimizer state), the log is replayed: the peak and its categories are exact, and storages that existed
before the call count from its start.

Not seen: workspace that a compiled kernel takes and returns within one operator, random-number states that activation
checkpointing keeps, and what an allocator adds (rounding, caching). Foreign operators whose kernel is written in
Python (bitsandbytes on a CPU) are looked into.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from results.schema import Peak
from suites.measure.live import held_tensors
from suites.measure.recorder import Recorder
from suites.measure.trace import Category, Trace, peak_of

T = TypeVar("T")


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
