"""Frozen: the target weights stay at their start, the rest is trained with AdamW; the control of pre-training.

    W <- W;   what every method trains alike (embeddings, norms, head) as in full training

What this row reaches, every method reaches without training a matrix: a lead over it is the matrices' own. It has no
paper: it is the yardstick's own control.

Bytes of state for an O x I weight: 0. Stated choice: the targets' biases are frozen too.
"""

from __future__ import annotations

from torch import nn

from baselines.method import Method, MethodConfig, Part, Placement, Rates, freeze_except
from baselines.shared.adamw import adamw_over_trained


def attach(model: nn.Module, placement: Placement, config: MethodConfig) -> None:
    """Leave `placement.trained` trainable alone."""
    freeze_except(model, placement.trained)


METHOD = Method(
    name="frozen",
    title="Frozen matrices",
    arxiv=None,
    config_type=MethodConfig,
    configure=lambda rank: MethodConfig(),
    attach=attach,
    optimizer=adamw_over_trained,
    merge=lambda model: model,
    layer_parts=lambda shape, config: (Part("weight", shape, trained=False, added=False),),
    saves_state=True,
    control=True,
    order=5,
    rates={
        "fine-tuning": Rates.around(3e-5, "own choice: full fine-tuning's"),
        "pre-training": Rates.around(1e-3, "own choice: full training's"),
    },
)
