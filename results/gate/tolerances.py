"""Bands derived from replicate runs: how far a number moves when the code does not change.

Replicates run the reference's plans on another number of threads and with other instruction sets, as a second machine
would. Nothing here is typed by hand but the rate of false alarms.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field
from scipy import stats

from results.gate.quantities import Kind, Quantity, quantities
from results.schema import Plan, Record, Strict
from results.store import read_single, write_single

FILE = "tolerances.json"
FALSE_ALARM = 0.01
"""Chance that an unchanged tree on another machine of the stack shows any finding at all."""
EVERY = "every method"
ENOUGH = 20
"""Degrees of freedom from which on a spread is a window's own."""
ROUNDING = 2.0**-23
"""Relative spacing of float32, in which losses are computed."""


class _Group(NamedTuple):
    kind: Kind
    suite: str
    item: str
    state_bits: Literal[8, 32]
    method: str


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

    Deviations of `loss` and `gradient` are relative to the reference, of `score` absolute for one seed, of `peak` in
    bytes.
    """

    kind: Kind
    suite: str
    state_bits: Literal[8, 32]
    method: str = Field(description=f'"{EVERY}": pooled, used where a method has no band of its own')
    item: str
    n: int = Field(ge=1, description="deviations seen, those that were zero included")
    zeros: int = Field(ge=0)
    location: float | None = Field(description="mean of the logarithms of the deviations above zero; None: none was")
    spread: float = Field(description="their standard deviation, pooled; scores, peaks: root mean square deviation")
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
        key = (quantity.kind, plan.suite, quantity.item, plan.training.state_bits)
        return self._known.get(_Group(*key, plan.method)) or self._known.get(_Group(*key, EVERY))

    @cached_property
    def _known(self) -> dict[_Group, Band]:
        return {_key(each): each for each in self.bands}


def _key(band: Band) -> _Group:
    return _Group(band.kind, band.suite, band.item, band.state_bits, band.method)


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

    A prediction bound for one more deviation at `false_alarm` shared out over all comparisons of a pass (Bonferroni).
    Losses and gradient norms: log-normal, the location a method's own, the spread pooled over the methods and state
    widths of the window, since single runs repeat too seldom, and over all windows where few of one moved at all; never
    below one rounding of float32. Scores: normal about zero, pooled over methods; where none moved, a score goes in
    steps, and the bound is one row that falls the other way (at most 2 / rows of accuracy, F1 and Matthews'
    coefficient). Peaks: the largest seen. No bound lies below the largest deviation seen.

    Raises:
        ValueError: a replicate holds a plan that the reference lacks, or nothing at all was compared.
    """
    plans = {record.plan_hash: record for record in reference}
    seen: dict[_Group, list[float]] = defaultdict(list)
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
                    plan = record.plan
                    key = _Group(old.kind, plan.suite, old.item, plan.training.state_bits, plan.method)
                    seen[key].append(found)
    comparisons = sum(each.kind != "exact" for record in reference for each in quantities(record).values())
    if not seen or not comparisons:
        raise ValueError("nothing to derive tolerances from: run `python -m suites gate replicate` first")
    families: dict[tuple[Kind, str, str], dict[_Group, list[float]]] = defaultdict(dict)
    for group, values in sorted(seen.items()):
        families[group[:3]][group] = values
    tail = false_alarm / comparisons
    rows = min(
        (count for record in reference for each in record.evaluations for count in each.rows.values()), default=1
    )
    alike: dict[Kind, list[list[float]]] = defaultdict(list)
    for group, values in seen.items():
        alike[group.kind].append(_logs(values))
    bands = [band for family in families.values() for band in _bands(family, tail, 2 / rows, alike)]
    return Tolerances(false_alarm=false_alarm, comparisons=comparisons, replicates=kept, bands=bands)


def joined(before: Tolerances, added: Tolerances) -> Tolerances:
    """Return `added` beside what was derived `before`, from replicates of another processor: of two bands the wider."""
    bands = {_key(each): each for each in before.bands}
    for each in added.bands:
        known = bands.get(_key(each))
        if known is None or each.bound > known.bound:
            bands[_key(each)] = each
    replicates = [*before.replicates, *(each for each in added.replicates if each not in before.replicates)]
    return added.model_copy(update={"replicates": replicates, "bands": [bands[key] for key in sorted(bands)]})


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


