"""Time and numbers from a device, without waiting for it more than once a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Clock:
    """Sums seconds by phase; on a CUDA device by events of its own, so that timing never waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any, Any]] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside the context under `name`."""
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._marks.append((name, start, end))
            return
        begun = time.perf_counter()
        yield
        self._add(name, time.perf_counter() - begun)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase; waits for the device to reach the end of the last one."""
        for name, start, end in self._marks:
            end.synchronize()
            self._add(name, start.elapsed_time(end) / 1e3)
        self._marks = []
        return self._seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds


Timed = tuple[Clock, bool, int]
"""A timed step: its clock, whether a basis was fitted, and its tokens."""


def reads_late(device: torch.device) -> bool:
    """Whether reading a number from the device makes the program wait for it, so that numbers are read together."""
    return device.type != "cpu"


def read_together(values: Sequence[float | Tensor]) -> list[float]:
    """Return numbers, those that are on a device in one transfer."""
    held = [value for value in values if isinstance(value, Tensor)]
    if not held:
        return [float(value) for value in values]
    read = iter(torch.stack([value.double() for value in held]).tolist() if reads_late(held[0].device) else held)
    return [float(next(read)) if isinstance(value, Tensor) else value for value in values]
