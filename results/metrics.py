"""Which way a metric is better: the one place that says so, for the choice among runs and for every report."""

from __future__ import annotations

LOWER_IS_BETTER = frozenset({"loss", "perplexity", "bits_per_byte", "excess", "perplexity_ratio"})


def higher_is_better(key: str) -> bool:
    """Whether more of the metric "split/metric" is better; true of every metric that is not listed as the opposite."""
    return key.rpartition("/")[2] not in LOWER_IS_BETTER


def gain(key: str, value: float) -> float:
    """Return the value so that more is better: itself, or its negative."""
    return value if higher_is_better(key) else -value
