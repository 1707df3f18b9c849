"""What all tables and figures of one report share: its runs, its scores, and the words that say what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import pandas as pd

from reports.averages.glue import TASKS, Average, Cell, Convention, average, cells, scores_frame
from reports.figures.style import Look, looks, seed_words
from reports.records.frames import curves_frame, metrics_frame, runs_frame
from reports.records.selection import uneven_settings
from results.schema import Record

MICRO = "Checks pipeline and ordering; not the paper's numbers"
SETTINGS = ("steps", "batch_size", "max_length", "precision", "state_bits")


@dataclass(frozen=True)
class Context:
    """One report: the selected records and the convention they are read under."""

    suite: ClassVar[str] = "glue"
    suite_title: ClassVar[str] = "GLUE"
    titles: ClassVar[Mapping[str, str]] = TASKS

    records: Sequence[Record]
    profile: str
    rank: int
    convention: Convention = field(default_factory=Convention)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row a run."""
        return runs_frame(self.records)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row a metric value."""
        return metrics_frame(self.records)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row a curve point."""
        return curves_frame(self.records)

    @cached_property
    def grid(self) -> dict[tuple[str, str], Cell]:
        """(method, task) -> outcomes and scores under the convention."""
        return cells(scores_frame(self.runs, self.metrics, self.convention))

    @cached_property
    def looks(self) -> dict[str, Look]:
        """Method -> look, in the order of rows."""
        return looks(self.runs["method"])

    @property
    def methods(self) -> list[str]:
        """Methods in the order of rows."""
        return list(self.looks)

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks of the convention and those that were run, in GLUE's order."""
        present = set(self.runs["task"]) | set(self.convention.names)
        return [task for task in TASKS if task in present]

    @cached_property
    def seeds(self) -> list[int]:
        """Every seed of the report."""
        return sorted({int(seed) for seed in self.runs["seed"]})

    @cached_property
    def averages(self) -> dict[str, Average]:
        """Method -> average under the convention, in the order of rows."""
        return {method: average(method, self.grid, self.seeds, self.convention) for method in self.methods}

    @cached_property
    def constants(self) -> dict[str, float]:
        """Task -> score of the best constant prediction under the convention; absent where that is undefined."""
        found: dict[str, float] = {}
        for record in self.records:
            if record.data is not None and record.plan.task in TASKS:
                values = [record.data.constant_scores.get(key) for key in self.convention.keys(record.plan.task)]
                known = [value for value in values if value is not None]
                if known and len(known) == len(values):
                    found[record.plan.task] = sum(known) / len(known)
        return found

    def title(self, method: str) -> str:
        """Return the method's printed name."""
        return self.looks[method].title

    def caption(self, what: str, scores: bool = False) -> str:
        """Return a caption that stands alone: what it is, on which model, data and seeds, and how to read it."""
        parts = [
            f"{self.suite_title}, profile {self.profile}, rank {self.rank}: {what}",
            f"Model {joined(self.runs['model_name'])}. Data: {self.data_words}",
            f"Evaluated on {self.split_words}; {seed_words(self.seeds)}",
        ]
        parts += [f"Convention: {self.convention.words()}"] if scores else []
        parts += [MICRO] if self.is_micro else []
        return ". ".join(parts) + "."

    @property
    def is_micro(self) -> bool:
        """Whether any run is of the generated language or the micro model: then nothing here is the paper's."""
        made = (self.runs["data_source"] == "micro") | (self.runs["model_source"] == "micro")
        return self.profile == "micro" or bool(made.any())

    @property
    def data_words(self) -> str:
        """Where the rows come from, and whether they are the official ones."""
        source = joined(self.runs["data_name"].str.cat(self.runs["data_source"], sep=" (") + ")")
        known = self.runs.dropna(subset=["official"])
        foreign = [task for task in self.tasks if not known.loc[known["task"] == task, "official"].all()]
        if known.empty:
            return f"{source}, unknown whether official: no run got as far as loading it"
        if not foreign:
            return f"{source}, official"
        everything = set(foreign) >= set(known["task"])
        return f"{source}, not official" + ("" if everything else f" for {', '.join(self.titles[t] for t in foreign)}")

    @property
    def split_words(self) -> str:
        """Which split was evaluated."""
        held = self.runs["held_out"].fillna(value=False)
        names = {True: "a held-out part of train", False: "the validation split, not the hidden test split"}
        return " and ".join(names[value] for value in sorted({bool(value) for value in held}))

    def provenance(self) -> tuple[str, ...]:
        """Return sentences on data, model, settings, machine and code behind the report."""
        lines = [
            *_by_task("Data", self.runs, "data_notes", self.titles),
            *_spread("Model", self.runs["model_disclosure"]),
        ]
        lines += self._learning_rates()
        lines += self._settings()
        lines += [f"Settings that differ within a task: {text}" for text in uneven_settings(self.records)]
        places = self.runs[["device_name", "threads", "workers"]].drop_duplicates().itertuples(index=False)
        words = sorted(f"{d}, {_counted(t, 'thread')}, {_counted(w, 'run')} at a time" for d, t, w in places)
        lines.append(f"Machine: {'; '.join(words)}")
        lines.append(f"Versions: torch {joined(self.runs['torch'])}, transformers {joined(self.runs['transformers'])}")
        dirty = self.runs["dirty"].fillna(value=False).map({True: " with uncommitted changes", False: ""})
        lines.append(f"Code: commit {joined(self.runs['commit'].fillna('unknown') + dirty.astype('string'))}")
        return tuple(lines)

    def _settings(self) -> list[str]:
        """One line where all tasks agree, else one for each group of tasks that do."""
        lines = {
            task: ", ".join(f"{name.replace('_', ' ')} {joined(runs[name])}" for name in SETTINGS)
            for task, runs in self.runs.groupby("task", observed=True)
        }
        return _by_task("Settings", self.runs.assign(settings=self.runs["task"].map(lines)), "settings", self.titles)

    def _learning_rates(self) -> list[str]:
        parts = []
        for method in self.methods:
            mine = self.runs[self.runs["method"] == method]
            rates = sorted({float(rate) for rate in mine["learning_rate"]})
            parts.append(f"{self.title(method)} {rates[0]:g}" + (f" to {rates[-1]:g}" if len(rates) > 1 else ""))
        return [f"Learning rates: {', '.join(parts)}"]


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
