"""What a parameter group and a state dict must look like."""

from __future__ import annotations

import difflib
import math
from typing import Any, get_args

from torch import Tensor

from gnlorp.moments import MomentRule, load_bitsandbytes, state_layout
from gnlorp.projection import BasisKind, Side, check_projection_rank


def check_group(group: dict[str, Any]) -> None:
    """Refuse a group with an option outside its range, or a parameter that it cannot update.

    Raises: ValueError naming the value and the rule.
    """
    rules: list[tuple[str, bool, str]] = [
        ("lr", float(group["lr"]) >= 0, "at least 0"),
        ("betas", len(group["betas"]) == 2 and all(0 <= beta < 1 for beta in group["betas"]), "two numbers in [0, 1)"),
        ("eps", group["eps"] >= 0, "at least 0"),
        ("weight_decay", group["weight_decay"] >= 0, "at least 0"),
        ("projection_rank", _counts(group["projection_rank"], or_none=True), "None or a whole number of at least 1"),
        ("refresh_gap", _counts(group["refresh_gap"]), "a whole number of at least 1"),
        ("scale", math.isfinite(group["scale"]) and group["scale"] > 0, "finite and above 0"),
        ("state_bits", group["state_bits"] in (8, 32), "8 or 32"),
        ("noise_floor", 0 <= group["noise_floor"] < 1, "at least 0 and below 1"),
    ]
    for name, holds, rule in rules:
        if not holds:
            raise ValueError(f"{name} {group[name]!r}: must be {rule}")
    for name, kind in (("side", Side), ("basis", BasisKind), ("moments", MomentRule)):
        known = get_args(kind)
        if group[name] not in known:
            nearest = difflib.get_close_matches(str(group[name]), known, n=1, cutoff=0.0)
            raise ValueError(f"{name} {group[name]!r}: must be one of {known}; nearest: {nearest[0]!r}")
    for weight in group["params"]:
        if not weight.is_floating_point():
            raise ValueError(f"parameter of shape {tuple(weight.shape)} is {weight.dtype}: must be floating point")
        if group["projection_rank"] is not None:
            check_projection_rank(weight.shape, group["projection_rank"], group["side"], group["allow_full_rank"])
    if group["state_bits"] == 8:
        load_bitsandbytes()


def check_state(groups: list[dict[str, Any]], given: dict[str, Any]) -> None:
    """Refuse a state dict whose tensors do not fit the parameters under the options it was saved with.

    Raises: ValueError naming the parameter, what its state has and what it needs.
    """
    for group, saved in zip(groups, given["param_groups"], strict=False):
        for number, weight in zip(saved["params"], group["params"], strict=False):
            state = given["state"].get(number)
            if not state:
                continue
            options = (saved["projection_rank"], saved["side"], saved["state_bits"])
            needed = {name: shape for name, (shape, _) in state_layout(weight.shape, weight.dtype, *options).items()}
            has = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}
            if has != needed:
                raise ValueError(
                    f"state of parameter {number} of shape {tuple(weight.shape)} holds {has}: must hold {needed}"
                )


def _counts(value: object, or_none: bool = False) -> bool:
    return (value is None and or_none) or (isinstance(value, int) and not isinstance(value, bool) and value >= 1)
