"""PiSSA: LoRA that starts at the weight's top singular vectors (Meng et al. 2024, arXiv 2404.02948), through peft.

    W0 = U S V^T;   A = U_R S_R^(1/2),   B = S_R^(1/2) V_R^T,   W_res = W0 - s A B,   s = alpha / R   (equations 2 to 5)
    y = x W_res^T + s * dropout(x) B^T A^T,   W_res frozen

Bytes of state for an O x I weight: 8 * R * (O + I) with 32-bit moments. Stated choices: bias frozen; where s is not 1
the factors are divided by its root. peft splits in float32: in a float64 model W_res takes up the rounding. At a merge
the factors begin anew at the top singular vectors of the weight that they were merged into.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from baselines.method import Placement, Rates
from baselines.shared import adapters
from baselines.shared.adapters import AdapterConfig, adapter, factors_of, inject

EXACT = "pissa"


class PissaConfig(AdapterConfig):
    """Settings of the adapter, and of how its start is computed."""

    alpha: float = Field(default=8.0, gt=0, description="update scaled by alpha / rank (paper, section 5: the rank)")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="on the adapter's input (paper, section 5: 0)")
    iterations: int = Field(
        default=0, ge=0, description="of a fast randomised decomposition (paper, appendix B); 0: the exact one"
    )


def attach(model: nn.Module, placement: Placement, config: PissaConfig) -> None:
    """Put the adapters on the target layers and split each weight into its factors and what is left."""
    how = f"{EXACT}_niter_{config.iterations}" if config.iterations else EXACT
    with _in_float32([model.get_parameter(f"{name}.weight") for name in placement.targets]):
        inject(model, placement, config, init_lora_weights=how)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.active_adapters:
                _take_up_rounding(module, name)


@contextmanager
def _in_float32(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Have weights of a float64 model in float32, as they were before afterwards."""
    wide = [(weight, weight.data) for weight in weights if weight.dtype == torch.float64]
    for weight, whole in wide:
        weight.data = whole.float()
    try:
        yield
    finally:
        for weight, whole in wide:
            weight.data = whole


def _take_up_rounding(module: LoraLayer, name: str) -> None:
    """Give the factors their weight's precision; a weight in float64, which peft has not split, loses their product."""
    weight, (low, high) = _weight(module), factors_of(module, name)
    low.data, high.data = low.data.to(weight.dtype), high.data.to(weight.dtype)
    if weight.dtype == torch.float64:
        weight.data.sub_(high.data @ low.data, alpha=module.scaling[name])


def _weight(module: LoraLayer) -> nn.Parameter:
    weight = module.get_base_layer().weight
    assert isinstance(weight, nn.Parameter)
    return weight


def restart(model: Any, optimizer: Optimizer, generator: torch.Generator) -> None:
    """Merge every adapter into its weight and split that anew, as `attach` does; the factors' moments are dropped."""

    def begin(module: LoraLayer, name: str, generator: torch.Generator) -> list[nn.Parameter]:
        weight = _weight(module)
        with _in_float32([weight]), torch.random.fork_rng([weight.device] if weight.is_cuda else []):
            # The fast decomposition draws, as nothing else here does, from the global generator.
            torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator, device=generator.device)))
            module.pissa_init(name, model.peft_config[name].init_lora_weights)
        _take_up_rounding(module, name)
        return list(factors_of(module, name))

    adapters.restart(model, optimizer, generator, begin)


METHOD = adapter(
    name="pissa",
    title="PiSSA",
    arxiv="2404.02948",
    config_type=PissaConfig,
    configure=lambda rank: PissaConfig(rank=rank, alpha=float(max(rank, 1))),
    attach=attach,
    from_weight=True,
    restart=restart,
    order=13,
    rates={
        "fine-tuning": Rates.around(5e-4, "own choice: LoRA's; the paper has 2e-5 for 7B models (section 5)"),
        "pre-training": Rates.around(1e-3, "own choice: LoRA's"),
    },
)
