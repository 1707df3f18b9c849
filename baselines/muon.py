"""Muon: momentum, made orthogonal, on weight matrices (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982).

    M <- mu M + (1 - mu) G;   N = (1 - mu) G + mu M;   X = N / ||N||,   then `iterations` times X <- a X + b (X X^T) X
    + c (X X^T)^2 X;   W <- (1 - lr * weight_decay) W - lr * 0.2 sqrt(max(O, I)) * X

Through `torch.optim.Muon` (torch 2.9 and later): N is Nesterov's look ahead, (a, b, c) = (3.4445, -4.7750, 2.0315), the
products are in bfloat16. The factor 0.2 sqrt(max(O, I)) gives the update the mean square of AdamW's, so that both can
share a learning rate (Liu et al.; torch's documentation, which has the singular values of X between about 0.5 and 1.5;
those far below the largest one end lower).

Bytes of state for an O x I weight: 4 * O * I in float32, one momentum in the weight's own precision. Stated choices:
Muon is for the target weights alone, as Jordan has it for hidden layers; embeddings, norms, biases and head are trained
with AdamW, at the run's width of state; weight decay is the run's.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Kept, Method, MethodConfig, Part, Placement, Rates, train_everything
from baselines.shared.projected import split
from baselines.shared.rest import RestByAdamW


class MuonConfig(MethodConfig):
    """Settings of the momentum and of its orthogonalisation."""

    momentum: float = Field(default=0.95, ge=0, lt=1, description="share of the old momentum (torch, Jordan: 0.95)")
    nesterov: bool = Field(default=True, description="look ahead by one step of the momentum (torch, Jordan: yes)")
    iterations: int = Field(default=5, ge=1, lt=100, description="Newton-Schulz iterations (torch, Jordan: 5)")
    size: Literal["match_rms_adamw", "original"] = Field(
        default="match_rms_adamw",
        description="factor on the update: 0.2 sqrt(max(O, I)) (Liu et al.), or sqrt(max(1, O / I)) (Jordan)",
    )


class Muon(RestByAdamW, torch.optim.Muon):
    """`torch.optim.Muon`, with AdamW for the groups that `add_rest` adds."""


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: MuonConfig) -> Optimizer:
    """Return Muon on the target weights, AdamW on the rest."""
    targets, rest = split(model, placement)
    found = Muon(
        targets,
        lr=adam.learning_rate,
        weight_decay=adam.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.iterations,
        adjust_lr_fn=config.size,
    )
    found.add_rest(rest, adam)
    return found


METHOD = Method(
    name="muon",
    title="Muon",
    arxiv="2502.16982",
    config_type=MuonConfig,
    configure=lambda rank: MuonConfig(),
    attach=train_everything,
    optimizer=optimizer,
    merge=lambda model: model,
    layer_parts=lambda shape, config: (Part("weight", shape, trained=True, added=False, kept=(Kept(shape),)),),
    saves_state=True,
    order=17,
    rates={
        "fine-tuning": Rates.around(3e-5, "full training's, which the factor on the update is made for"),
        "pre-training": Rates.around(1e-3, "full training's, which the factor on the update is made for"),
    },
)
