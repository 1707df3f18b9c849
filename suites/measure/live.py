"""Bytes counted by walking live tensors, the certificate that a method took effect, and what process and device saw.

Every storage counts once, whole: a view keeps its whole storage alive, tied weights and shared tables share one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gnlorp.checks import is_sharded
from results.schema import Engagement, Layer

try:
    import resource
except ModuleNotFoundError:
    raise OSError("the suites run on POSIX systems alone, such as Linux and macOS") from None

MOMENT_BYTES = 8
"""Bytes per weight of the two fp32 moments of Adam."""

STEP_BYTES = 4
"""Bytes of the fp32 step counter that torch.optim.AdamW keeps per parameter."""

_OPAQUE = (str, bytes, type, nn.Module, FunctionType, BuiltinFunctionType, MethodType, ModuleType)


def storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """Return the storages of a tensor: one, those of indices and values where it is sparse in COO layout, or that of
    this process's shard."""
    if is_sharded(tensor):
        return storages(tensor._local_tensor)  # type: ignore[attr-defined]
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices().untyped_storage(), tensor._values().untyped_storage()]
    return [tensor.untyped_storage()]


def is_sharded_type(kind: type) -> bool:
    """Whether a type of tensors is DTensor, whose storages are those of this process's shard."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and issubclass(kind, module.DTensor)


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for element in value:
            yield from tensors_in(element)
    elif isinstance(value, dict):
        for element in value.values():
            yield from tensors_in(element)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of all storages behind the tensors, each storage once."""
    sizes = {storage._cdata: storage.nbytes() for tensor in tensors for storage in storages(tensor)}
    return sum(sizes.values())


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters, tied ones once."""
    return storage_bytes(model.parameters())


def trainable_bytes(model: nn.Module) -> int:
    """Return the bytes of the parameters with requires_grad, tied ones once."""
    return storage_bytes(parameter for parameter in model.parameters() if parameter.requires_grad)


def buffer_bytes(model: nn.Module) -> int:
    """Return the bytes of all buffers, persistent or not."""
    return storage_bytes(model.buffers())


def gradient_bytes(model: nn.Module) -> int:
    """Return the bytes of the gradients that are in `.grad` now; none are after `zero_grad(set_to_none=True)`."""
    return storage_bytes(parameter.grad for parameter in model.parameters() if parameter.grad is not None)


def state_bytes(optimizer: Optimizer, model: nn.Module | None = None) -> int:
    """Return the bytes of all tensors in `held_tensors`: state, bases, and what is kept outside `optimizer.state`."""
    return storage_bytes(tensor for _, tensor in held_tensors(optimizer, model))


def basis_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of the state tensors with "basis" in their key."""
    return storage_bytes(tensor for key, tensor in held_tensors(optimizer) if "basis" in key)


def state_shapes(optimizer: Optimizer) -> dict[str, int]:
    """Return how many tensors of `held_tensors` have each "key OxI dtype" (a scalar's shape is "scalar")."""
    return dict(sorted(Counter(_describe(key, tensor) for key, tensor in held_tensors(optimizer)).items()))


def dense_state_bytes(numels: Iterable[int]) -> int:
    """Return the state bytes of torch.optim.AdamW in fp32 over weights of these sizes: sum of 8·n + 4.

    Each weight has two moments of 4 bytes per value and one step counter of 4 bytes.
    """
    return sum(MOMENT_BYTES * numel + STEP_BYTES for numel in numels)


def held_tensors(optimizer: Optimizer, model: nn.Module | None = None) -> list[tuple[str, Tensor]]:
    """Return what the optimizer keeps beside parameters and gradients, each storage once, with a dotted key.

    Looks through `optimizer.state`, then through every attribute and parameter group, into dicts, sequences and
    the attributes of plain objects. Left out: parameters of its groups, their gradients, and (where `model` is given)
    parameters and buffers of the model that it merely refers to.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parameters += [] if model is None else [*model.parameters(), *model.buffers()]
    known = {storage._cdata for tensor in parameters for storage in storages(tensor)}
    gradients = [tensor.grad for tensor in parameters if tensor.is_leaf and tensor.grad is not None]
    known |= {storage._cdata for tensor in gradients for storage in storages(tensor)}
    found = []
    visited: set[int] = set()
    for root in (optimizer.state, vars(optimizer)):
        for key, tensor in _walk(root, "", visited):
            keys = {storage._cdata for storage in storages(tensor)}
            if not keys <= known:
                known |= keys
                found.append((key, tensor))
    return found


def _walk(value: Any, key: str, visited: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Yield (dotted key, tensor) below a value; keys that are no strings (parameters, numbers) add nothing."""
    if isinstance(value, Tensor):
        yield key, value
        return
    if value is None or isinstance(value, (*_OPAQUE, int, float, complex, torch.dtype, torch.device)):
        return
    if id(value) in visited:
        return
    visited.add(id(value))
    for name, child in _children(value):
        yield from _walk(child, f"{key}.{name}".strip(".") if name else key, visited)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((name if isinstance(name, str) else "", child) for name, child in value.items())
        return
    if isinstance(value, (Sequence, AbstractSet)):
        yield from (("", child) for child in value)
        return
    yield from getattr(value, "__dict__", {}).items()
    for owner in type(value).__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                yield name, getattr(value, name)


