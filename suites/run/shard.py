"""A run whose weights are sharded over the processes (FSDP2), and what of a step then has to know it.

    torchrun --nproc_per_node N -m suites run ... --shard

Each block of layers is one unit of `fully_shard`, the rest of the model another. A weight whose gradient is projected
is sharded along the side that its basis does not span (`gnlorp.sharded`). FSDP2 sums the gradients of sharded
parameters in backward; of parameters that stay whole the loop does, as in a data parallel run.

Whole stay the vectors that a method adds (magnitudes: FSDP2 wants one precision in a unit); with
`--keep-trained-whole` everything that is trained, so that the frozen weights alone are sharded: any optimizer and 8-bit
state then work, for what LoRA and its kin train.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from baselines.method import Placement, RestartConfig, trainable
from gnlorp import GradNormLoRPAdamW
from gnlorp.checks import is_sharded
from suites.models import blocks_of
from suites.resolved import Resolved
from suites.run.distributed import Group


def check_shard(case: Resolved) -> None:
    """Refuse by name what a sharded run cannot do.

    Raises:
        ValueError: the setting, and the nearest allowed value.
    """
    group, training = case.runtime.group, case.training
    if group.shard is None:
        return
    whole = group.shard == "frozen"
    if training.bf16_updates != "nearest":
        raise ValueError(
            f"bf16_updates {training.bf16_updates!r} with --shard: its rests know no shards (nearest allowed value: "
            "nearest)"
        )
    if training.state_bits == 8 and not whole:
        raise ValueError(
            "state_bits 8 with --shard: one scale for 256 values would be cut by shards (nearest allowed value: 32, or "
            "--keep-trained-whole)"
        )
    if isinstance(case.config, RestartConfig) and case.config.merge_gap:
        raise ValueError(
            f"merge_gap {case.config.merge_gap} with --shard: factors cannot be merged into a weight of which each "
            "process has a part (nearest allowed value: 0)"
        )
    if training.compile:
        raise ValueError("compile = true with --shard: never tried (nearest allowed value: false)")
    if training.per_layer and whole:
        raise ValueError(
            "per_layer with --keep-trained-whole: gradients of whole parameters are summed after backward (nearest "
            "allowed value: per_layer = false, or --shard alone)"
        )


def shard_model(model: nn.Module, placement: Placement, case: Resolved, before: set[str], device: torch.device) -> None:
    """Shard a model with its method attached, in place, unit by unit, and put it on `device`.

    Args:
        before: names of the parameters before the method was attached.
    """
    from torch.distributed.device_mesh import init_device_mesh

    from gnlorp.sharded import placement as along

    group = case.runtime.group
    # The groups of an optimizer over whole parameters say which of them are projected.
    optimizer = case.method.make_optimizer(model, placement, case.adam, case.config)
    check_optimizer(optimizer, case.plan.method, group.shard)
    groups = optimizer.param_groups
    whole = kept_whole(model, before, group.shard)
    apply(model, init_device_mesh(device.type, (group.size,)), along(groups, group.size), whole)
    for parameter in whole:
        parameter.data = parameter.data.to(device)


def kept_whole(model: nn.Module, before: set[str], mode: str | None) -> set[nn.Parameter]:
    """Return the parameters that every process holds whole; `before`: names before the method was attached."""
    return {
        parameter
        for name, parameter in trainable(model).items()
        if mode == "frozen" or (name not in before and parameter.ndim < 2)
    }


def apply(model: nn.Module, mesh: Any, along: Any, whole: set[nn.Parameter]) -> None:
    """Apply `fully_shard` to each block and to the rest; gradients are summed, not averaged: the loop weighs losses."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for unit in [*blocks_of(model), model]:
        fully_shard(unit, mesh=mesh, shard_placement_fn=along, ignored_params=whole)
        assert isinstance(unit, FSDPModule)
        unit.set_gradient_divide_factor(1.0)
        # By a plain sum, which gloo has too.
        unit.set_force_sum_reduction_for_comms(True)


def check_optimizer(optimizer: Optimizer, method: str, mode: str | None) -> None:
    """Refuse an optimizer that would compute something else on shards than on whole parameters.

    Raises:
        ValueError: trained parameters are to be sharded, and it is neither torch's AdamW, which works value by value,
            nor ours.
    """
    if mode == "all" and type(optimizer) not in (AdamW, GradNormLoRPAdamW):
        raise ValueError(
            f"method {method!r} with --shard: {type(optimizer).__name__} needs whole parameters (allowed: methods "
            "whose optimizer is AdamW or GradNormLoRPAdamW; for frozen weights alone --keep-trained-whole)"
        )


def set_apart(optimizer: Optimizer) -> None:
    """Give sharded and whole parameters groups of their own: no kernel takes both in one call."""
    for group in list(optimizer.param_groups):
        whole = [each for each in group["params"] if not is_sharded(each)]
        shared = [each for each in group["params"] if is_sharded(each)]
        if whole and shared:
            group["params"] = shared
            optimizer.add_param_group({**group, "params": whole})


def own_state_bytes(optimizer: Optimizer, group: Group) -> int:
    """Return the bytes of optimizer state on this process by formula; step counters belong to an implementation."""
    from gnlorp.moments import layout_bytes, optimizer_state_bytes
    from gnlorp.sharded import local_state_layout, share_of

    total = 0
    for each in optimizer.param_groups:
        rank, side = each.get("projection_rank"), each.get("side", "small")
        for parameter in each["params"]:
            shape, dtype = parameter.shape, parameter.dtype
            if is_sharded(parameter):
                dim = share_of(parameter).dim
                layout = local_state_layout(shape, dtype, rank, side, group.size, group.rank, dim)
                total += layout_bytes(layout)
            else:
                total += optimizer_state_bytes(shape, rank, side, 32, dtype)
    return total


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, sharing its memory; of a whole one all of it."""
    if not is_sharded(tensor):
        return tensor
    from gnlorp import sharded

    return sharded.local(tensor)


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor, of which every process must ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """Return the norm over gradients, sharded ones among them, the same on every process: a plain number."""
    if not any(map(is_sharded, grads)):
        return nn.utils.get_total_norm(grads)
    shards, whole = ([local(each) for each in grads if is_sharded(each) == kind] for kind in (True, False))
    square = nn.utils.get_total_norm(shards).square()
    dist.all_reduce(square)
    return torch.hypot(square.sqrt(), nn.utils.get_total_norm(whole).to(square)) if whole else square.sqrt()


def clip_(parameters: Iterable[Tensor], clip_norm: float, total: Tensor) -> None:
    """Scale gradients as torch's clipping does, sharded ones in their parts."""
    held = [parameter for parameter in parameters if parameter.grad is not None]
    if not any(map(is_sharded, held)):
        nn.utils.clip_grads_with_norm_(held, clip_norm, total)
        return
    scale = torch.clamp(clip_norm / (total + 1e-6), max=1.0)
    for parameter in held:
        assert parameter.grad is not None
        local(parameter.grad).mul_(scale)


def sum_whole_(grads: Iterable[Tensor], group: Group) -> None:
    """Sum over the processes the gradients that FSDP2 has not summed already."""
    group.sum_(grad for grad in grads if not is_sharded(grad))


def gathered_state(model: nn.Module, leads: bool) -> dict[str, Any]:
    """Return the whole state dict on the process that leads, on the CPU, a tensor at a time; nothing on the others."""
    found: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        whole = full(value).cpu() if isinstance(value, Tensor) else value
        if leads:
            found[name] = whole
    return found
