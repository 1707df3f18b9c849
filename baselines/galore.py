"""GaLore: full-rank weights, Adam on projected gradients (Zhao et al. 2024, arXiv 2403.03507, algorithm 2).

    R = G Q or Q^T G;   N = Adam(R);   W <- W - lr * scale * (N Q^T or Q N)
    Q: top singular vectors of G, anew every refresh_gap steps

Bytes of state for an O x I weight, basis on the smaller side: 4 * (2 * max(O, I) + min(O, I)) * P with 32-bit moments.
Stated choices: every parameter outside the targets is trained with plain AdamW; moments are kept at a refresh.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Method, MethodConfig, Part, Placement, Rates
from baselines.shared.projected import projected_adamw, split
from baselines.shared.rules import attach


class GaloreConfig(MethodConfig):
    """Settings of gradient projection on dense weights."""

    projection_rank: int = Field(
        default=8, description="rank of the gradient's projection (table 4 of the paper: 4, 8)"
    )
    refresh_gap: int = Field(default=200, ge=1, description="steps between new bases (paper, section 5)")
    scale: float = Field(default=2.0, gt=0, description="factor on the projected update (paper's GLUE, rank 8: 2)")
    side: Literal["small", "large", "both"] = Field(default="small", description="side the basis spans (paper: small)")
    basis: Literal["exact", "warm"] = Field(default="exact", description="exact top singular vectors, or warm-started")
    moments: Literal["keep", "rotate", "reset"] = Field(default="keep", description="at a refresh (paper: keep)")


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: GaloreConfig) -> Optimizer:
    """Return AdamW, projected on the target weights."""
    return projected_adamw(*split(model, placement), adam, config)


METHOD = Method(
    name="galore",
    title="GaLore",
    arxiv="2403.03507",
    config_type=GaloreConfig,
    configure=lambda rank: GaloreConfig(projection_rank=rank),
    attach=attach,
    optimizer=optimizer,
    merge=lambda model: model,
    layer_parts=lambda shape, config: (Part("weight", shape, True, False, config.projection_rank, config.side),),
    saves_state=True,
    order=3,
    default=True,
    slot=3,
    bases=True,
    rates={
        "fine-tuning": Rates.around(2e-5, "table 7 of the paper, rank 8: 1e-5 to 3e-5"),
        "pre-training": Rates.around(1e-2, "section 5 of the paper"),
    },
)
