"""Which way a metric is better: the one place that knows."""

from __future__ import annotations

LOWER_IS_BETTER = frozenset({"perplexity", "loss", "bits_per_byte", "excess", "excess_loss", "perplexity_ratio"})


def lower_is_better(key: str | None) -> bool:
    """Return whether smaller values of a "split/metric" key are better; scores of tasks are not."""
    return (key or "").rpartition("/")[2] in LOWER_IS_BETTER


def sign(key: str | None) -> float:
    """Return the factor that makes larger better: -1 for losses, 1 for scores."""
    return -1.0 if lower_is_better(key) else 1.0
