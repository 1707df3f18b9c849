"""The expected best of n trials: the formula against every draw there is, and against simulation."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from reports.stats.budget import expected_best


def test_against_every_draw() -> None:
    scores = [0.3, -1.0, 0.9, 0.3]
    for point in expected_best(scores):
        bests = [max(draw) for draw in product(scores, repeat=point.trials)]
        assert point.mean == pytest.approx(np.mean(bests))
        assert point.sd == pytest.approx(np.std(bests))


def test_against_simulation() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(5.0, 1.0, 16)
    point = expected_best(scores.tolist())[7]
    bests = rng.choice(scores, (100_000, 8)).max(axis=1)
    assert point.mean == pytest.approx(bests.mean(), abs=4 * bests.std() / math.sqrt(100_000))
    assert point.sd == pytest.approx(bests.std(), rel=0.02)


def test_of_one_it_is_the_mean_and_it_rises_towards_the_best() -> None:
    found = expected_best([1.0, 2.0, 6.0])
    assert (found[0].mean, found[0].sd) == pytest.approx((3.0, math.sqrt(14 / 3)))
    means = [point.mean for point in found]
    assert means == sorted(means)
    assert means[-1] < 6.0


def test_equal_scores_do_not_spread() -> None:
    assert [(point.mean, point.sd) for point in expected_best([1e6, 1e6])] == [(1e6, 0.0), (1e6, 0.0)]
    assert expected_best([]) == []


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        expected_best([1.0, float("-inf")])
