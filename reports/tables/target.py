"""Steps and seconds to the loss that tuned full training reaches at its end, against full training of the same seed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from reports.records.frames import CLOCK_FIELDS, one_machine
from reports.records.report_runs import Column, Context
from reports.stats.over_seeds import summarise
from reports.stats.target import WIDEST, steps_to
from reports.tables.table import EMPTY, Entry
from results.schema import Record


@dataclass
class Reached:
    """One method: seed -> steps and seconds to the target, both over the yardstick's; and what went wrong by seed.

    Without seconds where the yardstick's runs are of several machines or loads: their mean would be of none of them.
    """

    steps: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    steps_ratio: dict[int, float] = field(default_factory=dict)
    seconds_ratio: dict[int, float] = field(default_factory=dict)
    trouble: dict[int, str] = field(default_factory=dict)


def reached(context: Context) -> dict[str, Reached]:
    """Return method -> when its runs reach the yardstick's last score of their seed; empty without a yardstick's run.

    A suite with one task alone: a target is a value of its measure of differences. A run that did not end well is
    trouble of its method, whether or not its seed has a target.
    """
    base = context.yardstick
    if context.by_task or base is None or not context.compared:
        return {}
    (column,) = context.compared
    points = {(r.plan.method, r.plan.seed): (r, _points(r, column)) for r in context.records if r.status == "ok"}
    ends = {seed: curve for (method, seed), (r, curve) in points.items() if method == base and _whole(r, curve)}
    targets = {seed: curve[-1][1] for seed, curve in ends.items()}
    clocks = _clocks(context)
    found: dict[str, Reached] = {}
    # The yardstick first: the others are measured against its own way to the target.
    for method in sorted(context.methods, key=lambda name: name != base) if targets else []:
        broken = [r for r in context.records if r.plan.method == method and r.status != "ok"]
        mine = found.setdefault(method, Reached(trouble={r.plan.seed: r.status.replace("_", " ") for r in broken}))
        for seed, target in sorted(targets.items()):
            if (method, seed) not in points:
                continue
            record, curve = points[method, seed]
            steps = steps_to(curve, target, record.plan.training.steps)
            if isinstance(steps, str):
                mine.trouble[seed] = steps
                continue
            # Another machine's seconds would be read beside the yardstick's.
            alike = clocks.get(record.plan_hash) == clocks.get(points[base, seed][0].plan_hash)
            _note(mine, seed, steps, record if alike else None, found[base])
    if not _one_machine(context):
        for mine in found.values():
            mine.seconds.clear()
    return {method: found[method] for method in context.methods if method in found}


def _note(mine: Reached, seed: int, steps: float, clocked: Record | None, base: Reached) -> None:
    mine.steps[seed] = steps
    if seed in base.steps:
        mine.steps_ratio[seed] = steps / base.steps[seed]
    timing = None if clocked is None else clocked.timing
    if timing is not None and timing.timed_steps:
        mine.seconds[seed] = steps * timing.train_s / timing.timed_steps
        if seed in base.seconds:
            mine.seconds_ratio[seed] = mine.seconds[seed] / base.seconds[seed]


def _points(record: Record, column: Column) -> list[tuple[int, float]]:
    key = f"{(record.main_metric or '').rpartition('/')[0]}/{column.metric.name}"
    known = [(evaluation.step, evaluation.metrics.get(key)) for evaluation in record.evaluations]
    return [(step, column.metric.gain(value)) for step, value in sorted(known, key=lambda p: p[0]) if value is not None]


def _whole(record: Record, points: list[tuple[int, float]]) -> bool:
    """Whether a run's points reach to its last evaluation."""
    return bool(points) and points[-1][0] == max(evaluation.step for evaluation in record.evaluations)


def _clocks(context: Context) -> dict[str, tuple[object, ...]]:
    """Return plan hash -> what must agree so that seconds can stand side by side."""
    rows = context.runs[["plan_hash", *CLOCK_FIELDS]]
    return {row[0]: tuple(None if pd.isna(v) else v for v in row[1:]) for row in rows.itertuples(index=False)}


def target_heads(context: Context) -> tuple[str, ...]:
    """Return the heads of the two columns; none where there is no target."""
    if not reached(context) or context.yardstick is None:
        return ()
    (column,) = context.compared
    return (f"Steps to {context.title(context.yardstick)}'s {column.metric.title}", "Seconds to it")


def target_columns(context: Context) -> dict[str, list[Entry]]:
    """Return method -> its entries of the two columns."""
    return {
        method: [_entry(context, found, found.steps, found.steps_ratio),
                 _entry(context, found, found.seconds, found.seconds_ratio)]
        for method, found in reached(context).items()
    }  # fmt: skip


def _one_machine(context: Context) -> bool:
    """Whether the yardstick's runs, and so all whose seconds are given, were made on one machine under one load."""
    runs = context.runs[(context.runs["method"] == context.yardstick) & (context.runs["status"] == "ok")]
    return one_machine(runs)


def _entry(context: Context, found: Reached, values: dict[int, float], ratios: dict[int, float]) -> Entry:
    """Return mean ± sd, the ratio to the yardstick's, and n where seeds are missing; what went wrong in how many of
    its runs where any did not get there. Of values that are not given the ratio alone."""
    seeds = len(context.seeds)
    if found.trouble:
        bad = [*found.trouble.values()]
        ran = len(found.steps.keys() | found.trouble.keys())
        return Entry(", ".join(f"{kind} {bad.count(kind)}/{ran}" for kind in sorted(set(bad))))
    summary, ratio = summarise(values.values()), summarise(ratios.values())
    spread = "" if summary.sd is None else f" ± {summary.sd:,.0f}"
    times = "" if ratio.mean is None else f"{ratio.mean:.2f}{'' if ratio.sd is None else f' ± {ratio.sd:.2f}'}×"
    n = summary.n or ratio.n
    behind = ", ".join(filter(None, (times, "" if n == seeds else f"n={n}")))
    if summary.mean is None:
        return Entry(behind) if times else EMPTY
    return Entry(f"{summary.mean:,.0f}{spread}{f' ({behind})' if behind else ''}")


def target_notes(context: Context) -> list[str]:
    """Return how the two columns are made."""
    if not reached(context) or context.yardstick is None:
        return []
    (column,) = context.compared
    title = context.title(context.yardstick)
    return [
        f"Steps, seconds to it: to the {column.metric.title} that {title} of the same seed has at its end, linear "
        f"between evaluations at most {100 * WIDEST:.0f} % of the run apart; ×: over {title}'s of the same seed; "
        f"seconds: training alone, at the run's mean step, given where machine and load are those of {title}'s run"
        + ("" if _one_machine(context) else ", × alone: seeds are of more than one machine or load")
    ]
