"""What "the GLUE average" means: an explicit convention, and scores under it.

Papers differ in every choice below, which moves the average by several points. A table names the convention it uses.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal, get_args, get_type_hints

import pandas as pd

from reports.figures.style import seed_words
from reports.stats.seeds import Summary, summarise

TASKS: dict[str, str] = {
    "cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "stsb": "STS-B", "qqp": "QQP",
    "mnli": "MNLI", "qnli": "QNLI", "rte": "RTE", "wnli": "WNLI",
}  # fmt: skip

NOT_RUN, UNDEFINED, NOT_RECORDED = "not run", "undefined", "not recorded"

SEED_WORDS = {"same": "", "shared": ", average over the seeds that all tasks have"}

MetricRule = Literal["f1", "accuracy", "mean"]


class ChoiceError(ValueError):
    """A value that is not among the allowed ones; the text lists them and the nearest."""


@dataclass(frozen=True)
class Convention:
    """How a run becomes a score, and scores an average.

    Attributes:
        epoch: "last" evaluation, or the "best" one (chosen on the validation split itself, so optimistic).
        tasks: 9, or 8 without WNLI.
        mnli: accuracy on the matched split, the mismatched one, or their mean.
        mrpc, qqp: F1, accuracy, or their mean.
        stsb: Pearson, Spearman, or their mean.
        seeds: "same": an average exists only if every task has the same seeds; "shared": seeds that were not run on
            some task are left out. A seed that was run and brought no score leaves no average under either.

    The default is that of GaLore's table 4 (arXiv 2403.03507) as far as that is stated (MRPC F1), with WNLI added and
    the last evaluation, which needs no choice on the validation split.

    Raises:
        ChoiceError: a value that is not among the allowed ones.
    """

    epoch: Literal["last", "best"] = "last"
    tasks: Literal[8, 9] = 9
    mnli: Literal["matched", "mismatched", "mean"] = "matched"
    mrpc: MetricRule = "f1"
    qqp: MetricRule = "accuracy"
    stsb: Literal["pearson", "spearman", "mean"] = "pearson"
    seeds: Literal["same", "shared"] = "same"

    def __post_init__(self) -> None:
        allowed = get_type_hints(type(self))
        for item in fields(self):
            check_choice(getattr(self, item.name), get_args(allowed[item.name]), item.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks of the average, in GLUE's order."""
        return tuple(task for task in TASKS if self.tasks == 9 or task != "wnli")

    def keys(self, task: str) -> tuple[str, ...]:
        """Return the "split/metric" keys whose mean is the task's score.

        Raises:
            ChoiceError: unknown task.
        """
        check_choice(task, tuple(TASKS), "task")
        both = {"mrpc": self.mrpc, "qqp": self.qqp}
        if task == "mnli":
            splits = ("matched", "mismatched") if self.mnli == "mean" else (self.mnli,)
            return tuple(f"validation_{split}/accuracy" for split in splits)
        if task in both:
            return _keys(both[task], ("f1", "accuracy"))
        if task == "stsb":
            return _keys(self.stsb, ("pearson", "spearman"))
        return _keys("matthews" if task == "cola" else "accuracy", ())

    def words(self) -> str:
        """Return the convention as one sentence without a full stop."""
        mnli = {"mean": "mean of matched and mismatched accuracy"}.get(self.mnli, f"{self.mnli} accuracy")
        count = "nine tasks" if self.tasks == 9 else "eight tasks (WNLI left out)"
        epoch = "last evaluation" if self.epoch == "last" else "best evaluation (chosen on the same split: optimistic)"
        return (
            f"{count}, {epoch}, CoLA Matthews correlation, MRPC {_spoken(self.mrpc, 'F1 and accuracy')}, "
            f"QQP {_spoken(self.qqp, 'F1 and accuracy')}, STS-B {_spoken(self.stsb, 'Pearson and Spearman')}, "
            f"MNLI {mnli}, all others accuracy{SEED_WORDS[self.seeds]}"
        )


def _keys(rule: str, both: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"validation/{metric}" for metric in (both if rule == "mean" else (rule,)))


def _spoken(rule: str, both: str) -> str:
    names = {
        "mean": f"mean of {both}",
        "f1": "F1",
        "pearson": "Pearson correlation",
        "spearman": "Spearman correlation",
    }
    return names.get(rule, rule)


def check_choice(value: object, allowed: tuple[object, ...], what: str) -> None:
    """Raise ChoiceError, naming the allowed values and the nearest, unless `value` is one of them."""
    if value in allowed:
        return
    texts = [str(item) for item in allowed]
    near = difflib.get_close_matches(str(value), texts, n=1, cutoff=0.3)
    hint = f"; nearest: {near[0]}" if near else ""
    raise ChoiceError(f"unknown {what} {value!r}: known are {', '.join(texts)}{hint}")


