"""Documents to sequences to batches: packed or padded, in an order that is a pure function of seed and position.

padded: a sequence is one document's beginning, cut or filled up to the length (the release's way). Nothing looks at
what fills it up: attention is causal, and its labels are ignored.
packed: documents one after the other, cut into sequences of the length; a sequence may begin inside a document.

The first token of a sequence is never predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORED = -100
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Sequences:
    """Token ids (S, T), and how many of each sequence's tokens are not filling (S,)."""

    ids: Ids
    lengths: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """(S,) tokens of each sequence that are predicted: all but its first."""
        return self.lengths - 1

    def batch(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """Return input_ids and labels (B, T) int64 of the sequences at `rows`; filling has label `IGNORED`."""
        ids = torch.from_numpy(self.ids[rows].astype(np.int64))
        filling = torch.arange(ids.shape[1])[None, :] >= torch.from_numpy(self.lengths[rows])[:, None]
        return {"input_ids": ids, "labels": ids.masked_fill(filling, IGNORED)}

    def first(self, tokens: int | None) -> Sequences:
        """Return the fewest sequences from the start that predict at least `tokens` tokens; all of them for None."""
        if tokens is None:
            return self
        count = int(np.searchsorted(np.cumsum(self.predicted), tokens)) + 1
        return Sequences(self.ids[:count], self.lengths[:count])


def padded(documents: Sequence[npt.NDArray[np.generic]], length: int, filling: int) -> Sequences:
    """Return one sequence a document; values of any kind, such as bytes or surprisals a token, can be laid out too."""
    kind = documents[0].dtype if documents else np.dtype(np.int32)
    ids = np.full((len(documents), length), filling, kind)
    lengths = np.array([min(len(document), length) for document in documents], np.int64)
    for row, document in enumerate(documents):
        ids[row, : lengths[row]] = document[:length]
    return Sequences(ids, lengths)


def packed(documents: Sequence[npt.NDArray[np.generic]], length: int, filling: int) -> Sequences:
    """Return all documents one after the other, cut into sequences; what is left over at the end is dropped."""
    stream = np.concatenate(documents) if documents else np.empty(0, np.int32)
    count = len(stream) // length
    return Sequences(stream[: count * length].reshape(count, length), np.full(count, length, np.int64))


LAYOUTS = {"padded": padded, "packed": packed}


def lay_out(documents: Sequence[npt.NDArray[np.generic]], layout: str, length: int, filling: int) -> Sequences:
    """Return documents as sequences.

    Raises:
        ValueError: a length below 2, or not a single sequence.
    """
    if length < 2:
        raise ValueError(f"max_length {length}: must be at least 2, since a sequence's first token is not predicted")
    found = LAYOUTS[layout](documents, length, filling)
    if not len(found):
        tokens = sum(map(len, documents))
        raise ValueError(
            f"max_length {length}: the data has {tokens} tokens, less than one sequence (nearest: {tokens})"
        )
    return found


def batches(sequences: Sequences, size: int, seed: int, start: int) -> Iterator[dict[str, Tensor]]:
    """Yield endless micro-batches from the start-th on, without building those before it.

    Epoch e is one permutation that depends on (seed, e) alone; the epochs stand one after the other, so that a batch
    may begin in one and end in the next, and all have the same size.

    Raises:
        ValueError: size below 1, or a negative start.
    """
    if size < 1 or start < 0:
        raise ValueError(f"micro-batches of {size} sequences from {start} on: at least 1 and 0 are needed")
    return _endless(sequences, size, seed, start)


def _endless(sequences: Sequences, size: int, seed: int, start: int) -> Iterator[dict[str, Tensor]]:
    epoch, place = divmod(start * size, len(sequences))
    order = _order(len(sequences), seed, epoch)
    while True:
        rows = order[place : place + size]
        place += size
        while len(rows) < size:
            epoch, place = epoch + 1, size - len(rows)
            order = _order(len(sequences), seed, epoch)
            rows = np.concatenate([rows, order[:place]])
        yield sequences.batch(rows)


def _order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    # RandomState's stream is frozen across numpy versions, the one of numpy's default generator is not.
    return np.random.RandomState([seed, epoch]).permutation(count)
