"""The same layer and the same step, slow and in the paper's order: to be read, and to test the fast path against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def reference_weight(
    weight_OI: Tensor, out_OR: Tensor, in_RI: Tensor, magnitude_O: Tensor, scaling: float, through_norm: bool
) -> Tensor:
    """Return W' = diag(m / |V|) V with V = W0 + s A B formed; autograd gives the gradients."""
    direction_OI = weight_OI + scaling * (out_OR @ in_RI)
    norm_O = direction_OI.square().sum(1).sqrt()
    norm_O = norm_O if through_norm else norm_O.detach()
    return (magnitude_O / norm_O)[:, None] * direction_OI


@dataclass
class ReferenceState:
    """Everything that one projected parameter remembers."""

    step: int = 0
    left: Tensor | None = None
    right: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None


@dataclass(frozen=True)
class ReferenceOptions:
    """The options of `GradNormLoRPAdamW`, by the same names; bases are exact."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    projection_rank: int = 1
    refresh_gap: int = 200
    scale: float = 1.0
    side: str = "small"
    moments: str = "keep"
    noise_floor: float = 1e-5


def reference_step(weight: Tensor, grad: Tensor, state: ReferenceState, options: ReferenceOptions) -> Tensor:
    """Return the weight after one step; the state is changed.

    1. every `refresh_gap` steps: singular value decomposition of the gradient, bases from its top vectors
    2. R = U^T G Q    3. Adam's moments of R    4. N from the corrected moments
    5. weight decay   6. W - lr * scale * U N Q^T
    """
    has_basis = state.left is not None or state.right is not None
    if not has_basis and not grad.any():
        return weight * (1 - options.lr * options.weight_decay)
    if state.step % options.refresh_gap == 0 and grad.any():
        _refresh(grad, state, options)
    left = torch.eye(grad.shape[0], dtype=grad.dtype) if state.left is None else state.left
    right = torch.eye(grad.shape[1], dtype=grad.dtype) if state.right is None else state.right
    projected = left.T @ grad @ right
    if options.side == "both":
        largest = projected.abs().max()
        projected = torch.where(projected.abs() <= options.noise_floor * largest, 0.0, projected)
    first = torch.zeros_like(projected) if state.first is None else state.first
    second = torch.zeros_like(projected) if state.second is None else state.second
    state.step += 1
    beta1, beta2 = options.betas
    state.first = beta1 * first + (1 - beta1) * projected
    state.second = beta2 * second + (1 - beta2) * projected**2
    corrected_first = state.first / (1 - beta1**state.step)
    corrected_second = state.second / (1 - beta2**state.step)
    update = left @ (corrected_first / (corrected_second.sqrt() + options.eps)) @ right.T
    weight = weight - options.lr * options.weight_decay * weight
    return weight - options.lr * options.scale * update


def _refresh(grad: Tensor, state: ReferenceState, options: ReferenceOptions) -> None:
    rows, columns = grad.shape
    left_wanted = options.side == "both" or (options.side == "small") == (rows < columns)
    right_wanted = options.side == "both" or not left_wanted
    vectors_left, _, vectors_right = torch.linalg.svd(grad, full_matrices=False)
    left, right = vectors_left[:, : options.projection_rank], vectors_right[: options.projection_rank].T
    new_left = _signed(left, state.left) if left_wanted else None
    new_right = _signed(right, state.right) if right_wanted else None
    if state.first is not None and state.second is not None:
        if options.moments == "reset":
            state.step, state.first, state.second = 0, None, None
        elif options.moments == "rotate":
            turn_left = torch.eye(rows, dtype=grad.dtype)
            turn_right = torch.eye(columns, dtype=grad.dtype)
            if new_left is not None and state.left is not None:
                turn_left = new_left.T @ state.left
            if new_right is not None and state.right is not None:
                turn_right = new_right.T @ state.right
            state.first = turn_left @ state.first @ turn_right.T
            state.second = turn_left**2 @ state.second @ (turn_right**2).T
    state.left, state.right = new_left, new_right


def _signed(basis: Tensor, old: Tensor | None) -> Tensor:
    columns = []
    for index, column in enumerate(basis.T):
        guide = column[column.abs().argmax()] if old is None else column @ old[:, index]
        columns.append(-column if guide < 0 else column)
    return torch.stack(columns, dim=1)