@dataclass(frozen=True)
class Cell:
    """One method on one task: the outcome of every seed that was run, and the scores of those that have one."""

    outcomes: dict[int, str] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def summary(self) -> Summary:
        """n, mean and sd over the seeds that have a score."""
        return summarise(self.scores.values())

    @property
    def broken(self) -> bool:
        """Whether any run brought no score."""
        return len(self.scores) < len(self.outcomes)

    def trouble(self, seeds: Sequence[int]) -> str:
        """Return what became of the seeds without a score, as "diverged 1/3, not run 1/3"."""
        bad = [self.outcomes.get(seed, NOT_RUN) for seed in seeds if seed not in self.scores]
        return ", ".join(
            f"{outcome.replace('_', ' ')} {bad.count(outcome)}/{len(seeds)}" for outcome in sorted(set(bad))
        )


@dataclass(frozen=True)
class Average:
    """One method's average by seed; the cells without a score; and the seeds that all tasks have nevertheless."""

    scores: dict[int, float]
    missing: tuple[str, ...]
    common: tuple[int, ...] = ()

    @property
    def summary(self) -> Summary:
        """n, mean and sd over seeds of the average."""
        return summarise(self.scores.values())


def scores_frame(runs: pd.DataFrame, metrics: pd.DataFrame, convention: Convention) -> pd.DataFrame:
    """Return one row a run of a known task: method, task, seed, outcome, score (the metric's own scale) and its step.

    `outcome` is "ok" where there is a score, else the run's status, or for a run of status ok "undefined" (a metric
    without a value, as a correlation of constant predictions) or "not recorded" (the metric is not in the record).
    """
    known = runs[runs["task"].isin(list(TASKS))]
    parts = [pd.DataFrame({"plan_hash": pd.array([], dtype="string"), "step": [], "score": []})]
    for task in known["task"].unique():
        keys = convention.keys(task)
        rows = metrics[(metrics["task"] == task) & metrics["key"].isin(list(keys))]
        grouped = rows.groupby(["plan_hash", "step"], observed=True)["value"]
        points = pd.DataFrame({"score": grouped.mean(), "known": grouped.count(), "size": grouped.size()}).reset_index()
        points["score"] = points["score"].where(points["known"] == len(keys))
        parts.append(_chosen(points[points["size"] == len(keys)], convention.epoch))
    chosen = pd.concat(parts)
    frame = known[["plan_hash", "method", "task", "seed", "status"]].merge(
        chosen[["plan_hash", "step", "score"]], on="plan_hash", how="left"
    )
    frame["score"] = frame["score"].astype("Float64").where(frame["status"] == "ok")
    reason = pd.Series(UNDEFINED, index=frame.index).where(frame["step"].notna(), NOT_RECORDED)
    frame["outcome"] = frame["status"].where(frame["status"] != "ok", reason.where(frame["score"].isna(), "ok"))
    return frame


def _chosen(points: pd.DataFrame, epoch: str) -> pd.DataFrame:
    """Return one row a run: its last step, or the first of its highest scores."""
    ordered = points.sort_values(["plan_hash", "step"])
    if epoch == "best":
        ordered = ordered.sort_values(["plan_hash", "score", "step"], ascending=[True, False, True], na_position="last")
        return ordered.groupby("plan_hash", observed=True).head(1)
    return ordered.groupby("plan_hash", observed=True).tail(1)


def cells(scores: pd.DataFrame) -> dict[tuple[str, str], Cell]:
    """Return (method, task) -> cell."""
    found: dict[tuple[str, str], Cell] = {}
    for row in scores.sort_values("seed").itertuples(index=False):
        cell = found.setdefault((row.method, row.task), Cell())
        cell.outcomes[int(row.seed)] = row.outcome
        if row.outcome == "ok":
            cell.scores[int(row.seed)] = float(row.score)
    return found


def average(method: str, grid: dict[tuple[str, str], Cell], seeds: list[int], convention: Convention) -> Average:
    """Return the mean over the convention's tasks for each seed of one method.

    It exists only if every task has a score for the same seeds; with `seeds="shared"` seeds that some task was not
    run with are left out, but a run without a score still leaves no average: leaving it out would flatter the
    method. `missing` names every cell without a score, over all `seeds` of the report; `common` are the seeds that
    "shared" would use.
    """
    row = {task: grid.get((method, task), Cell()) for task in convention.names}
    sets = [set(cell.scores) for cell in row.values()]
    common = set() if any(cell.broken for cell in row.values()) else set.intersection(*sets)
    usable = common if convention.seeds == "shared" or all(found == common for found in sets) else set()
    missing = tuple(text for task, cell in row.items() for text in _missing(task, cell, seeds))
    means = {s: math.fsum(cell.scores[s] for cell in row.values()) / len(row) for s in sorted(usable)}
    return Average(means, missing, tuple(sorted(common)))


def _missing(task: str, cell: Cell, seeds: list[int]) -> list[str]:
    """Return texts such as "RTE seed 2 (diverged)", seeds of equal outcome together."""
    by_outcome: dict[str, list[int]] = {}
    for seed in seeds:
        if seed not in cell.scores:
            by_outcome.setdefault(cell.outcomes.get(seed, NOT_RUN), []).append(seed)
    return [f"{TASKS[task]} {seed_words(found)} ({outcome.replace('_', ' ')})" for outcome, found in by_outcome.items()]
