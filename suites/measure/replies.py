"""What torch's operators return for tensors without values, remembered by shapes.

torch is asked about each operator at each set of shapes once. After that a new result is made from what it said, one
that was written into is handed back, and a view is made by the kernel that has no values to move. Everything else
(what reads values, changes a shape in place, or may share memory some other way) is asked every time.

This is the only file that imports torch's private module of such tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)

__all__ = ["FakeTensor", "FakeTensorMode", "Replies", "unset_fake_temporarily"]

OTHERWISE = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.inplace_view)
MOST = 100_000
"""Replies that are kept (about a kilobyte each); all are forgotten beyond."""


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

    def __call__(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        tensors: Sequence[torch.Tensor],
        ask: Callable[[], Any],
    ) -> Any:
        """Return the result of an operator; `tensors`: those among its arguments, `ask`: how torch is asked."""
        kind = self._kinds.get(func) or self._kinds.setdefault(func, _kind(func))
        plain = kind != "otherwise" and not torch.is_inference_mode_enabled() and all(map(self._is_plain, tensors))
        if not plain or not tensors:
            return ask()
        if kind == "view":
            with in_kernel_invocation_manager(self._fakes):
                meta = func(*args, **kwargs)
                return FakeTensor(self._fakes, meta, args[0].fake_device)
        key = (func, torch.get_default_dtype(), _said(args), _said(kwargs) if kwargs else ())
        if key not in self._known:
            if len(self._known) >= MOST:
                self._known.clear()
            before = _said(tensors)
            result = ask()
            self._known[key] = _replies(result, tensors) if _said(tensors) == before else None
            return result
        known = self._known[key]
        if known is None:
            return ask()
        several, replies = known
        results = [self._made(reply, tensors) for reply in replies]
        return tuple(results) if several else results[0]

    def _is_plain(self, tensor: torch.Tensor) -> bool:
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
        with torch._C._DisableTorchDispatch():
            meta = torch.empty_strided(reply.shape, reply.stride, dtype=reply.dtype, device="meta")
            return FakeTensor(self._fakes, meta, reply.device)


def _kind(func: Any) -> str:
    """Return how an operator may be answered: "view", "remembered" or "otherwise"."""
    schema = func._schema
    if func.namespace != "aten" or any(tag in func.tags for tag in OTHERWISE):
        return "otherwise"
    single = len(schema.returns) == 1 and str(schema.returns[0].type) == "Tensor"
    if func.is_view:
        first = schema.arguments[0].type if schema.arguments else None
        return "view" if single and str(first) == "Tensor" else "otherwise"
    aliases = [each.alias_info for each in (*schema.arguments, *schema.returns) if each.alias_info is not None]
    tensors = all(str(each.type) == "Tensor" for each in schema.returns)
    return "remembered" if tensors and all(each.is_write for each in aliases) else "otherwise"


def _said(value: Any) -> Hashable:
    """Return all of an argument that a result without values depends on."""
    if isinstance(value, FakeTensor):
        return value.shape, value.stride(), value.dtype, value.fake_device, value.storage_offset()
    if isinstance(value, (tuple, list)):
        return tuple(map(_said, value))
    if isinstance(value, Mapping):
        return tuple((name, _said(each)) for name, each in value.items())
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
            replies.append(Fresh(each.shape, each.stride(), each.dtype, each.fake_device))
        else:
            return None
    return several, replies


def _is_fresh(result: Any, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a result is a whole storage of its own, which its shape and strides say the size of."""
    if type(result) is not FakeTensor or result.constant is not None or result.layout is not torch.strided:
        return False
    storage = result.untyped_storage()
    reach = sum((size - 1) * step for size, step in zip(result.shape, result.stride(), strict=True)) + 1
    whole = result.storage_offset() == 0 and storage.nbytes() == (reach if result.numel() else 0) * result.itemsize
    return whole and all(storage._cdata != tensor.untyped_storage()._cdata for tensor in tensors)
