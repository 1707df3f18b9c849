"""Loss curves, parts of peaks and the price of refreshes of some runs, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reports.figures.parts_and_scores import heaviest, peak_parts
from reports.records.frames import PEAKS, one_machine
from reports.records.reading import Gathered, Trace
from reports.records.report_runs import Context
from reports.stats.over_seeds import geometric_mean, summarise
from reports.tables.cost import step_ratios
from results.schema import Record, Timing

Json = dict[str, Any]
DIGITS = 4


def rounded(value: float | None) -> float | None:
    """Return a value with as many digits as a curve on a screen can show."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


def curves(context: Context, records: Sequence[Record], gathered: Gathered) -> list[Json]:
    """Return each method's mean thinned loss by step, its standard deviation over seeds, and how many finished.

    Where finished runs were thinned to different steps, those that most of them share are taken.
    """
    traces = {found.record.plan_hash: found.trace for found in gathered.found}
    lines = []
    for method in context.methods:
        done = [traces[r.plan_hash] for r in records if r.plan.method == method and r.status == "ok"]
        grids: dict[tuple[int, ...], list[Trace]] = {}
        for trace in done:
            if trace.steps:
                grids.setdefault(trace.steps, []).append(trace)
        steps, shared = max(grids.items(), key=lambda item: len(item[1]), default=((), []))
        points = [
            summarise(loss for trace in shared if (loss := trace.losses[at]) is not None) for at in range(len(steps))
        ]
        means, spread = [rounded(point.mean) for point in points], [rounded(point.sd) for point in points]
        lines.append({"steps": list(steps), "mean": means, "sd": spread, "n": len(shared)})
    return lines


def parts(context: Context, records: Sequence[Record], numbers: Mapping[str, int]) -> Json:
    """Return phase -> for each method [place of its heaviest run, bytes by part]; None where nothing was measured."""
    found: Json = {}
    for peak in PEAKS:
        rows: list[Any] = []
        for method in context.methods:
            worst = heaviest([record for record in records if record.plan.method == method], peak)
            rows.append(None if worst is None else [numbers[worst.plan_hash], list(peak_parts(worst, peak).values())])
        found[peak.removesuffix("_peak")] = rows
    return found


def refreshes(context: Context, records: Sequence[Record]) -> list[Json]:
    """Return what steps and refreshes of each timed method took, as ratios, in seconds and bytes; unknown is None.

    Seconds are unknown where the runs are of several machines or loads.
    """
    rows = []
    runs = context.runs[context.runs["plan_hash"].isin({r.plan_hash for r in records if r.status == "ok"})]
    alike = one_machine(runs)
    for method in context.methods:
        mine = [r for r in records if r.plan.method == method and r.status == "ok"]
        timed = [record.timing for record in mine if record.timing is not None and record.timing.timed_steps]
        if timed:
            times = rounded(geometric_mean(step_ratios(runs[runs["method"] == method])))
            rows.append({"method": method, "runs": len(timed), "times": times, **_refresh(timed, alike),
                         "scratch": _scratch(mine)})  # fmt: skip
    return rows


def _refresh(timed: Sequence[Timing], alike: bool) -> Json:
    steps, refreshes = sum(t.timed_steps for t in timed), sum(t.refresh_steps for t in timed)
    train, optimizer = sum(t.train_s for t in timed), sum(t.optimizer_s for t in timed)
    seconds = [t.refresh_s for t in timed if t.refresh_s is not None]
    spent = sum(seconds) if seconds and refreshes else None
    plain_steps = steps - (refreshes if spent is not None else 0)
    plain = (optimizer - (spent or 0.0)) / plain_steps if plain_steps else None
    refresh = None if spent is None else spent / refreshes
    seconds_of = {"step": train / steps, "plain": plain, "refresh": refresh}
    return {
        **{name: rounded(value) if alike else None for name, value in seconds_of.items()},
        "ratio": rounded(refresh / plain) if refresh is not None and plain else None,
        "share": rounded(spent / train) if spent is not None and train else None,
    }  # fmt: skip


def _scratch(records: Sequence[Record]) -> int | None:
    extra = [
        record.memory.refresh_peak.total_bytes - record.memory.step_peak.total_bytes
        for record in records
        if record.memory is not None and record.memory.refresh_peak is not None and record.memory.step_peak is not None
    ]
    return max(0, *extra) if extra else None
