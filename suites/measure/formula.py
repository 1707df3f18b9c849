"""The formula column: what a method should cost, from the shapes of its target layers and its own parts alone.

    weights = sum n b,   gradients = sum over trained n b,   state = sum over trained of Adam's two moments and bases

n values of b bytes. Step counters and the code tables of 8-bit states belong to an implementation, not to a formula.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel
from torch import nn

from baselines.method import Kept, Method, Part, Placement
from baselines.shared.targets import shapes
from results.schema import Layer
from suites.run.rounding import REST_BYTES, Updates


@dataclass(frozen=True)
class Formula:
    """Bytes by formula. `adapter_bytes` are among the weights, `basis_bytes` among the state."""

    weight_bytes: int
    adapter_bytes: int
    gradient_bytes: int
    state_bytes: int
    basis_bytes: int
    buffer_bytes: int


@dataclass(frozen=True)
class Rest:
    """A parameter outside the target weights: its shape, whether the method trains it, and what is kept for it.

    `kept` is None for the two moments of AdamW.
    """

    shape: tuple[int, ...]
    trained: bool
    kept: tuple[Kept, ...] | None = None


def formula_of(
    method: Method[Any],
    config: BaseModel,
    layers: Sequence[Layer],
    rest: Mapping[str, Rest],
    state_bits: int,
    dtype: torch.dtype,
    updates: Updates = "nearest",
) -> Formula:
    """Return what the method costs on these target layers, everything else as `rest` says.

    `updates`: the rule for weights in bf16; all but "nearest" have the state of fp32 weights and what they keep beside.
    """
    parts = [part for layer in layers for part in method.layer_parts(layer.shape, config)]
    parts += [Part(name, each.shape, each.trained, added=False, kept=each.kept) for name, each in rest.items()]
    kept = [part for part in parts if not part.buffer]
    trained = [part for part in kept if part.trained]
    worked = dtype if updates == "nearest" else torch.float32
    rests = [_rest_bytes(part, dtype, updates) for part in trained]
    pairs = list(zip(trained, rests, strict=True))
    state = [part.state_bytes(state_bits, worked) + beside for part, beside in pairs]
    plain = [part.state_bytes(state_bits, worked, bases=False) + beside for part, beside in pairs]
    return Formula(
        weight_bytes=sum(_bytes(part, dtype) for part in kept),
        adapter_bytes=sum(_bytes(part, dtype) for part in kept if part.added),
        gradient_bytes=sum(_bytes(part, dtype) for part in trained),
        state_bytes=sum(state),
        basis_bytes=sum(state) - sum(plain),
        buffer_bytes=sum(_bytes(part, dtype) for part in parts if part.buffer),
    )


def rest_of(model: nn.Module, placement: Placement, method: Method[Any], config: BaseModel) -> dict[str, Rest]:
    """Return what lies outside the target weights of a model that the method has not changed yet, by name."""
    taken = {f"{name}.weight" for name in placement.targets}
    everything = trains_everything(method, config, next(iter(shapes(model, placement.targets).values()), (2, 2)))
    kept = method.rest_kept(model, placement, config)
    return {
        name: Rest(tuple(parameter.shape), everything or name in placement.trained, kept.get(name))
        for name, parameter in model.named_parameters()
        if name not in taken
    }


def quantises(method: Method[Any], config: BaseModel, layers: Sequence[Layer]) -> bool:
    """Return whether the method keeps target weights in fewer bits than the model has them in."""
    return any(part.quantised for layer in layers for part in method.layer_parts(layer.shape, config))


def is_plain(method: Method[Any], config: BaseModel) -> bool:
    """Return whether the method is AdamW on the weights as they are, so that it needs no linear layers to work on."""
    parts = method.layer_parts((2, 2), config) if not method.factors and not method.bases else ()
    return len(parts) == 1 and parts[0].trained and parts[0].projection_rank is None and parts[0].kept is None


def trains_everything(method: Method[Any], config: BaseModel, shape: tuple[int, int]) -> bool:
    """Return whether the method leaves the model's own weights trainable, those outside the targets too."""
    return all(part.trained for part in method.layer_parts(shape, config) if not part.added)


def _dtype(part: Part, dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if part.high else dtype


def _bytes(part: Part, dtype: torch.dtype) -> int:
    return math.prod(part.shape) * (1 if part.quantised else _dtype(part, dtype).itemsize)


def _rest_bytes(part: Part, dtype: torch.dtype, updates: Updates) -> int:
    return math.prod(part.shape) * REST_BYTES[updates] if _dtype(part, dtype) == torch.bfloat16 else 0
