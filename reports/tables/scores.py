"""Tables of scores: by task with the average or by metric, paired differences, and the status of every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports.figures.style import byte_unit, in_unit, seed_words
from reports.records.frames import STATUSES, one_machine
from reports.records.provenance import listed, provenance
from reports.records.report_runs import Column, Context
from reports.records.rows import row_named
from reports.stats.outcomes import NOT_RUN, UNDEFINED, Outcomes
from reports.stats.over_seeds import LEAST_SEEDS, LEVEL, LEVEL_WORDS, Summary, clear_best, paired_difference
from reports.tables.cost import PEAK, finished, highest
from reports.tables.table import EMPTY, Entry, Table
from reports.tables.target import reached, target_columns, target_heads, target_notes
from results.catalogue import MetricEntry

SHOWN_ERRORS = 20
AVERAGE = "average"
BOLD_RULE = (
    f"Bold: {{}} mean of its column, if the paired {LEVEL_WORDS} t interval over seeds against every other mean "
    f"excludes zero ({LEAST_SEEDS} seeds at least; not corrected for the number of comparisons)"
)
PEAK_NOTE = "Peak memory: the larger of a plain and a refresh step"
SPEED = "Tokens/s"
SPEED_NOTE = "Tokens/s: training alone, filling not counted; comparable only within one machine and load"
NO_SPEED_NOTE = "Tokens/s stand in no column: the runs are of more than one machine or load"


def score_table(context: Context) -> Table:
    """Return a row a method and a column a task, mean ± sd, with the average; of a lone task a column a metric.

    A place with a run that brought no score shows only the outcome, as "diverged 1/3": a mean over the survivors would
    flatter the method; it stands in the notes and in the data.
    """
    columns = context.columns
    best = {c.name: clear_best({m: c.gains(m) for m in context.methods if not c.place(m).broken}) for c in columns}
    best_average = clear_best({m: found.scores for m, found in context.averages.items()})
    cost_heads, costs = ((), {}) if context.by_task else _cost_columns(context)
    targets, rows = target_columns(context), []
    for method in context.methods:
        entries = [_score_entry(context, c.place(method), c.metric, best[c.name] == method) for c in columns]
        if context.averages:
            entries.append(_average_entry(context, method, best_average == method))
        rows.append((Entry(context.title(method)), *entries, *costs.get(method, ()), *targets.get(method, ())))
    rows += _reference_rows(context, len(rows[0]))
    heads = (
        "Method",
        *_heads(context),
        *([AVERAGE.capitalize()] if context.averages else []),
        *cost_heads,
        *target_heads(context),
    )
    notes = (
        f"n = {len(context.seeds)} ({seed_words(context.seeds)}) where a cell says nothing else{_ways(columns)}",
        *context.entry.notes, *_reference_notes(context), BOLD_RULE.format(_best_word(columns)), *context.average_note,
        *_survivors(context), *_far_apart(context), *_fallen(context), *_no_average(context), *_cost_notes(cost_heads),
        *target_notes(context), *provenance(context),
    )  # fmt: skip
    what = f"scores{_unit_words(columns)}" if context.by_task else "every measure at the last evaluation"
    caption = context.caption(f"{what}, mean ± standard deviation over seeds", scores=context.by_task)
    return Table("scores", caption, heads, tuple(rows), notes, _score_data(context))


def _units(columns: Sequence[Column]) -> set[str]:
    return {column.metric.words for column in columns}


def _unit_words(columns: Sequence[Column]) -> str:
    """Return " in UNIT" where all columns share one; else heads say it."""
    return f" in {_units(columns).pop()}" if len(_units(columns)) == 1 else ""


def _heads(context: Context) -> list[str]:
    """Return the heads of the columns; of tasks in different units with metric and unit."""
    mixed = context.by_task and len(_units(context.columns)) > 1
    return [f"{c.head}: {c.metric.head}" if mixed else c.head for c in context.columns]


def _best_word(columns: Sequence[Column]) -> str:
    ways = {column.metric.better for column in columns}
    return "best" if len(ways) != 1 else {"higher": "highest", "lower": "lowest"}[ways.pop()]


def _ways(columns: Sequence[Column]) -> str:
    """Return which columns are better when lower; nothing where higher is better everywhere."""
    lower = [column.head for column in columns if column.metric.better == "lower"]
    if not lower:
        return ""
    return "; lower is better" + ("" if len(lower) == len(columns) else f" for {', '.join(lower)}")


def _score_entry(context: Context, place: Outcomes, metric: MetricEntry, bold: bool) -> Entry:
    """Return the printed cell: its mean, its n where seeds are missing, or what went wrong in how many of its runs."""
    if place.broken:
        return Entry(place.trouble(context.seeds))
    return Entry(_with_n(context, place.summary, metric), bold) if place.scores else EMPTY


def _average_entry(context: Context, method: str, bold: bool) -> Entry:
    summary = context.averages[method].summary
    return Entry(_with_n(context, summary, context.averaged_metric), bold) if summary.n else EMPTY


def _with_n(context: Context, summary: Summary, metric: MetricEntry) -> str:
    return summary.text(metric) + (f" (n={summary.n})" if summary.n != len(context.seeds) else "")


def _cost_columns(context: Context) -> tuple[tuple[str, ...], Mapping[str, Sequence[Entry]]]:
    """Return the heads of state, peak and speed, and method -> its entries; no speed where machines differ."""
    runs = finished(context)
    alike = one_machine(runs)
    found = [highest(runs, name) for name in ("state_bytes", PEAK)]
    unit, size = byte_unit(max((amount for of in found for amount in of.values()), default=0))
    costs = {}
    for method in context.methods:
        speeds = runs.loc[runs["method"] == method, "tokens_per_s"].dropna()
        sizes = [Entry(in_unit(of[method], size)) if method in of else EMPTY for of in found]
        speed = Entry(f"{speeds.mean():,.0f}") if len(speeds) else EMPTY
        costs[method] = [*sizes, *([speed] if alike else [])]
    return (f"Optimizer state, {unit}", f"Peak memory, {unit}", *([SPEED] if alike else [])), costs


def _cost_notes(heads: Sequence[str]) -> Sequence[str]:
    return (PEAK_NOTE, SPEED_NOTE if SPEED in heads else NO_SPEED_NOTE) if heads else ()


def _reference_rows(context: Context, width: int) -> list[tuple[Entry, ...]]:
    """Return the rows of what needs no training: the prediction that looks at nothing, and the floor of the source."""
    rows = []
    for title, values in ((context.constant or ("",))[0], context.constants), ("Floor of the source", _floor(context)):
        if values:
            found = [Entry(c.metric.text(values[c.name])) if c.name in values else EMPTY for c in context.columns]
            rows.append((Entry(title), *found, *[EMPTY] * (width - 1 - len(found))))
    return rows


def floors(context: Context) -> set[float]:
    """Return the floors of the source in nats a token; empty where none is known."""
    return {value for record in context.records if record.data for value in record.data.floor_nats.values()}


def _floor(context: Context) -> dict[str, float]:
    """Return metric -> its value where the loss is the floor; empty where no or several floors are known."""
    if len(floors(context)) != 1 or context.by_task:
        return {}
    (floor,) = floors(context)
    bits = {
        floor * record.data.eval_tokens[split] / math.log(2) / record.data.eval_bytes[split]
        for record in context.records
        if record.data is not None
        for split in record.data.floor_nats
    }
    values = {"loss": floor, "perplexity": math.exp(floor), "excess": 0.0, "perplexity_ratio": 1.0}
    return values | ({"bits_per_byte": bits.pop()} if len(bits) == 1 else {})


def _reference_notes(context: Context) -> list[str]:
    notes = []
    if floors(context):
        values = ", ".join(f"{value:.4f}" for value in sorted(floors(context)))
        notes.append(
            f"Floor: mean -log p of the same tokens under the source that generated them, {values} nats; no loss is "
            "expected below it"
        )
    return notes + ([": ".join(context.constant)] if context.constants and context.constant else [])


def _survivors(context: Context) -> list[str]:
    """Return a sentence for each cell whose mean is not printed because some of its runs brought no score."""
    return [
        f"{context.title(method)}, {c.head}: {place.summary.text(c.metric)} over the {place.summary.n} that finished"
        for c in context.columns
        for method in context.methods
        if (place := c.place(method)).broken and place.scores
    ]


def _far_apart(context: Context) -> list[str]:
    """Return a sentence for each cell whose mean describes none of its runs."""
    return [
        f"{context.title(method)}, {column.head}: runs far apart, {scores}"
        for column in context.compared
        for method, scores in column.far_apart(context.methods).items()
    ]


def _fallen(context: Context) -> list[str]:
    """Return a sentence for the cells of which a run learnt nothing: a mean does not show them."""
    cells = []
    for column in context.compared:
        fallen = context.fallen(column, context.methods)
        if all(set(fallen.get(method, ())) == set(column.place(method).scores) for method in context.methods):
            cells += [f"every run of {column.head}"] if fallen else []
        else:
            cells += [f"{context.title(m)}, {column.head}, {seed_words(seeds)}" for m, seeds in fallen.items()]
    return [f"No better than {context.constant_words}: {'; '.join(cells)}"] if cells else []


def _no_average(context: Context) -> list[str]:
    """Return why an average is missing or covers fewer seeds, methods with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for method, found in context.averages.items():
        if not found.missing or set(found.scores) == set(context.seeds):
            continue
        what = f"average over {seed_words(list(found.scores))} alone" if found.scores else "no average"
        if not found.scores and found.common:
            what += f" (--seeds shared: over {seed_words(found.common)})"
        reason = f"{what}; without a score: {'; '.join(found.missing)}"
        reasons.setdefault(reason, []).append(context.title(method))
    return [f"{listed(methods)}: {reason}" for reason, methods in reasons.items()]


