"""Batches on their way to a device: the next ones are made while the step runs, and copied without waiting."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from suites.suite import Batch

DEPTH = 2


def ahead(batches: Iterator[Batch], depth: int = DEPTH) -> Iterator[Batch]:
    """Yield the same batches in the same order, the next `depth` of them made in a thread meanwhile, in pinned memory.

    What goes wrong in the thread is raised where its batch would have come.
    """
    with ThreadPoolExecutor(1, "batches") as pool:
        waiting: list[Future[Batch | None]] = [pool.submit(_next, batches) for _ in range(depth)]
        while (batch := waiting.pop(0).result()) is not None:
            waiting.append(pool.submit(_next, batches))
            yield batch


def _next(batches: Iterator[Batch]) -> Batch | None:
    batch = next(batches, None)
    if batch is None or not torch.cuda.is_available():
        return batch
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on the device; from pinned memory the copy goes on while the program does."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
