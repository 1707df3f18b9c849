"""The gate: two sets of records in, findings out. Torch-free, a pure function of its arguments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from results.catalogue import Catalogue, CatalogueError, catalogue_of
from results.differences import plan_differences
from results.gate.cause import Cause, Judged, cause_of
from results.gate.comparable import check_comparable
from results.gate.quantities import KINDS, Kind, Quantity, cell_of, quantities
from results.gate.tolerances import Tolerances, deviation, of_mean
from results.schema import Plan, Record

_Place = tuple[str, int, str]
Sort = Literal["regression", "improvement", "change", "vanished", "appeared"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as in the reference.

    Attributes:
        cell: suite/task/method and what sets the run apart.
        seed: None for a mean over seeds.
        bound: largest deviation taken for noise, in the unit of `deviation`; None for what is exact.
        run: label of the cheapest run that shows it.
    """

    sort: Sort
    cell: str
    seed: int | None
    quantity: str
    kind: Kind
    before: Any
    after: Any
    deviation: float | None
    bound: float | None
    cause: Cause
    why: str
    run: str


@dataclass(frozen=True)
class TimeRatio:
    """Seconds a step of a method over those of full training in the same pass; said, never judged by default."""

    suite: str
    method: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Verdict:
    """What one pass of the gate found; `commit` is the reference's code, None where it was not a clean checkout."""

    findings: list[Finding]
    runs: int
    comparisons: dict[Kind, int] = field(default_factory=dict)
    times: list[TimeRatio] = field(default_factory=list)
    commit: str | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    @property
    def exit_code(self) -> int:
        """0, or 1 where anything was found; what cannot be compared raises `Refusal`, for exit code 2."""
        return 0 if self.passed else 1


class _Pair(NamedTuple):
    """One plan's run on both sides, and what of it is compared."""

    old: Record
    new: Record
    before: dict[str, Quantity]
    after: dict[str, Quantity]


def compare(
    reference: Sequence[Record], current: Sequence[Record], tolerances: Tolerances, time_factor: float | None = None
) -> Verdict:
    """Return the verdict on `current`.

    Args:
        time_factor: with a number, a method whose seconds a step over full training's grew by more than this factor is
            a finding too.

    Raises:
        Refusal: the two sides are of different stacks, profiles or data.
    """
    catalogue = catalogue_of(record.catalogue for record in (*reference, *current))
    check_comparable(reference, current)
    old, new = ({record.plan_hash: record for record in side} for side in (reference, current))
    both = [key for key in old if key in new]
    findings = _other_plans(old, new)
    counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
    pairs = [_Pair(old[key], new[key], quantities(old[key]), quantities(new[key])) for key in both]
    for pair in pairs:
        findings += _run_findings(pair, tolerances, counts, catalogue)
    findings += _score_findings(pairs, tolerances, counts, catalogue)
    yardstick = catalogue.yardstick(record.plan.method for record in reference)
    times = _times([old[key] for key in both], [new[key] for key in both], yardstick)
    if time_factor is not None:
        findings += _time_findings(times, time_factor, catalogue.method(yardstick or "").title)
    made = {record.environment.commit for record in reference if not record.environment.dirty}
    commit = made.pop() if len(made) == 1 else None
    return Verdict(sorted(findings, key=_order), len(both), counts, times, commit)


def _other_plans(old: dict[str, Record], new: dict[str, Record]) -> list[Finding]:
    """Return a finding for each plan that stands on one side only; two that are the same cell and seed are one."""
    gone = [record for key, record in old.items() if key not in new]
    come = [record for key, record in new.items() if key not in old]
    findings = []
    for record in gone:
        partner = next((each for each in come if _identity(each.plan) == _identity(record.plan)), None)
        if partner is None:
            findings.append(_presence("vanished", record))
            continue
        come.remove(partner)
        for name, before, after in plan_differences(record.plan, partner.plan):
            why = f"the plan says {name} = {after}, the reference {before}"
            plan, what = record.plan, f"plan.{name}"
            findings.append(
                Finding(
                    "change", cell_of(plan), plan.seed, what, "exact", before, after, None, None, "configuration", why,
                    partner.plan.label,
                )
            )  # fmt: skip
    return findings + [_presence("appeared", record) for record in come]


