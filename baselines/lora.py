"""LoRA: a frozen weight plus a trained low-rank product (Hu et al. 2021, arXiv 2106.09685), through peft.

    y = x W0^T + (alpha / R) * dropout(x) B^T A^T        A: (O, R) starts at zero;  B: (R, I) Kaiming-uniform

Bytes of state for an O x I weight: 8 * R * (O + I) with 32-bit moments. Stated choices: bias frozen, plain (not
rank-stabilised) scaling.
"""

from __future__ import annotations

from baselines.method import Rates
from baselines.shared.adapters import AdapterConfig, adapter

METHOD = adapter(
    name="lora",
    title="LoRA",
    arxiv="2106.09685",
    config_type=AdapterConfig,
    configure=lambda rank: AdapterConfig(rank=rank),
    order=1,
    default=True,
    slot=1,
    rates={
        "fine-tuning": Rates.around(5e-4, "Hu et al., table 9: RoBERTa base 4e-4 and 5e-4"),
        "pre-training": Rates.around(1e-3, "GaLore's protocol picks from 1e-4 to 1e-2 (arXiv 2403.03507)"),
    },
)
