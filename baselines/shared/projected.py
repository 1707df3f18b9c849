"""What GaLore and GradNormLoRP share: gnlorp's AdamW on projected gradients, and what its state costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Placement, trainable
from gnlorp import GradNormLoRPAdamW
from gnlorp.projection import projected_sides


class Projection(Protocol):
    """What of a projection a matrix must allow."""

    @property
    def projection_rank(self) -> int: ...
    @property
    def side(self) -> Literal["small", "large", "both"]: ...


class ProjectionSettings(Projection, Protocol):
    """The settings of a projection, as both configs hold them."""

    @property
    def refresh_gap(self) -> int: ...
    @property
    def scale(self) -> float: ...
    @property
    def basis(self) -> Literal["exact", "warm"]: ...
    @property
    def moments(self) -> Literal["keep", "rotate", "reset"]: ...


def check_projection(
    matrices: Mapping[str, tuple[int, int]], config: Projection, allow_full_rank: bool = False
) -> None:
    """Raise ValueError if the projection rank does not fit one of the named matrices, naming the nearest allowed value.

    It must be at least 1, at most the matrix's smaller side, and below each side that the basis spans: equal to it the
    projection is a rotation, which saves nothing and needs `allow_full_rank`.
    """
    rank = config.projection_rank
    if rank < 1:
        raise ValueError(f"projection_rank {rank}: must be at least 1 (nearest allowed value: 1)")
    for name, shape in matrices.items():
        spans = [length for length, spanned in zip(shape, projected_sides(shape, config.side), strict=True) if spanned]
        largest = min(min(shape), min(spans) - (0 if allow_full_rank else 1))
        if rank > largest:
            raise ValueError(
                f"projection_rank {rank}: larger than {name} of shape {shape[0]}x{shape[1]} allows with side "
                f"{config.side!r} (nearest allowed value: {largest})"
            )


def split(
    model: nn.Module, placement: Placement, part: str = "weight"
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters as the target layers' of this name, and all others."""
    targets = {f"{name}.{part}" for name in placement.targets}
    named = trainable(model)
    inside = [parameter for name, parameter in named.items() if name in targets]
    return inside, [parameter for name, parameter in named.items() if name not in targets]


def projected_adamw(
    projected: Sequence[nn.Parameter],
    plain: Sequence[nn.Parameter],
    adam: AdamSettings,
    config: ProjectionSettings,
    allow_full_rank: bool = False,
) -> Optimizer:
    """Return AdamW that projects the gradients of `projected` (matrices) and treats `plain` as torch's AdamW does."""
    groups: list[dict[str, object]] = [{"params": list(projected), "projection_rank": config.projection_rank}]
    groups += [{"params": list(plain), "projection_rank": None}] if plain else []
    return GradNormLoRPAdamW(
        groups,
        lr=adam.learning_rate,
        betas=adam.betas,
        eps=adam.eps,
        weight_decay=adam.weight_decay,
        refresh_gap=config.refresh_gap,
        scale=config.scale,
        side=config.side,
        basis=config.basis,
        moments=config.moments,
        state_bits=adam.state_bits,
        allow_full_rank=allow_full_rank,
    )
