"""One optimizer object for two rules: a method's own on its matrices, AdamW on the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import AdamSettings
from baselines.shared.adamw import check_bitsandbytes
from gnlorp.update import update_plain_

RULE = "by_adamw"


class RestByAdamW(Optimizer):
    """Put before the class of an optimizer: groups that `add_rest` adds get AdamW, all others that class's own step.

    AdamW is `gnlorp`'s for plain parameters, equal to `torch.optim.AdamW(fused=True)` with 32-bit moments and to
    bitsandbytes' blockwise kernels with 8-bit ones.
    """

    def add_rest(self, parameters: Sequence[nn.Parameter], adam: AdamSettings) -> None:
        """Add a group that AdamW trains.

        Raises:
            ValueError: 8-bit moments without bitsandbytes.
        """
        if adam.state_bits == 8:
            check_bitsandbytes()
        if parameters:
            options = {
                "lr": adam.learning_rate, "betas": adam.betas, "eps": adam.eps, "weight_decay": adam.weight_decay,
                "state_bits": adam.state_bits,
            }  # fmt: skip
            self.add_param_group({"params": list(parameters), RULE: True, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step by both rules; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        own = [group for group in groups if not group.get(RULE)]
        if own:
            self.param_groups = own
            try:
                super().step()
            finally:
                self.param_groups = groups
        for group in groups:
            weights = [weight for weight in group["params"] if group.get(RULE) and weight.grad is not None]
            if weights:
                update_plain_(weights, [weight.grad for weight in weights], [self.state[w] for w in weights], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state bit for bit, dtypes included, as a copy: the base class would cast 8-bit moments."""
        super().load_state_dict({**state_dict, "state": {}})
        weights = [weight for group in self.param_groups for weight in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, weight in zip(numbers, weights, strict=True):
            if number in state_dict["state"]:
                self.state[weight] = {
                    name: value.detach().to(weight.device, copy=True) if isinstance(value, Tensor) else value
                    for name, value in state_dict["state"][number].items()
                }
