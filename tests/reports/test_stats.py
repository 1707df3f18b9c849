"""The statistics against hand-made numbers and scipy's own tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from reports.stats.over_seeds import clear_best, geometric_mean, paired_difference, pareto_front, runs_apart, summarise


def test_summary_of_none_one_and_many() -> None:
    empty = summarise([])
    assert (empty.n, empty.mean, empty.sd) == (0, None, None)
    one = summarise([3.0])
    assert (one.n, one.mean, one.sd) == (1, 3.0, None)
    many = summarise([1.0, 2.0, 4.0])
    assert many.mean == pytest.approx(7 / 3)
    assert many.sd == pytest.approx(np.std([1, 2, 4], ddof=1))


def test_paired_interval_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    ours = dict(enumerate(rng.normal(0.8, 0.02, 7)))
    theirs = dict(enumerate(rng.normal(0.79, 0.02, 7)))
    found = paired_difference(ours, theirs, level=0.9)
    expected = scipy_stats.ttest_rel(list(ours.values()), list(theirs.values())).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_pairs_are_the_shared_seeds_alone() -> None:
    found = paired_difference({0: 1.0, 1: 2.0, 5: 100.0}, {0: 0.5, 1: 1.0, 6: -100.0})
    assert found.n == 2
    assert found.mean == pytest.approx(0.75)


def test_no_interval_from_one_seed() -> None:
    found = paired_difference({0: 1.0}, {0: 0.0})
    assert (found.mean, found.low, found.high, found.excludes_zero) == (1.0, None, None, False)
    assert paired_difference({0: 1.0}, {1: 1.0}).mean is None


def test_level_out_of_range() -> None:
    with pytest.raises(ValueError, match="level 95: must be between 0 and 1"):
        paired_difference({}, {}, level=95)


def test_best_is_clear_only_against_every_other() -> None:
    base = {0: 0.70, 1: 0.71, 2: 0.72}
    better = {seed: value + 0.05 + 0.001 * seed for seed, value in base.items()}
    near = {0: 0.76, 1: 0.74, 2: 0.77}
    assert clear_best({"a": base, "b": better}) == "b"
    assert clear_best({"a": base, "b": better, "c": near}) is None
    assert clear_best({"b": better}) is None


def test_two_seeds_are_never_clear() -> None:
    assert clear_best({"a": {0: 0.1, 1: 0.2}, "b": {0: 0.8, 1: 0.9}}) is None


def test_front_keeps_equal_points_and_drops_dominated_ones() -> None:
    assert pareto_front([1, 2, 3, 1, 2], [10, 20, 15, 10, 19]) == [True, True, False, True, False]
    assert pareto_front([], []) == []


@pytest.mark.parametrize("seed", range(5))
def test_front_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, values = rng.integers(0, 6, 25).tolist(), rng.integers(0, 6, 25).tolist()
    expected = []
    for cost, value in zip(costs, values, strict=True):
        cheaper = [v for c, v in zip(costs, values, strict=True) if c < cost]
        as_cheap = [v for c, v in zip(costs, values, strict=True) if c <= cost]
        expected.append(not (any(v >= value for v in cheaper) or any(v > value for v in as_cheap)))
    assert pareto_front(costs, values) == expected


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert geometric_mean([]) is None


def test_runs_lie_apart_by_the_noise_of_the_others() -> None:
    near = {"a": {0: 1.0, 1: 1.1, 2: 0.9}, "b": {0: 2.0, 1: 2.2, 2: 1.8}}
    assert runs_apart(near | {"c": {0: 3.0, 1: 3.9, 2: 3.0}}) == []
    assert runs_apart(near | {"c": {0: 3.0, 1: 5.1, 2: 3.0}}) == ["c"]
    # Nothing to measure with: others that agree exactly, or have fewer seeds.
    assert runs_apart({"a": dict.fromkeys(range(3), 1.0), "c": {0: 3.0, 1: 9.0, 2: 3.0}}) == []
    assert runs_apart({"a": {0: 1.0, 1: 1.1}, "c": {0: 3.0, 1: 9.0, 2: 3.0}}) == []
