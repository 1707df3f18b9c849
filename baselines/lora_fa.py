"""LoRA-FA: LoRA whose factor on the input stays as it was drawn (Zhang et al. 2023, arXiv 2308.03303), through peft.

    y = x W0^T + s * dropout(x) B^T A^T,   s = alpha / R;   B: (R, I) frozen;   A: (O, R) from zero, AdamW on
    g = (1 / s^2) dL/dA (B B^T)^-1,   the gradient whose step s g B is nearest to that of the whole weight (version 2)

The paper and peft call the frozen factor A and the trained one B.

Bytes of state for an O x I weight: 8 * R * O with 32-bit moments. Stated choices: bias frozen. peft's
`create_lorafa_optimizer` solves the same problem, but holds frozen parameters too, fixes AdamW's betas, multiplies in
bfloat16 and has no 8-bit form: here the gradient is corrected before the step of the AdamW that all methods share, and
is itself again after it.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Placement, Rates, trainable
from baselines.shared.adamw import adamw
from baselines.shared.adapters import AdapterConfig, adapter, factor_parts, factors_of, inject


class LoraFAConfig(AdapterConfig):
    """Settings of the adapter, and of the trained factor's gradient."""

    corrected: bool = Field(
        default=True,
        description="multiply the gradient by (B B^T)^-1 / s^2 (version 2 of the paper, peft); off: as it is",
    )


def attach(model: nn.Module, placement: Placement, config: LoraFAConfig) -> None:
    """Put the adapters on the target layers; the factors on the input are frozen."""
    inject(model, placement, config)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad_(False)


def corrected(grad_OR: Tensor, factor_in_RI: Tensor, scale: float) -> Tensor:
    """Return (1 / scale^2) grad (B B^T)^-1, computed in at least float32, in the gradient's dtype."""
    high = torch.promote_types(grad_OR.dtype, torch.float32)
    factor_in = factor_in_RI.to(high)
    found: Tensor = torch.linalg.solve(factor_in @ factor_in.T, grad_OR.to(high).T).T
    return found.div_(scale * scale).to(grad_OR.dtype).contiguous()


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: LoraFAConfig) -> Optimizer:
    """Return AdamW over the trained factors and the head, with corrected gradients unless told otherwise."""
    found = adamw(trainable(model).values(), adam)
    if not config.corrected:
        return found
    partners: dict[int, tuple[Tensor, float]] = {}
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.active_adapters:
                low, high = factors_of(module, name)
                partners[id(high)] = (low, module.scaling[name])
    own: list[tuple[Tensor, Tensor]] = []

    def before(stepped: Optimizer, *_: Any) -> None:
        for group in stepped.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and id(parameter) in partners:
                    own.append((parameter, parameter.grad))
                    parameter.grad = corrected(parameter.grad, *partners[id(parameter)])

    def after(stepped: Optimizer, *_: Any) -> None:
        for parameter, grad in own:
            parameter.grad = grad
        own.clear()

    found.register_step_pre_hook(before)
    found.register_step_post_hook(after)
    return found


METHOD = adapter(
    name="lora_fa",
    title="LoRA-FA",
    arxiv="2308.03303",
    config_type=LoraFAConfig,
    configure=lambda rank: LoraFAConfig(rank=rank),
    attach=attach,
    optimizer=optimizer,
    layer_parts=lambda shape, config: factor_parts(shape, config, trained_in=False),
    order=14,
    rates={
        "fine-tuning": Rates.around(5e-4, "own choice: LoRA's, as peft's documentation advises"),
        "pre-training": Rates.around(1e-3, "own choice: LoRA's"),
    },
)
