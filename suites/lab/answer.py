"""What fits, answered: every method on a model under a limit, as data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from baselines.registry import get_method
from results.lab import Fit, FitsAnswer, FitsRow
from suites.lab.asked import Asked, lab_of, work_of
from suites.lab.composed import Composed, Shared
from suites.lab.fits import largest_near
from suites.lab.named import named, named_models
from suites.lab.networks import Network, find_network
from suites.measure.allocator import Held
from suites.measure.estimate import ESTIMATES, Estimate, estimated


def answer(model: str, methods: Sequence[str], asked: Asked, limit_bytes: int, offline: bool) -> FitsAnswer:
    """Return what of `methods` fits on a model.

    A method that the model or the settings do not fit has a row that says why; if none has another, it is an error.

    Raises:
        ValueError: an unknown model, a value that is not allowed, or no method that can be asked about.
    """
    start = time.perf_counter()
    network = find_network(model, offline)
    shared = Shared()
    rows, composed = [], None
    reasons: list[ValueError] = []
    for method in methods:
        try:
            row, composed = _row(network, method, asked, limit_bytes, shared)
        except ValueError as error:
            reasons.append(error)
            row = FitsRow(method=method, title=get_method(method).title, rank=asked.rank or 1, refused=str(error))
        rows.append(row)
    if composed is None:
        raise reasons[0]
    setting = composed.setting
    options = [
        word
        for word, said in (("per-layer updates", setting.per_layer), ("checkpointing", setting.checkpointing))
        if said
    ]
    options += [f"recomputed: {part}" for part in setting.recompute]
    options += [f"bf16 updates: {setting.bf16_updates}"] if setting.bf16_updates != "nearest" else []
    short = named(model)
    return FitsAnswer(
        model=network.name,
        sources=named_models()[short].source if short else [],
        parameters=network.parameters,
        limit_bytes=limit_bytes,
        work=work_of(network, asked.work),
        precision=setting.precision,
        batch=asked.rest["batch"],
        sequence=setting.sequence,
        accumulation=setting.accumulation,
        state_bits=setting.state_bits,
        base_bits=asked.base_bits,
        targets=setting.targets,
        not_adapted=list(composed.left_out),
        options=options,
        tied_head=network.language_model and bool(getattr(network.config, "tie_word_embeddings", False)),
        rows=rows,
        accelerate_bytes=beside(network, setting.precision),
        seconds=round(time.perf_counter() - start, 2),
    )


def _row(network: Network, method: str, asked: Asked, limit_bytes: int, shared: Shared) -> tuple[FitsRow, Composed]:
    lab, setting = lab_of(network, method, asked)
    try:
        composed = Composed(lab, setting, shared)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise ValueError(f"cannot be traced: {' '.join(str(error).split())[:160]}") from error
    rest = composed.rest
    return FitsRow(
        method=method,
        title=get_method(method).title,
        rank=lab.rank,
        trains=_trains(network, composed),
        trained_parameters=rest.trained,
        weight_bytes=sum(rest.sizes["parameter"]) + sum(rest.sizes["buffer"]),
        gradient_bytes=rest.gradient_bytes,
        state_bytes=sum(rest.sizes["optimizer"]),
        state_dtypes=dict(rest.dtypes),
        parts={f"{name}_bytes": size for name, size in composed.parts(setting.batch).items()},
        estimates=fits(composed, setting.batch, limit_bytes),
    ), composed


def fits(composed: Composed, rows: int, limit_bytes: int) -> dict[Estimate, Fit]:
    """Return what every estimate says of a step of `rows` rows a micro-batch, and of the largest within the limit.

    The largest batch is in rows a step, all its micro-batches together, as the batch that is asked about.
    """
    found: dict[Estimate, Fit] = {}
    parts = composed.setting.accumulation
    for estimate in ESTIMATES:
        peak = _peak(composed, estimate)
        share = peak(rows) / max(1, estimated(Held(*[composed.tensor_bytes(rows)] * 3), "low"))
        guess, slope = composed.rows_within(int(limit_bytes / share))
        if estimate == "high":
            # The allocator has been asked about the largest that is expected to fit: it costs nothing to begin there.
            guess = found["expected"].largest_batch // parts or guess
        largest, takes, after = largest_near(peak, limit_bytes, guess, slope * share)
        found[estimate] = Fit(
            asked_bytes=peak(rows),
            fits=peak(rows) <= limit_bytes,
            largest_batch=largest * parts,
            takes_bytes=takes if largest else None,
            next_bytes=after,
        )
    return found


def _peak(composed: Composed, estimate: Estimate) -> Callable[[int], int]:
    """Return the bytes of a step by the rows of its batch; the lowest estimate needs no allocator."""
    if estimate == "low":
        return lambda rows: estimated(Held(composed.tensor_bytes(rows), 0, 0), estimate)
    return lambda rows: estimated(composed.held(rows), estimate)


def _trains(network: Network, composed: Composed) -> str:
    """Return what is trained, in words."""
    if composed.rest.trained >= network.parameters:
        return "everything"
    if not composed.placement.trained:
        return "adapters alone"
    return "adapters, embeddings, norms, head" if network.language_model else "adapters and the task's head"


def beside(network: Network, precision: str) -> dict[str, int]:
    """Return what `accelerate estimate-memory` says of the model, by accelerate's own functions, without its hub.

    "weights" in the precision; "training": its figure for Adam and a batch of one, activations not counted.
    """
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    with torch.device("meta"):
        total, _ = calculate_maximum_sizes(network.model())
    kind = "float32" if precision == "fp32" else "bfloat16"
    usage: dict[str, Any] = estimate_training_usage(total, kind)
    return {"weights": total if precision == "fp32" else total // 2, "training": int(max(usage.values()))}
