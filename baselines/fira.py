"""Fira: GaLore, and what its projection leaves out at the rate that Adam gave the rest (arXiv 2410.01623).

    R = down(G),  N = Adam(R),  f_j = ||N_j|| / ||R_j|| for each channel j,  S = f (G - up(R)),
    n <- min(||S||, 1.01 n),  W <- W - lr scale (up(N) + n S / ||S||)          Chen et al. 2024, equations 10 to 12

Bytes of state for an O x I weight: 4 * (2 * max(O, I) + min(O, I)) * P with 32-bit moments, as GaLore, and 4 for n.
Stated choices: every parameter outside the targets is trained with plain AdamW; moments are kept at a refresh; N has
Adam's bias corrections in f and n too (the release takes them into the step size, and limits a norm without them);
scale is the fraction of the learning rate that the paper calls it, on both parts (the release has it on up(N) alone,
and takes only scale up(R) off G, which leaves a share of R in S).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines.method import Method, Rates
from baselines.shared.rules import (
    SIDE,
    ProjectionConfig,
    RuleAdamW,
    add_scaled_,
    attach,
    basis,
    channel_norms,
    keep,
    last_norm,
    limited,
    moments,
    optimizer_of,
    parts_of,
    ratio,
    spans_columns,
    with_last_norm,
)
from gnlorp.moments import Layout, State, adam_directions, state_layout
from gnlorp.projection import add_up_, down
from gnlorp.update import bases_of, moderate, refresh_


class FiraConfig(ProjectionConfig):
    """GaLore's settings, and how fast the part left out may grow."""

    scale: float = Field(
        default=1.0, gt=0, description="fraction of the learning rate (own choice; paper's pre-training: 0.25)"
    )
    growth: float = Field(default=1.01, gt=1, description="largest growth of the part left out a step (paper: 1.01)")


class FiraAdamW(RuleAdamW):
    """AdamW on projected gradients, and the rest of the gradient at each channel's rate."""

    own: ClassVar[Mapping[str, Any]] = {"growth": 1.01}

    @staticmethod
    def layout(shape: Sequence[int], dtype: torch.dtype, projection_rank: int, state_bits: int) -> Layout:
        """Return moments and basis of GaLore, and the limiter's norm."""
        return with_last_norm(state_layout(shape, dtype, projection_rank, SIDE, state_bits), dtype)

    def refresh(self, weight: Tensor, grad: Tensor, state: State, norm: float, group: dict[str, Any]) -> None:
        """Fit a new basis and carry the moments over."""
        refresh_([weight], [moderate(grad, norm)], [state], group)

    def rule(self, weight: Tensor, grad: Tensor, state: State, norm: float, group: dict[str, Any]) -> bool:
        """Do one step on one weight."""
        due = norm > 0 and state["step"] % group["refresh_gap"] == 0
        if due:
            self.refresh(weight, grad, state, norm, group)
        low = down(grad, bases_of(state))
        (update,) = adam_directions([low], [state], group)
        add_recovered_(weight, grad, low, update, state, group)
        return due


def add_recovered_(
    weight: Tensor, grad: Tensor, low: Tensor, update: Tensor, state: State, group: Mapping[str, Any]
) -> None:
    """Apply Adam's step `update` = -N on the projected gradient `low`, and S on the gradient's rest, in place.

    up(N) + f (G - up(R)) = up(N - f R) + f G, and ||S_j||^2 = f_j^2 (||G_j||^2 - ||R_j||^2) since the basis is
    orthonormal: S itself, a tensor of the weight's size, is never there.
    """
    right = spans_columns(weight)
    inside, whole = channel_norms(low, right), channel_norms(grad, right)
    factors = ratio(channel_norms(update, right), inside)
    outside = (whole.square() - inside.square()).clamp_min_(0.0).sqrt_()
    factors = factors * limited(torch.linalg.vector_norm(factors * outside), state, group["growth"])
    rate = float(group["lr"]) * group["scale"]
    add_up_(weight, update.addcmul_(factors, low), bases_of(state), keep(group), rate)
    add_scaled_(weight, grad, factors, -rate)


METHOD = Method(
    name="fira",
    title="Fira",
    arxiv="2410.01623",
    config_type=FiraConfig,
    configure=lambda rank: FiraConfig(projection_rank=rank),
    attach=attach,
    optimizer=optimizer_of(FiraAdamW, "refresh_gap", "scale", "growth"),
    merge=lambda model: model,
    layer_parts=parts_of(moments, basis, last_norm),
    saves_state=True,
    order=21,
    bases=True,
    rates={
        "fine-tuning": Rates.around(1e-4, "release's fine-tuning script"),
        "pre-training": Rates.around(1e-2, "release's C4 scripts, with scale 0.25"),
    },
)
