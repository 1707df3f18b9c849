"""What a parameter group and a state dict must look like: looked at once, when they are given."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, get_args

import torch
from torch import Tensor

from gnlorp.moments import Layout, MomentRule, load_bitsandbytes, state_layout
from gnlorp.projection import BasisKind, Side, check_projection_rank

OPTIONS = (
    "lr", "betas", "eps", "weight_decay", "projection_rank", "refresh_gap", "scale", "side", "basis", "moments",
    "state_bits", "allow_full_rank", "noise_floor",
)  # fmt: skip
# What torch and its schedulers keep in a group beside the options, and a name for people.
BESIDE = (
    "params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr",
    "differentiable",
)  # fmt: skip
# GaLore's names and transformers' for the same things.
NAMES_ELSEWHERE = {
    "rank": "projection_rank", "update_proj_gap": "refresh_gap", "proj_type": "side", "learning_rate": "lr",
}  # fmt: skip


def check_names(given: Iterable[str], options: Sequence[str] = OPTIONS) -> None:
    """Refuse a key that a parameter group does not know, which would be kept there and do nothing.

    Raises: ValueError naming the key, the nearest option and all of them.
    """
    for name in given:
        if name not in options and name not in BESIDE:
            near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.0)
            raise ValueError(
                f"{name!r} is no option of a parameter group; nearest: {NAMES_ELSEWHERE.get(name, near[0])!r}; "
                f"options: {', '.join(options)}"
            )


def check_group(group: dict[str, Any]) -> None:
    """Refuse a group with an option outside its range, or a parameter that it cannot update; make numbers Python's.

    Raises: ValueError naming the value and the rule.
    """
    for name in ("lr", "eps", "weight_decay"):
        group[name] = _number(name, group[name], lambda value: value >= 0, "a finite number of at least 0")
    group["scale"] = _number("scale", group["scale"], lambda value: value > 0, "a finite number above 0")
    group["noise_floor"] = _number(
        "noise_floor", group["noise_floor"], lambda value: 0 <= value < 1, "a number of at least 0 and below 1"
    )
    if not isinstance(group["betas"], list | tuple) or len(group["betas"]) != 2:
        raise ValueError(f"betas {group['betas']!r}: must be two numbers in [0, 1)")
    group["betas"] = tuple(
        _number("betas", beta, lambda value: 0 <= value < 1, "two numbers in [0, 1)") for beta in group["betas"]
    )
    if group["projection_rank"] is not None:
        group["projection_rank"] = whole("projection_rank", group["projection_rank"], "None or ")
    group["refresh_gap"] = whole("refresh_gap", group["refresh_gap"])
    for name, allowed in (("state_bits", (8, 32)), ("allow_full_rank", (True, False))):
        if group[name] not in allowed:
            raise ValueError(f"{name} {group[name]!r}: must be {allowed[0]} or {allowed[1]}")
        group[name] = allowed[allowed.index(group[name])]
    for name, kind in (("side", Side), ("basis", BasisKind), ("moments", MomentRule)):
        known = get_args(kind)
        if group[name] not in known:
            nearest = difflib.get_close_matches(str(group[name]), known, n=1, cutoff=0.0)
            raise ValueError(f"{name} {group[name]!r}: must be one of {known}; nearest: {nearest[0]!r}")
    for weight in group["params"]:
        _check_parameter(weight, group)
    if group["state_bits"] == 8:
        load_bitsandbytes()


def whole(name: str, value: Any, also: str = "") -> int:
    """Return a whole number of at least 1, numpy's too, as Python's.

    Raises: ValueError for anything else, True among it.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} {value!r}: must be {also}a whole number of at least 1")
    return int(value)


def needed_layout(weight: Tensor, group: dict[str, Any]) -> Layout:
    """Return name -> (shape, dtype) of the tensors in a parameter's state under the options of its group."""
    return state_layout(weight.shape, weight.dtype, group["projection_rank"], group["side"], group["state_bits"])


