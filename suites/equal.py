"""What is equal in a comparison beside steps: tokens (one batch for all), or memory (the largest batch that fits)."""

from __future__ import annotations

from collections.abc import Sequence

from results.schema import EQUAL_MEMORY, Plan
from suites.run.preflight import predict_peaks
from suites.suite import Runtime


def with_equal_memory(plans: Sequence[Plan], runtime: Runtime) -> list[Plan]:
    """Return the plans with the largest batches whose predicted peak is no higher than the smallest method's.

    The room is that of the method with the smallest predicted peak of a plain step at the batch that all were given;
    steps stay, so that a method that takes more memory sees fewer tokens. All plans are of one seed; each task has a
    room of its own.

    Raises:
        ValueError: a method whose step has no room even with the smallest batch.
    """
    peaks = predict_peaks(plans, runtime)
    rooms: dict[str, int] = {}
    for plan in plans:
        peak = peaks[plan.hash()]
        assert peak is not None
        rooms[plan.task] = min(rooms.get(plan.task, peak), peak)
    return [_largest(plan, rooms[plan.task], runtime).model_copy(update={"variant": EQUAL_MEMORY}) for plan in plans]


def _largest(plan: Plan, room: int, runtime: Runtime) -> Plan:
    """Return the plan with its largest batch, in whole micro-batches, whose peak is at most `room` bytes.

    A peak grows nearly in proportion to the batch: where a line through two of them crosses is where to look.
    """
    step, most = plan.training.accumulation, plan.training.batch_size // plan.training.accumulation
    known: dict[int, int] = {}

    def peak(count: int) -> int:
        if count not in known:
            made = with_batch(plan, count * step)
            found = predict_peaks([made], runtime)[made.hash()]
            assert found is not None
            known[count] = found
        return known[count]

    if peak(most) <= room:
        return plan
    if peak(1) > room:
        raise ValueError(
            f"equal = 'memory': {plan.method} on {plan.task} takes {peak(1):,} bytes with the smallest batch, {step}, "
            f"and the smallest method's step has {room:,} (nearest allowed value: 'tokens')"
        )
    fits, fails = 1, most
    while fails - fits > 1:
        slope = (known[fails] - known[fits]) / (fails - fits)
        guess = fits + int((room - known[fits]) / slope) if slope > 0 else (fits + fails) // 2
        # Just below a guess that is exact: look above it next, so that both sides close in.
        tried = min(max(guess if guess > fits else fits + 1, fits + 1), fails - 1)
        fits, fails = (tried, fails) if peak(tried) <= room else (fits, tried)
    return with_batch(plan, fits * step)


def with_batch(plan: Plan, batch_size: int) -> Plan:
    """Return the plan with another batch at the same steps: its epochs follow."""
    training, before = plan.training, plan.training.batch_size
    epochs = None if training.epochs is None else training.epochs * batch_size / before
    return plan.model_copy(
        update={"training": training.model_copy(update={"batch_size": batch_size, "epochs": epochs})}
    )