def _describe(key: str, tensor: Tensor) -> str:
    shape = "x".join(str(size) for size in tensor.shape) or "scalar"
    return f"{key or 'state'} {shape} {str(tensor.dtype).removeprefix('torch.')}"


def engagement(
    layers: Sequence[Layer],
    trainable_parameters: int,
    total_parameters: int,
    optimizer: Optimizer,
    dense_bytes: int,
    refreshes: int | None = None,
) -> Engagement:
    """Return the certificate of what a method did: layers and counts as given, state as found in the optimizer.

    `dense_bytes` is `dense_state_bytes` over the model before the method was attached.
    """
    return Engagement(
        layers=list(layers),
        trainable_parameters=trainable_parameters,
        total_parameters=total_parameters,
        state_shapes=state_shapes(optimizer),
        state_bytes=state_bytes(optimizer),
        dense_state_bytes=dense_bytes,
        basis_bytes=basis_bytes(optimizer),
        refreshes=refreshes,
    )


def check_engagement(
    certificate: Engagement,
    model: nn.Module,
    title: str,
    saves_state: bool,
    trains_layers: bool = True,
    keeps_bases: bool = True,
    keeps_state: bool = True,
    rule_bytes: int = 0,
) -> None:
    """Raise RuntimeError unless the method took effect; call it after the first optimizer step.

    Rules: a layer matched; every matched layer holds something trainable (nothing, unless `trains_layers`); the
    optimizer has state (unless not `keeps_state`); where a layer has a projection rank there are bases, if the method
    keeps them (one that draws its projection need not); where the method saves state, it has less than dense AdamW,
    the `rule_bytes` left out that a rule for bf16 weights keeps for any method.
    """
    if not certificate.layers:
        raise RuntimeError(f"{title}: no layer was matched, so the method changed nothing")
    modules = dict(model.named_modules())
    for layer in certificate.layers:
        if layer.name not in modules:
            raise RuntimeError(f"{title}: the matched layer {layer.name} is not in the model any more")
        if any(parameter.requires_grad for parameter in modules[layer.name].parameters()) != trains_layers:
            found = "nothing" if trains_layers else "something"
            raise RuntimeError(f"{title}: {found} is trainable in the matched layer {layer.name}")
    if certificate.state_bytes == 0 and keeps_state:
        raise RuntimeError(f"{title}: the optimizer has no state (a certificate needs at least one step)")
    projected = any(layer.projection_rank is not None for layer in certificate.layers)
    if keeps_bases and projected and certificate.basis_bytes == 0:
        raise RuntimeError(f"{title}: layers have a projection rank, but the optimizer holds no basis")
    if saves_state and certificate.state_bytes - rule_bytes >= certificate.dense_state_bytes:
        raise RuntimeError(
            f"{title}: {certificate.state_bytes - rule_bytes} bytes of optimizer state, not below the "
            f"{certificate.dense_state_bytes} bytes of dense AdamW on the unchanged model"
        )


def rss_bytes() -> int:
    """Return the resident set of this process now."""
    return int(psutil.Process().memory_info().rss)


def rss_peak_bytes() -> int:
    """Return the highest resident set of this process since its start.

    On Linux from VmHWM: `getrusage` would also count what the parent held when it started this process. The kernel
    counts in batches, so two readings may differ by some 100 KiB.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class DevicePeaks:
    """Peak bytes allocated and reserved by the CUDA allocator, phase by phase; None on any other device.

    A phase that is entered again keeps the higher value; one inside another takes its own time out of it. What the
    allocator keeps from one phase counts as reserved in the next; `release` between two gives it back to the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[str] = []
        self.allocated_bytes: dict[str, int] | None = {} if device.type == "cuda" else None
        self.reserved_bytes: dict[str, int] | None = {} if device.type == "cuda" else None

    def release(self) -> None:
        """Give back what the allocator holds and no tensor uses, so that no later peak counts it."""
        if self.reserved_bytes is not None:
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what runs inside the context under `name`."""
        self._take()
        self._open.append(name)
        try:
            yield
        finally:
            self._take()
            self._open.pop()

    def _take(self) -> None:
        """Add the peaks since the last call to the phase that is open, and begin anew."""
        if self.allocated_bytes is None or self.reserved_bytes is None:
            return
        if self._open:
            name = self._open[-1]
            torch.cuda.synchronize(self._device)
            allocated = torch.cuda.max_memory_allocated(self._device)
            reserved = torch.cuda.max_memory_reserved(self._device)
            self.allocated_bytes[name] = max(allocated, self.allocated_bytes.get(name, 0))
            self.reserved_bytes[name] = max(reserved, self.reserved_bytes.get(name, 0))
        torch.cuda.reset_peak_memory_stats(self._device)
