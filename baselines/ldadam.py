"""LDAdam: Adam in a subspace that turns a little at every step, and what it loses fed back (arXiv 2410.16103).

    A = G + E,   B = rho up(m / c1) + (1 - rho) A,   Q <- orthonormal(B^T B Q_old)           one power step a step
    m' = T m,   v' = c2 |T^2 (v / c2 - (m / c1)^2) + (m' / c1)^2|,   T = Q^T Q_old,   R = down(A)
    E <- A - up(R) + b1 / (1 - b1) (up_old(m) - up(m')),   N = Adam(R) from m', v',   W <- W - lr up(N)
                                                             Robert et al. 2024, algorithm 1; rows the other way round

Bytes of state for an O x I weight: 4 * (2 * max(O, I) + min(O, I)) * P with 32-bit moments, and the error E, O * I
values of the weight's own dtype. Stated choices: every parameter outside the targets is trained with plain AdamW; the
inner Adam has the betas that all methods share (the release: 0.908 and 0.99); the first basis is fitted exactly; E is
kept in the optimizer's state, so that gradients are freed, accumulated and clipped as for every method (the release
leaves it in the gradient, where clipping would scale it and no memory is counted for it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from baselines.method import Kept, Method, Rates
from baselines.shared.rules import (
    SIDE,
    RuleAdamW,
    SmallSide,
    attach,
    basis,
    keep,
    moderate_,
    moments,
    one_sided,
    optimizer_of,
    parts_of,
    set_bases,
    the_basis,
)
from gnlorp.krylov import orthonormal
from gnlorp.moments import Layout, State, adam_directions, carry_statistics_, read_moment, state_layout
from gnlorp.projection import Bases, add_up_, down, fit
from gnlorp.update import bases_of, moderate


class LdadamConfig(SmallSide):
    """Settings of the subspace, which turns at every step."""

    projection_rank: int = Field(default=8, description="rank of the gradient's projection (paper's GLUE: 8)")
    rho: float = Field(
        default=0.908, ge=0, lt=1, description="share of the momentum in what the basis is fitted to (release: 0.908)"
    )


class LdadamAdamW(RuleAdamW):
    """AdamW on gradients projected on a basis of every step, with error feedback."""

    own: ClassVar[Mapping[str, Any]] = {"rho": 0.908}
    fits: ClassVar[bool] = False

    @staticmethod
    def layout(shape: Sequence[int], dtype: torch.dtype, projection_rank: int, state_bits: int) -> Layout:
        """Return moments and basis of GaLore, and the error, in the weight's own dtype."""
        return {**state_layout(shape, dtype, projection_rank, SIDE, state_bits), "error": (tuple(shape), dtype)}

    def rule(self, weight: Tensor, grad: Tensor, state: State, norm: float, group: dict[str, Any]) -> bool:
        """Do one step on one weight."""
        old, error = bases_of(state), state["error"].add_(grad)
        if state["step"]:
            mean = read_moment(state, "exp_avg") / (1.0 - group["betas"][0] ** state["step"])
            new = power_step(error, old, mean, group["rho"])
        else:
            (new,) = fit([moderate(error, norm)], [None], group["projection_rank"], SIDE, "exact")
        low = down(error, new)
        before, after = carry_statistics_(state, old, new, group["betas"])
        # The error starts as A; what goes into the step, and what the momentum keeps, is taken off.
        lost = group["betas"][0] / (1.0 - group["betas"][0])
        add_up_(error, before, old, 1.0, lost)
        add_up_(error, after * lost + low, new, 1.0, -1.0)
        set_bases(state, new)
        (update,) = adam_directions([low], [state], group)
        add_up_(weight, update, new, keep(group), float(group["lr"]))
        return True


def power_step(whole: Tensor, old: Bases, mean: Tensor, rho: float) -> Bases:
    """Return the basis after one power step from the old one on B = rho up(mean) + (1 - rho) whole.

    B Q = rho mean + (1 - rho) whole Q, since Q is orthonormal, and B^T likewise: B itself is never there.
    """
    right = old.left is None
    basis = the_basis(old)
    matrix, inner = (whole, mean) if right else (whole.T, mean.T)
    high_MP = rho * inner + (1.0 - rho) * (matrix @ basis.to(matrix.dtype)).to(inner.dtype)
    image = rho * (basis @ (inner.T @ high_MP))
    image += (1.0 - rho) * (matrix.T @ high_MP.to(matrix.dtype)).to(inner.dtype)
    moderate_(image)
    return one_sided(orthonormal(image), right)


METHOD = Method(
    name="ldadam",
    title="LDAdam",
    arxiv="2410.16103",
    config_type=LdadamConfig,
    configure=lambda rank: LdadamConfig(projection_rank=rank),
    attach=attach,
    optimizer=optimizer_of(LdadamAdamW, "rho"),
    merge=lambda model: model,
    layer_parts=parts_of(moments, basis, lambda shape, rank: Kept(shape)),
    saves_state=True,
    order=24,
    bases=True,
    rates={
        "fine-tuning": Rates.around(1e-5, "release's GLUE script"),
        "pre-training": Rates.around(1e-3, "release's C4 script"),
    },
)
