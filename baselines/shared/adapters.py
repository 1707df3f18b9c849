"""What LoRA and its kin share: peft's adapters, injected into the named layers and folded back."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from baselines.method import Method, Part, Placement, RestartConfig, check_rank
from baselines.shared.adamw import adamw_over_trained
from baselines.shared.targets import shapes
from gnlorp.surgery import swap


class AdapterConfig(RestartConfig):
    """Settings of a low-rank adapter."""

    rank: int = Field(default=8, description="rank of the factors (Hu et al. 2021, section 4.1)")
    alpha: float = Field(default=16.0, gt=0, description="update scaled by alpha / rank (release's GLUE script: 16)")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on the adapter's input (release's GLUE script: 0.1)")


def inject(model: nn.Module, placement: Placement, config: AdapterConfig, **options: Any) -> None:
    """Put peft adapters on the target layers; afterwards exactly they and `placement.trained` are trainable.

    A layer that the model holds under several names has one adapter under all of them.

    `options` are more of peft's `LoraConfig`.
    """
    check_rank(config.rank, shapes(model, placement.targets))
    known = dict(model.named_parameters())
    kept = [known[name] for name in placement.trained]
    modules = dict(model.named_modules(remove_duplicate=False))
    inject_adapter_in_model(
        LoraConfig(
            r=config.rank,
            # Declared a whole number there, used as alpha / r.
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=list(placement.targets),
            **options,
        ),
        model,
    )
    # peft replaces a layer under the first of its names alone.
    targets = {modules[name] for name in placement.targets}
    found = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    made = {base: module for module in found if (base := module.get_base_layer()) in targets}
    for name, module in modules.items():
        if module in made:
            model.set_submodule(name, made[module])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    for parameter in kept:
        parameter.requires_grad_(True)


def fold(model: nn.Module) -> nn.Module:
    """Fold every adapter into its weight and put the ordinary linear layers back."""
    made: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
            made[module] = module.get_base_layer()
    swap(model, made)
    # peft leaves its settings on the model; kept, they would make the next attach warn of a second adapter.
    if "peft_config" in vars(model):
        del model.peft_config
    return model


def begin(module: LoraLayer, name: str, generator: torch.Generator) -> list[nn.Parameter]:
    """Begin an adapter anew and return its parameters: A zero, B drawn, DoRA's magnitude the weight's row norms."""
    low, high = factors_of(module, name)
    nn.init.kaiming_uniform_(low, a=math.sqrt(5), generator=generator)
    high.zero_()
    changed = [low, high]
    if name in module.lora_magnitude_vector:
        magnitude = _weight(module.lora_magnitude_vector[name])
        magnitude.copy_(_weight(module.get_base_layer()).float().norm(dim=1))
        changed.append(magnitude)
    return changed


@torch.no_grad()
def restart(
    model: nn.Module,
    optimizer: Optimizer,
    generator: torch.Generator,
    begin: Callable[[LoraLayer, str, torch.Generator], list[nn.Parameter]] = begin,
) -> None:
    """Merge every adapter into its weight and begin it anew, with no moments of the parameters that `begin` returns.

    The layers' outputs stay the same up to rounding.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            # peft counts the adapter as merged from here on; it is a new one, beside the weight again.
            module.merge()
            module.merged_adapters.clear()
            module._caches.clear()
            for name in module.active_adapters:
                for parameter in begin(module, name, generator):
                    optimizer.state.pop(parameter, None)


def factors_of(module: LoraLayer, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Return an adapter's factors, first the one on the input (R, I), which peft calls A, then the other (O, R)."""
    return _weight(module.lora_A[name]), _weight(module.lora_B[name])


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def factor_parts(shape: tuple[int, int], config: AdapterConfig, trained_in: bool = True) -> tuple[Part, ...]:
    """Return the frozen weight and both factors; `trained_in` says whether the one on the input is trained."""
    return (
        Part("weight", shape, trained=False, added=False),
        Part("factor_out", (shape[0], config.rank), trained=True),
        Part("factor_in", (config.rank, shape[1]), trained=trained_in),
    )


adapter = partial(
    Method[Any],
    attach=inject,
    optimizer=adamw_over_trained,
    merge=fold,
    layer_parts=factor_parts,
    saves_state=True,
    restart=restart,
    factors=True,
)
"""A method of LoRA's kind: what it does not give of its own is LoRA's."""
