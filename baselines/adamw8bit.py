"""8-bit AdamW: full training with moments in blocks of 8-bit numbers (Dettmers et al. 2021, arXiv 2110.02861).

    m, v kept as 8-bit codes of m / max|m| and v / max|v| per block of 256 values (bitsandbytes), read and written
    each step;   W <- (1 - lr * weight_decay) * W - lr * m / (sqrt(v) + eps)

Bytes of state for an O x I weight, 4,096 values and more: 2 * O * I + 8 * ceil(O * I / 256); under that 8 * O * I. The
moments are bitsandbytes'. Stated choices: every parameter is trained, as in full training, of which this is the row
with 8-bit state, whatever width a run asks for; bitsandbytes keeps small tensors in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Kept, Method, MethodConfig, Part, Placement, Rates, trainable
from baselines.shared.adamw import adamw, check_bitsandbytes

BITS = 8


def attach(model: nn.Module, placement: Placement, config: MethodConfig) -> None:
    """Make every parameter trainable."""
    check_bitsandbytes()
    model.requires_grad_(True)


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: MethodConfig) -> Optimizer:
    """Return bitsandbytes' AdamW over everything."""
    return adamw(trainable(model).values(), replace(adam, state_bits=BITS))


def moments(shape: tuple[int, ...]) -> tuple[Kept, ...]:
    """Return the two moments of a parameter of this shape."""
    return (Kept(shape, moments=True, bits=BITS),)


def rest_kept(model: nn.Module, placement: Placement, config: MethodConfig) -> Mapping[str, tuple[Kept, ...]]:
    """Return the same for everything outside the target weights."""
    return {name: moments(tuple(parameter.shape)) for name, parameter in model.named_parameters()}


METHOD = Method(
    name="adamw8bit",
    title="8-bit AdamW",
    arxiv="2110.02861",
    config_type=MethodConfig,
    configure=lambda rank: MethodConfig(),
    attach=attach,
    optimizer=optimizer,
    merge=lambda model: model,
    layer_parts=lambda shape, config: (Part("weight", shape, trained=True, added=False, kept=moments(shape)),),
    saves_state=True,
    rest_kept=rest_kept,
    order=16,
    rates={
        "fine-tuning": Rates.around(3e-5, "full training's, as the paper's abstract has it: no change of settings"),
        "pre-training": Rates.around(1e-3, "full training's, as the paper's abstract has it: no change of settings"),
    },
)
