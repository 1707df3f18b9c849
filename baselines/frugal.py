"""FRUGAL: Adam on a few columns, sign descent on all others, other columns every so often (arXiv 2411.07837).

    w_c <- w_c - lr Adam(g_c) for P chosen columns c,   w_j <- w_j - lr free_scale sign(g_j) for all others
                                                           Zmushko et al. 2024, algorithm 1, with AdamW and signSGD

Bytes of state for an O x I weight: 8 * max(O, I) * P with 32-bit moments; which columns they are of follows from the
weight's seed and the number of choices. Stated choices: of the paper's ways to split the space its column-wise one,
whose state is the same for every weight at every time (blocks hold or lack a whole weight's state, an SVD brings
GaLore's bases); columns where the columns are fewer, else rows, so that the state is GaLore's without a basis; every
parameter outside the targets is trained with plain AdamW; moments begin anew with every choice, as in the paper.
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
    attach,
    decay_,
    generator_of,
    moments,
    optimizer_of,
    parts_of,
    spans_columns,
)
from gnlorp.moments import Layout, State, adam_directions, carry_moments_, moment_layout
from gnlorp.projection import Bases, projected_shape

NO_BASES = Bases(None, None)


class FrugalConfig(ProjectionConfig):
    """Settings of the split."""

    projection_rank: int = Field(default=8, description="columns with moments (paper's GLUE: 8)")
    free_scale: float = Field(
        default=1.0, ge=0, description="factor on the sign's learning rate (release: 1 in pre-training, 0.1 on GLUE)"
    )


class FrugalAdamW(DrawingAdamW):
    """AdamW on some columns and sign descent on the others."""

    own: ClassVar[Mapping[str, Any]] = {**DrawingAdamW.own, "free_scale": 1.0}

    @staticmethod
    def layout(shape: Sequence[int], dtype: torch.dtype, projection_rank: int, state_bits: int) -> Layout:
        """Return the moments of the chosen columns or rows."""
        high = torch.promote_types(dtype, torch.float32)
        return moment_layout(projected_shape(shape, projection_rank, SIDE), high, state_bits)

    def begin(self, weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """Return counters of steps since the last choice, and of choices, and the seed."""
        return {**super().begin(weight, group), "draw": 0}

    def rule(self, weight: Tensor, grad: Tensor, state: State, norm: float, group: dict[str, Any]) -> bool:
        """Do one step on one weight."""
        if state["step"] >= group["refresh_gap"]:
            carry_moments_(state, NO_BASES, NO_BASES, "reset")
            state["draw"] += 1
        chosen = chosen_indices(weight, group["projection_rank"], state["seed"], state["draw"])
        side = 1 if spans_columns(weight) else 0
        low = grad.index_select(side, chosen)
        (update,) = adam_directions([low.to(torch.promote_types(low.dtype, torch.float32))], [state], group)
        rate = float(group["lr"])
        decay_(weight, group)
        weight.add_(grad.sign().index_fill_(side, chosen, 0.0), alpha=-rate * group["free_scale"])
        weight.index_add_(side, chosen, update.to(weight.dtype), alpha=rate)
        return False


def chosen_indices(weight: Tensor, count: int, seed: int, draw: int) -> Tensor:
    """Return which columns (or rows, where those are fewer) have moments: a pure function of shape, seed and draw."""
    generator = generator_of(seed, draw, weight.device)
    order = torch.randperm(min(weight.shape), generator=generator, device=weight.device)
    return order[:count].sort().values


METHOD = Method(
    name="frugal",
    title="FRUGAL",
    arxiv="2411.07837",
    config_type=FrugalConfig,
    configure=lambda rank: FrugalConfig(projection_rank=rank),
    attach=attach,
    optimizer=optimizer_of(FrugalAdamW, "refresh_gap", "free_scale"),
    merge=lambda model: model,
    layer_parts=parts_of(moments),
    saves_state=True,
    order=25,
    drawn=True,
    rates={
        "fine-tuning": Rates.around(1e-4, "release's GLUE scripts, 5e-5 to 5e-4, with free_scale 0.1"),
        "pre-training": Rates.around(1e-3, "release's C4 scripts"),
    },
)