def _bands(
    family: Mapping[_Group, Sequence[float]], tail: float, row: float, alike: Mapping[Kind, Sequence[Sequence[float]]]
) -> Iterator[Band]:
    """Yield the bands of one kind, suite and item: a group's own, and one for methods that had no replicate.

    `alike`: logarithms of the deviations of all groups, by kind.
    """
    kind = next(iter(family)).kind
    everything = [value for values in family.values() for value in values]
    by_bits: dict[Literal[8, 32], list[float]] = defaultdict(list)
    for group, values in family.items():
        by_bits[group.state_bits].extend(values)
    if kind in ("loss", "gradient"):
        logs = {group: _logs(values) for group, values in family.items()}
        within, freedom = _within(logs.values())
        if freedom < ENOUGH:
            # With a handful the quantile of t is so far out that the band would hold nothing back.
            within, freedom = _within(alike[kind])
        whole = [value for each in logs.values() for value in each]
        for group, values in family.items():
            # A group whose deviations were all zero has no location of its own: it gets everyone's.
            own = logs[group] or whole
            few = not logs[group] and len(whole) > ENOUGH
            spread, degrees = (_spread(whole), len(whole) - 1) if few else (within, freedom)
            yield _band(group, values, own, spread, _log_normal(own, spread, degrees, tail))
        for bits in by_bits:
            group = next(iter(family))._replace(state_bits=bits, method=EVERY)
            spread, degrees = (_spread(whole), len(whole) - 1) if len(whole) > ENOUGH else (within, freedom)
            yield _band(group, everything, whole, spread, _log_normal(whole, spread, degrees, tail))
        return
    bound = max(everything)
    spread = math.sqrt(sum(value * value for value in everything) / len(everything))
    if kind == "score":
        n = len(everything)
        bound = max(bound, float(stats.t.ppf(1 - tail / 2, n)) * spread * math.sqrt(1 + 1 / n)) or row
    for bits in by_bits:
        group = next(iter(family))._replace(state_bits=bits, method=EVERY)
        yield _band(group, everything, [], spread, bound)


def _logs(values: Iterable[float]) -> list[float]:
    return [math.log(value) for value in values if value > 0]


def _within(groups: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Return the spread within groups, pooled, and its degrees of freedom."""
    parts = [(len(each) - 1, _spread(each)) for each in groups if len(each) > 1]
    freedom = sum(degrees for degrees, _ in parts)
    return math.sqrt(sum(degrees * spread**2 for degrees, spread in parts) / max(1, freedom)), freedom


def _band(group: _Group, values: Sequence[float], logs: Sequence[float], spread: float, bound: float) -> Band:
    return Band(
        kind=group.kind, suite=group.suite, state_bits=group.state_bits, method=group.method, item=group.item,
        n=len(values), zeros=sum(value == 0 for value in values), location=sum(logs) / len(logs) if logs else None,
        spread=spread, largest=max(values), bound=max(bound, max(values)),
    )  # fmt: skip


def log_normal_bound(values: Sequence[float], tail: float) -> float:
    """Return the deviation that one more of the same log-normal source exceeds with probability `tail`.

    Never below the largest seen nor below one rounding of float32, at most 1 unless the largest is more.
    """
    logs = [math.log(value) for value in values if value > 0]
    return max(max(values), _log_normal(logs, _spread(logs), len(logs) - 1, tail))


def _log_normal(logs: Sequence[float], spread: float, degrees: int, tail: float) -> float:
    if degrees < 1 or not logs:
        return ROUNDING
    reach = float(stats.t.ppf(1 - tail, degrees)) * spread * math.sqrt(1 + 1 / len(logs))
    return max(ROUNDING, math.exp(min(sum(logs) / len(logs) + reach, 0.0)))


def _spread(logs: Sequence[float]) -> float:
    mean = sum(logs) / max(1, len(logs))
    return math.sqrt(sum((each - mean) ** 2 for each in logs) / max(1, len(logs) - 1))
