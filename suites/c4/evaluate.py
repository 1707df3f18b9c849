"""Loss on a fixed set of tokens: each predicted token counts once, whatever sequence it stands in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from results.catalogue import MetricEntry
from suites.c4.sequences import IGNORED, Sequences
from suites.suite import Batch, Scores

TOKENS_AT_ONCE = 4096
ENTRIES = [
    MetricEntry(name="perplexity", title="perplexity", better="lower", format=",.3f"),
    MetricEntry(name="loss", title="loss", better="lower", unit="nats", format=".4f"),
    MetricEntry(name="bits_per_byte", title="bits per byte", better="lower", format=".4f"),
    MetricEntry(name="excess", title="over the floor", better="lower", unit="nats", format=".4f"),
    MetricEntry(name="perplexity_ratio", title="perplexity ÷ floor", better="lower", format=".3f"),
]


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated: the split's name, its sequences, the bytes of raw text that the predicted tokens cover, and,
    for a generated source, the mean -log p of the predicted tokens under it, in nats."""

    split: str
    sequences: Sequences
    covered_bytes: int
    floor_nats: float | None = None

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return int(self.sequences.predicted.sum())


def measures(split: str, total_nats: float, tokens: int, covered_bytes: int, floor_nats: float | None) -> Scores:
    """Return loss (nats a token), perplexity, bits per byte; against a known floor excess and ratio of perplexities.

    All are None where the total is not finite.
    """
    loss = total_nats / tokens
    known = math.isfinite(loss) and loss < math.log(np.finfo(np.float64).max)
    values: dict[str, float | None] = {
        "loss": loss,
        "perplexity": math.exp(loss) if known else None,
        "bits_per_byte": total_nats / math.log(2) / covered_bytes if covered_bytes else None,
    }
    if floor_nats is not None:
        values["excess"] = loss - floor_nats
        values["perplexity_ratio"] = math.exp(loss - floor_nats) if known else None
    return Scores({}, {f"{split}/{name}": value if known else None for name, value in values.items()})


@torch.no_grad()
def evaluate(model: nn.Module, what: Evaluated) -> Scores:
    """Return the measures of `model` on the evaluated tokens; sums in double precision."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    size = _rows_at_once(what)
    total = 0.0
    for first in range(0, len(what.sequences), size):
        batch = what.sequences.batch(np.arange(first, min(first + size, len(what.sequences))))
        logits = model(input_ids=batch["input_ids"].to(device)).logits[:, :-1]
        targets = batch["labels"][:, 1:].to(device)
        losses = functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        total += float(losses.double().sum())
    model.train(training)
    found = measures(what.split, total, what.tokens, what.covered_bytes, what.floor_nats)
    return Scores({what.split: len(what.sequences)}, found.metrics)


def largest_batch(what: Evaluated) -> Batch:
    """Return the largest batch that `evaluate` gives a model."""
    return what.sequences.batch(np.arange(min(_rows_at_once(what), len(what.sequences))))


def _rows_at_once(what: Evaluated) -> int:
    return max(1, TOKENS_AT_ONCE // int(what.sequences.ids.shape[1]))


def unigram(train: Sequences, what: Evaluated, vocabulary: int) -> dict[str, float | None]:
    """Return loss and perplexity of the best prediction that looks at nothing: train counts, one added to each."""
    counts = np.bincount(_real(train, 0), minlength=vocabulary) + 1
    surprisals = math.log(float(counts.sum())) - np.log(counts)
    total = float(surprisals[_real(what.sequences, 1)].sum())
    return measures(what.split, total, what.tokens, what.covered_bytes, what.floor_nats).metrics


def _real(sequences: Sequences, start: int) -> np.ndarray:
    """Return the tokens from place `start` of each sequence on, filling left out."""
    places = np.arange(sequences.ids.shape[1])[None, :]
    return sequences.ids[(places >= start) & (places < sequences.lengths[:, None])]
