"""The GLUE average: the plain mean over tasks for each seed, and what the choice of a convention alone moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd

from reports.averages.convention import Convention, choices, convention_of
from reports.figures.style import seed_words
from reports.stats.outcomes import NOT_RUN, Outcomes
from reports.stats.over_seeds import Summary, summarise
from reports.tables.table import EMPTY, Entry, Table
from results.catalogue import MetricEntry, SuiteEntry

if TYPE_CHECKING:
    from reports.records.report_runs import Context

Grid = Mapping[tuple[str, str], Outcomes]
Summaries = Sequence[Mapping[str, Summary]]
PUBLISHED = (
    "Published averages that are called RoBERTa, LoRA, rank 8, GLUE: 85.93 [G] over eight tasks, 79.23 [N] over all "
    "GLUE tasks (abstract; its convention is not stated)"
)


@dataclass(frozen=True)
class Average:
    """One method's average by seed; the cells without a score; and the seeds that all tasks have nevertheless."""

    scores: dict[int, float]
    missing: tuple[str, ...] = ()
    common: tuple[int, ...] = ()

    @property
    def summary(self) -> Summary:
        """n, mean and sd over seeds of the average."""
        return summarise(self.scores.values())


def average(context: Context, method: str) -> Average:
    """Return one method's average in a report."""
    return average_of(context.grid, method, context.seeds, context.convention)


def average_of(grid: Grid, method: str, seeds: list[int], convention: Convention) -> Average:
    """Return the mean over the convention's tasks for each seed of one method.

    It exists only if every task has a score for the same seeds; with `seeds="shared"` seeds that some task was not
    run with are left out, but a run without a score still leaves no average: leaving it out would flatter the
    method. `missing` names every place without a score, over all `seeds` of the report; `common` are the seeds that
    "shared" would use.
    """
    row = {task: grid.get((method, task), Outcomes()) for task in convention.names}
    sets = [set(place.scores) for place in row.values()]
    common = set() if any(place.broken for place in row.values()) else set.intersection(*sets)
    usable = common if convention.seeds == "shared" or all(found == common for found in sets) else set()
    missing = tuple(
        text for task, place in row.items() for text in _missing(convention.suite.task_title(task), place, seeds)
    )
    means = {s: math.fsum(place.scores[s] for place in row.values()) / len(row) for s in sorted(usable)}
    return Average(means, missing, tuple(sorted(common)))


def _missing(title: str, place: Outcomes, seeds: list[int]) -> list[str]:
    """Return texts such as "RTE seed 2 (diverged)", seeds of equal outcome together."""
    by_outcome: dict[str, list[int]] = {}
    for seed in seeds:
        if seed not in place.scores:
            by_outcome.setdefault(place.outcomes.get(seed, NOT_RUN), []).append(seed)
    return [f"{title} {seed_words(found)} ({outcome.replace('_', ' ')})" for outcome, found in by_outcome.items()]


@dataclass(frozen=True)
class Switchboard:
    """Method -> average for every convention."""

    conventions: tuple[Convention, ...]
    averages: tuple[dict[str, Average], ...]
    default: int


def all_conventions(suite: SuiteEntry, seeds: str) -> list[Convention]:
    """Return every combination of choices."""
    allowed = choices(suite)
    return [
        convention_of(suite, seeds=seeds, **dict(zip(allowed, values, strict=True)))  # type: ignore[arg-type]
        for values in product(*allowed.values())
    ]


def switchboard(context: Context) -> Switchboard:
    """Return the averages of a report under every convention; seeds are treated as the report does."""
    conventions = all_conventions(context.entry, context.convention.seeds)
    averages = []
    for convention in conventions:
        grid = {
            (method, task): place
            for task in convention.names
            for method, place in context.read.get((convention.epoch, task, convention.reading(task)), {}).items()
        }
        averages.append({m: average_of(grid, m, context.seeds, convention) for m in context.methods})
    return Switchboard(tuple(conventions), tuple(averages), conventions.index(context.convention))


def tables(context: Context) -> list[Table]:
    """Return the default average, each choice changed alone, and the range over all; none if nothing has an average."""
    board = context.switchboard
    if board is None or not any(found.scores for row in board.averages for found in row.values()):
        return []
    metric = context.averaged_metric
    summaries = [{method: found.summary for method, found in row.items()} for row in board.averages]
    base = summaries[board.default]
    rows = [(Entry("as in the score table"), *(_entry(base[m], metric) for m in context.methods))]
    for name, values in choices(context.entry).items():
        for value in values:
            wanted = context.convention.choices() | {name: value}
            if wanted != context.convention.choices():
                at = next(i for i, each in enumerate(board.conventions) if each.choices() == wanted)
                found = summaries[at]
                rows.append((Entry(f"{name}: {value}"), *(_change(found[m], base[m], metric) for m in context.methods)))
    for label, pick in (("lowest of all", min), ("highest of all", max)):
        rows.append((Entry(label), *(_extreme(summaries, m, pick, metric) for m in context.methods)))
    heads = ("Convention", *(context.title(method) for method in context.methods))
    what = f"average in {metric.words} under {len(board.conventions)} conventions, the same runs"
    notes = ("A row with a sign: one choice changed, difference to the first row in points", PUBLISHED)
    return [Table("switchboard", context.caption(what), heads, tuple(rows), notes, _data(board, summaries))]


def _entry(summary: Summary, metric: MetricEntry) -> Entry:
    return Entry(summary.text(metric)) if summary.n else EMPTY


def _change(found: Summary, base: Summary, metric: MetricEntry) -> Entry:
    if found.mean is None:
        return EMPTY
    return _entry(found, metric) if base.mean is None else Entry(metric.text(found.mean - base.mean, "+"))


def _extreme(summaries: Summaries, method: str, pick: Any, metric: MetricEntry) -> Entry:
    known = [row[method].mean for row in summaries if row[method].mean is not None]
    return Entry(metric.text(pick(known))) if known else EMPTY


def _data(board: Switchboard, summaries: Summaries) -> pd.DataFrame:
    rows = [
        {**convention.choices(), "seeds": convention.seeds, "method": method, "n": summary.n, "mean": summary.mean,
         "sd": summary.sd}
        for convention, found in zip(board.conventions, summaries, strict=True)
        for method, summary in found.items()
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"n": "Int64", "mean": "Float64", "sd": "Float64"})
