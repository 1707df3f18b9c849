"""Adam's moments: how they are kept (float32 or 8 bit), one step with them, and what they cost.

m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   N = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
w <- (1 - lr * weight_decay) w - lr N                          Loshchilov and Hutter 2019, algorithm 2
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gnlorp.projection import Bases, Side, projected_shape, projected_sides

MomentRule = Literal["keep", "rotate", "reset"]
State = dict[str, Any]
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]

SMALLEST_8BIT = 4096
BLOCK = 256


def moment_layout(shape: Sequence[int], dtype: torch.dtype, state_bits: int) -> Layout:
    """Return name -> (shape, dtype) of the tensors that hold both moments of one parameter.

    8 bit: two uint8 tensors and one float32 maximum per 256 values for each; under 4,096 values float32, as in
    bitsandbytes.
    """
    elements = math.prod(shape)
    if state_bits == 32:
        return {name: (tuple(shape), dtype) for name in ("exp_avg", "exp_avg_sq")}
    if elements < SMALLEST_8BIT:
        return {name: (tuple(shape), torch.float32) for name in ("exp_avg", "exp_avg_sq")}
    layout: Layout = {}
    for name in ("exp_avg", "exp_avg_sq"):
        layout[name] = (tuple(shape), torch.uint8)
        layout[f"{name}_absmax"] = ((-(-elements // BLOCK),), torch.float32)
    return layout


def state_layout(
    shape: Sequence[int], dtype: torch.dtype, projection_rank: int | None, side: Side, state_bits: int
) -> Layout:
    """Return name -> (shape, dtype) of every tensor in one parameter's state.

    Projected moments and bases are in at least float32; those of a plain parameter have its dtype, as in
    `torch.optim.AdamW`.
    """
    if projection_rank is None:
        return moment_layout(shape, dtype, state_bits)
    high = torch.promote_types(dtype, torch.float32)
    layout = moment_layout(projected_shape(shape, projection_rank, side), high, state_bits)
    left, right = projected_sides(shape, side)
    if left:
        layout["basis_left"] = ((shape[0], projection_rank), high)
    if right:
        layout["basis_right"] = ((shape[1], projection_rank), high)
    return layout


def optimizer_state_bytes(
    shape: Sequence[int],
    projection_rank: int | None,
    side: Side = "small",
    state_bits: int = 32,
    dtype: torch.dtype = torch.float32,
) -> int:
    """Return the bytes of one parameter's optimizer state.

    With r the projected gradient's number of values and q the bases' (M P, N P, or their sum), float32:

        state_bits 32: 8 r + 4 q      state_bits 8: 2 r + 8 ceil(r / 256) + 4 q, or as with 32 where r < 4096

    The step counter is a plain number; the two 8-bit code tables (1 KiB each) exist once for all parameters.
    """
    return layout_bytes(state_layout(shape, dtype, projection_rank, side, state_bits))


def layout_bytes(layout: Layout) -> int:
    """Return the bytes of the tensors of a layout."""
    return sum(math.prod(lengths) * kind.itemsize for lengths, kind in layout.values())


def new_moments(shape: Sequence[int], dtype: torch.dtype, device: torch.device, state_bits: int) -> dict[str, Tensor]:
    """Return moments of zero."""
    return zeros(moment_layout(shape, dtype, state_bits), device)


def zeros(layout: Layout, device: torch.device) -> dict[str, Tensor]:
    """Return tensors of zero, contiguous, for a layout of (shape, dtype)."""
    return {name: torch.zeros(lengths, dtype=kind, device=device) for name, (lengths, kind) in layout.items()}


def adamw_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[State],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW step on every weight in place, each at its own `state["step"]`, moments in the weights' dtype."""
    buckets: dict[tuple[torch.device, torch.dtype, int], list[int]] = {}
    for index, (weight, state) in enumerate(zip(weights, states, strict=True)):
        buckets.setdefault((weight.device, weight.dtype, state["step"]), []).append(index)
    for (device, _, step), indices in buckets.items():
        counter = torch.full((), float(step), dtype=torch.float32, device=device)
        torch._fused_adamw_(
            [weights[i] for i in indices],
            [grads[i] for i in indices],
            [states[i]["exp_avg"] for i in indices],
            [states[i]["exp_avg_sq"] for i in indices],
            [],
            [counter] * len(indices),
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )


