"""Differences of pairs against scipy and hand-made numbers: intervals over seeds and tasks, Holm's correction."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from reports.stats.pairs import Scores, corrected, difference, holm


def pairs_of(scores: dict[str, Scores]) -> list:  # type: ignore[type-arg]
    return corrected(scores, list(combinations(scores, 2)))


def noisy(seed: int, level: float, tasks: int = 1, seeds: int = 5, spread: float = 0.01) -> Scores:
    rng = np.random.default_rng(seed)
    return {f"t{t}": dict(enumerate(rng.normal(level, spread, seeds).tolist())) for t in range(tasks)}


def test_of_one_task_it_is_the_paired_t_test() -> None:
    ours, theirs = noisy(0, 0.8), noisy(1, 0.79)
    found = difference(ours, theirs)
    want = scipy_stats.ttest_rel(list(ours["t0"].values()), list(theirs["t0"].values()))
    assert found.p == pytest.approx(want.pvalue)
    assert found.freedom == pytest.approx(want.df)
    interval = want.confidence_interval(0.9)
    assert found.interval(0.9) == pytest.approx((interval.low, interval.high))


def test_over_tasks_by_hand() -> None:
    ours = {"a": {0: 0.5, 1: 0.6, 2: 0.7}, "b": {0: 0.3, 1: 0.3, 2: 0.3, 3: 0.5}}
    theirs = {"a": {0: 0.4, 1: 0.4, 2: 0.4}, "b": {0: 0.2, 1: 0.3, 2: 0.4, 3: 0.5}}
    found = difference(ours, theirs)
    # a: 0.1, 0.2, 0.3 (mean 0.2, sd 0.1); b: 0.1, 0, -0.1, 0 (mean 0, sd sqrt(0.02 / 3)).
    first, second = 0.01 / 3, 0.02 / 3 / 4
    assert found.mean == pytest.approx(0.1)
    assert found.error == pytest.approx(math.sqrt(first + second) / 2)
    assert found.freedom == pytest.approx((first + second) ** 2 / (first**2 / 2 + second**2 / 3))
    assert found.by_task == pytest.approx({"a": 0.2, "b": 0.0})
    assert (found.pairs, found.fewest) == (7, 3)


def test_the_interval_covers_what_it_promises() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        tasks = {t: (0.3 * t, 0.01 * 10**t) for t in range(3)}  # differences and noise that vary with the task
        ours = {f"t{t}": {s: mean + rng.normal(0, sd) for s in range(3)} for t, (mean, sd) in tasks.items()}
        low, high = difference(ours, {t: dict.fromkeys(range(3), 0.0) for t in ours}).interval(0.95) or (1.0, -1.0)
        hits += low <= 0.3 <= high
    assert 0.92 <= hits / 400 <= 0.99


def test_one_seed_has_a_difference_and_no_interval() -> None:
    (pair,) = pairs_of({"a": {"t": {0: 0.5}}, "b": {"t": {0: 0.7}}})
    assert (pair.first, pair.second) == ("b", "a")
    assert pair.difference.mean == pytest.approx(0.2)
    assert (pair.low, pair.high, pair.p, pair.noise, pair.decided) == (None, None, None, None, False)


def test_two_seeds_have_an_interval_and_decide_nothing() -> None:
    (pair,) = pairs_of({"a": {"t": {0: 0.5, 1: 0.5}}, "b": {"t": {0: 0.7, 1: 0.7}}})
    assert (pair.low, pair.high) == pytest.approx((0.2, 0.2))
    assert (pair.p, pair.decided) == (None, False)


def test_a_task_without_shared_seeds_leaves_no_difference() -> None:
    ours = {"a": {0: 0.5, 1: 0.6, 2: 0.7}, "b": {0: 0.5}}
    theirs = {"a": {0: 0.5, 1: 0.6, 2: 0.8}, "b": {1: 0.5}}
    found = difference(ours, theirs)
    assert (found.mean, found.error, found.p, found.fewest) == (None, None, None, 0)
    assert difference(ours, {"a": theirs["a"]}).mean is None


def test_only_shared_seeds_count() -> None:
    found = difference({"t": {0: 1.0, 1: 2.0, 9: 50.0}}, {"t": {0: 0.5, 1: 1.0, 7: -50.0}})
    assert found.pairs == 2
    assert found.mean == pytest.approx(0.75)


def test_all_equal_is_no_difference_however_floats_add_up() -> None:
    ours = {"t": {seed: 0.1 + 0.2 for seed in range(3)}}
    (pair,) = pairs_of({"a": ours, "b": {"t": dict.fromkeys(range(3), 0.3)}})
    assert (pair.difference.mean, pair.p, pair.low, pair.high, pair.effect) == (0.0, 1.0, 0.0, 0.0, None)
    assert not pair.decided


def test_a_difference_that_never_varies_is_certain() -> None:
    (pair,) = pairs_of({"a": {"t": {0: 0.5, 1: 0.6, 2: 0.7}}, "b": {"t": {0: 0.4, 1: 0.5, 2: 0.6}}})
    assert pair.decided
    assert (pair.low, pair.high) == pytest.approx((0.1, 0.1))
    assert pair.effect == pytest.approx(1.0)


def test_holm_against_numbers_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_the_correction_is_over_all_pairs_and_the_intervals_hold_together() -> None:
    scores = {name: noisy(seed, level) for seed, (name, level) in enumerate({"a": 0.8, "b": 0.8, "c": 0.9}.items())}
    found = {(pair.first, pair.second): pair for pair in pairs_of(scores)}
    alone = {names: pair.difference.p for names, pair in found.items()}
    assert {names: pair.p for names, pair in found.items()} == holm(alone)
    for pair in found.values():
        low, high = pair.difference.interval(1 - 0.05 / 3) or (0.0, 0.0)
        assert pair.high == pytest.approx(high)
        assert pair.low == pytest.approx(max(0.0, low) if pair.decided else low)
        assert pair.decided == (pair.p is not None and pair.p <= 0.05)
    assert found["c", "a"].decided
    assert found["c", "b"].decided


def test_what_holm_alone_decides_has_its_interval_cut_at_zero() -> None:
    """Of two pairs the second may be decided at 5 %, where its interval is still that of 2.5 %."""
    rng = np.random.default_rng(3)
    sure = {"t": {s: 1.0 + 1e-3 * rng.normal() for s in range(5)}}
    near = {"t": {s: value for s, value in enumerate([0.02, 0.06, 0.03, 0.09, 0.01])}}
    zero = {"t": dict.fromkeys(range(5), 0.0)}
    first, second = corrected({"sure": sure, "near": near, "zero": zero}, [("sure", "zero"), ("near", "zero")])
    assert first.decided
    assert second.decided
    low, _ = second.difference.interval(0.975) or (0.0, 0.0)
    assert low < 0 == second.low


def test_the_noise_is_that_of_the_mean_over_tasks() -> None:
    ours = {"a": {0: 0.1, 1: 0.3}, "b": {0: 0.5, 1: 0.5}}
    theirs = {"a": {0: 0.2, 1: 0.2}, "b": {0: 0.1, 1: 0.5}}
    (pair,) = pairs_of({"x": ours, "y": theirs})
    spreads = [math.sqrt(0.02) / 2, math.sqrt(0.08) / 2]
    assert pair.noise == pytest.approx(math.sqrt((spreads[0] ** 2 + spreads[1] ** 2) / 2))


def test_over_tasks_as_a_sample_is_the_t_test_of_their_means() -> None:
    ours = noisy(0, 0.8, tasks=4)
    theirs = {task: {seed: value - 0.01 * at for seed, value in ours[task].items()} for at, task in enumerate(ours)}
    (pair,) = pairs_of({"a": ours, "b": theirs})
    want = scipy_stats.ttest_1samp([0.0, 0.01, 0.02, 0.03], 0.0).confidence_interval(0.95)
    assert (pair.tasks_low, pair.tasks_high) == pytest.approx((want.low, want.high))
    assert pair.decided
    assert pair.over_tasks is False
    (few,) = pairs_of({"a": noisy(0, 0.8, tasks=2), "b": noisy(1, 0.7, tasks=2)})
    assert few.over_tasks is None