def check_state(
    groups: list[dict[str, Any]],
    given: Any,
    options: Sequence[str] = OPTIONS,
    layout: Callable[[Tensor, dict[str, Any]], Layout] = needed_layout,
) -> None:
    """Refuse a state dict whose groups, or tensors under the options it was saved with, do not fit the parameters.

    `options` are those that every group has, `layout` says which tensors a parameter needs.

    Raises: ValueError in one line, naming what differs.
    """
    for name, kind in (("state", dict), ("param_groups", list)):
        if not isinstance(given, dict) or not isinstance(given.get(name), kind):
            has = sorted(map(str, given)) if isinstance(given, dict) else type(given).__name__
            raise ValueError(f"state dict is {has}: must be a dict with {name!r}, a {kind.__name__}")
    for index, saved in enumerate(given["param_groups"]):
        missing = [name for name in ("params", *options) if name not in saved]
        if missing:
            foreign = [name for name in saved if name not in options and name not in BESIDE]
            raise ValueError(
                f"parameter group {index} of the state dict is another optimizer's: it has no {', '.join(missing)}"
                + (f", but {', '.join(foreign)}" if foreign else "")
            )
    needed, found = ([len(group["params"]) for group in side] for side in (groups, given["param_groups"]))
    if needed != found:
        raise ValueError(f"state dict has parameter groups of {found} parameters: must have groups of {needed}")
    for group, saved in zip(groups, given["param_groups"], strict=True):
        check_group({**saved, "params": group["params"]})
        for number, weight in zip(saved["params"], group["params"], strict=True):
            _check_tensors(number, weight, given["state"].get(number), layout(weight, saved))


def _check_tensors(number: Any, weight: Tensor, state: Any, needed: Layout) -> None:
    if not state:
        return
    has = {name: (tuple(value.shape), value.dtype) for name, value in state.items() if isinstance(value, Tensor)}
    if has != needed:
        raise ValueError(f"state of parameter {number} of shape {tuple(weight.shape)} holds {has}: must hold {needed}")
    if not isinstance(state.get("step"), int) or state["step"] < 0:
        raise ValueError(f"state of parameter {number} has step {state.get('step')!r}: must be a whole number")


def _check_parameter(weight: Tensor, group: dict[str, Any]) -> None:
    if not weight.is_floating_point():
        raise ValueError(f"parameter of shape {tuple(weight.shape)} is {weight.dtype}: must be floating point")
    if is_sharded(weight):
        _check_sharded(weight, group)
    if group["projection_rank"] is not None:
        check_projection_rank(weight.shape, group["projection_rank"], group["side"], group["allow_full_rank"])


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, as `fully_shard` makes them."""
    # None exists before its module is imported, which takes a while.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _check_sharded(weight: Any, group: dict[str, Any]) -> None:
    placements = weight.placements
    what = f"parameter of shape {tuple(weight.shape)} is a DTensor with placements {tuple(map(str, placements))}"
    if len(placements) != 1 or not (placements[0].is_shard() or placements[0].is_replicate()):
        raise ValueError(
            f"{what}: supported are parameters sharded along one dimension of one mesh (fully_shard of FSDP2 on a 1-D "
            "mesh), not HSDP or tensor parallelism"
        )
    if group["state_bits"] == 8:
        raise ValueError(
            f"{what}: state_bits 8 keeps one scale for 256 values, which shards would cut (allowed: 32, or parameters "
            "kept whole by ignored_params of fully_shard)"
        )


def _number(name: str, value: Any, holds: Callable[[float], bool], rule: str) -> Any:
    # A learning rate may be a tensor, as in torch; it is kept, since a compiled schedule writes into it.
    number = value.item() if name == "lr" and isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, Real) and not isinstance(number, bool) and math.isfinite(number) and holds(float(number)):
        return value if isinstance(value, torch.Tensor) or type(value) in (int, float) else float(number)
    hint = "; it is text: YAML reads 1e-8 as text, 1.0e-8 as a number" if isinstance(value, str) else ""
    raise ValueError(f"{name} {value!r}: must be {rule}{hint}")
