"""What of a record the gate compares, as named quantities of five kinds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel

from results.schema import CurvePoint, Plan, Record

Kind = Literal["exact", "peak", "loss", "gradient", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DIGITS = 10
"""Significant digits of an exact real number: two C libraries may differ in the last ones of a logarithm."""


@dataclass(frozen=True)
class Quantity:
    """One number or structure of a record.

    Attributes:
        item: what a tolerance is given for: a window of steps, a metric, or the name.
        value: None where the record does not know it.
    """

    name: str
    kind: Kind
    item: str
    value: Any


def windows(steps: int) -> list[tuple[int, int]]:
    """Return (first, last) of the windows of steps 1, 2, 3-4, 5-8, ...: a change shows early, where little is noise."""
    found, first = [], 1
    while first <= steps:
        found.append((first, min(_end(first), steps)))
        first = found[-1][1] + 1
    return found


def window_name(first: int) -> str:
    """Return "step 1" or "steps 3-4"; a last window that the end of the run cuts short is called like a whole one."""
    return f"step {first}" if first < 3 else f"steps {first}-{_end(first)}"


def _end(first: int) -> int:
    """Return the power of two at or above `first`."""
    return 1 << (first - 1).bit_length()


def quantities(record: Record) -> dict[str, Quantity]:
    """Return everything of `record` that the gate compares, by name."""
    found = [*_exact(record), *_peaks(record), *_curve(record.curve), *_scores(record)]
    return {each.name: each for each in found}


def cell_of(plan: Plan) -> str:
    """Return "suite/task/method", and in brackets the variant."""
    name = f"{plan.suite}/{plan.task}/{plan.method}"
    return f"{name} [{plan.variant}]" if plan.variant else name


def names(part: str, plan: Plan) -> bool:
    """Whether `part` is a part of the plan's label or of its cell: what `--only` means everywhere."""
    return part in plan.label or part in cell_of(plan)


def _exact(record: Record) -> Iterator[Quantity]:
    yield _plain("status", record.status)
    yield _plain("main_metric", record.main_metric)
    yield _plain("skipped_steps", record.skipped_steps)
    yield _plain("evaluations", [[each.step, dict(sorted(each.rows.items()))] for each in record.evaluations])
    yield _plain("learning_rate", [_rounded(point.learning_rate) for point in record.curve])
    for part, skipped in ((record.data, {"notes"}), (record.engagement, set())):
        if part is not None:
            for name, value in part.model_dump(mode="json").items():
                if name not in skipped:
                    yield _plain(name, _rounded(value))
    if record.memory is not None:
        for name in ("weight", "trainable", "buffer", "gradient", "state", "basis", "formula_state"):
            yield _plain(f"{name}_bytes", getattr(record.memory, f"{name}_bytes"))


def _peaks(record: Record) -> Iterator[Quantity]:
    memory = record.memory
    if memory is None:
        return
    yield Quantity("predicted_peak_bytes", "peak", "predicted_peak_bytes", memory.predicted_peak_bytes)
    peaks: dict[str, BaseModel | None] = {"step_peak": memory.step_peak, "refresh_peak": memory.refresh_peak}
    if memory.ledger is not None:
        peaks |= {f"{phase} phase": peak for phase, peak in memory.ledger.phases.items()}
    for where, peak in peaks.items():
        if peak is not None:
            for name, value in peak.model_dump().items():
                yield Quantity(f"{where} {name}", "peak", name, value)


def _curve(curve: list[CurvePoint]) -> Iterator[Quantity]:
    for first, last in windows(len(curve)):
        points = curve[first - 1 : last]
        item = window_name(first)
        yield Quantity(f"training loss, {item}", "loss", item, _mean([point.loss for point in points]))
        norms = [point.gradient_norm for point in points if point.gradient_norm is not None]
        yield Quantity(f"gradient norm, {item}", "gradient", item, _mean(norms))


def _scores(record: Record) -> Iterator[Quantity]:
    if record.evaluations:
        for key, value in record.evaluations[-1].metrics.items():
            yield Quantity(key, "score", key.rpartition("/")[2], value)


def _plain(name: str, value: Any) -> Quantity:
    return Quantity(name, "exact", name, value)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return value
