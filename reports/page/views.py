"""What the page shows of each group of runs, as numbers: the script draws them and computes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reports.averages.convention import choices
from reports.page.conclusions import conclusions
from reports.page.costs import curves, parts, refreshes
from reports.records.groups import Group
from reports.records.reading import Gathered
from reports.records.report_runs import Column, Context
from reports.stats.outcomes import Outcomes
from reports.stats.over_seeds import LEAST_SEEDS, dominators, paired_difference, summarise
from reports.stats.significance import front_probability
from reports.tables.cost import peaks_of
from reports.tables.findings import findings_of, unordered
from reports.tables.standing import averages_of
from results.catalogue import MetricEntry

Json = dict[str, Any]
PROFILES = ("paper", "small", "micro")
ONLY = "last"
"""Key of the one way to read a column that has no others."""


def ordered(groups: Sequence[Group]) -> list[Group]:
    """Return the groups as the page offers them.

    Equal memory stands last; first stand those whose seeds allow conclusions, then it goes by profile.
    """

    def place(group: Group) -> tuple[bool, bool, bool, int, str, int]:
        context = group.context
        profile = PROFILES.index(group.profile) if group.profile in PROFILES else len(PROFILES)
        few = max((len(scores) for scores in averages_of(context).values()), default=0) < LEAST_SEEDS
        return bool(group.variant), few, context.plugin is None, profile, group.name, -(group.rank or 0)

    return sorted(groups, key=place)


def group_view(group: Group, gathered: Gathered, numbers: Mapping[str, int]) -> Json:
    """Return everything that the page says of one group.

    Args:
        numbers: plan hash -> place of the run in the page's list.
    """
    context = group.context
    tasks = {"all": set(context.tasks), **{task: {task} for task in context.tasks}}
    chosen = {name: [r for r in context.records if r.plan.task in names] for name, names in tasks.items()}
    return {
        "suite": group.suite, "profile": group.profile, "rank": group.rank, "title": group.title,
        "variant": group.variant, "micro": context.is_micro, "shared": context.convention.seeds == "shared",
        "methods": context.methods, "names": {method: context.title(method) for method in context.methods},
        "looks": {method: vars(look) for method, look in context.looks.items()},
        "runs": [numbers[record.plan_hash] for record in group.records],
        "tasks": [task for task in context.tasks if chosen[task]],
        "columns": [_column(context, column) for column in context.columns if chosen[column.task]],
        "average": _average(context), "unordered": unordered(findings_of(context)),
        "convention": {name: str(value) for name, value in context.convention.choices().items()},
        "conclusions": conclusions(context),
        "curves": {task: curves(context, chosen[task], gathered) for task in context.tasks if chosen[task]},
        "parts": {name: parts(context, records, numbers) for name, records in chosen.items()},
        "refresh": {name: refreshes(context, records) for name, records in chosen.items()},
    }  # fmt: skip


def suite_view(context: Context) -> Json:
    """Return what belongs to a suite: titles, and what may be chosen for its average."""
    offered = choices(context.entry) if context.plugin is not None else {}
    return {
        "title": context.entry.title, "tasks": {task.name: task.title for task in context.entry.tasks},
        "choices": {name: list(map(str, values)) for name, values in offered.items()},
        "words": {name: _choice_words(context, name) for name in offered},
    }  # fmt: skip


def _choice_words(context: Context, name: str) -> Json:
    """Return the title of a choice, and of those of its values that do not speak for themselves."""
    if name != "tasks":
        return {"title": {"epoch": "Evaluation"}.get(name, context.entry.task_title(name)), "values": {}}
    left_out = [task.title for task in context.entry.tasks if task.averaged == "by some"]
    fewer = sum(task.averaged == "always" for task in context.entry.tasks)
    return {"title": "Tasks", "values": {str(fewer): f"{fewer}, no {', '.join(left_out)}"} if left_out else {}}


def run_scores(context: Context) -> dict[str, Json]:
    """Return plan hash -> way to read -> score as printed, or what became of the run."""
    found: dict[str, Json] = {record.plan_hash: {} for record in context.records}
    for (epoch, task, reading), places in context.read.items():
        metric = metric_for(context, task)
        for record in context.records:
            plan = record.plan
            if plan.task == task:
                place = places[plan.method]
                value = place.scores.get(plan.seed)
                shown = place.outcomes[plan.seed].replace("_", " ") if value is None else scaled(metric, value)
                found[record.plan_hash][variant(epoch, reading)] = shown
    return found


def metric_for(context: Context, task: str) -> MetricEntry | None:
    """Return how a task's scores are printed; None where no run of it says which metric they are."""
    named = bool(context.convention.keys(task)) or bool(
        context.runs.loc[context.runs["task"] == task, "main_metric"].notna().any()
    )
    return context.metric_of(task) if named else None


def variant(epoch: str, reading: str | None) -> str:
    """Return the key of one way to read a task."""
    return epoch if reading is None else f"{epoch}/{reading}"


def scaled(metric: MetricEntry | None, value: float | None) -> float | None:
    """Return a value on the scale it is printed on, as short as it may be and still print alike."""
    if metric is None or value is None:
        return value
    whole, shown = metric.scale * value, digits(metric)
    lengths = (round(whole, shown + more) for more in (2, 4, 8))
    return next((found for found in lengths if f"{found:.{shown}f}" == f"{whole:.{shown}f}"), whole)


def digits(metric: MetricEntry) -> int:
    """Return how many decimals a metric is printed with."""
    found = re.search(r"\.(\d+)", metric.format)
    return int(found[1]) if found else 0


