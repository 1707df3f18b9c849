"""Sequences and their order: labels, budgets, and a stream that starts again at any place."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from suites.c4.sequences import IGNORED, Sequences, batches, lay_out

DOCUMENTS = [np.array(part, np.int32) for part in ([1, 2, 3, 9], [4, 9], [5, 6, 7, 8, 1, 9])]


def test_padded_is_a_document_a_sequence_cut_or_filled() -> None:
    made = lay_out(DOCUMENTS, "padded", 4, 9)
    assert made.ids.tolist() == [[1, 2, 3, 9], [4, 9, 9, 9], [5, 6, 7, 8]]
    assert made.predicted.tolist() == [3, 1, 3]
    labels = made.batch([1, 2])["labels"].tolist()
    assert labels == [[4, 9, IGNORED, IGNORED], [5, 6, 7, 8]]


def test_packed_goes_on_where_a_document_is_cut() -> None:
    made = lay_out(DOCUMENTS, "packed", 5, 9)
    assert made.ids.tolist() == [[1, 2, 3, 9, 4], [9, 5, 6, 7, 8]]
    assert (made.batch([0, 1])["labels"] == made.batch([0, 1])["input_ids"]).all()


@pytest.mark.parametrize(("budget", "count"), [(1, 1), (3, 1), (4, 2), (5, 3), (7, 3), (99, 3), (None, 3)])
def test_a_budget_takes_the_fewest_sequences_that_reach_it(budget: int | None, count: int) -> None:
    assert len(lay_out(DOCUMENTS, "padded", 4, 9).first(budget)) == count


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="max_length 1: must be at least 2"):
        lay_out(DOCUMENTS, "padded", 1, 9)
    with pytest.raises(ValueError, match=r"max_length 50: the data has 12 tokens, less than one sequence"):
        lay_out(DOCUMENTS, "packed", 50, 9)


def numbered(count: int) -> Sequences:
    return Sequences(np.arange(2 * count, dtype=np.int32).reshape(count, 2), np.full(count, 2))


def rows(stream: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [[first // 2 for first in batch["input_ids"][:, 0].tolist()] for batch in stream]


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (2, 5), (1, 2)])
def test_the_stream_starts_again_at_any_place(count: int, size: int) -> None:
    made = numbered(count)
    whole = rows(list(islice(batches(made, size, 3, 0), 12)))
    for start in range(12):
        assert rows(list(islice(batches(made, size, 3, start), 12 - start))) == whole[start:]
    flat = [row for batch in whole for row in batch]
    epochs = [flat[first : first + count] for first in range(0, len(flat) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert all(len(batch) == size for batch in whole)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    made = numbered(20)
    first, second = rows(list(islice(batches(made, 20, 0, 0), 2)))
    assert first != second
    assert rows([next(batches(made, 20, 1, 0))])[0] not in (first, second)


def test_wrong_places_are_refused() -> None:
    for size, start in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="at least 1 and 0"):
            batches(numbered(3), size, 0, start)
