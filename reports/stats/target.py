"""When a run first reaches a target score. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence

WIDEST = 0.2
"""Two evaluations farther apart than this share of the run say too little of what lies between them."""
NOT_REACHED, TOO_RARELY = "not reached", "evaluated too rarely"


def steps_to(points: Sequence[tuple[int, float]], target: float, total: int) -> float | str:
    """Return the steps to the first place where the score is at least `target`, or why that is unknown.

    Linear between the evaluations before and after it. That it was reached at the first evaluation says only that it
    was reached before: too rarely evaluated, as where the two lie more than `WIDEST` of the run apart.

    Args:
        points: (step, score, larger is better), in order of step.
        total: steps of the run.
    """
    for (before, low), (after, high) in zip(points, points[1:], strict=False):
        if low >= target:
            return TOO_RARELY
        if high >= target:
            if after - before > WIDEST * total:
                return TOO_RARELY
            return before + (after - before) * (target - low) / (high - low)
    return TOO_RARELY if points and points[-1][1] >= target else NOT_REACHED
