"""Time and numbers from a device, without waiting for it more than once a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Clock:
    """Sums seconds by phase; on a CUDA device by events of its own, so that timing never waits for it.

    A phase inside another takes its own time out of it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[tuple[str, Any]] = []
        self._spans: list[tuple[str, str | None, Any, Any]] = []
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs inside the context under `name`."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """Begin a phase; for hooks, which have no context."""
        self._open.append((name, self._mark()))

    def end(self) -> None:
        """End the phase that began last."""
        name, start = self._open.pop()
        self._spans.append((name, self._open[-1][0] if self._open else None, start, self._mark()))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase; waits for the device to reach the end of the last one."""
        for name, outer, start, end in self._spans:
            spent = self._between(start, end)
            self._seconds[name] = self._seconds.get(name, 0.0) + spent
            if outer is not None:
                self._seconds[outer] = self._seconds.get(outer, 0.0) - spent
        self._spans = []
        # Parts that a device does on several streams at once may add up to more than the whole.
        return {name: max(0.0, found) for name, found in self._seconds.items()}

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if self._device.type != "cuda":
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


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
