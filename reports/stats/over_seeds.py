"""Statistics over seeds: summaries, paired differences, fronts. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from scipy.stats import t as student

from results.catalogue import MetricEntry

LEVEL = 0.95
LEVEL_WORDS = f"{100 * LEVEL:.0f} %"
LEAST_SEEDS = 3
APART = 10.0
"""So many standard deviations of the other methods from the middle of its own, a run lies apart."""


@dataclass(frozen=True)
class Summary:
    """n values, their mean (None for none) and their standard deviation with n - 1 below (None for n < 2)."""

    n: int
    mean: float | None
    sd: float | None

    def text(self, metric: MetricEntry) -> str:
        """Return "mean ± sd" as the metric is printed, without sd for one seed, and a dash for no value."""
        if self.mean is None:
            return "—"
        spread = "" if self.sd is None else f" ± {format(metric.scale * self.sd, metric.format)}"
        return metric.text(self.mean) + spread


@dataclass(frozen=True)
class Paired:
    """Mean difference over the shared seeds with its t interval (None for fewer than two seeds)."""

    n: int
    mean: float | None
    sd: float | None
    low: float | None
    high: float | None

    def text(self, metric: MetricEntry) -> str:
        """Return "difference [low, high]" as the metric is printed, and a dash for no value."""
        shown = [metric.text(value, "+") for value in (self.mean, self.low, self.high) if value is not None]
        return (shown or ["—"])[0] + (f" [{shown[1]}, {shown[2]}]" if len(shown) == 3 else "")

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; never with fewer than `LEAST_SEEDS` seeds.

        Two seeds of a score that moves in steps of one row can agree by accident, which makes the interval a point.
        """
        if self.n < LEAST_SEEDS or self.low is None or self.high is None:
            return False
        return self.low > 0 or self.high < 0


def summarise(values: Iterable[float]) -> Summary:
    """Return n, mean and sd = sqrt(sum (x - mean)^2 / (n - 1))."""
    data = [float(value) for value in values]
    n = len(data)
    mean = math.fsum(data) / n if n else None
    if mean is None or n < 2:
        return Summary(n, mean, None)
    return Summary(n, mean, math.sqrt(math.fsum((value - mean) ** 2 for value in data) / (n - 1)))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float], level: float = LEVEL) -> Paired:
    """Return the mean of `ours - theirs` over the seeds that both have, with mean +- t_(n-1) * sd / sqrt(n).

    Raises:
        ValueError: `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}: must be between 0 and 1")
    summary = summarise(ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs)))
    if summary.mean is None or summary.sd is None:
        return Paired(summary.n, summary.mean, None, None, None)
    half = _quantile((1 + level) / 2, summary.n - 1) * summary.sd / math.sqrt(summary.n)
    return Paired(summary.n, summary.mean, summary.sd, summary.mean - half, summary.mean + half)


@lru_cache(maxsize=256)
def _quantile(share: float, freedom: int) -> float:
    """Return Student's quantile, kept: the page takes it a thousand times over a few numbers of seeds."""
    return float(student.ppf(share, freedom))


def clear_best(scores: Mapping[str, Mapping[int, float]], level: float = LEVEL) -> str | None:
    """Return the name with the highest mean if its paired interval against every other name excludes zero.

    Args:
        scores: name -> seed -> value, higher is better. A lone name is nobody's best: None.
    """
    means = {name: summarise(values.values()).mean for name, values in scores.items()}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if len(known) < 2:
        return None
    best = max(known, key=lambda name: known[name])
    others = [name for name in known if name != best]
    clear = all(paired_difference(scores[best], scores[name], level).excludes_zero for name in others)
    return best if clear else None


def runs_apart(scores: Mapping[str, Mapping[int, float]]) -> list[str]:
    """Return the names of which some value lies further than `APART` times the others' noise from the name's median.

    The others' noise is the median of their standard deviations, of those above zero with `LEAST_SEEDS` seeds; without
    any nothing is apart. A run that fell to the constant prediction beside two that did not is found.

    Args:
        scores: name -> seed -> value.
    """
    noise = {name: summarise(v.values()).sd for name, v in scores.items() if len(v) >= LEAST_SEEDS}
    found = []
    for name in noise:
        others = [sd for other, sd in noise.items() if other != name and sd]
        middle = median(scores[name].values())
        reach = max(abs(value - middle) for value in scores[name].values())
        if others and reach > APART * median(others):
            found.append(name)
    return found


def dominators(costs: Sequence[float], values: Sequence[float]) -> list[list[int]]:
    """Return, for each point, the places of those that cost at most as much, are worth at least as much, and differ.

    Raises:
        ValueError: the two sequences differ in length.
    """
    points = list(zip(costs, values, strict=True))
    return [
        [at for at, (c, v) in enumerate(points) if c <= cost and v >= value and (c, v) != (cost, value)]
        for cost, value in points
    ]


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Return which points nothing dominates.

    Raises:
        ValueError: the two sequences differ in length.
    """
    return [not found for found in dominators(costs, values)]


def geometric_mean(values: Iterable[float]) -> float | None:
    """Return exp(mean(log x)) of positive values; None for none."""
    summary = summarise(math.log(value) for value in values)
    return None if summary.mean is None else math.exp(summary.mean)
