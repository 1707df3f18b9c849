"""Tables of scores: per task with the average, paired differences, and the status of every run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from reports.averages.glue import NOT_RUN, TASKS, UNDEFINED, Cell, check_choice
from reports.figures.style import seed_words
from reports.records.context import Context
from reports.records.frames import STATUSES
from reports.stats.seeds import LEAST_SEEDS, LEVEL, Summary, clear_best, paired_difference, summarise
from reports.tables.render import Entry, Table

EMPTY = Entry("—")
SHOWN_ERRORS = 20
CONSTANT_RULE = (
    "Constant prediction: the most frequent class of the evaluated rows for every row; undefined for correlations"
)
LEVEL_WORDS = f"{100 * LEVEL:.0f} %"
BOLD_RULE = (
    f"Bold: highest mean of its column, if the paired {LEVEL_WORDS} t interval over seeds against every other mean "
    f"excludes zero ({LEAST_SEEDS} seeds at least; not corrected for the number of comparisons)"
)


def score_table(context: Context) -> Table:
    """Return methods by tasks: mean ± sd in percent, and the average under the convention.

    A cell with a run that brought no score shows only the outcome, as "diverged 1/3": a mean over the survivors would
    flatter the method; it stands in the notes and in the data.
    """
    columns = {task: {m: context.grid.get((m, task), Cell()) for m in context.methods} for task in context.tasks}
    best = {
        task: clear_best({m: cell.scores for m, cell in column.items() if not cell.broken})
        for task, column in columns.items()
    }
    best_average = clear_best({m: found.scores for m, found in context.averages.items()})
    rows = []
    for method in context.methods:
        entries = [score_entry(columns[task][method], context.seeds, best[task] == method) for task in context.tasks]
        summary = context.averages[method].summary
        entries.append(Entry(_with_n(summary, context.seeds), best_average == method) if summary.n else EMPTY)
        rows.append((Entry(context.title(method)), *entries))
    rows += _constant_rows(context)
    heads = ("Method", *(TASKS[task] for task in context.tasks), "Average")
    constant = [CONSTANT_RULE] if context.constants else []
    reasons = (*_survivors(context), *_no_average(context))
    notes = (_seed_note(context), *constant, BOLD_RULE, *reasons, *context.provenance())
    caption = context.caption("scores in percent, mean ± standard deviation over seeds", scores=True)
    return Table("scores", caption, heads, tuple(rows), notes, _score_data(context))


def _constant_rows(context: Context) -> list[tuple[Entry, ...]]:
    if not context.constants:
        return []
    entries = [
        Entry(percent(summarise([context.constants[task]]))) if task in context.constants else EMPTY
        for task in context.tasks
    ]
    return [(Entry("Constant prediction"), *entries, EMPTY)]


def percent(summary: Summary) -> str:
    """Return "mean ± sd" in percent with one decimal; without sd for one seed."""
    assert summary.mean is not None
    text = f"{100 * summary.mean:.1f}".replace("-", "−")
    return text if summary.sd is None else f"{text} ± {100 * summary.sd:.1f}"


def score_entry(cell: Cell, seeds: Sequence[int], bold: bool) -> Entry:
    """Return the printed cell: its mean, its n where seeds are missing, or what went wrong in how many of its runs."""
    if cell.broken:
        return Entry(cell.trouble(seeds))
    return Entry(_with_n(cell.summary, seeds), bold) if cell.scores else EMPTY


def _with_n(summary: Summary, seeds: Sequence[int]) -> str:
    return percent(summary) + (f" (n={summary.n})" if summary.n != len(seeds) else "")


def _seed_note(context: Context) -> str:
    return f"n = {len(context.seeds)} ({seed_words(context.seeds)}) where a cell says nothing else"


def _survivors(context: Context) -> list[str]:
    """Return a sentence for each cell whose mean is not printed because some of its runs brought no score."""
    return [
        f"{context.title(method)}, {TASKS[task]}: {percent(cell.summary)} over the {cell.summary.n} that finished"
        for (method, task), cell in context.grid.items()
        if cell.broken and cell.scores
    ]


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
    return [f"{', '.join(methods)}: {reason}" for reason, methods in reasons.items()]


def _score_data(context: Context) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for method in context.methods:
        for task in context.tasks:
            cell = context.grid.get((method, task), Cell())
            rows.append(_score_row(context, method, task, cell.scores, cell.outcomes))
        rows.append(_score_row(context, method, "average", context.averages[method].scores, {}))
    frame = pd.DataFrame(rows)
    whole = [name for name in frame.columns if name in ("n", "not_run", UNDEFINED, *STATUSES)]
    return frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(["mean", "sd"], "Float64"))


def _score_row(
    context: Context, method: str, task: str, scores: dict[int, float], outcomes: dict[int, str]
) -> dict[str, Any]:
    summary = summarise(scores.values())
    counts = {status: list(outcomes.values()).count(status) for status in (*STATUSES, UNDEFINED)}
    counts["not_run"] = len(set(context.seeds) - set(outcomes))
    keys = " ".join(context.convention.keys(task)) if task in TASKS else context.convention.words()
    return {
        **{"method": method, "title": context.title(method), "task": task, "metric": keys},
        **{"n": summary.n, "mean": summary.mean, "sd": summary.sd},
        "seeds": " ".join(map(str, scores)),
        "scores": " ".join(map(repr, scores.values())),
        **(counts if task in TASKS else dict.fromkeys(counts)),
    }


def difference_table(context: Context, against: str | None = None) -> Table | None:
    """Return paired differences to one method, in points, with their t interval; None if it has no other to face.

    Args:
        against: a method of the report; None takes full fine-tuning, or the first row where that was not run.

    Raises:
        ChoiceError: `against` is not among the methods of the report.
    """
    against = against or ("full" if "full" in context.methods else context.methods[0])
    check_choice(against, tuple(context.methods), "method to compare with")
    others = [method for method in context.methods if method != against]
    if not others:
        return None
    rows, data = [], []
    for method in others:
        entries = [Entry(context.title(method))]
        for task in (*context.tasks, "average"):
            found = paired_difference(_by_seed(context, method, task), _by_seed(context, against, task))
            broken = _trouble(context, task, (method, against))
            entries.append(Entry(broken) if broken else _difference_entry(found.mean, found.low, found.high))
            data.append({"method": method, "against": against, "task": task, "n": found.n, "mean": found.mean,
                         "sd": found.sd, "low": found.low, "high": found.high, "level": LEVEL})  # fmt: skip
        rows.append(tuple(entries))
    heads = ("Method", *(TASKS[task] for task in context.tasks), "Average")
    what = (
        f"difference to {context.title(against)} in points, mean over shared seeds [{LEVEL_WORDS} t interval of the "
        "paired differences]"
    )
    note = "Without an interval: one shared seed. Not corrected for the number of comparisons"
    frame = pd.DataFrame(data).astype({"n": "Int64", **dict.fromkeys(["mean", "sd", "low", "high"], "Float64")})
    return Table("differences", context.caption(what, scores=True), heads, tuple(rows), (note,), frame)


def _by_seed(context: Context, method: str, task: str) -> dict[int, float]:
    return context.averages[method].scores if task == "average" else context.grid.get((method, task), Cell()).scores


def _trouble(context: Context, task: str, methods: Sequence[str]) -> str:
    """Return what went wrong on one task with either method; empty if nothing did."""
    found = [context.grid.get((method, task), Cell()) for method in methods]
    return "; ".join(cell.trouble(context.seeds) for cell in found if cell.broken)


def _difference_entry(mean: float | None, low: float | None, high: float | None) -> Entry:
    if mean is None:
        return EMPTY
    if low is None or high is None:
        return Entry(signed(mean))
    return Entry(f"{signed(mean)} [{signed(low)}, {signed(high)}]")


def signed(value: float) -> str:
    """Return a difference in points with its sign; zero has none."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


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
    for run in bad.head(SHOWN_ERRORS).itertuples(index=False):
        error = "no error text" if pd.isna(run.error) or not run.error.strip() else run.error.strip().splitlines()[0]
        where = f"{context.title(run.method)}, {TASKS.get(run.task, run.task)}, seed {run.seed}"
        lines.append(f"{where}: {run.status.replace('_', ' ')}: {error}")
    return [*lines, *([f"and {len(bad) - SHOWN_ERRORS} more"] if len(bad) > SHOWN_ERRORS else [])]


def runs_csv(context: Context) -> str:
    """Return every run with every column, as CSV."""
    return str(context.runs.to_csv(index=False, lineterminator="\n"))
