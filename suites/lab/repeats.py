"""Calls within a layer or a step, gone through once for each set of shapes: a trace says the rest of them again.

What such a function takes on tensors without values follows from its arguments' shapes, and what it leaves is new
tensors. So a second call makes its results and writes the first one's events once more (`Recorder.say_again`), storage
for storage, in the same order. A call whose results share memory with its arguments is gone through every time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import wraps
from inspect import unwrap
from typing import Any

import torch
import torch.optim._muon
from torch import Tensor

import gnlorp.weight_norm
from suites.measure import replies
from suites.measure.recorder import Said, watched
from suites.measure.replies import Fresh

FUNCTIONS = (
    *((gnlorp.weight_norm, name) for name in ("product_norms", "_through_weight", "_through_factors", "_by_rows",
                                              "_by_formed_rows", "_by_tokens", "_subtract_radial")),
    *((torch.optim._muon, name) for name in ("_zeropower_via_newtonschulz",) if hasattr(torch.optim._muon, name)),
)  # fmt: skip
"""Module and name: all that the layer's forward and backward spend their operators on, and Muon's update."""


@contextmanager
def said_again() -> Iterator[None]:
    """Go through each of `FUNCTIONS` once for each set of shapes inside; within another, of its calls nothing is used.

    What loops over chunks do may be another thing there (`suites.lab.loops`).
    """
    known: dict[Hashable, _Call | None] = {}
    before = [(module, name, getattr(module, name)) for module, name in FUNCTIONS]
    for module, name, function in before:
        setattr(module, name, _remembering(unwrap(function), known))
    try:
        yield
    finally:
        for place in before:
            setattr(*place)


class _Call:
    """What a call left: its result, what its tensors are like, and its events where a trace is being made."""

    def __init__(self, result: Any, like: list[Fresh], said: Said | None) -> None:
        self._result, self._like, self._said = result, like, said

    def again(self) -> Any:
        """Return the result of another call like it."""
        made = [replies.made(each) for each in self._like]
        recorder = watched()
        if recorder is not None and self._said is not None:
            recorder.say_again(self._said, made)
        return _with(self._result, iter(made))


def _remembering(function: Callable[..., Any], known: dict[Hashable, _Call | None]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any) -> Any:
        tensors = list(_tensors(args))
        if torch.is_grad_enabled() or not replies.are_plain(tensors):
            return function(*args)
        recorder = watched()
        moment = None if recorder is None else recorder.moment(tensors)
        key = (function.__name__, replies.said(args), None if moment is None else moment.kind)
        found = known.get(key)
        if found is not None:
            return found.again()
        result = function(*args)
        if key not in known:
            left = list(_tensors(result))
            like = replies.fresh(left, tensors)
            said = None if recorder is None or moment is None else recorder.said_since(moment, left)
            whole = like is not None and (recorder is None or said is not None)
            known[key] = _Call(_with(result, None), like or [], said) if whole else None
        return result

    return call


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in tuples and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _with(value: Any, tensors: Iterator[Tensor] | None) -> Any:
    """Return a result with these in place of its tensors, in order; without any, with something that is no tensor."""
    if isinstance(value, Tensor) or value is _TENSOR:
        return _TENSOR if tensors is None else next(tensors)
    if isinstance(value, tuple):
        return tuple(_with(each, tensors) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _with(getattr(value, field.name), tensors) for field in fields(value)})
    return value


_TENSOR = object()
