"""The per-layer update: each parameter is stepped inside backward, as soon as its gradient is there.

At most a few gradients are alive at once (Lv et al. 2023, arXiv 2306.09782, which GaLore's 7B run uses). Works with any
optimizer whose step treats every parameter by itself; equal to the ordinary step bit for bit then. Over several
micro-batches an optimizer without a mode of its own (or under a rule of `suites.run.rounding`) sums whole gradients, as
ever, and steps in the last backward: the same step, with little saved. One that projects sums projected gradients: see
`GradNormLoRPAdamW.per_layer`.

The norm over all gradients is only known once the first have been used up, so that clipping by it is refused; each
parameter's gradient can be clipped by its own norm instead, another rule, which `clip_scope` names.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import UpdatesInBackward
from gnlorp.checks import is_sharded
from suites.run.clock import Clock
from suites.run.distributed import ALONE, Group
from suites.run.rounding import rule_of, say_refreshed, step_part
from suites.run.shard import clip_, total_norm


def check_per_layer(
    accumulation: int, clip_norm: float | None, clip_scope: str = "all", processes: int = 1, sharded: bool = False
) -> None:
    """Raise ValueError for settings that need all gradients of a step at once."""
    if clip_norm and clip_scope == "all":
        raise ValueError(
            f"clip_norm {clip_norm}: per_layer never has the norm over all gradients (nearest allowed value: 0, or "
            "clip_scope = 'parameter', which clips each parameter's gradient by its own norm)"
        )
    if clip_norm and accumulation > 1:
        raise ValueError(
            f"clip_norm {clip_norm} with accumulation {accumulation}: per_layer sums projected gradients, whose norm "
            "is not that of the whole ones (nearest allowed value: 0)"
        )
    if processes > 1 and not sharded:
        raise ValueError(
            f"per_layer with {processes} processes: not possible (nearest allowed value: 1 process, or --shard)"
        )


def clip_alone_(parameter: Tensor, clip_norm: float) -> Tensor:
    """Clip one parameter's gradient by its own norm, as torch's clipping does; return the norm before."""
    assert parameter.grad is not None
    norm = norm_of(parameter.grad)
    clip_([parameter], clip_norm, norm)
    return norm


def norm_of(grad: Tensor) -> Tensor:
    """Return the norm of one whole gradient in float32."""
    if is_sharded(grad):
        return total_norm([grad]).float()
    norm: Tensor = torch.linalg.vector_norm(grad, dtype=torch.float32)
    return norm


class PerLayer:
    """Switches an optimizer to per-layer updates until `remove`, or until nothing holds this object any more.

    Call `finish` once after the backward passes of a step, in place of `optimizer.step`. An optimizer with a mode of
    its own (`UpdatesInBackward`) is switched to that. State, parameter groups and learning rates stay the optimizer's:
    its `state_dict` is the same with and without. `clock`: times what is done inside backward as the optimizer's.

    Raises:
        ValueError: from `check_per_layer`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        accumulation: int = 1,
        clip_norm: float | None = None,
        clip_scope: str = "all",
        group: Group = ALONE,
    ) -> None:
        check_per_layer(accumulation, clip_norm, clip_scope, group.size, group.shard is not None)
        self._group = group
        self._optimizer = optimizer
        self.clock: Clock | None = None
        self._accumulation, self._clip_norm = accumulation, clip_norm
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._start()
        self._rule = rule_of(optimizer)
        self._own: UpdatesInBackward | None = None
        able = isinstance(optimizer, UpdatesInBackward) and (optimizer.supports_per_layer or group.shard is not None)
        if isinstance(optimizer, UpdatesInBackward) and able and self._rule is None:
            self._own = optimizer
        self._hook_all(PerLayer._begin)
        if self._own is None or clip_norm:
            self._hook_all(PerLayer._arrived)
        if self._own is not None:
            # After the hooks above: what they clip is used.
            options: dict[str, Any] = {} if group.shard is None else {"reduce": lambda grad: group.sum_([grad])}
            self._own.per_layer(True, accumulation=accumulation, **options)
        self._hook_all(PerLayer._end)

    def finish(self) -> tuple[float | None, bool]:
        """Close the step; return (norm over all its gradients, whether every one of them was finite and used).

        None: the whole gradients were never there.
        """
        if self._own is not None:
            before = self._own.skipped_steps
            self._own.step()
            norm = self._norm if self._clip_norm else self._own.last_gradient_norm
            self._start()
            return norm, self._own.skipped_steps == before
        # Parameters that not every backward pass reached.
        for group, parameter in list(self._waiting.values()):
            self._update(group, parameter)
        norm, used = self._norm, not self._skipped
        say_refreshed(self._optimizer, self._refreshed)
        if self._rule is not None:
            self._rule.finish()
        self._start()
        return norm, used

    def remove(self) -> None:
        """Go back to ordinary steps."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._own is not None:
            self._own.per_layer(False)

    def _start(self) -> None:
        self._seen: dict[int, int] = {}
        self._waiting: dict[int, tuple[dict[str, Any], Tensor]] = {}
        self._norm = 0.0
        self._skipped = self._refreshed = False

    def _hook_all(self, act: Callable[[PerLayer, dict[str, Any], Tensor], None]) -> None:
        """Have `act` called with each parameter's group and the parameter once its gradient is there."""
        for index, each in enumerate(self._optimizer.param_groups):
            for parameter in each["params"]:
                self._hook(index, parameter, act)

    def _hook(
        self, index: int, parameter: nn.Parameter, act: Callable[[PerLayer, dict[str, Any], Tensor], None]
    ) -> None:
        # Through a weak reference: parameter -> hook -> optimizer -> parameter would be a cycle that nothing collects.
        me = weakref.ref(self)

        def run(grown: Tensor) -> None:
            switch = me()
            if switch is not None:
                act(switch, switch._optimizer.param_groups[index], grown)

        self._handles.append(parameter.register_post_accumulate_grad_hook(run))

    def _begin(self, group: dict[str, Any], parameter: Tensor) -> None:
        if self.clock is not None:
            self.clock.begin("optimizer")

    def _end(self, group: dict[str, Any], parameter: Tensor) -> None:
        if self.clock is not None:
            self.clock.end()

    @torch.no_grad()
    def _arrived(self, group: dict[str, Any], parameter: Tensor) -> None:
        if self._own is not None:
            assert self._clip_norm
            self._norm = math.hypot(self._norm, float(clip_alone_(parameter, self._clip_norm)))
            return
        count = self._seen[id(parameter)] = self._seen.get(id(parameter), 0) + 1
        if count > self._accumulation:
            raise RuntimeError(
                f"a parameter got gradient {count} before finish(): per-layer updates accumulate only as many as they "
                f"were told, {self._accumulation}"
            )
        if count < self._accumulation:
            self._waiting[id(parameter)] = (group, parameter)
            return
        self._waiting.pop(id(parameter), None)
        # FSDP2 has summed the gradients of what it has sharded.
        if not is_sharded(parameter) and parameter.grad is not None:
            self._group.sum_([parameter.grad])
        self._update(group, parameter)

    @torch.no_grad()
    def _update(self, group: dict[str, Any], parameter: Tensor) -> None:
        assert parameter.grad is not None
        if self._clip_norm:
            norm = float(clip_alone_(parameter, self._clip_norm))
        else:
            norm = float(norm_of(parameter.grad))
        self._norm = math.hypot(self._norm, norm)
        if math.isfinite(norm):
            step = partial(step_part, self._optimizer) if self._rule is None else self._rule.step_part
            self._refreshed |= step(group, [parameter])
        else:
            self._skipped = True
        parameter.grad = None
