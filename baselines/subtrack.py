"""SubTrack++: Fira on a basis that moves along a geodesic instead of being fitted anew (arXiv 2502.01586).

    R = down(G),  D = -2 (G - up(R)) R^T,  s u v^T the largest singular triple of D,
    Q <- (Q v cos(eta s) - u sin(eta s)) v^T + Q (I - v v^T)                     Rajabi et al. 2025, equations 2 to 5
    moments carried over as LDAdam's (8, 9), the part left out added as Fira's (10 to 12)

Bytes of state for an O x I weight: 4 * (2 * max(O, I) + min(O, I)) * P + 4 with 32-bit moments, as Fira. Stated
choices: every parameter outside the targets is trained with plain AdamW; the first basis is fitted exactly; D is that
of the present gradient, whose square it grows with, as in the paper; what left out means is Fira's file's choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines.fira import FiraAdamW
from baselines.method import Method, Rates
from baselines.shared.rules import (
    ProjectionConfig,
    attach,
    basis,
    last_norm,
    moderate_,
    moments,
    one_sided,
    optimizer_of,
    parts_of,
    set_bases,
    the_basis,
)
from gnlorp.krylov import orthonormal
from gnlorp.moments import State, carry_statistics_
from gnlorp.projection import Bases, down
from gnlorp.update import bases_of


class SubtrackConfig(ProjectionConfig):
    """Settings of the moving basis, and Fira's."""

    scale: float = Field(
        default=1.0, gt=0, description="fraction of the learning rate (own choice; release's pre-training: 0.25)"
    )
    growth: float = Field(default=1.01, gt=1, description="largest growth of the part left out a step (Fira: 1.01)")
    basis_step: float = Field(default=10.0, gt=0, description="step along the geodesic (release: 10; GLUE: 5)")


class SubtrackAdamW(FiraAdamW):
    """Fira's rule on a basis that moves along the Grassmannian."""

    own: ClassVar[Mapping[str, Any]] = {**FiraAdamW.own, "basis_step": 10.0}

    def refresh(self, weight: Tensor, grad: Tensor, state: State, norm: float, group: dict[str, Any]) -> None:
        """Move the basis one step along the geodesic, or fit the first one."""
        if not state["step"]:
            super().refresh(weight, grad, state, norm, group)
            return
        old = bases_of(state)
        new = geodesic_step(grad, old, group["basis_step"])
        carry_statistics_(state, old, new, group["betas"])
        set_bases(state, new)


def geodesic_step(grad: Tensor, old: Bases, step: float) -> Bases:
    """Return the basis after a step of steepest descent of ||G - up(down(G))||^2 in the one direction that pays most.

    The step turns one direction of the subspace, so that the columns stay orthonormal; rounding is taken off by a QR
    factorisation whose signs are the columns' own.
    """
    right = old.left is None
    basis = the_basis(old)
    low = down(grad, old)
    matrix, inner = (grad.T, low.T) if right else (grad, low)
    # D = -2 (G - Q R) R^T: (n, P) for n the smaller side.
    slope = -2.0 * ((matrix @ inner.T.to(matrix.dtype)).to(basis.dtype) - basis @ (inner @ inner.T))
    factor = moderate_(slope)
    values, vectors = torch.linalg.eigh(slope.T @ slope)
    scaled, direction_P1 = values[-1].clamp_min(0.0).sqrt(), vectors[:, -1:]
    away = torch.where(scaled > 0, slope @ direction_P1 / scaled, 0.0)
    length = scaled / factor
    along = basis @ direction_P1
    moved = along * torch.cos(step * length) - away * torch.sin(step * length)
    turned = basis + (moved - along) @ direction_P1.T
    exact = orthonormal(turned)
    exact = exact * torch.where((exact * turned).sum(0) < 0, -1.0, 1.0).to(exact.dtype)
    return one_sided(exact, right)


METHOD = Method(
    name="subtrack",
    title="SubTrack++",
    arxiv="2502.01586",
    config_type=SubtrackConfig,
    configure=lambda rank: SubtrackConfig(projection_rank=rank),
    attach=attach,
    optimizer=optimizer_of(SubtrackAdamW, "refresh_gap", "scale", "growth", "basis_step"),
    merge=lambda model: model,
    layer_parts=parts_of(moments, basis, last_norm),
    saves_state=True,
    order=26,
    bases=True,
    rates={
        "fine-tuning": Rates.around(3e-5, "release's GLUE script"),
        "pre-training": Rates.around(1e-3, "release's C4 scripts, with scale 0.25"),
    },
)
