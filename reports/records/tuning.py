"""The trials behind tuned settings: what was tried of each method on held-out train rows, and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reports.records.frames import ROW, STATUSES, described, in_order
from reports.records.selection import table_rank
from reports.stats.budget import ExpectedBest, expected_best
from reports.stats.over_seeds import summarise
from results.catalogue import Catalogue, CatalogueError, MetricEntry, SuiteEntry
from results.schema import Plan, Record, flat
from results.search import EDGE, AtLength, Range, Search, joined

UNSET = "unset"
NOT_SETTINGS = frozenset(
    {"task", "seed", "method", "training.learning_rate", "training.rest_learning_rate", "data.digest", "data.name",
     "training.epochs", "training.warmup_steps", "data.train_rows"}
)  # fmt: skip
"""Fields of a plan that follow from task or steps, or are a point's rates."""


@dataclass(frozen=True)
class Trial:
    """One point that was tried of one method: a run for each task.

    Attributes:
        learning_rate: of the method's matrices; None where it trains none.
        rest_learning_rate: of what every method trains alike; the learning rate where that has no rate of its own.
        others: other settings in which the method's trials differ, name -> value as text.
        score: mean over the tasks of the last held-out score; None where a run brought none. Of a search the score of
            its seed; of a grid with several the mean over them.
        at_length: the score at the runs' own length, where a search asked for it; None as above.
        fallen: tasks on which it is no better than the constant prediction there.
        status: "ok", or the worst of what became of its runs, the last of `STATUSES` among them.
        hashes: of the plans of its runs.
    """

    learning_rate: float | None
    rest_learning_rate: float
    others: tuple[tuple[str, str], ...]
    score: float | None
    status: str
    hashes: tuple[str, ...]
    at_length: float | None = None
    asked_at_length: bool = False
    fallen: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Its settings as text."""
        rates = "" if self.learning_rate is None else f"{self.learning_rate:g} / "
        return ", ".join(filter(None, [f"{rates}{self.rest_learning_rate:g}", self.other_words]))

    @property
    def other_words(self) -> str:
        """Its settings beside the rates as text, without what it does not have."""
        return ", ".join(
            f"{name.replace('_', ' ')} {v}" for name, value in self.others if (v := value.strip('"')) != UNSET
        )


@dataclass(frozen=True)
class Tuning:
    """All trials of one suite, profile and rank, and the record of the search where there is one.

    `longer`: the runs of its best trials at the length that their rates are chosen for.
    """

    records: tuple[Record, ...]
    search: Search | None = None
    longer: tuple[Record, ...] = ()

    @cached_property
    def catalogue(self) -> Catalogue:
        """What the records say of methods and suites."""
        return described(self.records)

    @property
    def entry(self) -> SuiteEntry:
        """What the records say of the suite."""
        return self.catalogue.suite(self.records[0].plan.suite)

    @property
    def name(self) -> str:
        """What is printed for it: stem of its folder."""
        plan = self.records[0].plan
        rank = max((rank for record in self.records if (rank := table_rank(record)) is not None), default=None)
        return f"{plan.suite}-{plan.profile}" + ("" if rank is None else f"-r{rank}")

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks that were searched on, in the suite's order."""
        return self.entry.ordered(record.plan.task for record in self.records)

    @cached_property
    def metric(self) -> MetricEntry | None:
        """How a trial's score is printed; None where no run says it, or tasks differ in scale."""
        found = {metric.name: metric for record in self.records if (metric := self._metric(record)) is not None}
        alike = {(metric.better, metric.scale, metric.words) for metric in found.values()}
        if len(alike) != 1:
            return None
        first = next(iter(found.values()))
        return first if len(found) == 1 else first.model_copy(update={"name": "score", "title": "score"})

    def _key(self, record: Record) -> str | None:
        """Return the key of a run's score: the suite's measure of differences, else the run's main one."""
        main = record.main_metric
        if main is None or self.entry.compared is None:
            return main
        return f"{main.rpartition('/')[0]}/{self.entry.compared}"

    def _metric(self, record: Record) -> MetricEntry | None:
        try:
            return self.entry.metric(self._key(record) or "")
        except CatalogueError:
            return None

    @cached_property
    def trials(self) -> dict[str, tuple[Trial, ...]]:
        """Method -> its trials by rising rates, in the order of rows."""
        found = {}
        for method in self.catalogue.ordered(record.plan.method for record in self.records):
            mine = [record for record in in_order(self.records) if record.plan.method == method]
            found[method] = tuple(self._trials(mine, trained=not self.catalogue.method(method).control))
        return found

    def _trials(self, records: Sequence[Record], trained: bool) -> list[Trial]:
        names, longer = _varied(records), {record.plan_hash: record for record in self.longer}
        places: dict[tuple[Any, ...], list[Record]] = {}
        for record in records:
            places.setdefault(_point(record.plan, names), []).append(record)
        made = []
        for (rate, rest, *others), runs in sorted(
            places.items(), key=lambda item: [(type(v).__name__, v) for v in item[0]]
        ):
            score, hashes = self._score(runs), tuple(record.plan_hash for record in runs)
            worst = max((r.status for r in runs if r.status != "ok"), key=STATUSES.index, default="no score")
            status = worst if score is None else "ok"
            asked = [self._asked[hash_] for hash_ in hashes if hash_ in self._asked]
            long = [longer[hash_] for task, again in asked if (hash_ := again.plans[task]) in longer]
            fallen = dict.fromkeys(self.entry.task_title(task) for _, again in asked for task in again.fallen)
            made.append(Trial(rate if trained else None, rest, tuple(zip(names, others, strict=True)), score,
                              status.replace("_", " "), hashes, self._score(long), bool(long),
                              tuple(fallen)))  # fmt: skip
        return made

    @cached_property
    def _asked(self) -> dict[str, tuple[str, AtLength]]:
        """Plan hash of a trial's run -> its task, and what the trial came to at the runs' own length."""
        trials = self.search.results if self.search else ()
        ended = [(trial.plans, trial.at_length) for trial in trials if trial.at_length is not None]
        return {hash_: (task, at_length) for plans, at_length in ended for task, hash_ in plans.items()}

    @property
    def confirms(self) -> bool:
        """Whether the search asked its best trials at the runs' own length."""
        return self.search is not None and self.search.confirm > 0

    def _score(self, runs: Sequence[Record]) -> float | None:
        """Return the mean over the tasks of what `runs` of one point brought; None where one of them brought none."""
        scores = {task: self._scores(runs, task) for task in self.tasks}
        # A mean over the seeds that finished would flatter a point where others did not.
        whole = all(scores.values()) and sum(map(len, scores.values())) == len(runs)
        return summarise(summarise(found).mean or 0.0 for found in scores.values()).mean if whole else None

    def _scores(self, runs: Iterable[Record], task: str) -> list[float]:
        found = []
        for record in runs:
            if record.plan.task == task and record.status == "ok" and record.evaluations:
                last = max(record.evaluations, key=lambda evaluation: evaluation.step)
                value = last.metrics.get(self._key(record) or "")
                if value is not None and math.isfinite(value):
                    found.append(value)
        return found

    def gain(self, trial: Trial) -> float | None:
        """Return a trial's score so that more is better."""
        return None if trial.score is None or self.metric is None else self.metric.gain(trial.score)

    def best(self, method: str) -> Trial | None:
        """Return the trial with the best score, the first of equal ones; None where none has one.

        Where a search asked its best ones at the runs' own length, its choice.
        """
        if self.search is not None and self.confirms:
            chosen = {(c.method, c.round, c.number) for c in self.search.choices if c.method == method}
            plans = [{*t.plans.values()} for t in self.search.results if (t.method, t.round, t.number) in chosen]
            return next((trial for trial in self.trials[method] if {*trial.hashes} in plans), None)
        known = [(found, trial) for trial in self.trials[method] if (found := self.gain(trial)) is not None]
        return max(known, key=lambda pair: pair[0])[1] if known else None

    @cached_property
    def worst(self) -> float | None:
        """The worst score of any trial of any method, more is better: what a trial without one counts."""
        return min(
            (found for of in self.trials.values() for t in of if (found := self.gain(t)) is not None), default=None
        )

    def expected(self, method: str) -> list[ExpectedBest]:
        """Return the expected best score (more is better) of 1 to N of a method's trials; none where none has one."""
        worst = self.worst
        if worst is None or self.best(method) is None:
            return []
        return expected_best([worst if (found := self.gain(t)) is None else found for t in self.trials[method]])

    def usual(self, method: str) -> Trial | None:
        """Return the trial nearest, in logarithms, to the middle of the first ranges: the method's usual rates.

        None where no record of a search says the ranges.
        """
        spaces = [space for space in self.search.spaces if space.method == method] if self.search else []
        if not spaces:
            return None
        first = min(spaces, key=lambda space: space.round)

        def distance(trial: Trial) -> float:
            rest = _from_middle(trial.rest_learning_rate, first.rest_learning_rate)
            return math.hypot(rest, _from_middle(trial.learning_rate, first.learning_rate))

        return min(self.trials[method], key=distance, default=None)

    def edges(self, method: str) -> list[str]:
        """Return which rates of the best trial lie within a tenth of the end of what was searched, as "rate low".

        The ends are those of the search's ranges, else the lowest and highest rate that was tried.
        """
        best = self.best(method)
        if best is None:
            return []
        for choice in self.search.choices if self.search else ():
            if choice.method == method:
                return list(choice.edges)
        found = []
        for name in ("learning_rate", "rest_learning_rate"):
            values = [math.log(v) for t in self.trials[method] if (v := getattr(t, name)) is not None]
            if len(set(values)) > 1 and (name == "learning_rate" or self._apart(method)):
                at = (math.log(getattr(best, name)) - min(values)) / (max(values) - min(values))
                found += [f"{name} low"] * (at <= EDGE) + [f"{name} high"] * (at >= 1 - EDGE)
        return found

    def _apart(self, method: str) -> bool:
        """Whether the rest had a rate of its own in any trial."""
        return any(t.learning_rate != t.rest_learning_rate for t in self.trials[method])

    def trial_of(self, row: str, records: Iterable[Record]) -> Trial | None:
        """Return the trial whose settings a row of a report has on all tasks; None where none has them."""
        plans = [record.plan for record in records if record.plan.method == row]
        for trial in self.trials.get(row.partition(ROW)[0], ()):
            if plans and all(self._is_of(trial, plan) for plan in plans):
                return trial
        return None

    def _is_of(self, trial: Trial, plan: Plan) -> bool:
        # A final run may be longer than its trials: the method's own settings and the rates are what was chosen.
        own = {name: value for name, value in trial.others if not name.startswith(("training.", "data."))}
        rate, rest, *others = _point(plan, tuple(own))
        same = trial.learning_rate in (None, rate) and trial.rest_learning_rate == rest
        return same and others == [*own.values()]

    def origin(self, row: str, records: Iterable[Record]) -> dict[str, str]:
        """Return what the search behind a row's settings was: trials, tasks and steps, and whether it has them."""
        method = row.partition(ROW)[0]
        plans = [record.plan for record in self.records if record.plan.method == method]
        steps = sorted({plan.training.steps for plan in plans})
        return {
            "trials of the search": str(len(self.trials.get(method, ()))),
            "tasks of the search": ", ".join(map(self.entry.task_title, self.entry.ordered(p.task for p in plans))),
            "steps of a trial": ", ".join(map(str, steps)),
            "settings of a trial": "no" if self.trial_of(row, records) is None else "yes",
        }


