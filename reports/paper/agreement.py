"""The verdict on one published number: stated inequalities, never a feeling.

Ours `x` has a mean over n seeds and standard deviation s; the published number p stands for k runs and was rounded to
half a unit h of its last digit. If both come from one distribution, mean(x) - p lies with probability `LEVEL` within

    b = t_(n-1) * s * sqrt(1/n + 1/k) + h

A difference that makes no difference is at most the margin m, which is stated with the protocol. So with
d = |mean(x) - p| the number *holds* if d + b <= m (all of the interval lies inside the margin), *does not hold* if
d - b > m (all of it outside), and is *undecided* in between: too few seeds, here or there, to tell. k is 1 where the
source does not say (the widest reading). Numbers that no seed moves, such as bytes, are compared with h alone. Two
seeds or one have no interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from scipy.stats import t as student

from reports.stats.over_seeds import LEAST_SEEDS, LEVEL, Summary, summarise

HOLDS, FAILS = "holds", "does not hold"
ACCOUNTING, PROTOCOL, ABSENT = "accounting differs", "other protocol", "not run here"
UNPUBLISHED, UNDECIDED = "not published", "undecided"

MEANINGS: dict[str, str] = {
    HOLDS: "the whole interval of the difference lies within the stated margin (bytes: within the rounding)",
    FAILS: "the whole interval of the difference lies outside the margin (bytes: outside the rounding)",
    ACCOUNTING: "the two numbers count different things, so no bound applies",
    PROTOCOL: "our run departs from the published protocol or brought no value, or the source does not state it",
    ABSENT: "no record of such a run",
    UNDECIDED: "the interval of the difference reaches over an end of the margin, or there are fewer than "
    f"{LEAST_SEEDS} seeds: more can tell",
    UNPUBLISHED: "no published value was found; the cell stays empty and says why",
}


@dataclass(frozen=True)
class Ours:
    """Our side of a cell.

    Attributes:
        values: seed -> value, in the unit of the published number.
        records: files of the runs behind them.
        departures: where the runs leave the published protocol, and which of them brought no value.
        accounting: how our count differs from the published one; None: both count the same.
        exact: no seed moves the value.
        chosen: what the runs chose where the source states nothing.
    """

    values: Mapping[int, float]
    records: tuple[str, ...] = ()
    departures: tuple[str, ...] = ()
    accounting: str | None = None
    exact: bool = False
    chosen: tuple[str, ...] = ()

    @property
    def summary(self) -> Summary:
        """n, mean and sd over seeds."""
        return summarise(self.values.values())


@dataclass(frozen=True)
class Agreement:
    """The word, and the numbers behind it: difference is ours minus published, bound the half-width of its interval."""

    word: str
    difference: float | None = None
    bound: float | None = None
    margin: float | None = None
    reasons: tuple[str, ...] = field(default=())


def agreement_bound(
    summary: Summary, published_seeds: int | None, rounding: float, exact: bool = False, level: float = LEVEL
) -> float | None:
    """Return the half-width of the interval of mean - published; None if the seeds are too few to tell.

    Raises:
        ValueError: `level` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}: must be between 0 and 1")
    if exact:
        return rounding
    if summary.sd is None or summary.n < LEAST_SEEDS:
        return None
    spread = summary.sd * math.sqrt(1 / summary.n + 1 / (published_seeds or 1))
    return float(student.ppf((1 + level) / 2, summary.n - 1)) * spread + rounding


def judge(
    published: float | None, rounding: float, published_seeds: int | None, ours: Ours | None, margin: float = 0.0
) -> Agreement:
    """Return the verdict on one cell.

    In this order: nothing published, another protocol or no value of what was run, nothing run, another accounting, too
    few seeds, the inequalities. An exact value that agrees in spite of another accounting holds: agreement to the last
    digit is no accident.
    """
    mean = ours.summary.mean if ours else None
    difference = mean - published if mean is not None and published is not None else None
    if published is None:
        return Agreement(UNPUBLISHED)
    if ours and ours.departures:
        return Agreement(PROTOCOL, difference, reasons=ours.departures)
    if ours is None or difference is None:
        return Agreement(ABSENT)
    bound = agreement_bound(ours.summary, published_seeds, rounding, ours.exact)
    # A difference on an edge must not depend on the last bit of a float.
    agrees = ours.exact and bound is not None and abs(difference) <= bound * (1 + 1e-9)
    if ours.accounting and not agrees:
        return Agreement(ACCOUNTING, difference, reasons=(ours.accounting,))
    if bound is None:
        return Agreement(UNDECIDED, difference, reasons=(f"n = {ours.summary.n}",))
    if ours.exact:
        return Agreement(HOLDS if agrees else FAILS, difference, bound, reasons=ours.chosen)
    word = UNDECIDED
    if abs(difference) + bound <= margin * (1 + 1e-9):
        word = HOLDS
    elif abs(difference) - bound > margin * (1 + 1e-9):
        word = FAILS
    return Agreement(word, difference, bound, margin, ours.chosen)
