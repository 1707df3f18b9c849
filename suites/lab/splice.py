"""Traces of deep models from traces of shallow ones, and whole steps from their halves: exact, since layers repeat.

A model of N equal layers does the same in each of them, so its trace is that of a model of four layers with the second
layer's stretch of the forward, and of the backward, said again N - 4 times. That the second and the third stretch
agree event by event is checked, not assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suites.measure.trace import Category, Event, Phase, Trace

SHALLOW = 4
NEVER = 1 << 28
OF_A_KIND, ONE_SPAN = 1000, 1
Deltas = list[tuple[int, str | None, str]]


class NotPeriodicError(RuntimeError):
    """Two layers of a model did not do the same, so that a shallow model does not stand for a deep one."""


def deepen(trace: Trace, layers: int) -> Trace:
    """Return the trace of `layers` layers from one of `SHALLOW` layers, whose marks say where each begins.

    What existed at the start is kept as it is: see `with_start`.

    Raises:
        NotPeriodicError: the second and the third layer differ, in some pass.
    """
    if layers < SHALLOW:
        raise ValueError(f"layers {layers}: must be at least {SHALLOW} (nearest allowed value: {SHALLOW})")
    events: list[Event] = list(trace.events[: trace.marks[0].event]) if trace.marks else []
    found = 0
    ends = [*(mark.event for mark in trace.marks[1:]), len(trace.events)]
    stretches = [(mark, trace.events[mark.event : end]) for mark, end in zip(trace.marks, ends, strict=True)]
    for (mark, stretch), (following, after) in pairwise([*stretches, (None, ())]):
        events += stretch
        # Forward 0 1 2 3, backward 3 2 1 0: the stretch of layer 1 is compared with its neighbour's in the middle.
        middle = (1, 2) if mark and mark.phase == "forward" else (2, 1)
        if mark and following and (mark.block, following.block) == middle and mark.phase == following.phase:
            if deltas(stretch, trace.categories) != deltas(after, trace.categories):
                raise NotPeriodicError(f"layers {middle[0]} and {middle[1]} differ in their {mark.phase}")
            events += list(stretch) * (layers - SHALLOW)
            found += 1
    if not found:
        raise NotPeriodicError("no two layers followed one another")
    return Trace(tuple(events), trace.categories)


def deltas(events: Iterable[Event], categories: Mapping[int, Category]) -> Deltas:
    """Return the changes of a stretch of events, without which storage they belong to."""
    return [
        (event.delta_bytes, None if event.storage is None else categories[event.storage], event.phase)
        for event in events
        if event.delta_bytes
    ]


def with_start(trace: Trace, start: Mapping[Category, int]) -> Trace:
    """Return the trace with these bytes at its start, in place of what it had in those categories."""
    kept = [
        e for e in trace.events if e.phase != "start" or e.storage is None or trace.categories[e.storage] not in start
    ]
    highest = max(trace.categories, default=-1)
    serials: dict[Category, int] = {category: highest + 1 + index for index, category in enumerate(start)}
    new = [Event(serials[category], size, "start") for category, size in start.items()]
    return Trace((*new, *kept), {**trace.categories, **{serial: category for category, serial in serials.items()}})


def join(first: Trace, second: Trace, known: Sequence[Category], rename: Mapping[Phase, Phase]) -> Trace:
    """Return one trace of two calls, the second one right after the first.

    Args:
        known: categories that the second call found already there and the first one has counted.
        rename: phases of the second call, where it began in the middle of a step.
    """
    shift = max(first.categories, default=-1) + 1

    def moved(event: Event) -> Event:
        storage = None if event.storage is None else event.storage + shift
        return Event(storage, event.delta_bytes, rename.get(event.phase, event.phase))

    later = [moved(event) for event in second.events if event.phase != "start"]
    early = [
        moved(event)
        for event in second.events
        if event.phase == "start" and event.storage is not None and second.categories[event.storage] not in known
    ]
    categories = {**first.categories, **{serial + shift: what for serial, what in second.categories.items()}}
    return Trace((*early, *first.events, *later), categories)


def new_spans(
    fewer: Sequence[Hashable], more: Sequence[Hashable], kind: Callable[[Any], Hashable] = lambda each: each
) -> list[range]:
    """Return the spans of `more` that `fewer` lacks, where `more` is of one layer more and a layer says itself again.

    Each span repeats what stands before it, so that saying it n times more gives n layers more. Elsewhere the two must
    be of one `kind`: what grows with the number of layers (all norms in one tensor) is there once in both. Of all ways
    to read `more` so, it is the one with the fewest places that only are of a kind, then with the fewest spans:

        cost[r, d] = min(cost[r - 1, d] + differs(fewer[r - 1 - d], more[r - 1]), min over L of cost[r - L, d - L] + 1)

    over the first r of `more`, d of them new, and the L for which the last L of those r repeat the L before.

    Raises:
        NotPeriodicError: they are not of this form.
    """
    room, length = len(more) - len(fewer), len(more)
    if room < 0:
        raise NotPeriodicError("fewer layers say more than more of them")
    (left, right), (left_kind, right_kind) = _numbered(fewer, more), _numbered(map(kind, fewer), map(kind, more))
    squares = _squares(right, room)
    cost = np.full((length + 1, room + 1), NEVER, dtype=np.int32)
    came_by = np.zeros((length + 1, room + 1), dtype=np.int32)
    cost[0, 0] = 0

    def reach(place: int, new: int, found: NDArray[np.int32], by: int) -> None:
        better = found < cost[place, new:]
        cost[place, new:][better] = found[better]
        came_by[place, new:][better] = by

    for place in range(length):
        for repeated in squares.get(place, ()):
            reach(place + repeated, repeated, cost[place, : room + 1 - repeated] + ONE_SPAN, repeated)
        # New are between all that is beyond the end of `fewer` and all there is so far.
        low, high = max(0, place - len(fewer) + 1), min(room, place)
        other = slice(place - high, place - low + 1)
        apart = np.where(left_kind[other] == right_kind[place], OF_A_KIND, NEVER)
        step = np.where(left[other] == right[place], 0, apart)[::-1]
        found = np.full(room + 1, NEVER)
        found[low : high + 1] = np.minimum(cost[place, low : high + 1] + step, NEVER)
        reach(place + 1, 0, found, 0)
    if cost[length, room] >= NEVER:
        raise NotPeriodicError("a layer more does not say again what the others say")
    spans: list[range] = []
    place, new = length, room
    while place:
        repeated = int(came_by[place, new])
        if repeated:
            spans.append(range(place - repeated, place))
        place, new = place - (repeated or 1), new - repeated
    return spans[::-1]


def _numbered(*sequences: Iterable[Hashable]) -> list[NDArray[np.int32]]:
    numbers: dict[Hashable, int] = {}
    return [np.array([numbers.setdefault(each, len(numbers)) for each in seen], np.int32) for seen in sequences]


def _squares(said: NDArray[np.int32], longest: int) -> dict[int, list[int]]:
    """Return, by place, the lengths that stand there a second time."""
    found: dict[int, list[int]] = {}
    for length in range(1, min(longest, len(said) // 2) + 1):
        same = np.concatenate([[0], np.cumsum(said[length:] == said[:-length])])
        for place in np.flatnonzero(same[length:] - same[:-length] == length).tolist():
            found.setdefault(place + length, []).append(length)
    return found


def arrange(trace: Trace, chosen: Sequence[int], kinds: Sequence[object]) -> list[int]:
    """Return the events of a trace of some layers, by index, in the order in which all layers have them.

    Args:
        chosen: the layers that the traced model has, the first and the last of all among them.
        kinds: of all layers; those of one kind between the first and the last do the same.

    Raises:
        NotPeriodicError: two layers of a kind differ, or one is missing.
    """
    ends = [*(mark.event for mark in trace.marks[1:]), len(trace.events)]
    stretches = [(mark, range(mark.event, end)) for mark, end in zip(trace.marks, ends, strict=True)]
    found = list(range(trace.marks[0].event)) if trace.marks else []
    last, between = len(kinds) - 1, range(1, len(kinds) - 1)
    for phase, group in groupby(stretches, key=lambda each: each[0].phase):
        by_layer = {chosen[mark.block]: stretch for mark, stretch in group}
        if set(by_layer) != set(chosen):
            raise NotPeriodicError(f"a {phase} does not pass every layer once")
        of_kind: dict[object, range] = {}
        for layer in chosen[1:-1]:
            same = of_kind.setdefault(kinds[layer], by_layer[layer])
            if _said(trace, same) != _said(trace, by_layer[layer]):
                raise NotPeriodicError(f"two layers of a kind differ in their {phase}")
        order = [0, *between, last] if phase == "forward" else [last, *reversed(between), 0]
        for layer in order:
            found += by_layer[layer] if layer in (0, last) else of_kind[kinds[layer]]
    return found


def _said(trace: Trace, stretch: range) -> Deltas:
    return deltas((trace.events[index] for index in stretch), trace.categories)
