"""The verdict: every word, in its order, and the inequality against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from reports.paper.agreement import (
    ABSENT,
    ACCOUNTING,
    FAILS,
    HOLDS,
    MEANINGS,
    PROTOCOL,
    UNDECIDED,
    UNPUBLISHED,
    Ours,
    agreement_bound,
    judge,
)

# Three seeds with mean 60 and standard deviation 1; the t quantile for two degrees is 4.302653.
SEEDS = {0: 59.0, 1: 60.0, 2: 61.0}
BOUND = 4.302653 * math.sqrt(1 / 3 + 1)


@pytest.mark.parametrize(("published_seeds", "spread"), [(None, 1 / 3 + 1), (1, 1 / 3 + 1), (5, 1 / 3 + 1 / 5)])
def test_the_bound_is_the_stated_one(published_seeds: int | None, spread: float) -> None:
    want = 4.302653 * math.sqrt(spread) + 0.005
    assert agreement_bound(Ours(SEEDS).summary, published_seeds, 0.005) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
    ("published", "margin", "word"),
    [
        # b is 4.973: within a margin of 5 only a difference near zero, outside it only one of nearly ten.
        (60.0, 5.0, HOLDS),
        (60.02, 5.0, HOLDS),
        (60.1, 5.0, UNDECIDED),
        (55.0, 5.0, UNDECIDED),
        (60 + BOUND + 5.0, 5.0, UNDECIDED),
        (60 + BOUND + 5.01, 5.0, FAILS),
        (60 - BOUND - 5.01, 5.0, FAILS),
        # Without a margin nothing that seeds move can be shown to be the same.
        (60.0, 0.0, UNDECIDED),
        (60 + BOUND + 0.01, 0.0, FAILS),
    ],
)
def test_the_interval_and_the_margin_decide(published: float, margin: float, word: str) -> None:
    verdict = judge(published, 0.005, None, Ours(SEEDS), margin)
    assert verdict.word == word
    assert verdict.difference == pytest.approx(60 - published)
    assert (verdict.bound, verdict.margin) == (pytest.approx(BOUND + 0.005, rel=1e-6), margin)


def test_a_larger_spread_of_ours_decides_less() -> None:
    wide = Ours({0: 55.0, 1: 60.0, 2: 65.0})
    assert judge(70.0, 0.0, 1, Ours(SEEDS), 1.0).word == FAILS
    assert judge(70.0, 0.0, 1, wide, 1.0).word == UNDECIDED


def test_more_seeds_can_show_what_three_cannot() -> None:
    many = Ours({seed: 60.0 + 0.4 * (-1) ** seed for seed in range(40)})
    assert judge(60.1, 0.005, 40, many, 1.0).word == HOLDS
    assert judge(60.1, 0.005, 1, Ours(SEEDS), 1.0).word == UNDECIDED


def test_what_a_run_chose_is_said_beside_the_verdict() -> None:
    chosen = Ours(SEEDS, chosen=("learning rate 0.0005: not stated by GaLore",))
    assert judge(60.0, 0.005, 1, chosen, 5.0).reasons == chosen.chosen


@pytest.mark.parametrize("values", [{0: 60.0}, {0: 60.0, 1: 60.0}])
def test_one_seed_or_two_decide_nothing(values: dict[int, float]) -> None:
    verdict = judge(60.0, 0.005, 1, Ours(values))
    assert (verdict.word, verdict.bound) == (UNDECIDED, None)


def test_bytes_are_compared_by_the_rounding_alone() -> None:
    assert judge(0.24, 0.005, None, Ours({0: 0.244}, exact=True)).word == HOLDS
    assert judge(0.24, 0.005, None, Ours({0: 0.2451}, exact=True)).word == FAILS
    assert judge(0.24, 0.005, None, Ours({0: 0.245}, exact=True)).word == HOLDS


def test_another_accounting_is_said_unless_the_bytes_agree() -> None:
    other = Ours({0: 0.50}, accounting="counts more", exact=True)
    assert judge(0.24, 0.005, None, other).word == ACCOUNTING
    assert judge(0.50, 0.005, None, other).word == HOLDS
    assert judge(0.24, 0.005, None, other).reasons == ("counts more",)


def test_another_accounting_comes_before_seeds_that_are_too_few_or_apart() -> None:
    for values in ({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6, 2: 0.7}):
        assert judge(9.0, 0.005, None, Ours(values, accounting="counts more")).word == ACCOUNTING


def test_another_protocol_comes_before_any_inequality() -> None:
    verdict = judge(60.0, 0.005, 1, Ours(SEEDS, departures=("epochs 3 (published: 30)",)))
    assert (verdict.word, verdict.bound) == (PROTOCOL, None)
    assert verdict.reasons == ("epochs 3 (published: 30)",)


@pytest.mark.parametrize("ours", [None, Ours({})])
def test_nothing_run_and_nothing_published_are_two_things(ours: Ours | None) -> None:
    assert judge(60.0, 0.005, 1, ours).word == ABSENT
    assert judge(None, 0.0, 1, ours).word == UNPUBLISHED
    assert judge(None, 0.0, 1, Ours(SEEDS)).word == UNPUBLISHED


def test_runs_without_a_value_are_not_called_absent() -> None:
    broken = Ours({}, departures=("seed 0 without a value (diverged)",))
    verdict = judge(60.0, 0.005, 1, broken)
    assert (verdict.word, verdict.difference, verdict.reasons) == (PROTOCOL, None, broken.departures)
    assert judge(None, 0.0, 1, broken).word == UNPUBLISHED


def test_every_word_has_a_meaning() -> None:
    assert set(MEANINGS) == {HOLDS, FAILS, ACCOUNTING, PROTOCOL, ABSENT, UNDECIDED, UNPUBLISHED}


def test_a_level_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="level 1.5: must be between 0 and 1"):
        agreement_bound(Ours(SEEDS).summary, 1, 0.0, level=1.5)
