"""From what was typed to a lab and a setting: defaults, and every value checked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from baselines.method import Work
from baselines.registry import checked_name, get_method
from baselines.shared import targets
from results.lab import Setting
from suites.lab.halves import TARGETS
from suites.lab.lab import Lab, plain_config
from suites.lab.networks import Network
from suites.run.rounding import REST_BYTES

PRECISIONS = ("fp32", "bf16", "bf16-autocast")
WORKS: dict[str, Work] = {
    "fine-tuning": "fine-tuning", "finetune": "fine-tuning", "fine-tune": "fine-tuning", "adapters": "fine-tuning",
    "pre-training": "pre-training", "pretrain": "pre-training", "pre-train": "pre-training",
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What was typed; empty and None mean the default. `rest`: fields of `Setting` as they are."""

    rank: int | None = None
    precision: str = ""
    work: str = ""
    targets: str = TARGETS
    base_bits: int | None = None
    rest: dict[str, Any] = field(default_factory=dict)


def work_of(network: Network, typed: str) -> Work:
    """Return the work, by default the network's own.

    Raises:
        ValueError: an unknown one, or pre-training of an encoder.
    """
    work = WORKS[checked_name(typed.lower(), WORKS, "train")] if typed else network.work
    if work == "pre-training" and not network.language_model:
        raise ValueError(
            f"train {typed!r}: {network.name} is an encoder here, with a task's head (nearest allowed: fine-tuning)"
        )
    return work


def lab_of(network: Network, method: str, asked: Asked) -> tuple[Lab, Setting]:
    """Return the lab and the setting of a question.

    Raises:
        ValueError: a value that is not allowed, or does not fit the network.
    """
    chosen: Any = checked_name(
        asked.precision or ("bf16" if network.language_model else "fp32"), PRECISIONS, "precision"
    )
    updates: Any = checked_name(asked.rest["bf16_updates"], REST_BYTES, "bf16_updates")
    if updates != "nearest" and chosen != "bf16":
        raise ValueError(f"bf16_updates {updates!r} with precision {chosen!r}: no weight is in bf16 then")
    if asked.rest["state_bits"] not in (8, 32):
        raise ValueError(f"state_bits {asked.rest['state_bits']}: must be 32 or 8")
    rows, parts = _batch(asked)
    work = work_of(network, asked.work)
    variants = get_method(method).variants
    checked_name(asked.rest["variant"], variants, f"variant of {method}")
    held = _base_bits(method, asked)
    own = {"base_bits": held} if held and "base_bits" in get_method(method).config_type.model_fields else {}
    config = {**plain_config(network, method), **variants[asked.rest["variant"]], **own}
    outside: Any = None if own else held
    options: Any = (
        network, method, _rank(network, work, asked), chosen, (asked.rest["state_bits"],), config, asked.rest["device"],
        updates, work, asked.targets, outside,
    )  # fmt: skip
    gpus = asked.rest["processes"]
    lab = Lab(*options)
    if asked.rest["shard"] is not None:
        from suites.lab.share import ShardedLab

        lab = ShardedLab(gpus, asked.rest["shard"], *options)
    asks_work = network.language_model and work == "fine-tuning"
    setting = Setting(
        model=network.name,
        method=method,
        rank=lab.rank,
        precision=chosen,
        config=tuple(sorted(config.items())),
        work="fine-tuning" if asks_work else None,
        targets=asked.targets,
        base_bits=outside,
        **{**asked.rest, "batch": rows // parts, "accumulation": parts // gpus},
    )
    network.batch(1, setting.sequence)
    return lab, setting


def one_row(asked: Asked) -> Asked:
    """Return what was asked for with one row a micro-batch; where nothing is said of those, one a process."""
    parts, gpus = asked.rest["accumulation"], asked.rest["processes"]
    parts = gpus if parts == 1 else parts
    return replace(asked, rest={**asked.rest, "batch": parts, "accumulation": parts})


def _batch(asked: Asked) -> tuple[int, int]:
    rows, parts = asked.rest["batch"], asked.rest["accumulation"]
    for what in ("accumulation", "batch"):
        if asked.rest[what] < 1:
            raise ValueError(f"{what} {asked.rest[what]}: must be at least 1 (nearest allowed value: 1)")
    if rows % parts:
        near = min((n for n in range(1, rows + 1) if rows % n == 0), key=lambda n: abs(n - parts))
        raise ValueError(f"accumulation {parts}: must divide the batch of {rows} (nearest allowed value: {near})")
    gpus = asked.rest["processes"]
    if parts % gpus:
        near = -(-parts // gpus) * gpus
        raise ValueError(
            f"accumulation {parts}: must be a multiple of the {gpus} GPUs, so that each gets as many micro-batches a "
            f"step (nearest allowed value: {near})"
        )
    return rows, parts


def _base_bits(method: str, asked: Asked) -> int | None:
    if asked.base_bits in (None, 16, 32):
        return None
    if asked.base_bits != 4:
        raise ValueError(f"base_bits {asked.base_bits}: must be 4, or left out (nearest allowed value: 4)")
    if not get_method(method).factors:
        raise ValueError(f"base_bits 4: {method} trains the weights themselves, which 4 bits cannot hold")
    return 4


def _rank(network: Network, work: Work, asked: Asked) -> int:
    """Return the rank asked for; else 8, and to pre-train the network's, at most half the narrowest target's."""
    if asked.rank is not None:
        return asked.rank
    if work == "fine-tuning":
        return 8
    with torch.device("meta"):
        model = network.model(1 if network.layers else None)
    if not targets.linear_layers(model):
        return network.rank
    found = targets.shapes(model, targets.match_layers(model, asked.targets))
    # A projection needs fewer dimensions than it projects from.
    return max(1, min(network.rank, *(side // 2 for shape in found.values() for side in shape)))