def tuning_of(records: Iterable[Record], searches: Iterable[Search], results: Sequence[Record]) -> Tuning | None:
    """Return the trials of the comparison that `results` are of; None where none is among the records.

    Those of the same suite, profile and ranks, and where some are, of the same model; where there is the record of a
    search, its own: a grid from before is another budget. Methods searched alike in several folders are of one search.
    """
    places = {(r.plan.suite, r.plan.profile) for r in results}
    ranks, models = {None, *map(table_rank, results)}, {r.plan.model.name for r in results}
    mine = [r for r in records if r.plan.purpose == "tuning" and (r.plan.suite, r.plan.profile) in places
            and table_rank(r) in ranks]  # fmt: skip
    mine = [r for r in mine if r.plan.model.name in models] or mine
    for search in joined(searches):
        tried = {hash_ for trial in search.results for hash_ in trial.plans.values()}
        longer = {hash_ for trial in search.results if trial.at_length for hash_ in trial.at_length.plans.values()}
        if own := tuple(record for record in mine if record.plan_hash in tried):
            return Tuning(own, search, tuple(record for record in mine if record.plan_hash in longer))
    return Tuning(tuple(mine)) if mine else None


def _varied(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the settings, but for the rates, in which runs of one task differ."""
    by_task: dict[str, list[dict[str, str]]] = {}
    for record in records:
        by_task.setdefault(record.plan.task, []).append(_settings(record.plan))
    names = sorted({name for of in by_task.values() for settings in of for name in settings})
    return tuple(name for name in names if any(len({s.get(name) for s in of}) > 1 for of in by_task.values()))


def _settings(plan: Plan) -> dict[str, str]:
    found = flat(plan.model_dump(mode="json"))
    return {name.removeprefix("method_config."): json.dumps(v) for name, v in found.items() if name not in NOT_SETTINGS}


def _point(plan: Plan, names: Sequence[str]) -> tuple[Any, ...]:
    rate, settings = plan.training.learning_rate, _settings(plan)
    return rate, plan.training.rest_learning_rate or rate, *(settings.get(name, UNSET) for name in names)


def _from_middle(rate: float | None, range_: Range | None) -> float:
    if rate is None or range_ is None:
        return 0.0
    return math.log10(rate) - (math.log10(range_.low) + math.log10(range_.high)) / 2