def _column(context: Context, column: Column) -> Json:
    """Return one column of scores in every way to read it, and the front of each where it can have one."""
    ways: dict[str, Mapping[str, Outcomes]] = {ONLY: column.places}
    if context.by_task:
        ways = {
            variant(epoch, reading): at for (epoch, task, reading), at in context.read.items() if task == column.task
        }
    main = context.by_task or column.metric == metric_for(context, column.task)
    peaks = peaks_of(context, context.methods, [column.task]).of
    cells, fronts = {}, {}
    for way, places in ways.items():
        cells[way] = [_cell(context, column.metric, places.get(method)) for method in context.methods]
        whole = {m: place.scores for m, place in places.items() if not place.broken}
        fronts[way] = standings(context.methods, whole, peaks, column.metric)
    return {
        "name": column.name, "task": column.task, "title": column.head, **_metric(column.metric), "cells": cells,
        "constant": {way: _constant(context, column, way) for way in ways},
        "front": fronts if main else None,
        "peaks": [peaks.get(method) for method in context.methods],
    }  # fmt: skip


def _metric(metric: MetricEntry) -> Json:
    return {"metric": metric.title, "unit": metric.unit, "digits": digits(metric), "lower": metric.better == "lower"}


def _cell(context: Context, metric: MetricEntry, place: Outcomes | None) -> list[object] | str | None:
    """Return [mean, sd, seeds]; what went wrong as text; None for what was not run."""
    if place is None or not place.outcomes:
        return None
    if place.broken:
        return place.trouble(context.seeds)
    summary = place.summary
    return [scaled(metric, summary.mean), scaled(metric, summary.sd), summary.n]


def _constant(context: Context, column: Column, way: str) -> float | None:
    """Return what the best constant prediction scores under one way to read a column."""
    task = context.entry.task(column.task)
    reading = way.partition("/")[2]
    keys = task.readings[reading] if task is not None and reading else column.keys
    return scaled(column.metric, context.constant_score(column.task, keys))


def _average(context: Context) -> Json | None:
    """Return the front of the average under every convention, and how far each method's average moves over them."""
    if not context.by_task:
        return None
    board = context.switchboard
    if board is None:
        return _plain_average(context)
    metric = context.averaged_metric
    names = {convention.tasks: convention.names for convention in board.conventions}
    placed: dict[int, set[str]] = {count: set() for count in names}
    for convention, found in zip(board.conventions, board.averages, strict=True):
        placed[convention.tasks] |= {method for method, average in found.items() if average.scores}
    peaks = {count: peaks_of(context, placed[count], names[count]).of for count in names}
    rows, span = [], dict.fromkeys(context.methods, (float("inf"), float("-inf")))
    for convention, found in zip(board.conventions, board.averages, strict=True):
        scores = {method: average.scores for method, average in found.items()}
        rows.append(standings(context.methods, scores, peaks[convention.tasks], metric))
        for method, row in zip(context.methods, rows[-1], strict=True):
            if row is not None:
                span[method] = (min(span[method][0], row[0]), max(span[method][1], row[0]))
    return {
        **_metric(metric), "rows": rows,
        "range": [span[method] if span[method][0] <= span[method][1] else None for method in context.methods],
        "peaks": {str(count): [found.get(m) for m in context.methods] for count, found in peaks.items()},
    }  # fmt: skip


def _plain_average(context: Context) -> Json | None:
    """Return the mean over tasks of a suite that says nothing of an average; None where its tasks differ in metric."""
    metrics = {column.metric.name: column.metric for column in context.columns}
    if len(metrics) != 1:
        return None
    (metric,) = metrics.values()
    scores = {
        method: {seed: metric.gain(gain) for seed, gain in gains.items()}
        for method, gains in averages_of(context).items()
    }
    peaks = peaks_of(context, scores, context.counted).of
    rows = [standings(context.methods, scores, peaks, metric)]
    shown = {ONLY: [peaks.get(method) for method in context.methods]}
    return {**_metric(metric), "rows": rows, "range": None, "peaks": shown}


def standings(
    methods: Sequence[str], scores: Mapping[str, Mapping[int, float]], peaks: Mapping[str, int], metric: MetricEntry
) -> list[Any]:
    """Return, for each method, [mean, sd, seeds, chance of the front in percent, dominators, alike]; None: no score.

    The last two are places among `methods`: which methods need no more memory and
    score as well, and of which the paired interval over shared seeds does not tell it apart.
    """
    gains = {m: {seed: metric.gain(value) for seed, value in scores[m].items()} for m in methods if scores.get(m)}
    placed = [method for method in methods if method in gains and method in peaks]
    means = {method: summarise(values.values()).mean or 0.0 for method, values in gains.items()}
    chance = front_probability({m: float(peaks[m]) for m in placed}, {m: gains[m] for m in placed})
    above = dominators([float(peaks[m]) for m in placed], [means[m] for m in placed])
    over = {m: [placed[at] for at in found] for m, found in zip(placed, above, strict=True)}
    rows: list[Any] = []
    for method in methods:
        if method not in gains:
            rows.append(None)
            continue
        summary = summarise(scores[method].values())
        alike = [
            other
            for other in gains
            if other != method and not paired_difference(gains[method], gains[other]).excludes_zero
        ]
        rows.append([
            scaled(metric, summary.mean), scaled(metric, summary.sd), summary.n,
            round(100 * chance[method], 2) if method in chance else None,
            _places(methods, over.get(method, [])), _places(methods, alike),
        ])  # fmt: skip
    return rows


def _places(methods: Sequence[str], names: Iterable[str]) -> list[int]:
    return [methods.index(name) for name in names]
