"""A model with its method attached and its optimizer, made from a resolved plan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from baselines.method import Part, Placement, trainable
from baselines.shared import targets
from results.schema import Layer
from suites.measure import live
from suites.measure.environment import derived_seed
from suites.models import checkpoint_activations
from suites.recompute import recompute
from suites.resolved import Resolved
from suites.run.rounding import REST_BYTES, Rounding
from suites.run.shard import check_optimizer, check_shard, own_state_bytes, set_apart, shard_model


@dataclass
class Built:
    """A model with its method attached and its optimizer."""

    model: nn.Module
    optimizer: Optimizer
    layers: list[Layer]
    dense_state_bytes: int
    formula_state_bytes: int


def build(model: nn.Module, placement: Placement, case: Resolved, device: torch.device | None = None) -> Built:
    """Attach the plan's method to a fresh model and make its optimizer, on `device` or the runtime's.

    Raises:
        ValueError: settings that do not fit the model.
        RuntimeError: the optimizer does not hold exactly the trainable parameters.
    """
    if case.training.checkpointing:
        checkpoint_activations(model)
    if case.training.precision == "bf16":
        model = model.to(torch.bfloat16)
    # What is said of the model before the method changes it.
    shapes = targets.shapes(model, placement.targets)
    dense = live.dense_state_bytes(parameter.numel() for parameter in model.parameters())
    before = {name for name, _ in model.named_parameters()}
    torch.manual_seed(derived_seed(case.plan.seed, "method"))
    case.method.attach(model, placement, case.config)
    recompute(model, case.training.recompute)
    shared = case.runtime.group.shard is not None
    if shared:
        shard_model(model, placement, case, before, device or case.runtime.device)
    else:
        model = model.to(device or case.runtime.device)
    optimizer = case.method.make_optimizer(model, placement, case.adam, case.config)
    if shared:
        set_apart(optimizer)
    if case.training.bf16_updates != "nearest":
        Rounding(optimizer, case.training.bf16_updates, case.plan.seed)
    layers = [
        Layer(name=name, shape=shape, rank=ranks.rank, projection_rank=ranks.projection_rank)
        for name, shape in shapes.items()
        for ranks in [case.method.ranks(shape, case.config)]
    ]
    if case.runtime.group.shard == "all":
        own = own_state_bytes(optimizer, case.runtime.group)
    else:
        own = formula_state_bytes(model, placement, layers, case)
    return Built(model, optimizer, layers, dense, own)


def formula_state_bytes(model: nn.Module, placement: Placement, layers: list[Layer], case: Resolved) -> int:
    """Return the state bytes by formula: of the method's parts for its layers, and of all else that is trained.

    With what a rule for bf16 weights keeps beside them.
    """
    bits = case.training.state_bits
    low = sum(p.numel() for p in trainable(model).values() if p.dtype == torch.bfloat16)
    inside = tuple(f"{layer.name}." for layer in layers)
    kept = case.method.rest_kept(model, placement, case.config)
    rest = [
        Part(name, tuple(parameter.shape), trained=True, kept=kept.get(name))
        for name, parameter in trainable(model).items()
        if not name.startswith(inside) or name.endswith(".bias")
    ]
    own = sum(case.method.layer_state_bytes(layer.shape, case.config, bits) for layer in layers)
    beside = low * REST_BYTES[case.training.bf16_updates]
    return own + sum(part.state_bytes(bits) for part in rest) + beside


def check_fit(case: Resolved) -> None:
    """Attach the plan's method to its model without weights, so that settings that do not fit are found at once.

    Raises:
        ValueError: the method's settings, targets, `recompute`, width of the state or --shard do not fit, or
            there is no model.
    """
    case.method.check_width(case.training.state_bits)
    check_shard(case)
    mode, placement = case.runtime.group.shard, case.placement()
    with torch.device("meta"):
        model = case.skeleton()
        case.method.attach(model, placement, case.config)
        recompute(model, case.training.recompute)
        if mode is not None:
            check_optimizer(
                case.method.make_optimizer(model, placement, case.adam, case.config), case.plan.method, mode
            )
