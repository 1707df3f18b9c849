"""APOLLO-Mini: APOLLO with one factor for a whole weight, from a projection of rank one (arXiv 2412.05270).

    r = down(G) with q drawn from N(0, 1),  N = Adam(r),  U = sqrt(128) (||N|| / ||r||) G,
    n <- min(||U||, 1.01 n),  W <- W - lr n U / ||U||                                  Zhu et al. 2024, section 4.2

Bytes of state for an O x I weight: 8 * max(O, I) with 32-bit moments, and 4 for n. Stated choices: those of APOLLO;
there is no rank to choose, so that a comparison at a rank has it as it is.
"""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from baselines.apollo import ApolloAdamW
from baselines.method import Method, Rates
from baselines.shared.rules import SmallSide, attach, last_norm, moments, optimizer_of, parts_of


class ApolloMiniConfig(SmallSide):
    """APOLLO's settings at rank one."""

    refresh_gap: int = Field(default=200, ge=1, description="steps between new projections (paper: 200)")
    scale: float = Field(default=math.sqrt(128), gt=0, description="factor on the update (paper: sqrt(128))")
    growth: float = Field(default=1.01, gt=1, description="largest growth of the update's norm a step (paper: 1.01)")

    @property
    def projection_rank(self) -> int:
        """The rank of the gradient's projection (paper: 1)."""
        return 1


class ApolloMiniAdamW(ApolloAdamW):
    """Gradient descent whose rate for each weight comes from an Adam in a random projection of rank one."""

    by_channel: ClassVar[bool] = False


METHOD = Method(
    name="apollo_mini",
    title="APOLLO-Mini",
    arxiv="2412.05270",
    config_type=ApolloMiniConfig,
    configure=lambda rank: ApolloMiniConfig(),
    attach=attach,
    optimizer=optimizer_of(ApolloMiniAdamW, "refresh_gap", "scale", "growth"),
    merge=lambda model: model,
    layer_parts=parts_of(moments, last_norm),
    saves_state=True,
    order=23,
    rates={
        "fine-tuning": Rates.around(1e-4, "own choice: full fine-tuning's, over the length of a step beside Adam's"),
        "pre-training": Rates.around(1e-2, "the paper's pre-training"),
    },
)
