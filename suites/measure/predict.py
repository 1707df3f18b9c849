"""The tracked peak of a step without weights or a device: the same trace, over tensors that have shapes but no values.

Tensors that were made outside (a batch), from Python numbers or as a sequence (`arange`, `linspace`) keep their values,
so that what a model decides by them (masks, step counters) is decided as in a real run, and no table that a library
computes once and keeps is spoilt for later. What the others cannot do is replaced by rules, and a result counts how
often each was used.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from results.schema import Peak
from suites.measure.allocator import Held, held
from suites.measure.live import is_sharded_type, tensors_in
from suites.measure.recorder import DEVICE, NATIVE_NAMESPACES
from suites.measure.replies import FakeTensor, FakeTensorMode, Replies, answering, unset_fake_temporarily
from suites.measure.trace import peak_of
from suites.measure.tracker import track

Build = Callable[[], tuple[nn.Module, Optimizer, Callable[[], object]]]
Phase = Literal["forward", "backward", "optimizer"]

NO_REDUCTION = 0
DRAWING = ("trunc_normal_", "_no_grad_trunc_normal_")
MOST_SCALARS = 100_000
SEQUENCES = frozenset({torch.ops.aten.arange, torch.ops.aten.linspace})
PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer")
SCALAR_RULE = "a number read from a tensor without values is taken as 1, a truth value as True"
MEAN_RULE = "a mean squared error keeps the bytes of the errors it averages"
FOREIGN_RULE = "{name} allocates its results alone, no workspace"


@dataclass(frozen=True)
class Prediction:
    """Peak over the step and within each of its phases; how often each rule stood in for a missing value; what a CUDA
    device's allocator would hold for it.

    The scalar rule changes no byte where the number read only scales values, as the step count of Adam does.
    """

    peak: Peak
    phases: Mapping[Phase, Peak]
    rules: Mapping[str, int]
    held: Held


def predict_step_peak(
    build: Build, steps_before: int = 1, foreign: Literal["traced", "in_place"] = "traced"
) -> Prediction:
    """Return the peak that `tracker.track_step` would find for the step after `steps_before` earlier ones.

    `build` returns model, optimizer and step. It runs, as the steps do, where every new tensor is without values; it
    must make the model inside (on the CPU: shapes only take no memory), and may close over a real batch.

    Args:
        foreign: how operators that are not torch's own (bitsandbytes' update) count. "traced": by what their CPU
            kernel, written in Python, allocates; "in_place": by the rule that they allocate nothing, as on CUDA.

    Raises:
        ValueError: `steps_before` is negative.
        RuntimeError: from torch, where the step reads memory of a tensor without values.
    """
    if steps_before < 0:
        raise ValueError(f"steps_before {steps_before}: must be at least 0")
    with without_values() as used:
        model, optimizer, step = build()
        for _ in range(steps_before):
            step()
        used.clear()
        trace = track(model, optimizer, step, look_into_foreign=foreign == "traced")
    phases = {phase: peak_of(trace, phase) for phase in PHASES}
    return Prediction(peak_of(trace), phases, dict(used), held(trace))


def fake_mode() -> FakeTensorMode:
    """Return what makes tensors without values; those of one live in its contexts alone."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    # Otherwise a compiled kernel that is handed a tensor without values reads address zero and ends the process.
    fakes._allow_unsafe_data_ptr_access = False
    return fakes


@contextmanager
def without_values(fakes: FakeTensorMode | None = None) -> Iterator[Counter[str]]:
    """Make new tensors without values inside the context; yield how often each rule stood in for a missing one.

    `fakes`: of an earlier context, whose tensors can then be used again.
    """
    fakes = fakes or fake_mode()
    rules = _Rules(fakes)
    with torch.random.fork_rng(devices=[]), _nothing_to_draw(), fakes, rules, answering(rules.replies):
        yield rules.used


@contextmanager
def _nothing_to_draw() -> Iterator[None]:
    """Let `trunc_normal_` return its tensor as it is: torch draws until no value lies outside, which nothing here says.

    It is taken from where torch has it, and from where libraries keep it under a name of their own.
    """
    places = [torch.nn.init, sys.modules.get("transformers.initialization")]
    kept = [(place, name, getattr(place, name)) for place in places for name in DRAWING if hasattr(place, name)]
    for place, name, _ in kept:
        setattr(place, name, lambda tensor, *details, **options: tensor)
    try:
        yield
    finally:
        for place, name, function in kept:
            setattr(place, name, function)


class _Rules(TorchDispatchMode):
    """Runs what has values for real, and replaces what needs values that are not there; counts each replacement."""

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memo = fakes.fake_tensor_converter.meta_converter.tensor_memo
        self.replies = Replies(fakes)
        self.used: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled where there are no values, and this is called for every operator.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        if any(map(is_sharded_type, types)):
            return NotImplemented
        tensors = list(tensors_in((args, kwargs)))
        known = func.overloadpacket in SEQUENCES and torch.device(kwargs.get("device") or "cpu").type == "cpu"
        if (tensors or known) and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            self.used[SCALAR_RULE] += 1
            if self.used[SCALAR_RULE] > MOST_SCALARS:
                raise RuntimeError("a loop waits for a value that is not there: its end cannot be predicted")
            return _one(tensors[0].dtype)
        if func.namespace not in NATIVE_NAMESPACES:
            self.used[FOREIGN_RULE.format(name=func.name())] += 1
        if func is torch.ops.aten.mse_loss.default:
            return self._mean_squared_error(args)
        return self.replies(func, args, kwargs, tensors, lambda: self._asked(func, args, kwargs))

    def _asked(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        # Weak references left in the memo of conversions would make `module.to(dtype)` fail.
        self._memo.clear()
        return result

    def _mean_squared_error(self, args: tuple[Any, ...]) -> Any:
        """Return what torch's kernel does: it averages into the storage of the single errors, which stays whole."""
        errors = self._asked(torch.ops.aten.mse_loss.default, (args[0], args[1], NO_REDUCTION), {})
        if len(args) == 3 and args[2] == NO_REDUCTION:
            return errors
        self.used[MEAN_RULE] += 1
        return errors.flatten()[0]


def _one(dtype: torch.dtype) -> bool | int | float | complex:
    if dtype == torch.bool:
        return True
    if dtype.is_complex:
        return 1 + 0j
    return 1.0 if dtype.is_floating_point else 1
