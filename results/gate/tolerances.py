"""Bands derived from replicate runs: how far a number moves when the code does not change.

Replicates run the reference's plans on another number of threads and with other instruction sets, as a second machine
would. Nothing here is typed by hand but the rate of false alarms.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from scipy import stats

from results.gate.quantities import Kind, Quantity, quantities
from results.schema import Plan, Record, Strict
from results.single import read_single, write_single

FILE = "tolerances.json"
FALSE_ALARM = 0.01
"""Chance that an unchanged tree on another machine of the stack shows any finding at all."""
EVERY = "every method"


class Replicate(Strict):
    """One pass over the reference's plans under other circumstances."""

    name: str
    runs: int
    threads: int
    variables: dict[str, str] = Field(description="environment variables that chose the instruction sets")
    device_name: str
    commit: str | None


class Band(Strict):
    """How far one kind of number may lie from its reference.

    `loss` and `gradient` deviate relative to the reference, log-normally; `score` absolutely, for one seed, normally
    about zero; `peak` in bytes.
    """

    kind: Kind
    suite: str
    state_bits: Literal[8, 32]
    method: str = Field(description=f'"{EVERY}": pooled, used where a method has no band of its own')
    item: str
    n: int = Field(ge=1, description="deviations seen, those that were zero included")
    zeros: int = Field(ge=0)
    location: float | None = Field(description="mean of the logarithms of the deviations above zero; None: none was")
    spread: float = Field(description="their standard deviation; for scores the root mean square of the deviations")
    largest: float = Field(ge=0, description="largest deviation seen")
    bound: float = Field(ge=0, description="largest deviation that is still taken for noise; scores: of one seed")


class Tolerances(Strict):
    """All bands of a reference, and what they were derived from."""

    schema_version: Literal[1] = 1
    false_alarm: float = FALSE_ALARM
    comparisons: int = Field(gt=0, description="banded numbers in one pass of the gate: the false alarms are for all")
    replicates: list[Replicate]
    bands: list[Band]

    def band(self, plan: Plan, quantity: Quantity) -> Band | None:
        """Return the band of a quantity of a plan: its method's own, else the pooled one, else None."""
        key = (quantity.kind, plan.suite, plan.training.state_bits, quantity.item)
        own = {(each.kind, each.suite, each.state_bits, each.item, each.method): each for each in self.bands}
        return own.get((*key, plan.method)) or own.get((*key, EVERY))


def deviation(kind: Kind, reference: float, value: float) -> float:
    """Return how far `value` lies from `reference`: relative for losses and gradient norms, else absolute."""
    difference = abs(value - reference)
    if kind not in ("loss", "gradient"):
        return difference
    return difference / abs(reference) if reference else math.inf if difference else 0.0


def derive(
    reference: Sequence[Record], replicates: Iterable[tuple[Replicate, Sequence[Record]]], false_alarm: float
) -> Tolerances:
    """Return the bands that `replicates` of `reference` show.

    A log-normal prediction bound for one more deviation, or a normal one for scores, at `false_alarm` shared out over
    all comparisons of a pass (Bonferroni); never below the largest deviation seen, exact where none was seen.

    Raises:
        ValueError: a replicate holds a plan that the reference lacks, or nothing at all was compared.
    """
    plans = {record.plan_hash: record for record in reference}
    seen: dict[tuple[Kind, str, Literal[8, 32], str, str], list[float]] = defaultdict(list)
    kept: list[Replicate] = []
    for about, records in replicates:
        kept.append(about)
        for record in records:
            if record.plan_hash not in plans:
                raise ValueError(f"replicate {about.name}: {record.plan.label} is not in the reference")
            before, after = quantities(plans[record.plan_hash]), quantities(record)
            for name, old in before.items():
                found = _deviation_of(old, after.get(name))
                if found is not None:
                    key = (old.kind, record.plan.suite, record.plan.training.state_bits, old.item)
                    seen[(*key, record.plan.method)].append(found)
                    seen[(*key, EVERY)].append(found)
    comparisons = sum(each.kind != "exact" for record in reference for each in quantities(record).values())
    if not seen or not comparisons:
        raise ValueError("nothing to derive tolerances from: run `python -m suites gate replicate` first")
    bands = [
        _band(kind, suite, bits, item, method, values, false_alarm / comparisons)
        for (kind, suite, bits, item, method), values in sorted(seen.items())
    ]
    return Tolerances(false_alarm=false_alarm, comparisons=comparisons, replicates=kept, bands=bands)


def read_tolerances(path: Path) -> Tolerances:
    """Return the tolerances in `path`.

    Raises:
        StoreError: the file cannot be read or is not of this kind.
    """
    return read_single(path, Tolerances)


def write_tolerances(path: Path, tolerances: Tolerances) -> Path:
    """Write `tolerances` to `path`, whole or not at all, and return the path."""
    return write_single(path, tolerances)


def of_mean(band: Band, seeds: int) -> float:
    """Return the bound for the mean over `seeds` seeds of a score whose band is `band`."""
    return band.bound / math.sqrt(seeds)


def _deviation_of(old: Quantity, new: Quantity | None) -> float | None:
    if old.kind == "exact" or new is None or old.value is None or new.value is None:
        return None
    return deviation(old.kind, float(old.value), float(new.value))


def _band(
    kind: Kind, suite: str, bits: Literal[8, 32], item: str, method: str, values: list[float], tail: float
) -> Band:
    n, largest = len(values), max(values)
    above = [value for value in values if value > 0]
    location: float | None = None
    if kind == "score":
        spread = math.sqrt(sum(value * value for value in values) / n)
        bound = max(float(stats.t.ppf(1 - tail / 2, n)) * spread * math.sqrt(1 + 1 / n), largest) if above else 0.0
    else:
        logs = [math.log(value) for value in above]
        location = sum(logs) / len(logs) if logs else None
        spread = _spread(logs)
        bound = largest if kind == "peak" else log_normal_bound(values, tail)
    return Band(
        kind=kind, suite=suite, state_bits=bits, method=method, item=item, n=n, zeros=n - len(above),
        location=location, spread=spread, largest=largest, bound=bound,
    )  # fmt: skip


def log_normal_bound(values: Sequence[float], tail: float) -> float:
    """Return the deviation that one more of the same log-normal source exceeds with probability `tail`.

    Never below the largest seen, at most 1 unless that is; 0 where all were 0.
    """
    largest = max(values)
    logs = [math.log(value) for value in values if value > 0]
    if len(logs) < 2 or not math.isfinite(largest):
        return largest
    reach = float(stats.t.ppf(1 - tail, len(logs) - 1)) * _spread(logs) * math.sqrt(1 + 1 / len(logs))
    return max(largest, math.exp(min(sum(logs) / len(logs) + reach, 0.0)))


def _spread(logs: Sequence[float]) -> float:
    mean = sum(logs) / max(1, len(logs))
    return math.sqrt(sum((each - mean) ** 2 for each in logs) / max(1, len(logs) - 1))
