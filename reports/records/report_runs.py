"""What all tables and figures of one report share: its runs, its scores, and the words that say what they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from reports import averages as plugins
from reports.averages.convention import Convention, convention_of, every_reading
from reports.averages.glue import Average, Switchboard
from reports.figures.style import Look, looks, seed_words
from reports.records.frames import ROW, curves_frame, described, metrics_frame, runs_frame
from reports.records.provenance import joined
from reports.records.rows import base_of, told_apart
from reports.records.tuning import Tuning
from reports.stats.outcomes import Outcomes, metric_frame, outcomes, scores_frame
from reports.stats.over_seeds import runs_apart
from results.catalogue import Catalogue, MetricEntry, SuiteEntry
from results.schema import Record

ROUNDING = 1e-9
"""What two scores of the same predictions may differ by."""
MICRO = "Checks the pipeline; not the paper's numbers"


@dataclass(frozen=True)
class Column:
    """One column of scores: a task under the convention, or one metric of a suite's only task.

    Attributes:
        name: the task's or the metric's.
        keys: "split/metric" keys whose mean a value is, as far as they are known beforehand.
        metric: how values are printed, and which way they are better.
        places: method -> what became of its runs.
    """

    name: str
    task: str
    head: str
    keys: tuple[str, ...]
    metric: MetricEntry
    places: Mapping[str, Outcomes]

    def place(self, method: str) -> Outcomes:
        """Return what became of a method's runs."""
        return self.places.get(method, Outcomes())

    def gains(self, method: str) -> dict[int, float]:
        """Return seed -> score of a method so that more is better."""
        return {seed: self.metric.gain(score) for seed, score in self.place(method).scores.items()}

    def far_apart(self, methods: Sequence[str]) -> dict[str, str]:
        """Return, of these methods, those whose runs end far apart, with every score in words."""
        scores = {method: self.place(method).scores for method in methods}
        return {
            name: f"{', '.join(map(self.metric.text, scores[name].values()))} ({seed_words(list(scores[name]))})"
            for name in runs_apart(scores)
        }


