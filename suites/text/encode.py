"""Rows to token batches: tokenised once into flat arrays, ordered by a pure function of seed and epoch.

Every method sees the same batches. The last batch of an epoch is kept, smaller where the rows do not divide evenly, so
that an epoch is exactly one pass; the next epoch starts with a new batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

PAD_MULTIPLE = 8
CHUNK_ROWS = 4096


@dataclass(frozen=True)
class EncodedRow:
    """One tokenised row. `types` are the token type ids, None where the tokenizer gives none."""

    tokens: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64] | None
    label: float


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows, compact: the tokens of row n are `tokens[offsets[n]:offsets[n + 1]]`.

    Attributes:
        tokens: (T,) all tokens one row after the other.
        types: (T,) token type ids, None where the tokenizer gives none.
        offsets: (N + 1,).
        labels: (N,) int64 classes, or float32 numbers.
        pad_id: token that fills a row up.
        max_length: most tokens of a row, and the widest batch.
    """

    tokens: npt.NDArray[np.int32]
    types: npt.NDArray[np.int8] | None
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32]
    pad_id: int
    max_length: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(N,) tokens of each row."""
        return np.diff(self.offsets)

    def rows(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> list[EncodedRow]:
        """The rows at the indices, in their order."""
        out = []
        for index in indices:
            part = slice(self.offsets[index], self.offsets[index + 1])
            types = None if self.types is None else self.types[part].astype(np.int64)
            out.append(EncodedRow(self.tokens[part].astype(np.int64), types, self.labels[index].item()))
        return out

    def batch(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """The rows at the indices as one padded batch."""
        return collate(self.rows(indices), self.pad_id, self.max_length)


def check_room(tokenizer: PreTrainedTokenizerBase, text_columns: tuple[str, ...], max_length: int) -> None:
    """Check that rows of these columns can be encoded.

    Raises:
        ValueError: max_length with no room beside the special tokens; a tokenizer without a padding token.
    """
    room = max_length - tokenizer.num_special_tokens_to_add(pair=len(text_columns) == 2)
    if room < len(text_columns):
        least = max_length - room + len(text_columns)
        raise ValueError(f"max_length {max_length}: must leave a token for each text, at least {least}")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path!r}: has no padding token, batches need one")


def encode(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, text_columns: tuple[str, ...], max_length: int
) -> Encoded:
    """Tokenise one or two text columns, special tokens added, the longer text cut first. Writes no file.

    Raises:
        ValueError: as `check_room`.
    """
    check_room(tokenizer, text_columns, max_length)
    assert tokenizer.pad_token_id is not None
    typed = "token_type_ids" in tokenizer.model_input_names
    tokens: list[npt.NDArray[np.int32]] = []
    types: list[npt.NDArray[np.int8]] = []
    lengths: list[int] = []
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk: dict[str, list[Any]] = rows[start : start + CHUNK_ROWS]
        out = tokenizer(
            *(chunk[name] for name in text_columns),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=typed,
        )
        tokens.extend(np.asarray(ids, np.int32) for ids in out["input_ids"])
        lengths.extend(len(ids) for ids in out["input_ids"])
        if typed:
            types.extend(np.asarray(ids, np.int8) for ids in out["token_type_ids"])
    values = rows["label"][:]
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float32] = np.asarray(values, np.float32)
    if all(isinstance(value, int) for value in values):
        labels = np.asarray(values, np.int64)
    return Encoded(
        tokens=np.concatenate([np.empty(0, np.int32), *tokens]),
        types=np.concatenate([np.empty(0, np.int8), *types]) if typed else None,
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        labels=labels,
        pad_id=tokenizer.pad_token_id,
        max_length=max_length,
    )


UNKNOWN_SAMPLE = 200


def unknown_share(rows: Dataset, tokenizer: PreTrainedTokenizerBase, text_columns: tuple[str, ...]) -> float:
    """Return the share of unknown tokens in the first `UNKNOWN_SAMPLE` rows, special tokens left out."""
    if tokenizer.unk_token_id is None:
        return 0.0
    sample: dict[str, list[Any]] = rows[:UNKNOWN_SAMPLE]
    coded = [tokenizer(sample[name], add_special_tokens=False, verbose=False)["input_ids"] for name in text_columns]
    tokens = [token for texts in coded for ids in texts for token in ids]
    # A tokenizer may use one token for what is unknown and for the end of a text.
    return tokens.count(tokenizer.unk_token_id) / max(1, len(tokens))


def collate(rows: Sequence[EncodedRow], pad_id: int, max_length: int | None = None) -> dict[str, Tensor]:
    """One batch, padded on the right to the longest row, rounded up to a multiple of 8 but not over `max_length`.

    Returns:
        input_ids, attention_mask and, where there are any, token_type_ids: (B, T) int64; labels: (B,) int64, or
        float32 where a label is not an int.
    """
    width = padded_width(max(len(row.tokens) for row in rows), max_length)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    types = torch.zeros_like(ids)
    for position, row in enumerate(rows):
        length = len(row.tokens)
        ids[position, :length] = torch.from_numpy(row.tokens)
        mask[position, :length] = 1
        if row.types is not None:
            types[position, :length] = torch.from_numpy(row.types)
    kind = torch.int64 if all(isinstance(row.label, int) for row in rows) else torch.float32
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row.label for row in rows], dtype=kind)}
    return batch if rows[0].types is None else {**batch, "token_type_ids": types}


def largest_batch(encoded: Encoded, batch_size: int) -> dict[str, Tensor]:
    """The `batch_size` longest rows together: no batch of `batches` is larger. Equal lengths keep the row order."""
    _check(encoded, batch_size)
    return encoded.batch(_by_length(encoded)[:batch_size])


def batches_per_epoch(rows: int, batch_size: int) -> int:
    """Batches of one pass, the smaller last one included."""
    return -(-rows // batch_size)


def batches(
    encoded: Encoded, batch_size: int, seed: int, start: int = 0, grouping: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Endless batches from the start-th on, without building those before it.

    Epoch e is cut from one permutation that depends on (seed, e) alone, so the stream does not depend on the method
    or on where it was resumed. With `grouping` rows of like length go together: see `epoch_rows`.

    Raises:
        ValueError: batch size below 1, negative start, no rows.
    """
    _check(encoded, batch_size)
    if start < 0:
        raise ValueError(f"start {start}: must be at least 0")
    return _endless(encoded, batch_size, seed, start, grouping)