def _score_data(context: Context) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for method in context.methods:
        for column in context.columns:
            place = column.place(method)
            counts = {status: list(place.outcomes.values()).count(status) for status in (*STATUSES, UNDEFINED)}
            counts["not_run"] = len(set(context.seeds) - set(place.outcomes))
            keys = " ".join(column.keys)
            rows.append({**_score_row(context, method, column.task, keys, place.scores), **counts})
        if context.averages:
            scores = context.averages[method].scores
            rows.append(_score_row(context, method, AVERAGE, context.convention.words(), scores))
    for method, found in reached(context).items():
        for name, values in (("steps_to_target", found.steps), ("seconds_to_target", found.seconds)):
            rows.append(_score_row(context, method, context.tasks[0], name, values))
    frame = pd.DataFrame(rows)
    whole = [name for name in frame.columns if name in ("n", "not_run", UNDEFINED, *STATUSES)]
    return frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(["mean", "sd"], "Float64"))


def _score_row(context: Context, method: str, task: str, metric: str, scores: dict[int, float]) -> dict[str, Any]:
    summary = Outcomes(scores=scores).summary
    return {
        **{"method": method, "title": context.title(method), "task": task, "metric": metric},
        **{"n": summary.n, "mean": summary.mean, "sd": summary.sd},
        "seeds": " ".join(map(str, scores)),
        "scores": " ".join(map(repr, scores.values())),
    }


