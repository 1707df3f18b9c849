"""The per-layer update: each parameter is stepped inside backward, as soon as its gradient is there.

At most a few gradients are alive at once (Lv et al. 2023, arXiv 2306.09782, which GaLore's 7B run uses). Works with any
optimizer whose step treats every parameter by itself; equal to the ordinary step bit for bit then. Gradients cannot be
accumulated, nor clipped by their common norm.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import UpdatesInBackward


def check_per_layer(accumulation: int, clip_norm: float | None, processes: int = 1) -> None:
    """Raise ValueError for settings that need all gradients of a step at once."""
    if accumulation > 1:
        raise ValueError(
            f"accumulation {accumulation}: per_layer uses a gradient up at once (nearest allowed value: 1)"
        )
    if clip_norm:
        raise ValueError(
            f"clip_norm {clip_norm}: per_layer never has the norm over all gradients (nearest allowed value: 0)"
        )
    if processes > 1:
        raise ValueError(f"per_layer with {processes} processes: not possible (nearest allowed value: 1 process)")


class PerLayer:
    """Switches an optimizer to per-layer updates until `remove`.

    Call `finish` once after every backward pass, in place of `optimizer.step`. An optimizer with a mode of its own
    (`UpdatesInBackward`) is switched to that. State, parameter groups and learning rates stay the optimizer's: its
    `state_dict` is the same with and without.

    Raises:
        ValueError: from `check_per_layer`.
    """

    def __init__(
        self, optimizer: Optimizer, accumulation: int = 1, clip_norm: float | None = None, processes: int = 1
    ) -> None:
        check_per_layer(accumulation, clip_norm, processes)
        self._optimizer = optimizer
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: set[int] = set()
        self._norm = 0.0
        self._skipped = False
        self._own = optimizer if isinstance(optimizer, UpdatesInBackward) and optimizer.supports_per_layer else None
        if self._own is not None:
            self._own.per_layer(True)
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._hook(group, parameter)

    def finish(self) -> tuple[float, bool]:
        """Close the pass; return (norm over all its gradients, whether every one of them was finite and used)."""
        if self._own is not None:
            before = self._own.skipped_steps
            self._own.step()
            assert self._own.last_gradient_norm is not None
            return self._own.last_gradient_norm, self._own.skipped_steps == before
        norm, used = self._norm, not self._skipped
        self._seen, self._norm, self._skipped = set(), 0.0, False
        return norm, used

    def remove(self) -> None:
        """Go back to ordinary steps."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._own is not None:
            self._own.per_layer(False)

    def _hook(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        def run(grown: Tensor) -> None:
            self._update(group, grown)

        self._handles.append(parameter.register_post_accumulate_grad_hook(run))

    @torch.no_grad()
    def _update(self, group: dict[str, Any], parameter: Tensor) -> None:
        if id(parameter) in self._seen:
            raise RuntimeError(
                "a parameter got a second gradient before finish(): per-layer updates cannot accumulate gradients"
            )
        self._seen.add(id(parameter))
        assert parameter.grad is not None
        norm = float(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
        self._norm = math.hypot(self._norm, norm)
        if math.isfinite(norm):
            self._step_alone(group, parameter)
        else:
            self._skipped = True
        parameter.grad = None

    def _step_alone(self, group: dict[str, Any], parameter: Tensor) -> None:
        # The optimizer sees one group of one parameter for this step: no second object, no second state.
        groups, members = self._optimizer.param_groups, group["params"]
        self._optimizer.param_groups, group["params"] = [group], [parameter]
        try:
            self._optimizer.step()
        finally:
            self._optimizer.param_groups, group["params"] = groups, members
