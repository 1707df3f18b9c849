"""What became of every run of a method on a task: outcomes, scores, and which evaluation counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from reports.averages.convention import Convention
from reports.stats.over_seeds import Summary, summarise

NOT_RUN, UNDEFINED, NOT_RECORDED = "not run", "undefined", "not recorded"


@dataclass(frozen=True)
class Outcomes:
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


def scores_frame(runs: pd.DataFrame, metrics: pd.DataFrame, convention: Convention) -> pd.DataFrame:
    """Return one row a run: method, task, seed, outcome, score (the metric's own scale) and its step.

    A task is read as the convention says; one without several readings by each run's own main metric, and a run on
    held-out rows, which are one split, by the reading's metrics there. `outcome` is "ok" where there is a score, else
    the run's status, or for a run of status ok "undefined" (a metric without a value, as a correlation of constant
    predictions) or "not recorded" (the metric is not in the record).
    """
    parts, ends = [], last_steps(runs)
    split = _main_split(runs, metrics)
    held = metrics["plan_hash"].isin(list(runs.loc[runs["held_out"].fillna(value=False), "plan_hash"]))
    for task in runs["task"].unique():
        keys, of_task = convention.keys(task), metrics["task"] == task
        best = _gain(convention, keys) if convention.epoch == "best" else None
        if convention.reading(task) is None:
            parts.append(points(metrics[of_task & metrics["is_main"]], max(1, len(keys)), ends, best))
            continue
        names = {key.rpartition("/")[2] for key in keys}
        there = held & (metrics["split"] == split) & metrics["metric"].isin(names)
        parts.append(points(metrics[of_task & ~held & metrics["key"].isin(keys)], len(keys), ends, best))
        parts.append(points(metrics[of_task & there], len(names), ends, best))
    return outcomes_frame(runs, parts)


def metric_frame(runs: pd.DataFrame, metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the same of one metric at the last evaluation, on the split that the run's main metric is of."""
    chosen = (metrics["metric"] == metric) & (metrics["split"] == _main_split(runs, metrics))
    return outcomes_frame(runs, [points(metrics[chosen], 1, last_steps(runs), None)])


def _main_split(runs: pd.DataFrame, metrics: pd.DataFrame) -> pd.Series:
    return metrics["plan_hash"].map(runs.set_index("plan_hash")["main_metric"].str.rpartition("/")[0])


def last_steps(runs: pd.DataFrame) -> pd.Series:
    """Return plan hash -> step of the last evaluation, whatever was measured there."""
    return runs.set_index("plan_hash")["last_step"]


def points(
    rows: pd.DataFrame, keys: int, ends: pd.Series, best: Callable[[pd.Series], pd.Series] | None
) -> pd.DataFrame:
    """Return one row a run (plan_hash, step, score): the mean over `keys` values at the last or the best evaluation.

    A run whose last evaluation lacks one of them has no row: an earlier one is not its last.

    Args:
        ends: plan hash -> step of the run's last evaluation.
        best: score -> the same so that more is better; None takes the last evaluation.
    """
    grouped = rows.groupby(["plan_hash", "step"], observed=True)["value"]
    found = pd.DataFrame({"score": grouped.mean(), "known": grouped.count(), "size": grouped.size()}).reset_index()
    found["score"] = found["score"].where(found["known"] == keys)
    found = found[found["size"] == keys].sort_values(["plan_hash", "step"])
    if best is None:
        return found[found["step"] == found["plan_hash"].map(ends)][["plan_hash", "step", "score"]]
    found = found.assign(gain=best(found["score"]))
    found = found.sort_values(["plan_hash", "gain", "step"], ascending=[True, False, True], na_position="last")
    return found.groupby("plan_hash", observed=True).head(1)[["plan_hash", "step", "score"]]


def outcomes_frame(runs: pd.DataFrame, parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return one row a run with its outcome and score."""
    none = pd.DataFrame({"plan_hash": pd.array([], dtype="string"), "step": [], "score": []})
    frame = runs[["plan_hash", "method", "task", "seed", "status"]].merge(
        pd.concat([none, *parts]), on="plan_hash", how="left"
    )
    frame["score"] = frame["score"].astype("Float64").where(frame["status"] == "ok")
    reason = pd.Series(UNDEFINED, index=frame.index).where(frame["step"].notna(), NOT_RECORDED)
    frame["outcome"] = frame["status"].where(frame["status"] != "ok", reason.where(frame["score"].isna(), "ok"))
    return frame


def _gain(convention: Convention, keys: Sequence[str]) -> Callable[[pd.Series], pd.Series]:
    lower = bool(keys) and convention.suite.metric(keys[0]).better == "lower"
    return (lambda scores: -scores) if lower else (lambda scores: scores)


def outcomes(scores: pd.DataFrame) -> dict[tuple[str, str], Outcomes]:
    """Return (method, task) -> outcomes."""
    found: dict[tuple[str, str], Outcomes] = {}
    for row in scores.sort_values("seed").to_dict("records"):
        place = found.setdefault((row["method"], row["task"]), Outcomes())
        place.outcomes[int(row["seed"])] = row["outcome"]
        if row["outcome"] == "ok":
            place.scores[int(row["seed"])] = float(row["score"])
    return found
