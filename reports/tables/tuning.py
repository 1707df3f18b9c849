"""What tuning did: default against tuned for each method, every trial, and which of them a published row has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from reports.figures.style import seed_words
from reports.records.frames import ROW
from reports.records.report_runs import Context
from reports.records.tuning import Trial, Tuning
from reports.stats.budget import ExpectedBest
from reports.tables.findings import unit_of
from reports.tables.table import EMPTY, Entry, Table
from results.catalogue import MetricEntry

EXPECTED: dict[str, Callable[[int], int]] = {
    "one trial": lambda n: 1,
    "half": lambda n: max(1, n // 2),
    "all": lambda n: n,
}
"""Of how many of a method's trials the table shows the expected best."""
RATES = "learning rate of the matrices / of the rest"


def tuning_caption(context: Context, tuning: Tuning, what: str) -> str:
    """Return a caption that stands alone: which trials, on what, scored on which rows."""
    assert tuning.metric is not None
    tasks = ", ".join(tuning.entry.task_title(task) for task in tuning.tasks)
    again = ""
    if tuning.search is not None and tuning.confirms:
        also = ", ".join(map(tuning.entry.task_title, tuning.search.confirm_tasks))
        again = (
            f"; chosen is the first of a method's best {tuning.search.confirm} that is no worse at full length and has "
            f"not fallen to the constant prediction{f', on {also} too' if also else ''}"
        )
    of_tasks = f"mean over {tasks}" if len(tuning.tasks) > 1 else tasks
    return (
        f"{context.about}: {what}. Scored on held-out train rows ({tuning.metric.title}, {of_tasks}), never on "
        f"validation; {trial_words(tuning)}{again}."
    )


def trial_words(tuning: Tuning) -> str:
    """Return how long the trials were, and their seeds: a figure of them is not of the runs beside it."""
    steps = sorted({record.plan.training.steps for record in tuning.records})
    seeds = sorted({record.plan.seed for record in tuning.records})
    return f"trials of {', '.join(map(str, steps))} steps, {seed_words(seeds)}"


def tuned_table(context: Context) -> Table | None:
    """Return for each method the trial at its usual rates, the best one, and what that gained; None without trials."""
    tuning = context.tuning
    if tuning is None or tuning.metric is None:
        return None
    metric = tuning.metric
    rows, data = [], []
    for method, trials in tuning.trials.items():
        best, usual, expected = tuning.best(method), tuning.usual(method), tuning.expected(method)
        broken, edges = [trial.status for trial in trials if trial.score is None], tuning.edges(method)
        gained = _gained(tuning, usual, best)
        rows.append((
            Entry(_title(context, tuning, method)), Entry(f"{len(trials)}" + _count(broken)),
            EMPTY if usual is None else Entry(f"{usual.words}: {score_text(usual, metric)}"),
            EMPTY if best is None else Entry(f"{best.words}: {score_text(best, metric)}{_at_length(best, metric)}"),
            EMPTY if gained is None else Entry(metric.text(gained, "+")),
            *(_expected_entry(expected, count(len(trials)), metric) for count in EXPECTED.values()),
            Entry(", ".join(edges).replace("_", " ") or "no") if best else EMPTY,
            Entry(", ".join(_published(context, tuning, method)) or "—"),
        ))  # fmt: skip
        data.append(_tuned_data(context, tuning, method, gained))
    heads = ("Method", "Trials", "Usual rates: score", "Chosen: score", f"Gained, {unit_of(metric)}",
             *(f"Expected best of {words}" for words in EXPECTED), "Chosen at an edge", "Trial of the row")  # fmt: skip
    counts = {len(trials) for trials in tuning.trials.values()}
    budget = f"{counts.pop()} trials for every method" if len(counts) == 1 else "not the same number for every method"
    what = f"what tuning did ({budget}), {metric.title}, {metric.better} is better"
    frame = pd.DataFrame(data).astype(dict.fromkeys(["trials", "without_a_score"], "Int64"))
    return Table("tuned", tuning_caption(context, tuning, what), heads, tuple(rows), tuple(_notes(tuning)), frame)


def _notes(tuning: Tuning) -> list[str]:
    return [
        f"Settings: {RATES}; a control trains no matrix",
        "Usual rates: the trial nearest to the middle of the method's first ranges, its usual rates; — where no record "
        "of a search says them. Gained: chosen over usual",
        "Expected best of n trials: of as many drawn from those that were made, ± standard deviation (Dodge et al. "
        "2019, arXiv 1909.03004); a trial without a score counts as the worst of any trial here",
        "Chosen at an edge: within a tenth of the searched range, or the last rate of a grid",
        "Trial of the row: plan hash of the trial whose settings the row of scores has, by row where a method has "
        "several",
    ]


def _title(context: Context, tuning: Tuning, method: str) -> str:
    return context.title(method) if method in context.looks else tuning.catalogue.method(method).title