def _endless(encoded: Encoded, batch_size: int, seed: int, start: int, grouping: int) -> Iterator[dict[str, Tensor]]:
    epoch, skip = divmod(start, batches_per_epoch(len(encoded), batch_size))
    while True:
        for rows in epoch_rows(encoded.lengths, batch_size, seed, epoch, grouping)[skip:]:
            yield encoded.batch(rows)
        epoch, skip = epoch + 1, 0


def epoch_rows(
    lengths: npt.NDArray[np.int64], batch_size: int, seed: int, epoch: int, grouping: int = 0
) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each batch of an epoch, every row once; the smaller batch of the rest is among them.

    With `grouping` the permuted rows are taken `grouping` batches at a time, each such part sorted by length and cut
    into batches, and all batches of the epoch put into a seeded order: which rows meet is nearly as random as before,
    but within a batch they are about as long, so that little of it is padding.
    """
    # RandomState's stream is frozen across numpy versions, the one of numpy's default generator is not.
    random = np.random.RandomState([seed, epoch])
    order = random.permutation(len(lengths))
    if grouping:
        pieces = [order[first : first + grouping * batch_size] for first in range(0, len(order), grouping * batch_size)]
        order = np.concatenate([piece[np.argsort(-lengths[piece], kind="stable")] for piece in pieces])
    found = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return [found[index] for index in random.permutation(len(found))] if grouping else found


def padding_share(
    lengths: npt.NDArray[np.int64], batch_size: int, max_length: int, seed: int = 0, grouping: int = 0
) -> float:
    """Return the part of the tokens of one epoch's batches that is padding."""
    held = 0
    for rows in epoch_rows(lengths, batch_size, seed, 0, grouping):
        held += len(rows) * padded_width(int(lengths[rows].max()), max_length)
    return 1.0 - int(lengths.sum()) / held


def padded_width(longest: int, max_length: int | None) -> int:
    """Return the tokens of a row of a batch whose longest row has `longest`."""
    width = -(-longest // PAD_MULTIPLE) * PAD_MULTIPLE
    return width if max_length is None else max(longest, min(width, max_length))


def evaluation_batches(encoded: Encoded, batch_size: int) -> tuple[Iterator[dict[str, Tensor]], Tensor]:
    """One pass, longest rows first so that little is padding, and the way back to row order.

    Returns:
        (batches, inverse): outputs concatenated over the batches, indexed by inverse (N,), stand in row order.

    Raises:
        ValueError: batch size below 1, no rows.
    """
    _check(encoded, batch_size)
    order = _by_length(encoded)
    parts = (encoded.batch(order[first : first + batch_size]) for first in range(0, len(order), batch_size))
    return parts, torch.from_numpy(np.argsort(order, kind="stable"))


def _by_length(encoded: Encoded) -> npt.NDArray[np.int64]:
    return np.argsort(-encoded.lengths, kind="stable")


def _check(encoded: Encoded, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size}: must be at least 1")
    if not len(encoded):
        raise ValueError("no rows to batch: at least one is needed")
