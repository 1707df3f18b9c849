"""Where the device check runs, and what its questions share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from results.gpu import Answer, Verdict
from results.lab import Precision
from suites.lab.lab import Lab
from suites.lab.networks import find_network
from suites.run.loop import apply_gradients
from suites.suite import Batch


@dataclass
class Where:
    """A device, and what was found on it; on a processor it is a rehearsal with tiny shapes."""

    device: torch.device
    verdicts: list[Verdict] = field(default_factory=list)
    check: str = ""

    @property
    def rehearsal(self) -> bool:
        """Whether nothing measured here says anything of a device."""
        return self.device.type != "cuda"

    def say(self, what: str, answer: Answer, words: str, **numbers: Any) -> None:
        """Add a verdict of the check in hand."""
        self.verdicts.append(Verdict(check=self.check, what=what, answer=answer, words=words, numbers=numbers))

    def judge(self, what: str, holds: bool, words: str, **numbers: Any) -> None:
        """Add a verdict that holds or fails."""
        self.say(what, "holds" if holds else "fails", words, **numbers)

    def networks(self) -> dict[str, tuple[int, int, int]]:
        """Return name -> (rank, rows, tokens) of the shapes that memory and speed are asked about."""
        return {"micro": (4, 2, 16)} if self.rehearsal else {"minilm": (8, 32, 128), "60m": (128, 16, 256)}

    def settle(self) -> None:
        """Wait until the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Training:
    """A model of the lab's shapes with random weights on the device, and its step."""

    lab: Lab
    model: nn.Module
    optimizer: Optimizer
    batch: Batch

    def step(self) -> None:
        """Do one training step as the loop does."""
        self.lab.loss(self.model, self.batch).backward()
        apply_gradients(self.optimizer)


def training(where: Where, network: str, method: str, precision: Precision = "fp32", bits: int = 32) -> Training:
    """Return a method on a network of the lab, on the device."""
    rank, rows, tokens = where.networks()[network]
    kind: Any = where.device.type
    lab = Lab(find_network(network), method, rank, precision, (bits,), device=kind)
    torch.manual_seed(0)
    model, placement = lab.build()
    model = model.to(where.device)
    batch = {name: tensor.to(where.device) for name, tensor in lab.network.batch(rows, tokens).items()}
    return Training(lab, model, lab.optimizer(model, placement, bits), batch)


def seconds_of(where: Where, work: Callable[[], object], least: int = 5, budget_s: float = 1.0) -> list[float]:
    """Return the seconds of single calls after two to warm up, the device waited for."""
    for _ in range(2):
        work()
    where.settle()
    found: list[float] = []
    begun = time.perf_counter()
    while len(found) < least or (len(found) < 50 and time.perf_counter() - begun < budget_s):
        start = time.perf_counter()
        work()
        where.settle()
        found.append(time.perf_counter() - start)
    return found
