"""Throwaway: LoRA under another name, to see what a method needs (Hu et al. 2021, arXiv 2106.09685), through peft.

    y = x W0^T + (alpha / R) * dropout(x) B^T A^T

Bytes of state for an O x I weight: 8 * R * (O + I) with 32-bit moments. Stated choices: bias frozen.
"""

from __future__ import annotations

from baselines.method import Rates
from baselines.shared.adapters import AdapterConfig, adapter

METHOD = adapter(
    name="throwaway",
    title="Throwaway method",
    arxiv="2106.09685",
    config_type=AdapterConfig,
    configure=lambda rank: AdapterConfig(rank=rank),
    rates={"fine-tuning": Rates.around(5e-4, "LoRA's"), "pre-training": Rates.around(1e-3, "LoRA's")},
)
