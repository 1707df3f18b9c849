"""Data, models, settings, machines and code behind a report, each said once where its runs agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from reports.records.frames import ROW
from reports.records.selection import uneven_settings

if TYPE_CHECKING:
    from reports.records.report_runs import Context

SETTINGS = ("steps", "batch_size", "max_length", "precision", "state_bits")


def provenance(context: Context) -> tuple[str, ...]:
    """Return sentences on data, model, settings, machine and code behind the report."""
    lines = [
        *_by_task("Data", context.runs, "data_notes", context.titles),
        *_spread("Model", context.runs["model_disclosure"]),
    ]
    lines += _learning_rates(context)
    lines += _settings(context)
    lines += [f"Settings that differ within a task: {text}" for text in uneven_settings(context.records)]
    places = context.runs[["device_name", "threads", "workers"]].drop_duplicates().itertuples(index=False)
    words = sorted(f"{d}, {_counted(t, 'thread')}, {_counted(w, 'run')} at a time" for d, t, w in places)
    lines.append(f"Machine: {'; '.join(words)}")
    lines.append(
        f"Versions: torch {joined(context.runs['torch'])}, transformers {joined(context.runs['transformers'])}"
    )
    dirty = context.runs["dirty"].fillna(value=False).map({True: " with uncommitted changes", False: ""})
    lines.append(f"Code: commit {joined(context.runs['commit'].fillna('unknown') + dirty.astype('string'))}")
    return tuple(lines)


def _settings(context: Context) -> list[str]:
    """One line where all tasks agree, else one for each group of tasks that do."""
    lines = {
        task: ", ".join(f"{name.replace('_', ' ')} {joined(runs[name])}" for name in SETTINGS)
        for task, runs in context.runs.groupby("task", observed=True)
    }
    return _by_task(
        "Settings", context.runs.assign(settings=context.runs["task"].map(lines)), "settings", context.titles
    )


def _learning_rates(context: Context) -> list[str]:
    parts = []
    for method in context.methods:
        mine = context.runs[context.runs["method"] == method]
        shown = [_range(mine[name]) for name in ("learning_rate", "rest_learning_rate")]
        parts.append(f"{context.title(method)} {' / '.join(filter(None, shown))}")
    rest = " (of the matrices / of the rest)" if context.runs["rest_learning_rate"].notna().any() else ""
    return [f"Learning rates{rest}: {listed(parts)}", *_searched(context)]


def _range(values: pd.Series) -> str:
    rates = sorted({float(rate) for rate in values.dropna()})
    return (f"{rates[0]:g}" + (f" to {rates[-1]:g}" if len(rates) > 1 else "")) if rates else ""


def _searched(context: Context) -> list[str]:
    """Return which trial of its search each row has the settings of, where the trials are among the records."""
    if context.tuning is None:
        return []
    parts = []
    for row in context.methods:
        trials = context.tuning.trials.get(row.partition(ROW)[0], ())
        trial = context.tuning.trial_of(row, context.records)
        found = "no trial" if trial is None else f"trial {' '.join(trial.hashes)}"
        parts.append(
            f"{context.title(row)} {found} of {len(trials)}" if trials else f"{context.title(row)} not searched"
        )
    return [f"Search {context.tuning.name} behind the settings (tables tuned and trials): {listed(parts)}"]


def listed(parts: Sequence[str]) -> str:
    """Return names of rows as a list; between names that hold commas themselves stand semicolons."""
    return ("; " if any("," in part for part in parts) else ", ").join(parts)


def joined(values: pd.Series) -> str:
    """Return the distinct known values, sorted, as text; "unknown" for none."""
    found = sorted(set(values.dropna()))
    return ", ".join(map(str, found)) or "unknown"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _spread(what: str, values: pd.Series) -> list[str]:
    return [f"{what}: {text}" for text in sorted(set(values.dropna())) if text]


def _by_task(what: str, runs: pd.DataFrame, column: str, titles: Mapping[str, str]) -> list[str]:
    """Return one line for each text, naming the tasks it is about unless it is about all."""
    notes = {
        task: sorted({text for text in runs.loc[runs["task"] == task, column].dropna() if text}) for task in titles
    }
    texts: dict[str, list[str]] = {}
    for task, found in notes.items():
        if found:
            texts.setdefault("; ".join(found), []).append(task)
    run = set(runs["task"]) & set(titles)
    return [
        f"{what}: {text}" if set(tasks) == run else f"{what}, {', '.join(titles[task] for task in tasks)}: {text}"
        for text, tasks in texts.items()
    ]
