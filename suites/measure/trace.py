"""What happened to storages during a call: events in the order of time, and the peak of their sum by category."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from results.schema import Peak

Category = Literal["parameter", "buffer", "gradient", "activation", "temporary", "optimizer", "other"]
Phase = Literal["start", "forward", "backward", "optimizer"]


class Event(NamedTuple):
    """One change of the bytes that a storage holds, in the order of time; or, without a change, a phase that began."""

    storage: int | None
    delta_bytes: int
    phase: Phase


class Mark(NamedTuple):
    """The event index at which the forward of a block of layers began, or its backward (its output's gradient came)."""

    event: int
    phase: Literal["forward", "backward"]
    block: int


class Note(NamedTuple):
    """The event index at which `note` was called, and with what."""

    event: int
    what: object


@dataclass(frozen=True)
class Trace:
    """What happened during one call: the events (those of phase "start" first), and what each storage was."""

    events: tuple[Event, ...]
    categories: Mapping[int, Category]
    marks: tuple[Mark, ...] = ()
    notes: tuple[Note, ...] = ()


def peak_of(trace: Trace, phase: Phase | None = None) -> Peak:
    """Return the bytes by category at the first moment of the highest total, over the call or within one phase.

    A phase lasts until the next one begins: "forward" with a module's forward, "backward" (clipping after it included)
    with backward, "optimizer" with `optimizer.step`.
    A call without `phase` has a peak of zero there.
    """
    start = sum(event.phase == "start" for event in trace.events)
    total = sum(event.delta_bytes for event in trace.events[:start])
    highest, end = (total, start) if phase is None else (-1, 0)
    for index, event in enumerate(trace.events[start:], start=start):
        total += event.delta_bytes
        # What goes first thing in a phase was not needed there: a total before a release belongs to an earlier event.
        if phase in (None, event.phase) and event.delta_bytes >= 0 and total > highest:
            highest, end = total, index + 1
    sums: dict[Category, int] = dict.fromkeys(get_args(Category), 0)
    for event in trace.events[:end]:
        if event.storage is not None:
            sums[trace.categories[event.storage]] += event.delta_bytes
    peak = Peak(total_bytes=sum(sums.values()), **{f"{category}_bytes": size for category, size in sums.items()})
    assert end == 0 or peak.total_bytes == highest
    return peak
