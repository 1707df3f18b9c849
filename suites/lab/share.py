"""The lab for a run whose weights are sharded: what one process of N holds, over tensors without values.

The model is sharded by the code that runs shard it with (`suites.run.shard`), over a group of processes of which only
this one, the first, exists: torch's fake backend answers every exchange with what is there. The first process has the
largest part of what does not divide.

Not seen: what a backend (NCCL, gloo) takes for itself, and how far a device runs ahead of its streams, where FSDP2 may
hold one unit more than on a processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from baselines.method import Placement
from gnlorp.moments import layout_bytes, optimizer_state_bytes, state_layout
from gnlorp.sharded import local_shape, local_state_layout, placement, shard_dim
from results.lab import Counted
from suites.lab.lab import Lab
from suites.measure import live
from suites.run import shard
from suites.run.distributed import Group
from suites.suite import Batch

Mode = Literal["all", "frozen"]


@contextmanager
def pretended(processes: int) -> Iterator[None]:
    """Be the first of a group of processes that do not exist; inside a group that does, nothing is changed."""
    if dist.is_initialized():
        yield
        return
    # Of use by their import: the backend, and what its exchanges do without values.
    import torch.distributed._tools.fake_collectives  # noqa: F401
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


class ShardedLab(Lab):
    """A `Lab` whose cells are those of one process among `processes`, weights sharded as `mode` says.

    Raises:
        ValueError: also for a method whose optimizer needs whole weights, and what `suites.run.shard` refuses.
    """

    def __init__(self, processes: int, mode: Mode, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        if self.updates != "nearest":
            raise ValueError(f"bf16_updates {self.updates!r} with --shard: knows no shards (nearest allowed: nearest)")
        if mode == "all" and 8 in self.widths:
            raise ValueError("state_bits 8 with --shard: (nearest allowed value: 32, or --keep-trained-whole)")
        self.processes, self.mode = processes, mode
        self.group = Group(shard=mode)
        self._added: set[str] = set()
        self._originals: list[nn.Parameter] = []

    def optimizer(self, model: nn.Module, placement: Placement, state_bits: int) -> Optimizer:
        """Return the method's optimizer, sharded and whole parameters in groups of their own."""
        made = super().optimizer(model, placement, state_bits)
        shard.set_apart(made)
        return made

    def share(self, model: nn.Module, where: Placement) -> None:
        """Shard a model with its method attached, as a run does."""
        from torch.distributed.device_mesh import init_device_mesh

        known = {id(parameter) for parameter in self._originals}
        self._added = {name for name, parameter in model.named_parameters() if id(parameter) not in known}
        self._originals = []
        unsharded = super().optimizer(model, where, self.widths[0])
        shard.check_optimizer(unsharded, self.method.name, self.mode)
        groups = unsharded.param_groups
        whole = shard.kept_whole(model, self._names, self.mode)
        shard.apply(model, init_device_mesh("cpu", (self.processes,)), placement(groups, self.processes), whole)

    def _settle(self, model: nn.Module, batch: Batch, run: Callable[[], None]) -> None:
        # Units that a step cut short has gathered would stay so.
        run()

    def formula(self, state_bits: int) -> Counted:
        """Return the formula column of one process: every tensor's part, from shapes alone."""
        unsharded = super().formula(state_bits)
        # Not on the device "meta", where an adapter's precision is not that of its weight.
        with super()._without_values():
            model, where = self.build()
        known = {id(parameter) for parameter in self._originals}
        whole = {id(parameter) for parameter in shard.kept_whole(model, self._names, self.mode)}
        how = {
            id(parameter): (group.get("projection_rank"), group.get("side", "small"))
            for group in super().optimizer(model, where, state_bits).param_groups
            for parameter in group["params"]
        }
        sums: Counter[str] = Counter()
        for parameter in model.parameters():
            rank, side = how.get(id(parameter), (None, "small"))
            dim = None if id(parameter) in whole else shard_dim(parameter.shape, rank, side, self.processes)
            size = parameter.element_size() * _values(local_shape(parameter.shape, dim, self.processes))
            sums["weight"] += size
            sums["adapter"] += size if id(parameter) not in known else 0
            if parameter.requires_grad:
                sums["gradient"] += size
                state, basis = _state(parameter, rank, side, dim, self.processes, state_bits)
                sums["state"] += state
                sums["basis"] += basis
        frozen = self.mode == "frozen"
        return Counted(
            weight_bytes=sums["weight"],
            adapter_bytes=sums["adapter"],
            gradient_bytes=sums["gradient"],
            # What is whole is what it is without shards, whatever the optimizer keeps.
            state_bytes=unsharded.state_bytes if frozen else sums["state"],
            basis_bytes=unsharded.basis_bytes if frozen else sums["basis"],
            buffer_bytes=unsharded.buffer_bytes,
        )

    @cached_property
    def _names(self) -> set[str]:
        with torch.device("meta"):
            return {name for name, _ in self.network.model().named_parameters()}

    def _plain(self, layers: int | Sequence[int] | None) -> nn.Module:
        model = super()._plain(layers)
        self._originals = list(model.parameters())
        return model

    def _adapter_bytes(self, model: nn.Module) -> int:
        return live.storage_bytes(each for name, each in model.named_parameters() if name in self._added)

    @contextmanager
    def _without_values(self) -> Iterator[Counter[str]]:
        with pretended(self.processes), super()._without_values() as rules:
            yield rules


def _state(
    parameter: nn.Parameter, rank: int | None, side: Any, dim: int | None, processes: int, state_bits: int
) -> tuple[int, int]:
    """Return the bytes of a parameter's state on the first process, and those of its bases among them."""
    if dim is None:
        total = optimizer_state_bytes(parameter.shape, rank, side, state_bits, parameter.dtype)
        layout = state_layout(parameter.shape, parameter.dtype, rank, side, state_bits)
    else:
        layout = local_state_layout(parameter.shape, parameter.dtype, rank, side, processes, dim=dim)
        total = layout_bytes(layout)
    return total, layout_bytes({name: each for name, each in layout.items() if name.startswith("basis")})


def _values(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
