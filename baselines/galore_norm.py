"""GaLore with weight norm: Adam on projected gradients of each row's direction (Zhao et al. 2024, arXiv 2403.03507).

    W' = m * V / ||V||_row;   V by GaLore's update, m by plain AdamW

V is the whole weight: no factors, no frozen weight. The GradNormLoRP release pre-trains this way; it is weight
normalisation (Salimans & Kingma 2016, arXiv 1602.07868) on GaLore, and not the layer of the GradNormLoRP paper.

Bytes of state for an O x I weight, basis on the smaller side: 4 * ((2 * max(O, I) + min(O, I)) * P + 2 * O) with 32-bit
moments. Stated choices: the gradient passes through the norm; the magnitude starts at the row's norm and is not
projected; moments are kept at a refresh; every parameter outside the targets is trained with plain AdamW.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from baselines.galore import GaloreConfig
from baselines.method import AdamSettings, Method, Part, Placement, Rates
from baselines.shared.projected import check_projection, projected_adamw, split
from baselines.shared.targets import shapes
from gnlorp import NormLinear
from gnlorp.surgery import carry_hooks, swap


def attach(model: nn.Module, placement: Placement, config: GaloreConfig) -> None:
    """Put weight-normalised layers in the targets' place; every parameter is trained."""
    check_projection({f"layer {name}": shape for name, shape in shapes(model, placement.targets).items()}, config)
    made: dict[nn.Module, NormLinear] = {}
    for name in placement.targets:
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear)
        made[base] = NormLinear(base)
        carry_hooks(base, made[base])
    swap(model, made)
    model.requires_grad_(True)


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: GaloreConfig) -> Optimizer:
    """Return AdamW, projected on the directions."""
    return projected_adamw(*split(model, placement, "direction"), adam, config)


def layer_parts(shape: tuple[int, int], config: GaloreConfig) -> tuple[Part, ...]:
    """Return the direction (gradient projected) and the magnitude."""
    return (
        Part("direction", shape, True, False, config.projection_rank, config.side),
        Part("magnitude", (shape[0],), trained=True, high=True),
    )


def merge(model: nn.Module) -> nn.Module:
    """Fold direction and magnitude into ordinary weights."""
    swap(model, {module: module.merge() for module in model.modules() if isinstance(module, NormLinear)})
    return model


METHOD = Method(
    name="galore_norm",
    title="GaLore + weight norm",
    arxiv="2403.03507",
    config_type=GaloreConfig,
    configure=lambda rank: GaloreConfig(projection_rank=rank),
    attach=attach,
    optimizer=optimizer,
    merge=merge,
    layer_parts=layer_parts,
    saves_state=True,
    order=6,
    bases=True,
    rates={
        "fine-tuning": Rates.around(2e-5, "own choice: GaLore's"),
        "pre-training": Rates.around(1e-2, "GradNormLoRP release's pre-training script"),
    },
)
