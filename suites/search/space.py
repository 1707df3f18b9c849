"""Where a search looks: the same quasi-random points of the unit square for every method, in log ranges of equal width.

Pure functions of numbers; nothing here runs or writes anything.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cache

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

from results.search import EDGE, RATES, Choice, Range, Space

SEED = 0
SAMPLER = f"Sobol points, scrambled with seed {SEED} (optuna.samplers.QMCSampler)"
WIDER = 10.0
"""How many times as wide a range gets when a best trial lies at its edge."""
DIGITS = 4
Point = tuple[float, float]
optuna.logging.set_verbosity(optuna.logging.WARNING)


@cache
def points(count: int) -> tuple[Point, ...]:
    """Return the first `count` points of the sequence: (learning rate, rest's) in the unit square."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=SEED)
    square: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in RATES}
    study = optuna.create_study(sampler=sampler)
    # The sampler is asked itself: a study's first trial would be drawn by another one, since it knows no space yet.
    study.ask()
    drawn = [sampler.sample_relative(study, study.trials[0], square) for _ in range(count)]
    return tuple((float(each[RATES[0]]), float(each[RATES[1]])) for each in drawn)


def rounded(rate: float) -> float:
    """Return a rate to as many digits as plans hold."""
    return float(f"{rate:.{DIGITS}g}")


def at(span: Range, share: float) -> float:
    """Return the rate at a share of the range, in its logarithm."""
    return rounded(span.low * (span.high / span.low) ** share)


def rates_at(space: Space, point: Point) -> tuple[float | None, float]:
    """Return (learning rate, rest's) of a point; the first is None where the method trains no matrix."""
    own, rest = point
    return None if space.learning_rate is None else at(space.learning_rate, own), at(space.rest_learning_rate, rest)


def checked_range(what: str, low: float, high: float, source: str) -> Range:
    """Return a range.

    Raises:
        ValueError: its lower end is not above 0 and below the upper one.
    """
    if not 0 < low < high:
        near = f"{high:g} to {low:g}" if 0 < high < low else "1e-05 to 0.001"
        raise ValueError(
            f"{what}, range {low:g} to {high:g}: the lower end must be above 0 and below the upper one "
            f"(nearest allowed: {near})"
        )
    return Range(low=rounded(low), high=rounded(high), source=source)


def check_widths(spaces: Sequence[Space]) -> None:
    """Raise ValueError unless every method's ranges are equally wide: the budget is equal in trials and in room."""
    for name in RATES:
        found = {space.method: span for space in spaces if (span := getattr(space, name)) is not None}
        widths = {method: _width(span) for method, span in found.items()}
        if widths and max(widths.values()) - min(widths.values()) > 0.01:
            told = ", ".join(f"{method} {width:.2f}" for method, width in widths.items())
            raise ValueError(f"ranges of {name}: must be equally wide for every method; in decades they are {told}")


def wider_rates(before: Space, after: Space) -> set[str]:
    """Return which rates have a wider range in the later of two rounds of a method."""
    return {name for name in RATES if _width(getattr(after, name)) > 1.01 * _width(getattr(before, name))}


def _width(span: Range | None) -> float:
    return 1.0 if span is None else math.log10(span.high / span.low)


def edges(space: Space, learning_rate: float | None, rest_learning_rate: float) -> list[str]:
    """Return which rates lie within `EDGE` of an end of their range: "learning_rate low" and the like."""
    found = []
    for name, rate in zip(RATES, (learning_rate, rest_learning_rate), strict=True):
        span: Range | None = getattr(space, name)
        if span is None or rate is None:
            continue
        share = math.log(rate / span.low) / math.log(span.high / span.low)
        found += [f"{name} low"] if share < EDGE else [f"{name} high"] if share > 1 - EDGE else []
    return found


def widened(
    spaces: Sequence[Space], best: Mapping[str, Choice], first: int, also: Collection[str] = ()
) -> list[Space] | None:
    """Return the next round's spaces, or None where no method's best lies at an edge.

    A rate at whose edge some method's best lies is searched over a range `WIDER` times as wide, for all methods:
    towards that edge where it is the method's own, to both sides alike where it is not.

    Args:
        first: place in the sequence of the round's first point; points of an earlier round would try the rates again
            whose ranges stay.
        also: rates whose ranges other methods, which are not among these, have widened already.
    """
    at_edge = {edge for space in spaces for edge in best[space.method].edges}
    names = [name for name in RATES if name in also or at_edge & {f"{name} low", f"{name} high"}]
    if not names:
        return None
    return [_wider(space, names, best[space.method].edges, first) for space in spaces]


def _wider(space: Space, names: Sequence[str], own: Sequence[str], first: int) -> Space:
    changed: dict[str, object] = {"round": space.round + 1, "first": first}
    for name in names:
        span: Range | None = getattr(space, name)
        if span is not None:
            down = 1.0 if f"{name} low" in own else 0.0 if f"{name} high" in own else 0.5
            low, high = rounded(span.low / WIDER**down), rounded(span.high * WIDER ** (1 - down))
            changed[name] = span.model_copy(update={"low": low, "high": high})
    return space.model_copy(update=changed)
