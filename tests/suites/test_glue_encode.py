"""Tokenising, padding, and the order of batches."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from suites.text.encode import (
    Encoded,
    EncodedRow,
    batches,
    batches_per_epoch,
    collate,
    encode,
    evaluation_batches,
    largest_batch,
)

PAD = 1


def tokenizer(typed: bool = False, padded: bool = True) -> PreTrainedTokenizerFast:
    """Words w0 to w99, with RoBERTa's pair format, or BERT's with token types."""
    vocabulary = {
        word: index for index, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *(f"w{n}" for n in range(100))])
    }
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "<s>:0 $A:0 </s>:0 $B:1 </s>:1" if typed else "<s> $A </s> </s> $B </s>"
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>" if padded else None, unk_token="<unk>", model_input_names=names
    )


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def toy(count: int, seed: int = 0) -> Encoded:
    """Rows of 1 to 20 tokens; the first token and the label are the row's number."""
    random = np.random.RandomState(seed)
    lengths = random.randint(1, 21, size=count)
    tokens = np.concatenate([[row, *random.randint(50, 99, size=length - 1)] for row, length in enumerate(lengths)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(tokens.astype(np.int32), None, offsets, np.arange(count), PAD, 32)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_single_text() -> None:
    rows = Dataset.from_dict({"sentence": [words(0, 1), words(5)], "label": [1, 0], "idx": [0, 1]})
    batch = encode(rows, tokenizer(), ("sentence",), 16).batch([0, 1])
    assert batch["input_ids"].tolist() == [[0, 4, 5, 2, 1, 1, 1, 1], [0, 9, 2, 1, 1, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert torch.equal(batch["labels"], torch.tensor([1, 0]))
    assert {name: value.dtype for name, value in batch.items()} == dict.fromkeys(batch, torch.int64)
    assert "token_type_ids" not in batch


def test_pair_with_token_types_and_scores() -> None:
    rows = Dataset.from_dict({"a": [words(0)], "b": [words(1, 2)], "label": [2.5], "idx": [0]})
    batch = encode(rows, tokenizer(typed=True), ("a", "b"), 16).batch([0])
    assert batch["input_ids"].tolist() == [[0, 4, 2, 5, 6, 2, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 0, 0]]
    assert torch.equal(batch["labels"], torch.tensor([2.5], dtype=torch.float32))


def test_whole_scores_stay_floats() -> None:
    rows = Dataset.from_dict({"a": [words(0), words(1)], "label": [5.0, 0.0], "idx": [0, 1]})
    assert encode(rows, tokenizer(), ("a",), 16).batch([0])["labels"].dtype == torch.float32


def test_truncation_cuts_the_longer_text() -> None:
    rows = Dataset.from_dict({"a": [words(*range(10))], "b": [words(90, 91)], "label": [0], "idx": [0]})
    encoded = encode(rows, tokenizer(), ("a", "b"), 9)
    assert encoded.rows([0])[0].tokens.tolist() == [0, 4, 5, 6, 2, 2, 94, 95, 2]
    # 16 would be the next multiple of 8, past what the model may take.
    assert encoded.batch([0])["input_ids"].shape == (1, 9)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(0)
    texts = [words(*random.randint(0, 100, size=random.randint(1, 12))) for _ in range(50)]
    rows = Dataset.from_dict({"a": texts, "label": [0] * 50, "idx": list(range(50))})
    whole = encode(rows, tokenizer(typed=True), ("a",), 16)
    monkeypatch.setattr("suites.text.encode.CHUNK_ROWS", 7)
    parts = encode(rows, tokenizer(typed=True), ("a",), 16)
    assert same(whole.batch(range(50)), parts.batch(range(50)))
    alone = [tokenizer()(text, truncation=True, max_length=16)["input_ids"] for text in texts]
    assert [row.tokens.tolist() for row in whole.rows(range(50))] == alone
    assert rows.cache_files == []


def test_bad_lengths_and_tokenizers() -> None:
    rows = Dataset.from_dict({"a": ["w1"], "b": ["w2"], "label": [0], "idx": [0]})
    with pytest.raises(ValueError, match="max_length 5: must leave a token for each text, at least 6"):
        encode(rows, tokenizer(), ("a", "b"), 5)
    assert encode(rows, tokenizer(), ("a", "b"), 6).lengths.tolist() == [6]
    with pytest.raises(ValueError, match="no padding token"):
        encode(rows, tokenizer(padded=False), ("a", "b"), 16)


@pytest.mark.parametrize(
    ("longest", "limit", "width"), [(8, None, 8), (9, None, 16), (9, 12, 12), (3, 6, 6), (17, 64, 24)]
)
def test_width_is_a_multiple_of_eight_within_the_limit(longest: int, limit: int | None, width: int) -> None:
    rows = [EncodedRow(np.arange(length), None, 0) for length in (longest, 1)]
    assert collate(rows, PAD, limit)["input_ids"].shape == (2, width)


def test_each_epoch_is_one_pass_in_a_new_order() -> None:
    encoded = toy(10)
    stream = list(islice(batches(encoded, 4, seed=7), 6))
    assert [len(batch["labels"]) for batch in stream] == [4, 4, 2, 4, 4, 2]
    epochs = [torch.cat([batch["labels"] for batch in stream[part]]).tolist() for part in (slice(0, 3), slice(3, 6))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    # The stream is frozen: this order on every machine.
    assert epochs[0] == [0, 1, 5, 7, 6, 9, 4, 3, 2, 8]
    assert all(torch.equal(batch["input_ids"][:, 0], batch["labels"]) for batch in stream)


def test_order_depends_on_seed_alone() -> None:
    encoded = toy(10)
    again = islice(batches(encoded, 4, seed=7), 6)
    torch.manual_seed(1)
    np.random.seed(1)
    assert all(same(*pair) for pair in zip(again, islice(batches(encoded, 4, seed=7), 6), strict=True))
    other = next(batches(encoded, 4, seed=8))
    assert not same(other, next(batches(encoded, 4, seed=7)))


@pytest.mark.parametrize("start", [0, 1, 2, 3, 5, 301])
def test_start_skips_without_building(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = toy(10)
    expected = list(islice(batches(encoded, 4, seed=7), start, start + 5))
    built: list[int] = []
    plain = Encoded.batch

    def counted(self: Encoded, indices: np.ndarray) -> dict[str, Tensor]:
        built.append(len(indices))
        return plain(self, indices)

    monkeypatch.setattr(Encoded, "batch", counted)
    got = list(islice(batches(encoded, 4, seed=7, start=start), 5))
    assert all(same(*pair) for pair in zip(got, expected, strict=True))
    assert len(built) == 5


def test_no_batch_is_larger_than_the_largest() -> None:
    encoded = toy(37)
    largest = largest_batch(encoded, 8)
    assert largest["attention_mask"].sum(dim=1).tolist() == sorted(encoded.lengths.tolist(), reverse=True)[:8]
    stream = list(islice(batches(encoded, 8, seed=0), 40))
    assert max(batch["input_ids"].numel() for batch in stream) <= largest["input_ids"].numel()
    assert max(batch["attention_mask"].sum() for batch in stream) <= largest["attention_mask"].sum()
    assert len(largest_batch(encoded, 100)["labels"]) == 37


def test_evaluation_returns_to_row_order() -> None:
    encoded = toy(37)
    parts, inverse = evaluation_batches(encoded, 8)
    seen = list(parts)
    assert torch.equal(torch.cat([batch["labels"] for batch in seen])[inverse], torch.arange(37))
    widths = [batch["input_ids"].shape[1] for batch in seen]
    assert widths == sorted(widths, reverse=True)
    assert len(seen) == batches_per_epoch(37, 8) == 5


def test_refused_batches() -> None:
    with pytest.raises(ValueError, match="batch size 0: must be at least 1"):
        batches(toy(3), 0, seed=0)
    with pytest.raises(ValueError, match="start -1: must be at least 0"):
        batches(toy(3), 2, seed=0, start=-1)
    empty = Encoded(np.empty(0, np.int32), None, np.zeros(1, np.int64), np.empty(0, np.int64), PAD, 8)
    for build in (
        lambda: batches(empty, 2, seed=0),
        lambda: largest_batch(empty, 2),
        lambda: evaluation_batches(empty, 2),
    ):
        with pytest.raises(ValueError, match="no rows to batch"):
            build()
