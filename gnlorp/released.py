"""What the paper's released scripts run under its name, as named variants: to see the difference, never a default.

1. `GLUE_SCRIPT_LAYER` and `GLUE_SCRIPT_OPTIMIZER`: the options with which the default code does what the GLUE script
   does, where the projection rank is the factors' rank and the projection is therefore a rotation.
2. `ReleasedFullWeightAdamW`: the full-weight optimizer of its fine-tuning instructions, written from its behaviour.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gnlorp.base_weight import row_square_norms
from gnlorp.moments import State, adamw_
from gnlorp.projection import Bases, add_up_, check_projection_rank, down, fit, projected_shape
from gnlorp.update import gradient_norms

GLUE_SCRIPT_LAYER: dict[str, Any] = {"rank": 8, "alpha": 16.0, "dropout": 0.1, "norm_gradient": "detached"}
GLUE_SCRIPT_OPTIMIZER: dict[str, Any] = {"projection_rank": 8, "allow_full_rank": True, "side": "small"}


class ReleasedFullWeightAdamW(Optimizer):
    """AdamW on the magnitude and the projected direction of full weights, with a second copy of every weight.

        m <- |V|_row,   dm = rowsum(G * V / |V|),   dV = G - diag(dm) V / |V|
        V <- V - lr * scale * up(Adam(down(dV))),   m <- m - lr * Adam(dm),   W <- diag(m / |V|) V

    The first assignment is the fault: the magnitude learned in the step before is overwritten by the row norms of
    the direction, which it had left. Kept for one (M, N) weight with M < N, in float32 values: the direction M N, the
    magnitude and its moments 3 M, the projected moments 2 P N, the basis M P.

    Every parameter must be 2-D and float32. Raises: ValueError for one that cannot be projected.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        projection_rank: int = 4,
        refresh_gap: int = 500,
        scale: float = 4.0,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "projection_rank": projection_rank,
            "refresh_gap": refresh_gap, "scale": scale,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for weight in group["params"]:
                check_projection_rank(weight.shape, group["projection_rank"], "small", allow_full_rank=False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Do one step and return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and gradient_norms([weight.grad])[0] > 0:
                    _step(weight, weight.grad, self.state[weight], group)
        return loss


def _step(weight: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
    if not state:
        low = projected_shape(weight.shape, group["projection_rank"], "small")
        state["step"] = 0
        state["direction"] = weight.detach().clone()
        state["magnitude"] = weight.new_empty(weight.shape[0])
        state["magnitude_moments"] = weight.new_zeros(2, weight.shape[0])
        state["moments"] = weight.new_zeros(2, *low)
    direction, magnitude = state["direction"], state["magnitude"]
    magnitude.copy_(row_square_norms(direction).sqrt())
    unit = direction / magnitude[:, None]
    magnitude_grad = (grad * unit).sum(1)
    direction_grad = grad - magnitude_grad[:, None] * unit
    if state["step"] % group["refresh_gap"] == 0:
        old = Bases(state.get("basis_left"), state.get("basis_right")) if state["step"] else None
        fitted = fit([direction_grad], [old], group["projection_rank"], "small", "exact")[0]
        name, basis = ("basis_left", fitted.left) if fitted.left is not None else ("basis_right", fitted.right)
        state[name] = basis
    state["step"] += 1
    bases = Bases(state.get("basis_left"), state.get("basis_right"))
    projected = down(direction_grad, bases)
    update = torch.zeros_like(projected)
    slots = [
        {"step": state["step"], "exp_avg": pair[0], "exp_avg_sq": pair[1]}
        for pair in (state["moments"], state["magnitude_moments"])
    ]
    adamw_([update], [projected], slots[:1], 1.0, group["betas"], group["eps"], 0.0)
    add_up_(direction, update, bases, 1.0, group["lr"] * group["scale"])
    adamw_([magnitude], [magnitude_grad], slots[1:], group["lr"], group["betas"], group["eps"], 0.0)
    weight.copy_(direction * (magnitude / row_square_norms(direction).sqrt())[:, None])
