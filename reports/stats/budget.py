"""The expected best score as a function of the number of trials. Pure functions of numbers.

Dodge et al. 2019, "Show Your Work" (arXiv 1909.03004), section 3: the maximum of n draws from the empirical
distribution of the scores that were found, with its variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ExpectedBest:
    """Expectation and standard deviation of the best of `trials` draws."""

    trials: int
    mean: float
    sd: float


def expected_best(scores: Sequence[float]) -> list[ExpectedBest]:
    """Return the expected best of 1 to N draws, with replacement, of N scores, larger is better.

    E[max of n] = sum_i v_(i) ((i/N)^n - ((i-1)/N)^n) over the scores in rising order (equation 5); the variance is
    E[max^2] - E[max]^2, from the same weights.

    Raises:
        ValueError: a score that is not finite: the caller says what a trial without a score counts.
    """
    if not all(map(math.isfinite, scores)):
        raise ValueError("scores: must be finite; say what a trial without a score counts")
    ordered, count = sorted(scores), len(scores)
    found = []
    for n in range(1, count + 1):
        weights = [(i / count) ** n - ((i - 1) / count) ** n for i in range(1, count + 1)]
        mean = math.fsum(w * v for w, v in zip(weights, ordered, strict=True))
        # Around the mean, so that large scores of a small spread lose no digits.
        variance = math.fsum(w * (v - mean) ** 2 for w, v in zip(weights, ordered, strict=True))
        found.append(ExpectedBest(n, mean, math.sqrt(variance)))
    return found