@dataclass(frozen=True)
class Context:
    """One report: the selected records of one suite, the convention they are read under (None: the usual one), and the
    trials behind its settings (None: not among the records).

    A method that was run under several settings is several methods to all tables and figures, see `records.rows`.
    """

    selected: Sequence[Record]
    profile: str
    rank: int | None
    chosen: Convention | None = None
    tuning: Tuning | None = None

    @cached_property
    def records(self) -> list[Record]:
        """The records, under the names of their rows."""
        return told_apart(self.selected)

    @cached_property
    def catalogue(self) -> Catalogue:
        """What the records say of methods and suites."""
        return described(self.records)

    @property
    def suite(self) -> str:
        """The suite's name."""
        return self.selected[0].plan.suite

    @cached_property
    def entry(self) -> SuiteEntry:
        """What the records say of the suite."""
        return self.catalogue.suite(self.suite)

    @cached_property
    def convention(self) -> Convention:
        """How runs become scores, and scores an average."""
        return self.chosen or convention_of(self.entry)

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
    def grid(self) -> dict[tuple[str, str], Outcomes]:
        """(method, task) -> outcomes and scores under the convention."""
        return outcomes(scores_frame(self.runs, self.metrics, self.convention))

    @cached_property
    def read(self) -> dict[tuple[str, str, str | None], dict[str, Outcomes]]:
        """(evaluation, task, reading) -> method -> outcomes, for every way in which papers read the suite's tasks."""
        found: dict[tuple[str, str, str | None], dict[str, Outcomes]] = {}
        for convention in every_reading(self.entry, self.convention.seeds):
            for (method, task), place in outcomes(scores_frame(self.runs, self.metrics, convention)).items():
                found.setdefault((convention.epoch, task, convention.reading(task)), {})[method] = place
        return found

    @cached_property
    def switchboard(self) -> Switchboard | None:
        """The averages under every convention; None where there is none to make."""
        return None if self.plugin is None else self.plugin.switchboard(self)

    @cached_property
    def looks(self) -> dict[str, Look]:
        """Method -> look, in the order of rows."""
        return looks(self.runs["method"], self.catalogue, self.entry)

    @property
    def methods(self) -> list[str]:
        """Methods in the order of rows."""
        return list(self.looks)

    @cached_property
    def variants(self) -> dict[str, list[str]]:
        """Method -> its rows, first the one that the others are variants of: that differs from them in least."""
        rows: dict[str, list[str]] = {}
        for row in self.methods:
            rows.setdefault(row.partition(ROW)[0], []).append(row)
        settings = {row: set(row.partition(ROW)[2].split(",")) for row in self.methods}
        runs = Counter(record.plan.method for record in self.records)
        found = {}
        for method, mine in rows.items():
            base = base_of({row: settings[row] for row in mine}, runs)
            found[method] = [base, *(row for row in mine if row != base)]
        return found

    @cached_property
    def yardstick(self) -> str | None:
        """The method that others are measured against; None where it was not run."""
        return self.catalogue.yardstick(self.methods)

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks of the average and those that were run, in the suite's order."""
        average = self.convention.names if self.plugin is not None else ()
        return self.entry.ordered([*self.runs["task"], *average])

    @cached_property
    def titles(self) -> dict[str, str]:
        """Task -> title."""
        return {task: self.entry.task_title(task) for task in self.tasks}

    @cached_property
    def seeds(self) -> list[int]:
        """Every seed of the report."""
        return sorted({int(seed) for seed in self.runs["seed"]})

    @property
    def by_task(self) -> bool:
        """Whether a column of scores is a task; a suite's only task has a column for each of its metrics."""
        return len(self.tasks) > 1

    @cached_property
    def columns(self) -> list[Column]:
        """The columns of scores; of a lone task the metrics that some run has.

        Raises:
            CatalogueError: nobody says what a task's main metric is.
        """
        if not self.by_task:
            (task,) = self.tasks
            for key in self._main_keys(task):
                self.entry.metric(key)
            known = set(self.metrics.dropna(subset=["value"])["metric"])
            return [self._of_metric(task, metric) for metric in self.entry.metrics if metric.name in known]
        found = []
        for task in self.tasks:
            keys = self.convention.keys(task) or tuple(self._main_keys(task))
            if keys:
                places = {method: self.grid[method, task] for method in self.methods if (method, task) in self.grid}
                found.append(Column(task, task, self.titles[task], keys, self.metric_of(task), places))
        return found

    def metric_of(self, task: str) -> MetricEntry:
        """Return how a task's score is printed, and which way it is better."""
        return self.entry.metric((self.convention.keys(task) or tuple(self._main_keys(task)))[0])

    def _main_keys(self, task: str) -> list[str]:
        """Return the main metric of a task that no catalogue has, as its runs name it."""
        return sorted(set(self.runs.loc[self.runs["task"] == task, "main_metric"].dropna()))[:1]

    def _of_metric(self, task: str, metric: MetricEntry) -> Column:
        places = outcomes(metric_frame(self.runs, self.metrics, metric.name))
        splits = sorted({key.rpartition("/")[0] for key in self.runs["main_metric"].dropna()})
        keys = tuple(f"{split}/{metric.name}" for split in splits[:1])
        return Column(metric.name, task, metric.head, keys, metric, {method: p for (method, _), p in places.items()})

    @cached_property
    def compared(self) -> list[Column]:
        """The columns of which differences are taken."""
        named = [column for column in self.columns if column.name == self.entry.compared]
        return self.columns if self.by_task else named or self.columns[:1]

    @cached_property
    def plugin(self) -> plugins.Plugin | None:
        """What makes the suite's average; None for a suite without one, or with one that nobody knows here."""
        return plugins.plugin(self.entry.average)

    @property
    def average_note(self) -> list[str]:
        """Return a sentence where the suite names an average that nobody knows here."""
        if self.entry.average is None or self.plugin is not None:
            return []
        known = ", ".join(plugins.names())
        return [f"No average: {self.entry.title} names the average {self.entry.average!r}, known here: {known}"]

    @cached_property
    def averages(self) -> dict[str, Average]:
        """Method -> average under the convention, in the order of rows; empty where there is none to make."""
        made = self.plugin
        return {} if made is None else {method: made.average(self, method) for method in self.methods}

    @property
    def counted(self) -> Sequence[str]:
        """The tasks that a method's mean over tasks is over: those of the average, else all."""
        return self.convention.names if self.averages else self.tasks

    @property
    def averaged_metric(self) -> MetricEntry:
        """How an average is printed: as the scores it is made of."""
        return self.entry.metric(self.convention.keys(self.convention.names[0])[0])

    @cached_property
    def constants(self) -> dict[str, float]:
        """Column -> score of the best prediction that looks at nothing; absent where undefined or not the same."""
        found = {column.name: self.constant_score(column.task, column.keys) for column in self.columns}
        return {name: value for name, value in found.items() if value is not None}

    def constant_score(self, task: str, keys: Sequence[str]) -> float | None:
        """Return the mean over `keys` of what looks at nothing; None where undefined or not the same in all runs."""
        found = set()
        for record in self.records:
            if record.data is not None and record.plan.task == task and keys:
                values = [record.data.constant_scores.get(key) for key in keys]
                known = [value for value in values if value is not None]
                found |= {sum(known) / len(known)} if len(known) == len(values) else set()
        return found.pop() if len(found) == 1 else None

    def fallen(self, column: Column, methods: Sequence[str]) -> dict[str, list[int]]:
        """Return, of these methods, those with runs no better than what looks at nothing, with the seeds of those."""
        constant = self.constants.get(column.name)
        if constant is None:
            return {}
        least = column.metric.gain(constant) + ROUNDING
        found = {m: [seed for seed, gain in column.gains(m).items() if gain <= least] for m in methods}
        return {method: seeds for method, seeds in found.items() if seeds}

    def rows_shared(self, column: Column) -> int | None:
        """Return how many rows a column's score is a share of; None for other metrics, or where runs differ."""
        if {key.rpartition("/")[2] for key in column.keys} != {"accuracy"}:
            return None
        found = self.metrics.loc[(self.metrics["task"] == column.task) & self.metrics["key"].isin(column.keys), "rows"]
        return int(found.iloc[0]) if found.notna().all() and found.nunique() == 1 else None

    @property
    def constant(self) -> tuple[str, str] | None:
        """Title and rule of the prediction that looks at nothing; None where no task has one."""
        entries = [entry for task in self.tasks if (entry := self.entry.task(task)) is not None]
        return next(((e.constant, e.constant_rule or "") for e in entries if e.constant is not None), None)

    @property
    def constant_words(self) -> str:
        """What looks at nothing, in running text."""
        return f"the {(self.constant or ('constant prediction',))[0].lower()}"

    def title(self, method: str) -> str:
        """Return the method's printed name."""
        return self.looks[method].title

    def caption(self, what: str, scores: bool = False) -> str:
        """Return a caption that stands alone: what it is, on which model, data and seeds, and how to read it."""
        parts = [
            f"{self.heading}: {what}",
            f"Model {joined(self.runs['model_name'])}. Data: {self.data_words}",
            f"Evaluated on {self.split_words}{self.cap_words}; {seed_words(self.seeds)}",
        ]
        parts += [f"Convention: {self.convention.words()}"] if scores else []
        parts += [MICRO] if self.is_micro else []
        return ". ".join(parts) + "."

    @property
    def heading(self) -> str:
        """Which runs the report is about, with what all of them share that the profile does not have."""
        return ", ".join(filter(None, (self.about, self.variant)))

    @property
    def variant(self) -> str:
        """The variant that all runs are of, such as equal memory; empty where they are of none or of several."""
        found = {record.plan.variant for record in self.records}
        return found.pop() if len(found) == 1 else ""

    @property
    def about(self) -> str:
        """Suite, profile and rank."""
        return f"{self.entry.title}, profile {self.profile}" + ("" if self.rank is None else f", rank {self.rank}")

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
        """Which split was evaluated, and how many predicted tokens of it where that is what counts."""
        tokens = {
            f"{count:,} predicted tokens of {split.replace('_', '-')}"
            for record in self.records
            if record.data is not None
            for split, count in record.data.eval_tokens.items()
        }
        if tokens:
            capped = any(record.plan.data.eval_tokens is not None for record in self.records)
            return " and ".join(sorted(tokens)) + (", capped" if capped else "")
        held = self.runs["held_out"].fillna(value=False)
        names = {True: "a held-out part of train", False: "the validation split"}
        words = " and ".join(names[value] for value in sorted({bool(value) for value in held}))
        return words + (", capped" if self.caps else "")

    @cached_property
    def caps(self) -> dict[str, list[str]]:
        """How much was evaluated where that is less than all, "1,000 of 9,815 rows of validation" -> titles of tasks.

        Of official data against the rows of the release, else against the cap of the plan.
        """
        found: dict[str, list[str]] = {}
        for task in self.tasks:
            mine = [record for record in self.records if record.plan.task == task and record.data is not None]
            for words in dict.fromkeys(text for record in mine for text in self._capped(record)):
                found.setdefault(words, []).append(self.titles[task])
        return found

    def _capped(self, record: Record) -> list[str]:
        task, texts = self.entry.task(record.plan.task), []
        assert record.data is not None
        for split, rows in record.data.eval_rows.items():
            official = (
                task.official_rows.get(split) if task is not None and record.plan.data.source != "micro" else None
            )
            name = split.replace("_", "-")
            if official is not None and rows < official:
                texts.append(f"{rows:,} of {official:,} rows of {name}")
            elif official is None and rows == record.plan.data.eval_rows:
                texts.append(f"at {rows:,} rows of {name}")
        return texts

    @property
    def cap_words(self) -> str:
        """What follows "capped": how much of what was evaluated, by task where there are several."""
        parts = [f"{', '.join(titles)} {words}" if self.by_task else words for words, titles in self.caps.items()]
        return f": {'; '.join(parts)}" if parts else ""
