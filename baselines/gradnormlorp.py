"""GradNormLoRP: weight-normalised low-rank layers, factor gradients projected (Huang et al. 2024, arXiv 2412.19616).

    W' = m * V / ||V||_row,   V = W0 + (alpha / R) * A B;   A, B by AdamW on projected gradients, m by plain AdamW

Bytes of state for an O x I weight, basis on the factors' small side: 4 * (2 * P * (O + I) + 2 * R * P + 2 * O) with
32-bit moments. Stated choices: P = R / 2 unless given, since P = R is a rotation that saves nothing (the release's GLUE
script runs so); the gradient passes through the norm (`full`); moments are kept at a refresh.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from baselines.method import (
    AdamSettings,
    Method,
    Part,
    Placement,
    Rates,
    RestartConfig,
    check_rank,
)
from baselines.shared.projected import check_projection, projected_adamw
from baselines.shared.targets import shapes
from gnlorp import GradNormLoRPAdamW, NormLowRankLinear, merge, param_groups
from gnlorp import attach as attach_layers
from gnlorp.base_weight import quantised_shapes


class GradNormLoRPConfig(RestartConfig):
    """Settings of the layer and of the projection."""

    later: ClassVar[frozenset[str]] = RestartConfig.later | {"activations", "base_bits"}
    rank: int = Field(default=8, description="rank of the factors (paper's GLUE: 8)")
    projection_rank: int = Field(default=4, description="rank of the factors' gradient projection (own: rank / 2)")
    alpha: float = Field(default=16.0, gt=0, description="product scaled by alpha / rank (release's GLUE script: 16)")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on the factors' input (release's GLUE script: 0.1)")
    norm_gradient: Literal["full", "detached"] = Field(default="full", description="gradient rule of the row norm")
    refresh_gap: int = Field(default=500, ge=1, description="steps between new bases (release: 500)")
    scale: float = Field(default=1.0, gt=0, description="factor on the projected update (own choice; release: 4)")
    side: Literal["small", "large", "both"] = Field(default="small", description="side the basis spans")
    basis: Literal["exact", "warm"] = Field(default="exact", description="exact top singular vectors, or warm-started")
    moments: Literal["keep", "rotate", "reset"] = Field(default="keep", description="at a refresh (GaLore's choice)")
    activations: Literal["fast", "least", "auto"] = Field(
        default="auto", description="kept for backward beside the input: all, nothing, what the model keeps anyway"
    )
    base_bits: Literal[4, 8, 32] = Field(
        default=32, description="bits of the frozen weight; 32: the model's own precision"
    )
    allow_full_rank: bool = Field(default=False, description="permit projection_rank = rank, as the release runs")


def configure(rank: int) -> GradNormLoRPConfig:
    """Return the settings at factor rank `rank`, half of it projected.

    Raises:
        ValueError: rank 1 has no projection rank below it.
    """
    if rank < 2:
        raise ValueError(f"rank {rank}: gradnormlorp needs at least 2, one to project on (nearest allowed value: 2)")
    return GradNormLoRPConfig(rank=rank, projection_rank=rank // 2)


def attach(model: nn.Module, placement: Placement, config: GradNormLoRPConfig) -> None:
    """Put the weight-normalised layers in place; exactly factors, magnitudes and `placement.trained` train then."""
    layers = shapes(model, placement.targets)
    check_rank(config.rank, layers)
    if config.rank == 1 and not config.allow_full_rank:
        raise ValueError("rank 1: leaves no smaller projection_rank without allow_full_rank (nearest allowed value: 2)")
    check_projection(_factors(layers, config.rank), config, config.allow_full_rank)
    known = dict(model.named_parameters())
    kept = [known[name] for name in placement.trained]
    model.requires_grad_(False)
    attach_layers(
        model,
        placement.targets,
        config.rank,
        config.alpha,
        config.dropout,
        config.norm_gradient,
        config.activations,
        None if config.base_bits == 32 else config.base_bits,
    )
    for parameter in kept:
        parameter.requires_grad_(True)


def _factors(layers: dict[str, tuple[int, int]], rank: int) -> dict[str, tuple[int, int]]:
    """Return the shapes of both factors of every layer, under names fit for an error text."""
    found = {}
    for name, (outputs, inputs) in layers.items():
        found[f"factor_out of layer {name}"] = (outputs, rank)
        found[f"factor_in of layer {name}"] = (rank, inputs)
    return found


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: GradNormLoRPConfig) -> Optimizer:
    """Return AdamW, projected on the factors."""
    factors, rest = param_groups(model, projection_rank=config.projection_rank)
    return projected_adamw(factors["params"], rest["params"], adam, config, config.allow_full_rank)


def layer_parts(shape: tuple[int, int], config: GradNormLoRPConfig) -> tuple[Part, ...]:
    """Return the frozen weight, both factors (gradients projected), the magnitude and the base's squared row norms."""
    outputs, inputs = shape
    quantised = config.base_bits != 32
    held, scales = quantised_shapes(shape, config.base_bits) if quantised else (shape, ())
    return (
        *([Part("base_scale", scales, trained=False, high=True, buffer=True)] if quantised else []),
        Part("weight", held, trained=False, added=False, quantised=quantised),
        Part("factor_out", (outputs, config.rank), True, True, config.projection_rank, config.side),
        Part("factor_in", (config.rank, inputs), True, True, config.projection_rank, config.side),
        Part("magnitude", (outputs,), trained=True, high=True),
        Part("base_square", (outputs,), trained=False, high=True, buffer=True),
    )


def restart(model: nn.Module, optimizer: Optimizer, generator: torch.Generator) -> None:
    """Merge the factors into the frozen weights and begin them anew, magnitudes, moments and bases with them."""
    assert isinstance(optimizer, GradNormLoRPAdamW)
    for module in model.modules():
        if isinstance(module, NormLowRankLinear):
            optimizer.forget([*module.restart(generator), module.magnitude])


METHOD = Method(
    name="gradnormlorp",
    title="GradNormLoRP",
    arxiv="2412.19616",
    config_type=GradNormLoRPConfig,
    configure=configure,
    attach=attach,
    optimizer=optimizer,
    merge=merge,
    layer_parts=layer_parts,
    saves_state=True,
    restart=restart,
    variants={
        "": {},
        "8-bit weights": {"base_bits": 8},
        "4-bit weights": {"base_bits": 4},
    },
    settles=True,
    order=4,
    default=True,
    slot=4,
    bases=True,
    factors=True,
    rates={
        "fine-tuning": Rates.around(5e-4, "own choice: LoRA's; the release's 3e-5 goes with scale 4"),
        "pre-training": Rates.around(1e-3, "own choice: LoRA's; the release's 1e-2 is of another layer, galore_norm"),
    },
)
