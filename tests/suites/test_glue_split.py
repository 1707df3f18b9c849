"""Hold-out for tuning, and row caps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from datasets import Dataset

from suites.text.rows import cap, hold_out


def rows_of(labels: list[Any], texts: list[str] | None = None) -> Dataset:
    texts = texts or [f"text {index}" for index in range(len(labels))]
    return Dataset.from_dict({"a": texts, "b": texts, "label": labels, "idx": list(range(len(labels)))})


@pytest.mark.parametrize("size", [0.1, 100])
def test_hold_out_is_a_stratified_partition(size: float | int) -> None:
    train = rows_of([0] * 700 + [1] * 300)
    rest, held = hold_out(train, size, seed=3)
    assert Counter(held["label"][:]) == {0: 70, 1: 30}
    assert sorted(rest["idx"][:] + held["idx"][:]) == list(range(1000))
    assert held["idx"][:] == sorted(held["idx"][:])
    assert held["idx"][:] == hold_out(train, size, seed=3)[1]["idx"][:]
    assert held["idx"][:] != hold_out(train, size, seed=4)[1]["idx"][:]
    assert rest.cache_files == held.cache_files == []


def test_hold_out_of_scores_is_exact() -> None:
    rest, held = hold_out(rows_of([index / 10 for index in range(50)]), 7, seed=0)
    assert (len(rest), len(held)) == (43, 7)


def test_hold_out_keeps_equal_texts_together() -> None:
    texts = [f"text {index % 40}" for index in range(120)]
    train = Dataset.from_dict(
        {
            "a": [f"{text} a" if index // 40 % 2 else f"{text} b" for index, text in enumerate(texts)],
            "b": [f"{text} b" if index // 40 % 2 else f"{text} a" for index, text in enumerate(texts)],
            "label": [index % 3 % 2 for index in range(120)],
            "idx": list(range(120)),
        }
    )
    for seed in range(5):
        rest, held = hold_out(train, 0.25, seed)
        parts = [{frozenset((row["a"], row["b"])) for row in part} for part in (rest, held)]
        assert not parts[0] & parts[1]
        assert len(rest) + len(held) == 120
        assert 25 <= len(held) <= 30


@pytest.mark.parametrize("size", [0, 10, -1, 0.0, 1.0, 0.01])
def test_hold_out_leaves_both_parts(size: float | int) -> None:
    with pytest.raises(ValueError, match=f"held-out size {size} of 10 rows: must leave at least one row"):
        hold_out(rows_of([0, 1] * 5), size, seed=0)


def test_hold_out_smaller_than_every_group() -> None:
    with pytest.raises(ValueError, match="smaller than every group"):
        hold_out(rows_of([0] * 4, ["x", "x", "y", "y"]), 1, seed=0)


def test_cap_is_fixed_nested_and_ordered() -> None:
    train = rows_of([0] * 100)
    small, large = cap(train, 10, seed=1)["idx"][:], cap(train, 30, seed=1)["idx"][:]
    assert set(small) < set(large)
    assert small == sorted(small)
    assert (len(small), len(large)) == (10, 30)
    assert small != cap(train, 10, seed=2)["idx"][:]
    # The stream is frozen: these rows on every machine.
    assert small == [17, 33, 36, 65, 69, 80, 81, 82, 84, 93]
    assert cap(train, None, seed=1) is train
    assert cap(train, 100, seed=1) is train
    with pytest.raises(ValueError, match="row cap 0: must be at least 1"):
        cap(train, 0, seed=1)