def difference_table(context: Context, against: str | None = None) -> Table | None:
    """Return paired differences to one method with their t interval; None if it has no other to face.

    Args:
        against: a row of the report, by name or title; None takes the yardstick, or the first row where that was not
            run.

    Raises:
        ChoiceError: `against` is no row of the report, or several.
    """
    names = {method: context.title(method) for method in context.methods}
    against = context.yardstick or context.methods[0] if against is None else row_named(against, names)
    others = [method for method in context.methods if method != against]
    if not others or not context.compared:
        return None
    rows, data = [], []
    for method in others:
        entries = [Entry(context.title(method))]
        for column in context.compared:
            mine, theirs = column.place(method), column.place(against)
            found = paired_difference(mine.scores, theirs.scores)
            broken = "; ".join(place.trouble(context.seeds) for place in (mine, theirs) if place.broken)
            entries.append(Entry(broken or found.text(column.metric)))
            place = {"task": column.task, "metric": " ".join(column.keys)}
            data.append({"method": method, "against": against, **place, **vars(found), "level": LEVEL})
        if context.averages:
            found = paired_difference(context.averages[method].scores, context.averages[against].scores)
            entries.append(Entry(found.text(context.averaged_metric)))
            data.append(
                {"method": method, "against": against, "task": AVERAGE, "metric": "", **vars(found), "level": LEVEL}
            )
        rows.append(tuple(entries))
    units = _units(context.compared)
    unit = "" if len(units) != 1 else " in points" if units == {"percent"} else f" in {units.pop()}"
    columns = [c.head if context.by_task else f"{c.metric.title.capitalize()} difference" for c in context.compared]
    heads = ("Method", *columns, *([AVERAGE.capitalize()] if context.averages else []))
    what = (
        f"difference to {context.title(against)}{unit}, mean over shared seeds [{LEVEL_WORDS} t interval of the "
        "paired differences]"
    )
    note = "Without an interval: one shared seed. Not corrected for the number of comparisons"
    frame = pd.DataFrame(data).astype({"n": "Int64", **dict.fromkeys(["mean", "sd", "low", "high"], "Float64")})
    return Table("differences", context.caption(what, context.by_task), heads, tuple(rows), (note,), frame)


def status_table(context: Context) -> Table:
    """Return how many runs of each method ended how, and how many of the full grid were not run."""
    grid = len(context.tasks) * len(context.seeds)
    rows, data = [], []
    for method in context.methods:
        mine = context.runs[context.runs["method"] == method]
        counts = {status: int((mine["status"] == status).sum()) for status in STATUSES}
        counts[NOT_RUN] = grid - int(mine["task"].isin(context.tasks).sum())
        rows.append((Entry(context.title(method)), *(Entry(str(count)) for count in counts.values())))
        data.append({"method": method, "title": context.title(method), **counts})
    heads = ("Method", *(status.replace("_", " ") for status in (*STATUSES, NOT_RUN)))
    note = f"A full row is {grid} runs: {len(context.tasks)} tasks, every seed that any run of the report has"
    notes = (note, *_errors(context))
    return Table("status", context.caption("runs by how they ended"), heads, tuple(rows), notes, pd.DataFrame(data))


def _errors(context: Context) -> list[str]:
    """Return one line for each run that ended badly, with the first line of its error."""
    bad = context.runs[context.runs["status"] != "ok"]
    lines = []
    for run in bad.head(SHOWN_ERRORS).fillna({"error": ""}).to_dict("records"):
        error = next(iter(run["error"].strip().splitlines()), "no error text")
        where = f"{context.title(run['method'])}, {context.entry.task_title(run['task'])}, seed {run['seed']}"
        lines.append(f"{where}: {run['status'].replace('_', ' ')}: {error}")
    return [*lines, *([f"and {len(bad) - SHOWN_ERRORS} more"] if len(bad) > SHOWN_ERRORS else [])]
