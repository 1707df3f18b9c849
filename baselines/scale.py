"""SCALE: descent normalised by output unit, momentum on the head alone (Glentis et al. 2025, arXiv 2506.16659).

    M <- beta M + (1 - beta) G for the head, M = G for every other matrix;   W <- W - lr * C(M)        (algorithm 1)
    C(M): each output unit's gradient divided by its root mean square, a row here and a column in the paper's layout

Bytes of state for an O x I weight: 0. The head, a layer outside the targets, keeps its momentum: 4 bytes a value in
float32. Stated choices: C divides by the root mean square and takes an embedding's output units to be its columns, both
as the release does; the head is the last linear layer outside the targets, and where the embedding is tied to it both
are the head; vectors (norms, biases) are trained with AdamW, as in the release; all matrices outside the targets follow
the same rule, so that no matrix but the head has state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Kept, Method, MethodConfig, Part, Placement, Rates, train_everything
from baselines.shared.rest import RestByAdamW

SMALLEST = 1e-8
BY_ROW, BY_COLUMN = 1, 0


class ScaleConfig(MethodConfig):
    """Settings of the head's momentum."""

    momentum: float = Field(default=0.9, ge=0, lt=1, description="share of the head's old momentum (release: 0.9)")


def root_mean_square(grad: Tensor, over: int) -> Tensor:
    """Return the root mean square of a matrix over its rows' (1) or columns' (0) entries, in at least float32."""
    high = torch.promote_types(grad.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(grad, dim=over, keepdim=True, dtype=high)
    return norm.div_(math.sqrt(grad.shape[over])).clamp_(min=SMALLEST)


class ColumnDescent(Optimizer):
    """W <- (1 - lr * weight_decay) W - lr C(M), with M the gradient, or its momentum in a group that has one.

    `over` says which entries of a matrix are one output unit's: those of a row (1) or of a column (0).
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, momentum: float = 0.0, over: int = BY_ROW):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "over": over})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, grad: Tensor, group: Mapping[str, Any]) -> None:
        direction = grad
        if group["momentum"]:
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            direction = state["momentum"].lerp_(grad, 1 - group["momentum"])
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(direction, root_mean_square(direction, group["over"]), value=-group["lr"])


class Scale(RestByAdamW, ColumnDescent):
    """Column-normalised descent, with AdamW for the vectors that `add_rest` adds."""


def head_of(model: nn.Module, placement: Placement) -> Tensor | None:
    """Return the weight of the last linear layer outside the targets, None where there is none."""
    targets = set(placement.targets)
    heads = [m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear) and name not in targets]
    return heads[-1] if heads else None


def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: ScaleConfig) -> Optimizer:
    """Return column-normalised descent on every matrix, with momentum on the head, and AdamW on the vectors."""
    head = head_of(model, placement)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    kinds: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "head": [], "vectors": []}
    for parameter in model.parameters():
        if parameter is head:
            kinds["head"].append(parameter)
        elif parameter.ndim != 2:
            kinds["vectors"].append(parameter)
        else:
            kinds["embeddings" if id(parameter) in embeddings else "matrices"].append(parameter)
    groups: Sequence[dict[str, Any]] = (
        {"params": kinds["matrices"]},
        {"params": kinds["embeddings"], "over": BY_COLUMN},
        {"params": kinds["head"], "momentum": config.momentum},
    )
    found = Scale([group for group in groups if group["params"]], adam.learning_rate, adam.weight_decay)
    found.add_rest(kinds["vectors"], adam)
    return found


def rest_kept(model: nn.Module, placement: Placement, config: ScaleConfig) -> Mapping[str, tuple[Kept, ...]]:
    """Return the head's momentum, and nothing for the other matrices."""
    head = head_of(model, placement)
    momentum = bool(config.momentum)
    return {
        name: (Kept(tuple(parameter.shape)),) if parameter is head and momentum else ()
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2
    }


METHOD = Method(
    name="scale",
    title="SCALE",
    arxiv="2506.16659",
    config_type=ScaleConfig,
    configure=lambda rank: ScaleConfig(),
    attach=train_everything,
    optimizer=optimizer,
    merge=lambda model: model,
    layer_parts=lambda shape, config: (Part("weight", shape, trained=True, added=False, kept=()),),
    saves_state=True,
    rest_kept=rest_kept,
    widths=(32,),
    order=18,
    rates={
        "fine-tuning": Rates.around(3e-5, "own choice: full training's; an entry's step has the size of Adam's"),
        "pre-training": Rates.around(1e-3, "release's scripts, 60M to 350M; 2e-4 at 1B, 1e-4 at 7B"),
    },
)