def _presence(sort: Literal["vanished", "appeared"], record: Record) -> Finding:
    before, after = ("run", None) if sort == "vanished" else (None, "run")
    why = "the reference has this run, the records do not" if sort == "vanished" else "the reference lacks this run"
    return Finding(
        sort, cell_of(record.plan), record.plan.seed, "the whole run", "exact", before, after, None, None,
        "configuration", why, record.plan.label,
    )  # fmt: skip


def _run_findings(pair: _Pair, tolerances: Tolerances, counts: dict[Kind, int], catalogue: Catalogue) -> list[Finding]:
    old, new = pair.old, pair.new
    judged: list[Judged] = []
    for name, one in pair.before.items():
        if one.kind == "score":
            continue
        counts[one.kind] += 1
        found = _judge(old.plan, one, pair.after.get(name), tolerances)
        if found is not None:
            judged.append(found)
    return [
        _finding(each, old, old.plan.seed, catalogue, *cause_of(each, judged, old.environment, new.environment))
        for each in judged
    ]


def _judge(plan: Plan, before: Quantity, after: Quantity | None, tolerances: Tolerances) -> Judged | None:
    if after is None or (before.value is None) != (after.value is None):
        return Judged(before, before.value, None if after is None else after.value, None, None)
    if before.value == after.value:
        return None
    if before.kind == "exact":
        return Judged(before, before.value, after.value, None, None)
    band = tolerances.band(plan, before)
    bound = band.bound if band is not None else 0.0
    moved = deviation(before.kind, float(before.value), float(after.value))
    # A NaN is not within any bound.
    return None if moved <= bound else Judged(before, before.value, after.value, moved, bound)


def _score_findings(
    pairs: Iterable[_Pair], tolerances: Tolerances, counts: dict[Kind, int], catalogue: Catalogue
) -> list[Finding]:
    """Return findings on scores, each averaged over the seeds of a cell."""
    cells: dict[str, list[_Pair]] = defaultdict(list)
    for pair in pairs:
        cells[_seedless(pair.old.plan)].append(pair)
    findings = []
    for members in cells.values():
        old, new = members[0].old, members[0].new
        for name, quantity in members[0].before.items():
            if quantity.kind != "score":
                continue
            counts["score"] += 1
            values = [(_value(pair.before, name), _value(pair.after, name)) for pair in members]
            known = [(one, other) for one, other in values if one is not None and other is not None]
            if len(known) < len([one for one, _ in values if one is not None]):
                judged = Judged(quantity, values[0][0], None, None, None)
            elif not known:
                continue
            else:
                before = sum(one for one, _ in known) / len(known)
                after = sum(other for _, other in known) / len(known)
                band = tolerances.band(old.plan, quantity)
                bound = of_mean(band, len(known)) if band is not None else 0.0
                if before == after or abs(after - before) <= bound:
                    continue
                judged = Judged(quantity, before, after, abs(after - before), bound)
            cheapest = min((pair.old for pair in members), key=_wall)
            seed = old.plan.seed if len(members) == 1 else None
            cause, why = cause_of(judged, [judged], old.environment, new.environment)
            findings.append(_finding(judged, cheapest, seed, catalogue, cause, why))
    return findings


def _finding(judged: Judged, record: Record, seed: int | None, catalogue: Catalogue, cause: Cause, why: str) -> Finding:
    plan, quantity = record.plan, judged.quantity
    return Finding(
        _sort(judged, plan.suite, catalogue), cell_of(plan), seed, quantity.name, quantity.kind, judged.before,
        judged.after, judged.deviation, judged.bound, cause, why, plan.label,
    )  # fmt: skip


