"""Differences of pairs over seeds and tasks, corrected for how many pairs there are. Pure functions of numbers.

Runs are paired by seed and task. The tasks of a benchmark are given, not drawn: the difference is the mean over them,
and its interval speaks of other seeds on the same tasks. That over tasks as a sample of tasks stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from scipy.stats import t as student

from reports.stats.over_seeds import LEAST_SEEDS, LEVEL, paired_difference, summarise

DIGITS = 12
"""Differences are rounded to as many decimals: what is left below is the noise of floats, and equal scores tie."""
LEAST_TASKS = 3
K = TypeVar("K", bound=Hashable)
Scores = Mapping[str, Mapping[int, float]]
"""Task -> seed -> score, larger is better."""


@dataclass(frozen=True)
class Difference:
    """Mean over tasks of the mean difference over shared seeds.

    Attributes:
        pairs: shared (seed, task) pairs.
        fewest: shared seeds of the task that has fewest.
        mean: None where some task has no shared seed.
        error: standard error, sqrt(sum_t s_t^2 / n_t) / T; None where some task has fewer than two shared seeds.
        freedom: of its t distribution (Satterthwaite, 1946); of one task n - 1.
        p: two-sided, of no difference; None with fewer than `LEAST_SEEDS` shared seeds on some task, which can agree
            by accident where a score moves in steps of one row.
        by_task: task -> mean difference.
    """

    pairs: int
    fewest: int
    mean: float | None
    error: float | None
    freedom: float | None
    p: float | None
    by_task: Mapping[str, float]

    def interval(self, level: float) -> tuple[float, float] | None:
        """Return mean +- t * error; None without an error."""
        if self.mean is None or self.error is None or self.freedom is None:
            return None
        half = float(student.ppf((1 + level) / 2, self.freedom)) * self.error if self.error else 0.0
        return self.mean - half, self.mean + half


@dataclass(frozen=True)
class Pair(Generic[K]):
    """Two of several, the first the better one in the mean, and what may be said of their difference.

    Attributes:
        p: corrected by Holm's method for all pairs that have one.
        low, high: holds with those of all other pairs at once (Bonferroni); cut at zero where Holm's method decides
            and this interval alone would not, which keeps that (Guilbaud, 2008).
        tasks_low, tasks_high: the same over tasks as a sample of tasks; None for fewer than `LEAST_TASKS`.
        noise: standard deviation over seeds of the mean over tasks, of both, pooled; None for one seed.
    """

    first: K
    second: K
    difference: Difference
    p: float | None
    low: float | None
    high: float | None
    tasks_low: float | None
    tasks_high: float | None
    noise: float | None

    @property
    def decided(self) -> bool:
        """Whether the first is better than the second."""
        return self.p is not None and self.p <= 1 - LEVEL

    @property
    def bound(self) -> float | None:
        """The size that no difference exceeds, as far as the interval says."""
        return None if self.low is None or self.high is None else max(abs(self.low), abs(self.high))

    @property
    def effect(self) -> float | None:
        """The difference in units of the seed noise; None where that is unknown or nothing varies."""
        return self.difference.mean / self.noise if self.difference.mean is not None and self.noise else None

    @property
    def over_tasks(self) -> bool | None:
        """Whether the first is better over tasks as a sample of tasks too; None where that is not asked."""
        return None if self.tasks_low is None else self.tasks_low > 0


def difference(ours: Scores, theirs: Scores) -> Difference:
    """Return the difference `ours - theirs` over the tasks of either."""
    summaries = {}
    for task in sorted({*ours, *theirs}):
        mine, other = ours.get(task, {}), theirs.get(task, {})
        summaries[task] = summarise(round(mine[seed] - other[seed], DIGITS) for seed in sorted(set(mine) & set(other)))
    counts = [found.n for found in summaries.values()]
    pairs, fewest = sum(counts), min(counts, default=0)
    by_task = {task: found.mean for task, found in summaries.items() if found.mean is not None}
    if not fewest:
        return Difference(pairs, fewest, None, None, None, None, by_task)
    mean = math.fsum(by_task.values()) / len(by_task)
    if fewest < 2:
        return Difference(pairs, fewest, mean, None, None, None, by_task)
    parts = [((found.sd or 0.0) ** 2 / found.n, found.n) for found in summaries.values()]
    error = math.sqrt(math.fsum(part for part, _ in parts)) / len(parts)
    weight = math.fsum(part**2 / (n - 1) for part, n in parts)
    freedom = math.fsum(part for part, _ in parts) ** 2 / weight if weight else float(sum(n - 1 for n in counts))
    p = None if fewest < LEAST_SEEDS else _p(mean, error, freedom)
    return Difference(pairs, fewest, mean, error, freedom, p, by_task)


def _p(mean: float, error: float, freedom: float) -> float:
    if not error:
        return 0.0 if mean else 1.0
    return float(2 * student.sf(abs(mean) / error, freedom))


def holm(values: Mapping[K, float]) -> dict[K, float]:
    """Return the corrected p values: max over the smaller ones of (m - i) p_(i), at most 1 (Holm, 1979)."""
    found: dict[K, float] = {}
    so_far = 0.0
    for rank, key in enumerate(sorted(values, key=lambda key: values[key])):
        so_far = max(so_far, min(1.0, (len(values) - rank) * values[key]))
        found[key] = so_far
    return found


def corrected(scores: Mapping[K, Scores], asked: Sequence[tuple[K, K]], level: float = LEVEL) -> list[Pair[K]]:
    """Return the asked pairs, corrected for all of them that can be compared; the better of each stands first."""
    found = []
    for first, second in asked:
        one = difference(scores[first], scores[second])
        if one.mean is not None and one.mean < 0:
            first, second, one = second, first, difference(scores[second], scores[first])
        found.append((first, second, one))
    known = {at: one.p for at, (_, _, one) in enumerate(found) if one.p is not None}
    adjusted = holm(known)
    each = 1 - (1 - level) / max(1, sum(one.error is not None for _, _, one in found))
    return [
        _pair(first, second, one, adjusted.get(at), each, _noise(scores[first], scores[second]))
        for at, (first, second, one) in enumerate(found)
    ]


def _pair(first: K, second: K, one: Difference, p: float | None, level: float, noise: float | None) -> Pair[K]:
    low, high = one.interval(level) or (None, None)
    if p is not None and p <= 1 - LEVEL and low is not None:
        low = max(0.0, low)
    # Tasks stand where seeds stand elsewhere: the same interval over their mean differences.
    tasks = paired_difference(dict(enumerate(one.by_task.values())), dict.fromkeys(range(len(one.by_task)), 0.0), level)
    sample = len(one.by_task) >= LEAST_TASKS and one.error is not None
    ends = (tasks.low, tasks.high) if sample else (None, None)
    return Pair(first, second, one, p, low, high, *ends, noise)


def _noise(first: Scores, second: Scores) -> float | None:
    spreads = [_spread(scores) for scores in (first, second)]
    return None if None in spreads else math.sqrt(math.fsum((s or 0.0) ** 2 for s in spreads) / 2)


def _spread(scores: Scores) -> float | None:
    """Return the standard deviation over seeds of the mean over tasks, from those of the tasks."""
    sds = [summarise(values.values()).sd for values in scores.values()]
    return None if not sds or None in sds else math.sqrt(math.fsum((sd or 0.0) ** 2 for sd in sds)) / len(sds)
