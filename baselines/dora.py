"""DoRA: LoRA's direction, normalised per output unit, times a trained magnitude (Liu et al. 2024, arXiv 2402.09353).

    y = x W'^T,   W' = m * V / ||V||_row,   V = W0 + (alpha / R) * A B      through peft, norm detached (section 4.3)

Bytes of state for an O x I weight: 8 * (R * (O + I) + O) with 32-bit moments. Stated choices: bias frozen.
"""

from __future__ import annotations

from functools import partial

from baselines.method import Part, Rates
from baselines.shared.adapters import AdapterConfig, adapter, factor_parts, inject


def layer_parts(shape: tuple[int, int], config: AdapterConfig) -> tuple[Part, ...]:
    """Return the frozen weight, both factors and the magnitude."""
    return (*factor_parts(shape, config), Part("magnitude", (shape[0],), trained=True))


METHOD = adapter(
    name="dora",
    title="DoRA",
    arxiv="2402.09353",
    config_type=AdapterConfig,
    configure=lambda rank: AdapterConfig(rank=rank),
    attach=partial(inject, use_dora=True),
    layer_parts=layer_parts,
    order=2,
    default=True,
    slot=2,
    rates={
        "fine-tuning": Rates.around(5e-4, "own choice: LoRA's"),
        "pre-training": Rates.around(1e-3, "own choice: LoRA's"),
    },
)
