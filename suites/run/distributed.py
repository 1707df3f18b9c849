"""Data parallel runs: which process this is, and the few exchanges that the loop needs.

Start the same command under `torchrun --nproc_per_node N`: every process walks the same plans, takes every N-th
micro-batch of a step, and sums gradients in place (no buckets, so no second copy of them). Process 0 alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """The processes of one run; the default is a run of one process.

    `shard`: whether weights are sharded over them (`suites.run.shard`): "all" of them, or the "frozen" ones alone.
    """

    rank: int = 0
    size: int = 1
    shard: Literal["all", "frozen"] | None = None

    @property
    def leads(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, the same bits on all of them."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def total(self, value: float, device: torch.device) -> float:
        """Return the sum of `value` over the processes."""
        if self.size == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(held)
        return float(held)

    def agreed(self, value: bool, device: torch.device) -> bool:
        """Return process 0's `value` on every process."""
        return self.total(float(value and self.leads), device) > 0

    def gathered(self, tensor: Tensor, device: torch.device) -> list[Tensor]:
        """Return every process's `tensor` (all of one shape), by rank, on the CPU."""
        if self.size == 1:
            return [tensor]
        held = [torch.empty_like(tensor, device=device) for _ in range(self.size)]
        dist.all_gather(held, tensor.to(device))
        return [each.cpu() for each in held]

    def wait(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()


ALONE = Group()
"""A run of one process."""


def joined_group() -> Group:
    """Join the processes that torchrun started, through accelerate; a group of one where it did not.

    Raises:
        ValueError: the processes cannot be joined.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group()
    from accelerate import PartialState

    try:
        state = PartialState(cpu=not torch.cuda.is_available())
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"the processes of torchrun cannot be joined: {error}") from error
    return Group(state.process_index, state.num_processes)


def sharded_group(group: Group, shard: bool, keep_trained_whole: bool) -> Group:
    """Return the group with its weights sharded as the command line asks.

    Raises:
        ValueError: one process alone, or a switch without the other.
    """
    if keep_trained_whole and not shard:
        raise ValueError("--keep-trained-whole: says what --shard leaves whole (nearest allowed: --shard with it)")
    if not shard:
        return group
    if group.size == 1:
        raise ValueError(
            "--shard: there is one process, and nothing to share out (nearest allowed: torchrun --standalone "
            "--nproc_per_node 2 -m suites run ... --shard)"
        )
    return replace(group, shard="frozen" if keep_trained_whole else "all")


def check_divides(accumulation: int, group: Group) -> None:
    """Raise ValueError unless every process gets the same number of micro-batches a step."""
    if accumulation % group.size:
        near = max(group.size, accumulation // group.size * group.size)
        raise ValueError(
            f"accumulation {accumulation}: must be a multiple of the {group.size} processes, so that each gets as many "
            f"micro-batches a step (nearest allowed value: {near})"
        )
