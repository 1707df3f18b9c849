"""What is put through the capability pack: a method of the registry, or somebody's optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from baselines.method import AdamSettings, Method, MethodConfig
from baselines.shared.targets import place
from suites.capabilities.networks import make_network

RANK = 8
MakeOptimizer = Callable[[Sequence[nn.Parameter], float], Optimizer]


class Refused(Exception):
    """The subject was asked for something and said no with an error of its own."""


@dataclass(frozen=True)
class Subject:
    """A way to make a network trainable.

    Attributes:
        name, title: as in records and tables.
        learning_rate: one that trains the tiny networks.
        make: (model, state_bits, learning_rate) -> optimizer; may change the model in place.
        merge: folds what `make` put into the model; None for an optimizer, which puts nothing there.
        eight_bit: whether 8-bit state can be asked for.
    """

    name: str
    title: str
    learning_rate: float
    make: Callable[[nn.Module, int, float], Optimizer]
    merge: Callable[[nn.Module], nn.Module] | None
    eight_bit: bool = True


@dataclass
class Trained:
    """A network with the optimizer that trains it, and the batch's name it takes."""

    network: str
    model: nn.Module
    optimizer: Optimizer


def made(subject: Subject, network: str, bits: int = 32, dtype: torch.dtype = torch.float32) -> Trained:
    """Return the subject on a fresh network, always the same, dropout off.

    Raises:
        Refused: the subject raised ValueError or NotImplementedError.
    """
    model = make_network(network).to(dtype)
    torch.manual_seed(7)
    try:
        optimizer = subject.make(model, bits, subject.learning_rate)
    except (ValueError, NotImplementedError) as error:
        raise Refused(" ".join(str(error).split())) from error
    return Trained(network, model.eval(), optimizer)


def pack_config(method: Method[Any]) -> MethodConfig:
    """Return the settings at rank 8, with a basis refreshed every third step where there is one."""
    config: MethodConfig = method.configure(RANK)
    return config.model_copy(update={"refresh_gap": 3}) if "refresh_gap" in type(config).model_fields else config


def is_adapter(method: Method[Any]) -> bool:
    """Whether the method trains factors of a rank, beside a frozen weight."""
    return method.ranks((64, 64), pack_config(method)).rank is not None


def pack_rate(method: Method[Any]) -> float:
    """Return the method's own, else AdamW's: factors start at zero and take larger steps than whole weights bear.

    Ten times an adapter's usual one, which is low where a part of it moves at a multiple of the rate.
    """
    if method.pack_rate is not None:
        return method.pack_rate
    usual = method.rates.get("fine-tuning")
    return (min(5e-3, 10 * usual.usual) if usual else 5e-3) if is_adapter(method) else 2e-3


def method_subject(method: Method[Any], learning_rate: float | None = None) -> Subject:
    """Return a method of the registry as a subject, at `pack_rate` unless another rate is given.

    Raises:
        ValueError: a learning rate that is not above 0.
    """
    chosen = pack_rate(method) if learning_rate is None else checked_rate(learning_rate)

    def make(model: nn.Module, bits: int, rate: float) -> Optimizer:
        placement, config = place(model, "attention+mlp", train_rest=False), pack_config(method)
        method.attach(model, placement, config)
        optimizer = method.make_optimizer(model, placement, AdamSettings(rate, state_bits=bits), config)
        return optimizer

    return Subject(method.name, method.title, chosen, make, method.merge, 8 in method.widths)


def optimizer_subject(
    make_optimizer: MakeOptimizer, learning_rate: float, eight_bit: MakeOptimizer | None, name: str
) -> Subject:
    """Return an optimizer as a subject that trains every parameter; see `suites.capabilities.check_optimizer`.

    Raises:
        TypeError: what makes the optimizer cannot be called.
        ValueError: a learning rate that is not above 0.
    """
    for what, value in (("make_optimizer", make_optimizer), ("eight_bit", eight_bit)):
        if value is not None and not callable(value):
            raise TypeError(f"{what}: must be called as (parameters, learning_rate), got {type(value).__name__}")

    def make(model: nn.Module, bits: int, rate: float) -> Optimizer:
        chosen = make_optimizer if bits == 32 or eight_bit is None else eight_bit
        found = chosen(list(model.parameters()), rate)
        if not isinstance(found, Optimizer):
            raise TypeError(f"make_optimizer returned {type(found).__name__}: must be a torch.optim.Optimizer")
        return found

    return Subject(name, name, checked_rate(learning_rate), make, None, eight_bit is not None)


def checked_rate(rate: float) -> float:
    """Return `rate`.

    Raises:
        ValueError: it is not a number above 0.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"learning_rate {rate:g}: must be a number above 0")
    return rate
