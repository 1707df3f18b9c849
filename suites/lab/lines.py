"""Traces as arrays: each change of bytes a straight line in the rows of a batch, said again for as many layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from itertools import groupby, pairwise
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from gnlorp import base_weight
from suites.lab.loops import Tokens
from suites.lab.splice import NotPeriodicError, new_spans
from suites.measure.trace import Category, Note, Trace

Column = NDArray[np.int64]
ROWS = (2, 3)
CATEGORIES: tuple[Category, ...] = get_args(Category)
KEPT: tuple[Category, ...] = ("parameter", "buffer", "optimizer", "gradient")
"""Tensors that one half of a step leaves to the other: named by what they are, so that either half can free them."""
HANDED, LATER = 1 << 40, 1 << 50
WIDEST, ALIKE = 1 << 32, 3
NO_LOOP: tuple[None] = (None,)


class Batch(NamedTuple):
    """Changes of a step of one batch in the order of time: storage, bytes, category by place in `CATEGORIES`."""

    storage: Column
    bytes: Column
    category: Column


class Line(NamedTuple):
    """Changes in the order of time: storage, bytes a + b rows, category by place in `CATEGORIES`, whether at start.

    `loop`: 0, or of what `loops.few` has run once over all tokens the loop's number and width (`loop_of`).
    """

    storage: Column
    fixed: Column
    per_row: Column
    category: Column
    start: Column
    loop: Column

    def at_batch(self, rows: int, length: int) -> Batch:
        """Return the changes at a batch of `rows` rows of `length` tokens, loops over tokens chunk by chunk."""
        sizes = self.fixed + rows * self.per_row
        if not self.loop.any():
            return Batch(self.storage, sizes, self.category)
        edges = [0, *(np.flatnonzero(np.diff(self.loop)) + 1).tolist(), len(sizes)]
        places, found = [], []
        for start, end in pairwise(edges):
            stretch = np.arange(start, end)
            loop = int(self.loop[start])
            for chunk in _chunks(rows * length, loop % WIDEST, base_weight.CHUNK_ELEMENTS) if loop else NO_LOOP:
                places.append(stretch)
                per_token = self.per_row[stretch] // length
                found.append(sizes[stretch] if chunk is None else self.fixed[stretch] + chunk * per_token)
        place = np.concatenate(places)
        return Batch(self.storage[place], np.concatenate(found), self.category[place])

    def at(self, index: Sequence[int] | Column) -> Line:
        """Return the changes at these places."""
        chosen = np.asarray(index, dtype=np.int64)
        return Line(*(column[chosen] for column in self))

    def changes(self) -> Line:
        """Return it without what changes nothing."""
        return self.at(np.flatnonzero((self.fixed != 0) | (self.per_row != 0)))


def line_of(first: Trace, second: Trace) -> Line:
    """Return the changes of a step at `ROWS` rows, traced at both; of one that no batch changes, given twice.

    What is `KEPT` and existed at the start is left out (as bytes of nothing, so that places stay).

    Raises:
        NotPeriodicError: the two differ in more than sizes.
    """
    same = first.marks == second.marks and first.categories == second.categories
    shapes = [[(event.storage, event.phase) for event in trace.events] for trace in (first, second)]
    if not same or shapes[0] != shapes[1]:
        raise NotPeriodicError("two batches differ in more than sizes")
    rows = []
    names: dict[int, int] = {}
    within = loops_of(first)
    for event, other, loop in zip(first.events, second.events, within, strict=True):
        if event.storage is None:
            rows.append((0, 0, 0, 0, 0, 0))
            continue
        category = first.categories[event.storage]
        code, start = CATEGORIES.index(category), event.phase == "start"
        name = names.setdefault(event.storage, name_of(category, event.delta_bytes) or event.storage + 1)
        if start and category in KEPT:
            rows.append((name, 0, 0, code, 1, 0))
            continue
        per_row = (other.delta_bytes - event.delta_bytes) // (ROWS[1] - ROWS[0])
        rows.append((name, event.delta_bytes - ROWS[0] * per_row, per_row, code, int(start), loop))
    return Line(*np.array(rows, dtype=np.int64).reshape(-1, 6).T.copy())


def grows_straight(trace: Trace) -> bool:
    """Whether no loop over tokens hands something on from round to round, so that batches differ in sizes alone."""
    return all(isinstance(note.what, Tokens) and note.what.begins is not None for note in trace.notes)


def loops_of(trace: Trace) -> list[int]:
    """Return of each event the loop over tokens that it lies in, by number and width; 0 for none.

    Raises:
        NotPeriodicError: one leaves something behind, so that how often it runs is not for its chunks' lengths to say.
    """
    found = [0] * len(trace.events)
    begun: Note | None = None
    for number, note in enumerate(trace.notes, 1):
        assert isinstance(note.what, Tokens)
        if begun is not None and not note.what.begins:
            stretch = slice(begun.event, note.event)
            left = Counter[int | None]()
            for event in trace.events[stretch]:
                left[event.storage] += event.delta_bytes
            if any(left.values()):
                raise NotPeriodicError("a loop over tokens leaves something behind")
            found[stretch] = [number * WIDEST + note.what.width] * (note.event - begun.event)
        begun = note if note.what.begins else None
    return found


@cache
def _chunks(tokens: int, width: int, _: int) -> list[int | None]:
    """Return the lengths of a loop's chunks, what lies between the first `ALIKE` and the last left out.

    Chunks as long as one another, each gone before the next, take the blocks that the one before them took. The last
    argument is the number of values that a chunk may have, on which the lengths depend.
    """
    found = [chunk.stop - chunk.start for chunk in base_weight.spans(tokens, width)]
    return [*found[: min(ALIKE, len(found) - 1)], found[-1]]


def name_of(category: Category, size: int) -> int:
    """Return the number that stands for every tensor of a kept category and size, 0 for other categories."""
    return -(size * len(CATEGORIES) + CATEGORIES.index(category)) - 1 if category in KEPT else 0


def handed_on(line: Line, trace: Trace) -> Line:
    """Give one number to all that a layer makes and the next one frees, of one size in one pass.

    Where a layer is said again, what it frees is then what the layer before it made, whichever that was.
    """
    begins = [mark.event for mark in trace.marks]
    stretch = np.searchsorted(begins, np.arange(len(line.storage)), side="right")
    passes = [0]
    for index, (_, group) in enumerate(groupby(mark.phase for mark in trace.marks)):
        passes += [index] * len(list(group))
    made: dict[int, int] = {}
    handed: dict[int, tuple[int, int, int]] = {}
    grows = (line.fixed + ROWS[0] * line.per_row) > 0
    for place, name in enumerate(line.storage.tolist()):
        if name > 0 and grows[place]:
            made.setdefault(name, place)
        elif name > 0 and name in made:
            before, now = int(stretch[made[name]]), int(stretch[place])
            if before != now and passes[before] == passes[now]:
                born = made[name]
                handed[name] = (passes[now], int(line.fixed[born]), int(line.per_row[born]))
    numbers = {kind: HANDED + index for index, kind in enumerate(dict.fromkeys(handed.values()))}
    renamed = [numbers[handed[name]] if name in handed else name for name in line.storage.tolist()]
    return line._replace(storage=np.array(renamed, dtype=np.int64))


def more_layers(fewer: Line, more: Line, times: int) -> Line:
    """Return the changes with what `more` says and `fewer` does not said `times` times: of so many layers more.

    Raises:
        NotPeriodicError: they are not of that form.
    """
    said, said_more = (list(zip(*(column.tolist() for column in line[1:]), strict=True)) for line in (fewer, more))
    spans = new_spans(said, said_more, _kind)
    extra = {place for span in spans for place in span}
    both = [place for place in range(len(more.fixed)) if place not in extra]
    grown = np.zeros_like(more.fixed)
    grown[both] = more.fixed[both] - fewer.fixed
    return more._replace(fixed=more.fixed + (times - 1) * grown).at(again(len(more.fixed), spans, times))


def more_sizes(fewer: Sequence[int], more: Sequence[int], times: int) -> list[int]:
    """Return the sizes of tensors, those that `more` has and `fewer` has not `times` times."""
    spans = new_spans(fewer, more)
    return [more[place] for place in again(len(more), spans, times)]


def again(length: int, spans: Sequence[range], times: int) -> list[int]:
    """Return the places from 0 to `length`, each span of them `times` times."""
    found: list[int] = []
    done = 0
    for span in spans:
        found += [*range(done, span.start), *list(span) * times]
        done = span.stop
    return found + list(range(done, length))


def _kind(change: tuple[int, ...]) -> Hashable:
    return change[1:], change[0] > 0


def at_rest(sizes: Mapping[Category, Sequence[int]]) -> Line:
    """Return the tensors that a step begins with as changes at the start."""
    rows = [
        (name_of(category, size), size, 0, CATEGORIES.index(category), 1, 0)
        for category, found in sizes.items()
        for size in found
        if size
    ]
    return Line(*np.array(rows, dtype=np.int64).reshape(-1, 6).T.copy())


def joined(rest: Line, half: Line, finish: Line | None) -> Line:
    """Return the changes of a whole step: what is there, forward and backward, the optimizer's half."""
    if finish is None:
        return _together(rest, half)
    own = finish.storage > 0
    moved = finish._replace(storage=np.where(own, finish.storage + LATER, finish.storage))
    early = moved.start == 1
    return _together(rest, moved.at(np.flatnonzero(early)), half, moved.at(np.flatnonzero(~early)))


def _together(*lines: Line) -> Line:
    return Line(*(np.concatenate(columns) for columns in zip(*lines, strict=True)))
