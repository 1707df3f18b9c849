"""One optimizer step as functions over lists of parameters, gradients and states."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gnlorp.checks import is_sharded
from gnlorp.moments import (
    State,
    adam_directions,
    adamw_,
    adamw_8bit_,
    carry_moments_,
    new_moments,
    state_layout,
    zeros,
)
from gnlorp.projection import STACKED_VALUES, Bases, add_up_, damp_noise_, down, fit, projected_shape

# Projected gradients and updates of at most this many values are alive at once.
CHUNK_VALUES = 1 << 22
# The fourth power of a norm in this range, as fitting a basis takes it, is within float32.
MODERATE = (1e-9, 1e9)


def gradient_norms(grads: Sequence[Tensor | None]) -> list[float]:
    """Return the norm of each gradient, with one wait for the device; NaN or Inf where a value is not finite.

    Raises: ValueError for a sparse gradient.
    """
    dense = [grad for grad in grads if grad is not None]
    for grad in dense:
        if grad.layout != torch.strided:
            raise ValueError(
                f"gradient of shape {tuple(grad.shape)} is {grad.layout}: only dense gradients are supported"
            )
    if not dense:
        return []
    by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, grad in enumerate(dense):
        by_kind.setdefault((grad.device, grad.dtype), []).append(index)
    found = [0.0] * len(dense)
    for (_, dtype), indices in by_kind.items():
        high = torch.promote_types(dtype, torch.float32)
        norms = torch._foreach_norm([dense[index] for index in indices], 2, dtype=high)
        for index, norm in zip(indices, torch.stack(norms).tolist(), strict=True):
            found[index] = norm
    if not math.isfinite(sum(found)):
        found = [norm if math.isfinite(norm) else _scaled_norm(dense[i]) for i, norm in enumerate(found)]
    return found


def usable(norms: Sequence[float], weights: Sequence[Tensor], group: Any) -> bool:
    """Return whether every gradient is finite and Adam's second moment can hold its squares, (1 - b2) g^2.

    Entries of a projected gradient are bounded by its norm.
    """
    room, plain = 1.0 - group["betas"][1], group["projection_rank"] is None
    for norm, weight in zip(norms, weights, strict=True):
        limit = torch.finfo(_second_dtype(weight, group)).max
        # Entries are at most the norm: looking at them, which waits for the device, is seldom needed.
        if room * norm * norm < limit:
            continue
        if not math.isfinite(norm) or not plain or weight.grad is None:
            return False
        largest = largest_value(weight.grad)
        if room * largest * largest >= limit:
            return False
    return True


def _second_dtype(weight: Tensor, group: Any) -> torch.dtype:
    """Return the dtype whose range bounds the second moment: its own, of 8 bits that of its maxima."""
    if group["state_bits"] == 8:
        return torch.float32
    return weight.dtype if group["projection_rank"] is None else torch.promote_types(weight.dtype, torch.float32)


def largest_value(grad: Tensor) -> float:
    """Return the largest magnitude in a gradient."""
    if is_sharded(grad):
        from gnlorp import sharded

        return sharded.largest_value(grad)  # type: ignore[arg-type]
    return float(torch.linalg.vector_norm(grad, math.inf))


def update_plain_(weights: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], group: Any) -> None:
    """One step of plain AdamW on every weight in place."""
    for weight, state in zip(weights, states, strict=True):
        if not state:
            state.update(step=0, **new_moments(weight.shape, weight.dtype, weight.device, group["state_bits"]))
        state["step"] += 1
    settings = (float(group["lr"]), group["betas"], group["eps"], group["weight_decay"])
    given = list(zip(weights, grads, states, strict=True))
    # The kernels go through memory, not through indices: what does not lie as the contiguous moments do is copied.
    odd = [i for i, (w, g, state) in enumerate(given) if not w.stride() == g.stride() == state["exp_avg"].stride()]
    if odd:
        weights, grads = (
            [_contiguous(each) if i in odd else each for i, each in enumerate(side)] for side in (weights, grads)
        )
    if group["state_bits"] == 32:
        adamw_(weights, grads, states, *settings)
    else:
        for weight, grad, state in zip(weights, grads, states, strict=True):
            adamw_8bit_(weight, grad, state, *settings)
    for i in odd:
        given[i][0].copy_(weights[i])


def update_projected_(
    weights: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], norms: Sequence[float], group: Any
) -> bool:
    """One step of AdamW on projected gradients in place; return whether a basis was fitted.

        R = down(G),   N = Adam(R),   W <- (1 - lr * weight_decay) W - lr * scale * up(N)

    Bases are fitted at the first step and every `refresh_gap` steps. A gradient of exactly 0 has no singular vectors:
    the first fit waits for one that has, and until then the parameter only decays (B of a layer whose A is 0 starts
    so), with a state of zeros at step 0, so that checkpoints find all of it; at a later refresh the old basis stays.
    """
    decay = 1.0 - float(group["lr"]) * group["weight_decay"]
    live = []
    for index, (weight, state) in enumerate(zip(weights, states, strict=True)):
        if state.get("step") or norms[index] > 0:
            live.append(index)
        else:
            _only_decay_(weight, state, decay, group)
    due = [i for i in live if norms[i] > 0 and states[i].get("step", 0) % group["refresh_gap"] == 0]
    refresh_([weights[i] for i in due], [moderate(grads[i], norms[i]) for i in due], [states[i] for i in due], group)
    for chunk in chunks(live, projected_sizes(weights, group), CHUNK_VALUES):
        _step_projected_(
            [weights[i] for i in chunk], [grads[i] for i in chunk], [states[i] for i in chunk], decay, group
        )
    return bool(due)


def accumulate_projected_(
    weight: Tensor, grad: Tensor, state: State, norm: float, total: Tensor | None, group: Any
) -> tuple[Tensor | None, bool]:
    """Add one of several gradients of a step to `total`, projected; return the sum and whether a basis was fitted.

    A basis that is due is fitted to the first gradient that is not 0. None: there was no such gradient yet.
    """
    due = total is None and norm > 0 and state.get("step", 0) % group["refresh_gap"] == 0
    if due:
        refresh_([weight], [moderate(grad, norm)], [state], group)
    if not due and total is None and (norm == 0 or not state.get("step")):
        return None, False
    projected = down(grad, bases_of(state))
    return (projected if total is None else total.add_(projected)), due


def step_projected_(weight: Tensor, projected: Tensor | None, state: State, group: Any) -> None:
    """One step of AdamW on a projected gradient that is there already; None stands for a gradient of 0."""
    decay = 1.0 - float(group["lr"]) * group["weight_decay"]
    if projected is not None:
        apply_projected_([weight], [projected], [state], decay, group)
    elif not state.get("step"):
        _only_decay_(weight, state, decay, group)
    else:
        high = torch.promote_types(weight.dtype, torch.float32)
        shape = projected_shape(weight.shape, group["projection_rank"], group["side"])
        apply_projected_([weight], [torch.zeros(shape, dtype=high, device=weight.device)], [state], decay, group)


def _only_decay_(weight: Tensor, state: State, decay: float, group: Any) -> None:
    if not state:
        layout = state_layout(weight.shape, weight.dtype, group["projection_rank"], group["side"], group["state_bits"])
        state.update(step=0, **zeros(layout, weight.device))
    if decay != 1.0:
        weight.mul_(decay)


def _step_projected_(
    weights: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], decay: float, group: Any
) -> None:
    projected = [down(grad, bases_of(state)) for grad, state in zip(grads, states, strict=True)]
    apply_projected_(weights, projected, states, decay, group)


def apply_projected_(
    weights: Sequence[Tensor], projected: Sequence[Tensor], states: Sequence[State], decay: float, group: Any
) -> None:
    """One step of AdamW on projected gradients that are there already, bases in the states."""
    bases = [bases_of(state) for state in states]
    if group["side"] == "both":
        for low in projected:
            damp_noise_(low, max(group["noise_floor"], torch.finfo(low.dtype).eps))
    updates = adam_directions(projected, states, group)
    scale = float(group["lr"]) * group["scale"]
    for weight, update, each in zip(weights, updates, bases, strict=True):
        add_up_(weight, update, each, decay, scale)


def refresh_(weights: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], group: Any) -> None:
    """Fit new bases to the gradients and carry the moments over by the group's rule.

    In rounds of as many eigenproblems as go in one call: new bases of all weights never stand beside all old ones.
    """
    for chunk in chunks(range(len(weights)), [min(weight.shape) ** 2 for weight in weights], STACKED_VALUES):
        _refresh_some([weights[i] for i in chunk], [grads[i] for i in chunk], [states[i] for i in chunk], group)


def _refresh_some(weights: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], group: Any) -> None:
    old = [bases_of(state) if state.get("step") else None for state in states]
    fitted = fit(grads, old, group["projection_rank"], group["side"], group["basis"])
    for weight, state, before, after in zip(weights, states, old, fitted, strict=True):
        if before is not None:
            carry_moments_(state, before, after, group["moments"])
        elif not state:
            shape = projected_shape(weight.shape, group["projection_rank"], group["side"])
            dtype = torch.promote_types(weight.dtype, torch.float32)
            state.update(step=0, **new_moments(shape, dtype, weight.device, group["state_bits"]))
        for name, basis in (("basis_left", after.left), ("basis_right", after.right)):
            if basis is not None:
                state[name] = basis


def moderate(grad: Tensor, norm: float) -> Tensor:
    """Return the gradient, scaled by a power of two where the products that bases come from would leave the range."""
    return grad if MODERATE[0] <= norm <= MODERATE[1] else grad * 2.0 ** -round(math.log2(norm))


def bases_of(state: State) -> Bases:
    """Return the bases in a parameter's state."""
    return Bases(state.get("basis_left"), state.get("basis_right"))


def projected_sizes(weights: Sequence[Tensor], group: Any) -> list[int]:
    """Return how many values the projected gradient of each weight has."""
    return [math.prod(projected_shape(weight.shape, group["projection_rank"], group["side"])) for weight in weights]


def chunks(indices: Sequence[int], sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Yield the indices in turn, as many at a time as have sizes of `limit` together at most, but one at least."""
    chunk: list[int] = []
    total = 0
    for index in indices:
        if chunk and total + sizes[index] > limit:
            yield chunk
            chunk, total = [], 0
        chunk.append(index)
        total += sizes[index]
    if chunk:
        yield chunk


def _contiguous(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _scaled_norm(grad: Tensor) -> float:
    """Return the norm of a gradient whose squares overflow; NaN or Inf where a value is not finite."""
    largest = float(torch.linalg.vector_norm(grad, math.inf))
    if not math.isfinite(largest):
        return largest
    high = torch.promote_types(grad.dtype, torch.float32)
    return largest * float(torch.linalg.vector_norm(grad.to(high) / largest))
