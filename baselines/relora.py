"""ReLoRA: LoRA that is merged into the weight and begun anew (Lialin et al. 2023, arXiv 2307.05695), through peft.

    y = x W0^T + (alpha / R) * dropout(x) B^T A^T;   every merge_gap steps:  W0 <- W0 + (alpha / R) A B,  A <- 0,
    B drawn anew, their moments dropped, and the learning rate warmed up from 0 again over rewarm_steps

Bytes of state for an O x I weight: 8 * R * (O + I) with 32-bit moments. Stated choices: bias frozen; all moments of the
factors are dropped (the release's default; it can also prune them); no full-rank training before the first step,
which the paper has; the schedule between the warm-ups is the run's. In a run of at most merge_gap steps it is LoRA.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from baselines.method import Rates
from baselines.shared.adapters import AdapterConfig, adapter


class ReloraConfig(AdapterConfig):
    """Settings of the adapter; it is merged unless told otherwise."""

    later: ClassVar[frozenset[str]] = frozenset()
    merge_gap: int = Field(
        default=5000, ge=0, description="steps between merges of the factors into the weight (release's README: 5000)"
    )
    rewarm_steps: int = Field(
        default=100,
        ge=0,
        description="steps of linear warm-up after each merge (release's README: 100; paper: 50 to 100)",
    )


METHOD = adapter(
    name="relora",
    title="ReLoRA",
    arxiv="2307.05695",
    config_type=ReloraConfig,
    configure=lambda rank: ReloraConfig(rank=rank),
    order=15,
    rates={
        "fine-tuning": Rates.around(5e-4, "own choice: LoRA's"),
        "pre-training": Rates.around(1e-3, "release's README"),
    },
)