def _sort(judged: Judged, suite: str, catalogue: Catalogue) -> Sort:
    before, after, quantity = judged.before, judged.after, judged.quantity
    if quantity.name == "status":
        return "regression" if before == "ok" else "change"
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (before, after))
    if not numbers or quantity.kind == "gradient":
        return "change"
    if quantity.kind == "score":
        try:
            metric = catalogue.suite(suite).metric(quantity.name)
        except CatalogueError:
            return "change"
        return "improvement" if metric.gain(after) > metric.gain(before) else "regression"
    if quantity.kind in ("loss", "peak") or quantity.name.endswith("_bytes"):
        return "improvement" if after < before else "regression"
    return "change"


def _times(old: Sequence[Record], new: Sequence[Record], yardstick: str | None) -> list[TimeRatio]:
    timed = [pair for pair in zip(old, new, strict=True) if all(map(_is_timed, pair))]
    before, after = (_step_seconds([pair[side] for pair in timed]) for side in (0, 1))
    found = []
    for suite, method in sorted({(record.plan.suite, record.plan.method) for record in old if _is_timed(record)}):
        if method != yardstick:
            ratios = [_over(side, suite, method, yardstick) for side in (before, after)]
            found.append(TimeRatio(suite, method, *ratios))
    return found


def _is_timed(record: Record) -> bool:
    return record.timing is not None and record.timing.timed_steps > 0


def _over(seconds: dict[tuple[str, str], float], suite: str, method: str, yardstick: str | None) -> float | None:
    one, other = seconds.get((suite, method)), seconds.get((suite, yardstick or ""))
    return None if one is None or not other else one / other


def _step_seconds(records: Sequence[Record]) -> dict[tuple[str, str], float]:
    """Return seconds a step by suite and method, over the tasks, seeds and variants that all its methods have."""
    places: dict[str, dict[str, set[_Place]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        places[record.plan.suite][record.plan.method].add(_place(record.plan))
    shared = {suite: set.intersection(*methods.values()) for suite, methods in places.items()}
    sums: dict[tuple[str, str], tuple[float, int]] = {}
    for record in records:
        if record.timing is not None and _place(record.plan) in shared[record.plan.suite]:
            key = (record.plan.suite, record.plan.method)
            seconds, steps = sums.get(key, (0.0, 0))
            sums[key] = seconds + record.timing.train_s, steps + record.timing.timed_steps
    return {key: seconds / steps for key, (seconds, steps) in sums.items()}


def _place(plan: Plan) -> _Place:
    return plan.task, plan.seed, plan.variant


def _time_findings(times: Sequence[TimeRatio], factor: float, yardstick: str) -> list[Finding]:
    found = []
    for each in times:
        if each.before and each.after and each.after > factor * each.before:
            why = f"seconds a step over {yardstick}'s grew {each.after / each.before:.2f} times, allowed are {factor}"
            cell, grown = f"{each.suite}/*/{each.method}", each.after / each.before
            found.append(
                Finding(
                    "regression", cell, None, f"time a step over {yardstick}'s", "exact", round(each.before, 3),
                    round(each.after, 3), grown - 1, factor - 1, "code", why, "",
                )
            )  # fmt: skip
    return found


def _identity(plan: Plan) -> tuple[object, ...]:
    return plan.suite, plan.profile, plan.task, plan.method, plan.seed, plan.purpose, plan.variant


def _seedless(plan: Plan) -> str:
    return plan.model_copy(update={"seed": 0}).hash()


def _value(found: dict[str, Quantity], name: str) -> float | None:
    return found[name].value if name in found else None


def _wall(record: Record) -> float:
    return record.timing.wall_s if record.timing is not None else float("inf")


def _order(finding: Finding) -> tuple[object, ...]:
    ranks = {"vanished": 0, "regression": 1, "change": 2, "appeared": 3, "improvement": 4}
    return KINDS.index(finding.kind), ranks[finding.sort], finding.cell, finding.seed is None, finding.seed or 0
