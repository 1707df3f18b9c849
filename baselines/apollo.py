"""APOLLO: the raw gradient, each channel as long as an Adam in a random projection would make it (arXiv 2412.05270).

    R = down(G) with Q drawn from N(0, 1/P),  N = Adam(R),  f_j = ||N_j|| / ||R_j|| for each channel j,
    U = scale f G,  n <- min(||U||, 1.01 n),  W <- W - lr n U / ||U||     Zhu et al. 2024, algorithm 1, equations 4, 5

Bytes of state for an O x I weight: 8 * max(O, I) * P with 32-bit moments, and 4 for n; Q is drawn again at every step
from the weight's seed and number. Stated choices: written from the paper alone; every parameter outside the targets is
trained with plain AdamW; Q is drawn anew every refresh_gap steps and the moments are kept then; scale is 1 unless
given (f is smaller by sqrt(P / min(O, I)) than that of a whole Adam, which the learning rate makes up for).
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
    DrawingAdamW,
    ProjectionConfig,
    add_scaled_,
    attach,
    channel_norms,
    decay_,
    generator_of,
    last_norm,
    limited,
    moments,
    one_sided,
    optimizer_of,
    parts_of,
    ratio,
    spans_columns,
    with_last_norm,
)
from gnlorp.moments import Layout, State, adam_directions, moment_layout
from gnlorp.projection import Bases, down, projected_shape


class ApolloConfig(ProjectionConfig):
    """Settings of the auxiliary projection and of the scaling."""

    scale: float = Field(default=1.0, gt=0, description="factor on the update (paper's pre-training: 1)")
    growth: float = Field(default=1.01, gt=1, description="largest growth of the update's norm a step (paper: 1.01)")


class ApolloAdamW(DrawingAdamW):
    """Gradient descent whose rate for each channel comes from an Adam in a random projection."""

    own: ClassVar[Mapping[str, Any]] = {**DrawingAdamW.own, "growth": 1.01}
    by_channel: ClassVar[bool] = True

    @staticmethod
    def layout(shape: Sequence[int], dtype: torch.dtype, projection_rank: int, state_bits: int) -> Layout:
        """Return the moments of the projected gradient, and the limiter's norm; the projection is drawn."""
        high = torch.promote_types(dtype, torch.float32)
        moments = moment_layout(projected_shape(shape, projection_rank, SIDE), high, state_bits)
        return with_last_norm(moments, dtype)

    def rule(self, weight: Tensor, grad: Tensor, state: State, norm: float, group: dict[str, Any]) -> bool:
        """Do one step on one weight."""
        right = spans_columns(weight)
        draw = state["step"] // group["refresh_gap"]
        low = down(grad, drawn_bases(weight, group["projection_rank"], state["seed"], draw))
        (update,) = adam_directions([low], [state], group)
        above, below, whole = (channel_norms(each, right) for each in (update, low, grad))
        if not self.by_channel:
            above, below = torch.linalg.vector_norm(above), torch.linalg.vector_norm(below)
        factors = ratio(above, below) * group["scale"]
        factors = factors * limited(torch.linalg.vector_norm(factors * whole), state, group["growth"])
        decay_(weight, group)
        add_scaled_(weight, grad, factors, -float(group["lr"]))
        return False


def drawn_bases(weight: Tensor, projection_rank: int, seed: int, draw: int) -> Bases:
    """Return a basis on the smaller side with entries from N(0, 1/P): a pure function of shape, seed and draw."""
    high = torch.promote_types(weight.dtype, torch.float32)
    length = min(weight.shape)
    generator = generator_of(seed, draw, weight.device)
    # In one precision for all, so that a model in another draws the same.
    basis = torch.randn(length, projection_rank, generator=generator, dtype=torch.float32, device=weight.device)
    return one_sided(basis.to(high).mul_(projection_rank**-0.5), spans_columns(weight))


METHOD = Method(
    name="apollo",
    title="APOLLO",
    arxiv="2412.05270",
    config_type=ApolloConfig,
    configure=lambda rank: ApolloConfig(projection_rank=rank),
    attach=attach,
    optimizer=optimizer_of(ApolloAdamW, "refresh_gap", "scale", "growth"),
    merge=lambda model: model,
    layer_parts=parts_of(moments, last_norm),
    saves_state=True,
    order=22,
    drawn=True,
    rates={
        "fine-tuning": Rates.around(
            3e-4, "own choice: full fine-tuning's, ten times, since steps are shorter by sqrt(rank / smaller side)"
        ),
        "pre-training": Rates.around(1e-2, "the paper's pre-training"),
    },
)
