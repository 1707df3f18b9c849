"""What torch's operators return for tensors without values, remembered by shapes.

torch is asked about each operator at each set of shapes once. After that a new result is made from what it said, one
that was written into is handed back, and a view is made by the kernel that has no values to move. Everything else
(what reads values, changes a shape in place, or may share memory some other way) is asked every time.

This is the only file that imports torch's private module of such tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)

__all__ = ["UNKNOWN", "FakeTensor", "FakeTensorMode", "Replies", "answering", "remembered", "unset_fake_temporarily"]

OTHERWISE = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.inplace_view)
MOST = 100_000
"""Replies that are kept (about a kilobyte each); all are forgotten beyond."""
UNKNOWN = object()
aten = torch.ops.aten
RULED = frozenset({aten.mm, aten.bmm, aten.addmm, aten.addmm_, aten.baddbmm, aten.sum, aten.mean, aten._to_copy,
                   aten.empty_like, aten.zeros_like, aten.cat, aten.copy_})  # fmt: skip
"""Beside elementwise operators, those whose own shape rule, in C++, is asked without the mode around it."""
FACTORIES = frozenset({aten.empty, aten.zeros, aten.ones, aten.full, aten.scalar_tensor, aten.empty_strided})
"""Operators without tensors among their arguments whose results have no values."""


class Fresh(NamedTuple):
    """A new tensor: its shape, strides, dtype and device."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


Reply = Fresh | int | None
"""A new tensor, the place among the arguments' tensors of one that was written into, or nothing."""


