"""The padding command: shares of the generated tasks, and both ways timed in one run."""

from __future__ import annotations

from typing import Any

import pytest

from suites.padding import Padding, padding_of, padding_table
from suites.suite import Runtime
from suites.text import encode


def test_grouping_leaves_less_padding_of_the_same_rows(make_plan: Any, runtime: Runtime) -> None:
    found = padding_of(make_plan(task="mnli", train_rows=400), runtime, steps=0)
    assert found.rows == 400
    assert 0 < found.grouped_share < found.share < 1
    assert (found.rates, found.ratios) == (None, ())


def test_both_ways_are_timed_in_turns(make_plan: Any, runtime: Runtime) -> None:
    found = padding_of(make_plan(train_rows=48), runtime, steps=2)
    assert found.rates is not None
    assert min(found.rates) > 0
    assert len(found.ratios) == 2


def test_a_plan_that_groups_already_is_timed_without_as_well(
    make_plan: Any, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, batches = [], encode.batches

    def noted(*args: Any) -> Any:
        asked.append(args[-1])
        return batches(*args)

    monkeypatch.setattr(encode, "batches", noted)
    padding_of(make_plan(train_rows=48, length_grouping=50), runtime, steps=1)
    assert asked == [0, 50]


def test_the_table_says_both() -> None:
    table = padding_table([Padding("rte", 10, 7.5, 0.5, 0.125, (1.5, 1.7, 1.6), (100.0, 160.0))])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells == ["rte", "10", "7.5", "50.0 %", "12.5 %", "100", "160", "1.60"]
