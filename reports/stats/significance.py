"""What seeds allow to say about several methods at once: ranks across tasks, and the chance of being on the front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import rankdata

DRAWS = 2000
SEED = 0


@dataclass(frozen=True)
class Ranking:
    """Mean rank of a method over tasks (1 is best, ties share), how many tasks, and how often it was first."""

    mean_rank: float
    tasks: int
    firsts: int


def rank_across_tasks(means: Mapping[str, Mapping[str, float]]) -> dict[str, Ranking]:
    """Return method -> ranking over the tasks on which every method has a mean.

    Args:
        means: method -> task -> mean, larger is better. A task that some method lacks ranks nobody.
    """
    if len(means) < 2:
        return {}
    shared = sorted(set.intersection(*(set(tasks) for tasks in means.values())))
    if not shared:
        return {}
    methods = list(means)
    # Rounded, so that means that differ by float noise alone tie.
    table = np.array([[round(means[method][task], 10) for method in methods] for task in shared])
    ranks = np.array([rankdata(-row, method="average") for row in table])
    firsts = (ranks == ranks.min(axis=1, keepdims=True)).sum(axis=0)
    return {
        method: Ranking(float(ranks[:, index].mean()), len(shared), int(firsts[index]))
        for index, method in enumerate(methods)
    }


def front_probability(
    costs: Mapping[str, float], scores: Mapping[str, Mapping[int, float]], draws: int = DRAWS, seed: int = SEED
) -> dict[str, float]:
    """Return method -> share of bootstrap draws in which it lies on the Pareto front of cost against mean score.

    Each draw takes n seeds with replacement out of the n that all methods share, the same for every method, so that
    what a seed does to all of them cancels. Empty for fewer than two shared seeds: then nothing varies.

    Args:
        costs: method -> cost, smaller is better; the same in every draw.
        scores: method -> seed -> score, larger is better.
    """
    methods = [method for method in scores if method in costs and scores[method]]
    if not methods:
        return {}
    shared = sorted(set.intersection(*(set(scores[method]) for method in methods)))
    if len(shared) < 2:
        return {}
    table = np.array([[scores[method][one] for one in shared] for method in methods])
    # Rounded, so that means that differ by float noise alone tie. Axes below: point, other point, draw.
    means = np.round(table @ _draws(len(shared), draws, seed) / len(shared), 10)
    price = np.array([costs[method] for method in methods])
    price, other_price = price[:, None, None], price[None, :, None]
    mean, other_mean = means[:, None, :], means[None, :, :]
    differs = (other_price != price) | (other_mean != mean)
    dominated = ((other_price <= price) & (other_mean >= mean) & differs).any(axis=1)
    return {method: float(share) for method, share in zip(methods, (~dominated).sum(axis=1) / draws, strict=True)}


@lru_cache(maxsize=32)
def _draws(seeds: int, draws: int, seed: int) -> np.ndarray:
    """Return how often each seed was taken in each draw, shape (seeds, draws)."""
    picks = np.random.default_rng(seed).integers(0, seeds, size=(draws, seeds))
    return np.stack([(picks == one).sum(axis=1) for one in range(seeds)]).astype(float)
