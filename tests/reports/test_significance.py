"""Ranks across tasks and the bootstrap of the front."""

from __future__ import annotations

import pytest

from reports.stats.significance import front_probability, rank_across_tasks


def test_ranks_share_ties_and_count_firsts() -> None:
    means = {"a": {"x": 3.0, "y": 1.0}, "b": {"x": 2.0, "y": 1.0}, "c": {"x": 1.0, "y": 0.0}}
    found = rank_across_tasks(means)
    assert [found[name].mean_rank for name in "abc"] == [1.25, 1.75, 3.0]
    assert [found[name].firsts for name in "abc"] == [2, 1, 0]
    assert found["a"].tasks == 2


def test_a_task_that_a_method_lacks_ranks_nobody() -> None:
    found = rank_across_tasks({"a": {"x": 1.0, "y": 9.0}, "b": {"x": 2.0}})
    assert (found["b"].mean_rank, found["b"].tasks) == (1.0, 1)
    assert rank_across_tasks({"a": {"x": 1.0}, "b": {"y": 1.0}}) == {}
    assert rank_across_tasks({"a": {"x": 1.0}}) == {}


def test_the_cheapest_is_always_on_the_front_and_a_dominated_one_never() -> None:
    costs = {"cheap": 1.0, "mid": 2.0, "dear": 3.0}
    scores = {"cheap": {0: 1.0, 1: 1.2}, "mid": {0: 0.5, 1: 0.6}, "dear": {0: 2.0, 1: 2.1}}
    assert front_probability(costs, scores) == {"cheap": 1.0, "mid": 0.0, "dear": 1.0}


def test_a_lead_on_half_of_the_seeds_is_a_chance_between() -> None:
    costs = {"cheap": 1.0, "dear": 2.0}
    scores = {"cheap": {0: 1.0, 1: 0.0}, "dear": {0: 0.0, 1: 1.0}}
    # Two draws of two seeds: "dear" leads the mean only if seed 1 is drawn twice (ties leave it off the front).
    chance = front_probability(costs, scores, draws=4000)["dear"]
    assert chance == pytest.approx(0.25, abs=0.03)
    assert chance == front_probability(costs, scores, draws=4000)["dear"]


def test_shared_seeds_cancel_what_they_do_to_both() -> None:
    scores = {"cheap": {0: 10.0, 1: 20.0, 2: 30.0}, "dear": {0: 10.1, 1: 20.1, 2: 30.1}}
    assert front_probability({"cheap": 1.0, "dear": 2.0}, scores)["dear"] == 1.0


def test_one_seed_says_nothing() -> None:
    assert front_probability({"a": 1.0}, {"a": {0: 1.0}}) == {}
    assert front_probability({}, {"a": {0: 1.0, 1: 2.0}}) == {}