class Replies:
    """The operators that tensors of a mode have met; what they return is one for all modes of a process."""

    _kinds: ClassVar[dict[Any, str]] = {}
    _known: ClassVar[dict[Hashable, tuple[bool, list[Reply]] | None]] = {}

    def __init__(self, fakes: FakeTensorMode) -> None:
        self._fakes = fakes
        self._details: dict[torch.device, dict[str, Any]] = {}

    def __call__(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tensors: Sequence[torch.Tensor],
        ask: Callable[[], Any],
    ) -> Any:
        """Return the result of an operator; `tensors`: those among its arguments, `ask`: how torch is asked."""
        known = self.known(func, args, kwargs, tensors)
        if known is not UNKNOWN:
            return known
        if not self._may_know(func, tensors):
            return ask()
        key = _key(func, args, kwargs)
        if len(self._known) >= MOST:
            self._known.clear()
        before = said(tensors)
        result = self._by_kernel(func, args, kwargs, tensors) if _has_own_rule(func, kwargs, tensors) else ask()
        if key not in self._known:
            self._known[key] = _replies(result, tensors) if said(tensors) == before else None
        return result

    def known(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> Any:
        """Return the result of an operator without asking torch, or `UNKNOWN`."""
        if not self._may_know(func, tensors):
            return UNKNOWN
        if self._kinds[func] == "view":
            with in_kernel_invocation_manager(self._fakes):
                return self._fake(func(*args, **kwargs), args[0].fake_device)
        known = self._known.get(_key(func, args, kwargs))
        if known is None:
            return UNKNOWN
        several, replies = known
        results = [self._made(reply, tensors) for reply in replies]
        return tuple(results) if several else results[0]

    def _may_know(self, func: Any, tensors: Sequence[torch.Tensor]) -> bool:
        kind = self._kinds.get(func) or self._kinds.setdefault(func, _kind(func))
        if kind == "otherwise" or torch.is_inference_mode_enabled():
            return False
        if not tensors:
            # What is made while the mode is out of the way has values.
            return func.overloadpacket in FACTORIES and _mode_that_is_on() is self._fakes
        others = [tensor for tensor in tensors if not self.is_plain(tensor)]
        return not others or (len(others) < len(tensors) and _is_elementwise(func) and all(map(_is_real, others)))

    def _by_kernel(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[torch.Tensor]
    ) -> Any:
        """Return what the operator's own shape rule says of tensors of one device."""
        options = {name: value for name, value in kwargs.items() if name != "device"}
        with in_kernel_invocation_manager(self._fakes):
            found = func(*map(_shape_alone, args), **options)
        given = next((tensor for tensor in tensors if tensor is found), None)
        with torch._C._DisableTorchDispatch():
            return self._fake(found, _device(tensors[0])) if given is None else given

    def _fake(self, meta: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return what `FakeTensor(mode, meta, device)` does, with the attributes of the first one made so."""
        details = self._details.get(device)
        if details is None:
            made = FakeTensor(self._fakes, meta, device)
            self._details[device] = dict(vars(made))
            return made
        fake: FakeTensor = torch.Tensor._make_subclass(
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device
        )
        torch._C._set_throw_on_mutable_data_ptr(fake)
        vars(fake).update(details)
        return fake

    def is_plain(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is one of this mode's, and says all of itself by shape, strides, dtype and device."""
        return (
            type(tensor) is FakeTensor
            and tensor.constant is None
            and tensor.fake_mode is self._fakes
            and tensor.layout is torch.strided
            and not tensor.dtype.is_complex
        )

    def _made(self, reply: Reply, tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
        if not isinstance(reply, Fresh):
            return None if reply is None else tensors[reply]
        return self.fresh(reply)

    def fresh(self, reply: Fresh) -> torch.Tensor:
        """Return a new tensor."""
        with torch._C._DisableTorchDispatch():
            meta = torch.empty_strided(reply.shape, reply.stride, dtype=reply.dtype, device="meta")
            return self._fake(meta, reply.device)


def _mode_that_is_on() -> Any:
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)


_answering: list[Replies] = []


@contextmanager
def answering(replies: Replies) -> Iterator[None]:
    """Let `remembered` ask these replies inside."""
    _answering.append(replies)
    try:
        yield
    finally:
        _answering.pop()


def remembered(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> Any:
    """Return what the mode below would reply to an operator from memory, or `UNKNOWN`; it saves the way there."""
    return _answering[-1].known(func, args, kwargs, tensors) if _answering else UNKNOWN


def are_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether tensors are all without values, of the mode that is replying."""
    return bool(_answering) and all(map(_answering[-1].is_plain, tensors))


def made(like: Fresh) -> torch.Tensor:
    """Return a new tensor of the mode that is replying."""
    return _answering[-1].fresh(like)


def fresh(results: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> list[Fresh] | None:
    """Return what new tensors are like; None where one shares memory with `tensors`, another, or a part of its own."""
    storages = {each.untyped_storage()._cdata for each in results}
    if len(storages) < len(results) or not all(_is_fresh(each, tensors) for each in results):
        return None
    return [_like(each) for each in results]


def _key(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    return func, torch.get_default_dtype(), said(args), said(kwargs) if kwargs else ()


def _kind(func: Any) -> str:
    """Return how an operator may be answered: "view", "remembered" or "otherwise"."""
    schema = func._schema
    if func.namespace != "aten" or any(tag in func.tags for tag in OTHERWISE):
        return "otherwise"
    single = len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
    if func.is_view or func.overloadpacket is aten._unsafe_view:
        first = schema.arguments[0].type if schema.arguments else None
        return "view" if single and str(first) == "Tensor" else "otherwise"
    aliases = [each.alias_info for each in (*schema.arguments, *schema.returns) if each.alias_info is not None]
    tensors = all(str(each.type) == "Tensor" for each in schema.returns)
    return "remembered" if tensors and all(each.is_write for each in aliases) else "otherwise"


def _has_own_rule(func: Any, kwargs: Mapping[str, Any], tensors: Sequence[torch.Tensor]) -> bool:
    """Whether an operator's result follows from its kernel's rule for shapes, and lies on its tensors' one device."""
    ruled = torch.Tag.pointwise in func.tags or func.overloadpacket in RULED
    one = set(map(_device, tensors))
    return ruled and len(one) == 1 and kwargs.get("device") in (None, *one) and not kwargs.get("pin_memory")


def _is_elementwise(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags and not func._schema.is_mutable


def _is_real(tensor: torch.Tensor) -> bool:
    """Whether a tensor with values may stand among some without: a table, and no number."""
    return type(tensor) is torch.Tensor and tensor.dim() > 0 and tensor.layout is torch.strided


def _shape_alone(value: Any) -> Any:
    """Return an argument as a kernel that has no values takes it."""
    if type(value) is not torch.Tensor:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _device(tensor: Any) -> torch.device:
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


def said(value: Any) -> Hashable:
    """Return all of an argument that a result without values depends on."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype, _device(value), value.storage_offset()
    if isinstance(value, (tuple, list)):
        return tuple(map(said, value))
    if isinstance(value, Mapping):
        return tuple((name, said(each)) for name, each in value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), said(vars(value))
    return type(value), value


def _replies(result: Any, tensors: Sequence[torch.Tensor]) -> tuple[bool, list[Reply]] | None:
    """Return what to reply from now on to these arguments; None where a result is not of a form that is known."""
    several = isinstance(result, (tuple, list))
    replies: list[Reply] = []
    for each in result if several else [result]:
        place = next((place for place, tensor in enumerate(tensors) if tensor is each), None)
        if each is None or place is not None:
            replies.append(place)
        elif _is_fresh(each, tensors):
            replies.append(_like(each))
        else:
            return None
    return several, replies


def _like(tensor: Any) -> Fresh:
    return Fresh(tensor.shape, tensor.stride(), tensor.dtype, tensor.fake_device)


def _is_fresh(result: Any, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a result is a whole storage of its own, which its shape and strides say the size of."""
    if type(result) is not FakeTensor or result.constant is not None or result.layout is not torch.strided:
        return False
    storage = result.untyped_storage()
    reach = sum((size - 1) * step for size, step in zip(result.shape, result.stride(), strict=True)) + 1
    whole = result.storage_offset() == 0 and storage.nbytes() == (reach if result.numel() else 0) * result.itemsize
    return whole and all(storage._cdata != tensor.untyped_storage()._cdata for tensor in tensors)
