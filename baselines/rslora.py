"""rsLoRA: LoRA divided by the root of its rank (Kalajdzievski 2023, arXiv 2312.03732), through peft.

    y = x W0^T + (alpha / sqrt(R)) * dropout(x) B^T A^T        A: (O, R) starts at zero;  B: (R, I) Kaiming-uniform

Bytes of state for an O x I weight: 8 * R * (O + I) with 32-bit moments. Stated choices: bias frozen; alpha and learning
rate are LoRA's, whose scale at rank R is smaller by sqrt(R): the paper's point is that one rate then fits every rank.
"""

from __future__ import annotations

from functools import partial

from baselines.method import Rates
from baselines.shared.adapters import AdapterConfig, adapter, inject

METHOD = adapter(
    name="rslora",
    title="rsLoRA",
    arxiv="2312.03732",
    config_type=AdapterConfig,
    configure=lambda rank: AdapterConfig(rank=rank),
    attach=partial(inject, use_rslora=True),
    order=11,
    rates={
        "fine-tuning": Rates.around(5e-4, "own choice: LoRA's"),
        "pre-training": Rates.around(1e-3, "own choice: LoRA's"),
    },
)