def adamw_8bit_(
    weight: Tensor,
    grad: Tensor,
    state: State,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW step on one contiguous weight in place, through bitsandbytes' kernels."""
    kernels = load_bitsandbytes()
    step = state["step"]
    if state["exp_avg"].dtype != torch.uint8:
        kernels.optimizer_update_32bit(
            "adam", grad, weight, state["exp_avg"], betas[0], eps, step, lr,
            state["exp_avg_sq"], betas[1], weight_decay=weight_decay,
        )  # fmt: skip
        return
    signed, unsigned = _code_tables(weight.device)
    kernels.optimizer_update_8bit_blockwise(
        "adam", grad, weight, state["exp_avg"], state["exp_avg_sq"], betas[0], betas[1], 0.0, 0.0, eps, step, lr,
        signed, unsigned, state["exp_avg_absmax"], state["exp_avg_sq_absmax"], weight_decay,
    )  # fmt: skip


def carry_moments_(state: State, old: Bases, new: Bases, rule: MomentRule) -> None:
    """Carry the moments over to new bases: unchanged, rotated, or set to zero with the step counter.

    rotate, with T = Q_new^T Q_old: m <- T m and v <- (T * T) v for rows, m <- m T^T and v <- v (T * T)^T for columns.
    """
    if rule == "keep":
        return
    if rule == "reset":
        state["step"] = 0
        for name in ("exp_avg", "exp_avg_sq", "exp_avg_absmax", "exp_avg_sq_absmax"):
            if name in state:
                state[name].zero_()
        return
    for name, squared in (("exp_avg", False), ("exp_avg_sq", True)):
        write_moment(state, name, turned(read_moment(state, name), old, new, squared))


def turned(value: Tensor, old: Bases, new: Bases, squared: bool = False) -> Tensor:
    """Return a projected tensor in the coordinates of the new bases; `squared` takes T * T for T = Q_new^T Q_old."""
    for before, after, rows in ((old.left, new.left, True), (old.right, new.right, False)):
        if before is not None and after is not None:
            turn = after.T @ before
            turn = turn.square_() if squared else turn
            value = turn @ value if rows else value @ turn.T
    return value


def carry_statistics_(state: State, old: Bases, new: Bases, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Carry the moments over as estimates of mean and variance; return the first moment before and after.

        m <- T m,   v <- c2 |(T * T) (v / c2 - (m / c1)^2) + (T m / c1)^2|,   T = Q_new^T Q_old,   c = 1 - b^t

    The variance around the mean turns as that of uncorrelated coordinates (LDAdam, arXiv 2410.16103, projection-aware
    update rule). Before the first step there is nothing to carry.
    """
    mean, square = read_moment(state, "exp_avg"), read_moment(state, "exp_avg_sq")
    step = state["step"]
    if not step:
        return mean, mean
    first, second = 1.0 - betas[0] ** step, 1.0 - betas[1] ** step
    after = turned(mean, old, new)
    variance = turned(square / second - (mean / first).square(), old, new, squared=True)
    before = mean.clone() if mean is state["exp_avg"] else mean
    write_moment(state, "exp_avg", after)
    write_moment(state, "exp_avg_sq", variance.add_((after / first).square()).abs_().mul_(second))
    return before, after


def adam_directions(lows: Sequence[Tensor], states: Sequence[State], group: Any) -> list[Tensor]:
    """Take one step of the moments of each projected gradient; return -N, Adam's direction downhill."""
    for state in states:
        state["step"] += 1
    # Adam's own kernel, run on weights of 0 at learning rate 1, leaves -N there.
    updates = [torch.zeros_like(low) for low in lows]
    settings = (1.0, group["betas"], group["eps"], 0.0)
    if group["state_bits"] == 32:
        adamw_(updates, lows, states, *settings)
    else:
        for update, low, state in zip(updates, lows, states, strict=True):
            adamw_8bit_(update, low, state, *settings)
    return updates


def load_bitsandbytes() -> Any:
    """Return `bitsandbytes.functional`.

    Raises: RuntimeError where bitsandbytes is not installed.
    """
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise RuntimeError("state_bits 8 needs bitsandbytes: pip install 'gnlorp[eight-bit]'") from error


@functools.cache
def _code_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    kernels = load_bitsandbytes()
    return kernels.create_dynamic_map(signed=True).to(device), kernels.create_dynamic_map(signed=False).to(device)


def read_moment(state: State, name: str) -> Tensor:
    """Return a moment as numbers, read out of its 8 bits where it is kept so."""
    value: Tensor = state[name]
    if value.dtype != torch.uint8:
        return value
    code = _code_tables(value.device)[name == "exp_avg_sq"]
    kernels = load_bitsandbytes()
    read: Tensor = kernels.dequantize_blockwise(value, absmax=state[f"{name}_absmax"], code=code, blocksize=BLOCK)
    return read


def write_moment(state: State, name: str, value: Tensor) -> None:
    """Set a moment in place, in 8 bits where it is kept so."""
    if state[name].dtype != torch.uint8:
        state[name].copy_(value)
        return
    code = _code_tables(value.device)[name == "exp_avg_sq"]
    packed, found = load_bitsandbytes().quantize_blockwise(value.contiguous(), code=code, blocksize=BLOCK)
    state[name].copy_(packed)
    state[f"{name}_absmax"].copy_(found.absmax)
