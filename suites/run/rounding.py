"""How weights in bf16 take an update: one rule for every method and optimizer, outside of them.

A bf16 number has 8 bits: an update under 1/512 of its weight is lost when the sum is rounded to the nearest one, which
near the end of a schedule is most of them. Under a rule the optimizer works on fp32 copies of a few weights at a time
(so that its moments are fp32 for all methods alike), and what it leaves is kept as

    stochastic   the weight, rounded up or down at random so that the mean is right         no bytes more
    kahan        the weight, and what rounding left over in a second bf16 number            2 bytes a trained value
    master       the weight, and the fp32 value itself                                      4 bytes a trained value

(Zamirai et al. 2020, arXiv 2010.06192: stochastic rounding and Kahan summation; Micikevicius et al. 2017, arXiv
1710.03740: master weights.) The libraries that offer one of them bring an AdamW of their own (torchao, optimi), which
neither projects gradients nor keeps 8-bit moments: a comparison needs one rule for all. "nearest" is no rule: torch's
AdamW then keeps moments in bf16 too, and projected gradients have theirs in fp32. Parameters that are not bf16, such as
the magnitude, are stepped as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from baselines.method import Refreshing, refreshed
from suites.measure.environment import derived_seed

Updates = Literal["nearest", "stochastic", "kahan", "master"]
REST_BYTES: dict[Updates, int] = {"nearest": 0, "stochastic": 0, "kahan": 2, "master": 4}
"""Bytes kept beside a trained bf16 value."""

CHUNK_VALUES = 1 << 24


class Rounding:
    """Steps an optimizer under a rule for bf16 weights. `rest`: what is kept beside a weight, by parameter.

    The random numbers of a step follow from seed and step alone, so that processes and resumed runs agree.
    """

    def __init__(self, optimizer: Optimizer, updates: Updates, seed: int) -> None:
        self.rest: dict[Tensor, Tensor] = {}
        self._optimizer, self._updates, self._seed = optimizer, updates, seed
        self._steps = 0
        self._generator: torch.Generator | None = None
        # Found there by whoever counts what an optimizer keeps.
        optimizer.rounding = self  # type: ignore[attr-defined]

    def step(self) -> None:
        """Do the optimizer's step, a few weights at a time."""
        fitted = False
        for group in self._optimizer.param_groups:
            for chunk in _chunks([parameter for parameter in group["params"] if parameter.grad is not None]):
                fitted |= self.step_part(group, chunk)
        say_refreshed(self._optimizer, fitted)
        self.finish()

    def step_part(self, group: dict[str, Any], parameters: Sequence[Tensor]) -> bool:
        """Step some parameters of a group and return whether a basis was fitted; `finish` ends the step."""
        with self._as_fp32(parameters):
            return step_part(self._optimizer, group, parameters)

    @property
    def rest_bytes(self) -> int:
        """Bytes kept beside the weights."""
        return sum(rest.nbytes for rest in self.rest.values())

    def finish(self) -> None:
        """Count the step, whose parts are all done."""
        self._steps += 1
        self._generator = None

    def state_dict(self) -> dict[str, Any]:
        """Return the rests by the parameters' order in the optimizer, and the steps done."""
        held = [self.rest.get(parameter) for parameter in _parameters(self._optimizer)]
        return {"steps": self._steps, "rest": {index: rest for index, rest in enumerate(held) if rest is not None}}

    def load_state_dict(self, state: dict[str, Any], optimizer: dict[str, Any]) -> None:
        """Put a state back, and the optimizer's, whose moments are of the type that fp32 weights have."""
        parameters = _parameters(self._optimizer)
        low = {parameter: parameter.data for parameter in parameters if parameter.dtype == torch.bfloat16}
        for parameter, data in low.items():
            parameter.data = torch.empty((), dtype=torch.float32, device=data.device).expand(data.shape)
        try:
            self._optimizer.load_state_dict(optimizer)
        finally:
            for parameter, data in low.items():
                parameter.data = data
        self._steps = state["steps"]
        self.rest = {parameters[index]: rest.to(parameters[index].device) for index, rest in state["rest"].items()}

    @contextmanager
    def _as_fp32(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Give bf16 parameters their fp32 values, and the same objects their bf16 ones again afterwards."""
        low: dict[Tensor, Tensor] = {p: p.data for p in parameters if p.dtype == torch.bfloat16}
        for parameter, data in low.items():
            if parameter not in self._optimizer.state:
                # Begun anew, by a merge: what was left over belonged to another value.
                self.rest.pop(parameter, None)
            grad, parameter.grad = parameter.grad, None
            parameter.data = self._high(parameter, data)
            parameter.grad = None if grad is None else grad.float()
        try:
            yield
        finally:
            for parameter, data in low.items():
                parameter.grad = None
                high, parameter.data = parameter.data, data
                self._keep(parameter, high, data)

    def _high(self, parameter: Tensor, low: Tensor) -> Tensor:
        rest = self.rest.get(parameter)
        if rest is None:
            return low.float()
        return rest if self._updates == "master" else low.float().add_(rest)

    def _keep(self, parameter: Tensor, high: Tensor, low: Tensor) -> None:
        if self._updates == "stochastic":
            low.copy_(stochastic_bf16(high, self._random(high.device)))
            return
        low.copy_(high)
        if self._updates == "master":
            self.rest[parameter] = high
        else:
            self.rest[parameter] = high.sub_(low).to(torch.bfloat16)

    def _random(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(derived_seed(self._seed, f"rounding {self._steps}"))
        return self._generator


def stochastic_bf16(high: Tensor, generator: torch.Generator) -> Tensor:
    """Return fp32 values rounded to one of the two bf16 neighbours, the nearer one the likelier, right in the mean.

    A bf16 number is the upper half of an fp32 one: the lower half is the chance of the upper neighbour.
    """
    noise = torch.randint(0, 1 << 16, high.shape, dtype=torch.int32, device=high.device, generator=generator)
    bits = high.contiguous().view(torch.int32)
    # Infinities and NaN have no neighbours.
    summed = torch.where(high.isfinite(), bits + noise, bits)
    return summed.bitwise_and_(-(1 << 16)).view(torch.float32).to(torch.bfloat16)


def rule_of(optimizer: Optimizer) -> Rounding | None:
    """Return the rule that an optimizer's weights are under; None: the optimizer steps them as they are."""
    return getattr(optimizer, "rounding", None)


def take_step(optimizer: Optimizer) -> None:
    """Do the optimizer's step, under the rule that its weights are under."""
    rule = rule_of(optimizer)
    if rule is None:
        optimizer.step()
    else:
        rule.step()


def step_part(optimizer: Optimizer, group: dict[str, Any], parameters: Sequence[Tensor]) -> bool:
    """Let an optimizer step some parameters of one of its groups; return whether it fitted a basis.

    It sees no others for the time, and keeps no second state.
    """
    groups, members = optimizer.param_groups, group["params"]
    optimizer.param_groups, group["params"] = [group], list(parameters)
    try:
        optimizer.step()
    finally:
        optimizer.param_groups, group["params"] = groups, members
    return refreshed(optimizer)


def say_refreshed(optimizer: Optimizer, fitted: bool) -> None:
    """Have an optimizer that was stepped in parts say of the whole step whether a basis was fitted."""
    if isinstance(optimizer, Refreshing):
        optimizer.last_refreshed = fitted


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _chunks(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    chunk: list[Tensor] = []
    values = 0
    for parameter in parameters:
        if chunk and values + parameter.numel() > CHUNK_VALUES:
            yield chunk
            chunk, values = [], 0
        chunk.append(parameter)
        values += parameter.numel()
    if chunk:
        yield chunk