def _count(broken: Sequence[str]) -> str:
    kinds = sorted(set(broken))
    return f" ({', '.join(f'{broken.count(kind)} {kind}' for kind in kinds)})" if broken else ""


def score_text(trial: Trial, metric: MetricEntry) -> str:
    """Return a trial's score as printed, or what became of it."""
    return trial.status if trial.score is None else metric.text(trial.score)


def _at_length(trial: Trial, metric: MetricEntry) -> str:
    return "" if trial.at_length is None else f" (at length {metric.text(trial.at_length)}{fallen_words(trial)})"


def _long_entry(trial: Trial, metric: MetricEntry, best: bool) -> Entry:
    if not trial.asked_at_length:
        return EMPTY
    score = "no score" if trial.at_length is None else metric.text(trial.at_length)
    return Entry(score + fallen_words(trial), best)


def fallen_words(trial: Trial) -> str:
    """Return on which tasks a trial fell at the runs' own length, as an addition to its score there."""
    return f", fallen: {', '.join(trial.fallen)}" if trial.fallen else ""


def _gained(tuning: Tuning, usual: Trial | None, best: Trial | None) -> float | None:
    """Return by how much the best trial is better than the usual one; None where one has no score."""
    ends = [None if trial is None else tuning.gain(trial) for trial in (usual, best)]
    return None if ends[0] is None or ends[1] is None else ends[1] - ends[0]


def _expected_entry(expected: Sequence[ExpectedBest], n: int, metric: MetricEntry) -> Entry:
    if n > len(expected):
        return EMPTY
    found = expected[n - 1]
    spread = f" ± {format(metric.scale * found.sd, metric.format)}" if found.sd else ""
    return Entry(metric.text(metric.gain(found.mean)) + spread)


def rows_of_method(context: Context, method: str) -> list[str]:
    """Return the rows of a report that are of one method."""
    return [row for row in context.methods if row.partition(ROW)[0] == method]


def _published(context: Context, tuning: Tuning, method: str) -> list[str]:
    """Return "hash", or "row: hash" where the method has several rows; "no trial" where none has the settings."""
    found = []
    rows = rows_of_method(context, method)
    for row in rows:
        trial = tuning.trial_of(row, context.records)
        text = "no trial" if trial is None else " ".join(trial.hashes)
        found.append(text if len(rows) == 1 else f"{context.title(row)}: {text}")
    return found


def _tuned_data(context: Context, tuning: Tuning, method: str, gained: float | None) -> dict[str, Any]:
    best, usual, trials = tuning.best(method), tuning.usual(method), tuning.trials[method]
    found: dict[str, Any] = {"method": method, "title": _title(context, tuning, method), "trials": len(trials),
                             "without_a_score": sum(trial.score is None for trial in trials)}  # fmt: skip
    for name, trial in (("usual", usual), ("best", best)):
        found |= {f"{name}_{field}": None if trial is None else getattr(trial, field)
                  for field in ("learning_rate", "rest_learning_rate", "score", "at_length")}  # fmt: skip
        found[f"{name}_trial"] = None if trial is None else " ".join(trial.hashes)
    rows = "; ".join(_published(context, tuning, method))
    return found | {"gained": gained, "edges": ", ".join(tuning.edges(method)), "row_trial": rows}


def trials_table(context: Context) -> Table | None:
    """Return every trial of every method; None without trials."""
    tuning = context.tuning
    if tuning is None or tuning.metric is None:
        return None
    rows, data = [], []
    for method, trials in tuning.trials.items():
        best = tuning.best(method)
        for trial in trials:
            others = trial.other_words
            rows.append((
                Entry(_title(context, tuning, method)),
                EMPTY if trial.learning_rate is None else Entry(f"{trial.learning_rate:g}"),
                Entry(f"{trial.rest_learning_rate:g}"), Entry(others) if others else EMPTY,
                Entry(score_text(trial, tuning.metric), trial is best),
                *([_long_entry(trial, tuning.metric, trial is best)] if tuning.confirms else []),
                Entry(" ".join(trial.hashes)),
            ))  # fmt: skip
            data.append({"method": method, "title": _title(context, tuning, method),
                         "learning_rate": trial.learning_rate, "rest_learning_rate": trial.rest_learning_rate,
                         "others": others, "score": trial.score, "at_length": trial.at_length,
                         "fallen": ", ".join(trial.fallen), "status": trial.status, "best": trial is best,
                         "plans": " ".join(trial.hashes)})  # fmt: skip
    heads = ("Method", "Learning rate", "Of the rest", "Other settings", tuning.metric.head,
             *(["At the runs' own length"] if tuning.confirms else []), "Trial")  # fmt: skip
    what = "every trial, the one chosen of each method in bold"
    return Table("trials", tuning_caption(context, tuning, what), heads, tuple(rows), (), pd.DataFrame(data))
