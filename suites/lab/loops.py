"""Loops over chunks, gone through a few times: what a round beyond those takes is what the one before it took.

A layer that reads its weight by chunks of rows does the same for each but the first and the last. `short` lets such a
loop (`gnlorp.base_weight.alike_spans`) run its first three rounds and its last one, and `said_again` puts the rest into
the trace, event by event; that the second and the third round agree is checked. `few` leaves out all after the second
that are as long: no moment of theirs is higher, nor takes a block that the second has not taken. It also lets a loop
over tokens (`token_spans`), whose rounds leave nothing behind, run once over all of them where `collapse` says so; how
long its chunks are at a batch is for `lines` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import gnlorp.base_weight
import gnlorp.dense
import gnlorp.weight_norm
from gnlorp.base_weight import spans
from suites.lab import repeats
from suites.measure.recorder import note
from suites.measure.trace import Category, Event, Trace

FIRST = 3
Loop = Callable[[int, int], Iterator[slice]]
READERS = (gnlorp.base_weight, gnlorp.weight_norm, gnlorp.dense)


class Round(NamedTuple):
    """A round of a shortened loop begins, or (`place` beyond the last) the loop ends; so many rounds are `missing`."""

    place: int
    missing: int


class Tokens(NamedTuple):
    """A loop over all tokens, which really goes through chunks of rows of `width` values, begins or ends; None: one
    whose rounds hand something on, so that it is there once for every batch."""

    width: int
    begins: bool | None


@contextmanager
def short() -> Iterator[None]:
    """Shorten loops inside, within `few` as that does; their traces are to be `said_again`."""
    if gnlorp.base_weight.alike_spans is not spans:
        yield
        return
    with _instead(_noted(), spans), repeats.said_again():
        yield


@contextmanager
def few(tokens: int, collapse: bool) -> Iterator[None]:
    """Shorten loops inside for good; a trace notes those over so many tokens (`Tokens`)."""

    def once(rows: int, width: int) -> Iterator[slice]:
        if rows != tokens or not collapse:
            yield from spans(rows, width)
            return
        note(Tokens(width, True))
        yield slice(0, rows)
        note(Tokens(width, False))

    def ends(rows: int, width: int) -> Iterator[slice]:
        if rows == tokens:
            note(Tokens(width, None))
        chunks = list(spans(rows, width))
        alike = [chunk for chunk in chunks if chunk.stop - chunk.start == chunks[0].stop - chunks[0].start]
        yield from [*alike[:2], *chunks[len(alike) :]]

    with _instead(ends, once), repeats.said_again():
        yield


def _ends(chunks: list[slice]) -> list[slice]:
    return chunks if len(chunks) <= FIRST + 1 else [*chunks[:FIRST], chunks[-1]]


def _noted() -> Loop:
    inside = False

    def loop(rows: int, width: int) -> Iterator[slice]:
        nonlocal inside
        chunks = list(spans(rows, width))
        chosen = _ends(chunks)
        if inside or chosen is chunks:
            yield from chunks
            return
        inside = True
        for place, chunk in enumerate(chosen):
            note(Round(place, len(chunks) - len(chosen)))
            yield chunk
        note(Round(len(chosen), 0))
        inside = False

    return loop


@contextmanager
def _instead(alike: Loop, over_tokens: Loop) -> Iterator[None]:
    kept = [(place, name, getattr(place, name)) for place in READERS for name in ("alike_spans", "token_spans")
            if hasattr(place, name)]  # fmt: skip
    for place, name, _ in kept:
        setattr(place, name, alike if name == "alike_spans" else over_tokens)
    try:
        yield
    finally:
        for place, name, plain in kept:
            setattr(place, name, plain)


def said_again(trace: Trace) -> Trace:
    """Return the trace with the rounds that `short` left out; it keeps no notes.

    Raises:
        RuntimeError: the second and the third round of a loop did not do the same.
    """
    rounds = [(event, what) for event, what in trace.notes if isinstance(what, Round)]
    if not rounds:
        return trace
    again = _Again(trace)
    for index, (event, what) in enumerate(rounds):
        if what.place == FIRST - 1:
            before, after = rounds[index - 1][0], rounds[index + 1][0]
            again.say(before, event, after, what.missing)
    return again.trace()


class _Again:
    """A trace that is being written anew, from left to right."""

    def __init__(self, trace: Trace) -> None:
        self._old = trace
        self._events: list[Event] = []
        self._done = 0
        self._categories: dict[int, Category] = dict(trace.categories)
        self._next = max(trace.categories, default=-1) + 1
        self._renamed: dict[int, int] = {}
        self._moved: list[tuple[int, int]] = []
        self._born: dict[int, int] = {}
        for place, event in enumerate(trace.events):
            if event.storage is not None:
                self._born.setdefault(event.storage, place)

    def say(self, start: int, middle: int, end: int, times: int) -> None:
        """Say the events from `middle` to `end`, which do what those from `start` did, so many times more."""
        made, own = self._made(start, middle), self._made(middle, end)
        if self._said(start, middle, made) != self._said(middle, end, own) or not self._ends(start, middle, end, made):
            raise RuntimeError("two rounds of a loop over chunks differ: its trace cannot be said again")
        self._copy(middle)
        before = dict(zip(own, made, strict=True))
        frees = {old: new for new, old in before.items()}
        for _ in range(times):
            fresh = {each: self._fresh(each) for each in own}
            for event in self._old.events[middle:end]:
                name = event.storage
                if name is not None:
                    name = fresh[name] if name in fresh else self._of(before[frees[name]]) if name in frees else name
                self._events.append(event._replace(storage=name))
            before = fresh
        self._moved.append((middle, times * (end - middle)))
        # What the third round frees of the second's is now the last one's that was said again.
        self._renamed = {old: before[new] for old, new in ((old, frees[old]) for old in made)} if times else {}
        self._copy(end)
        self._renamed = {}

    def trace(self) -> Trace:
        """Return what has been written, with all that was still to come."""
        self._copy(len(self._old.events))

        def moved(event: int) -> int:
            return event + sum(more for place, more in self._moved if place < event)

        marks = tuple(mark._replace(event=moved(mark.event)) for mark in self._old.marks)
        return Trace(tuple(self._events), self._categories, marks)

    def _of(self, name: int) -> int:
        return self._renamed.get(name, name)

    def _copy(self, end: int) -> None:
        for event in self._old.events[self._done : end]:
            name = event.storage
            self._events.append(event if name is None else event._replace(storage=self._of(name)))
        self._done = max(self._done, end)

    def _fresh(self, like: int) -> int:
        self._next += 1
        self._categories[self._next] = self._old.categories[like]
        return self._next

    def _made(self, start: int, end: int) -> list[int]:
        return [name for name, place in self._born.items() if start <= place < end]

    def _said(self, start: int, end: int, made: list[int]) -> list[tuple[int, str, int | None]]:
        """Return the changes of a round, of what it makes by the order of its making."""
        own = {name: number for number, name in enumerate(made)}
        return [
            (event.delta_bytes, event.phase, None if event.storage is None else own.get(event.storage))
            for event in self._old.events[start:end]
        ]

    def _ends(self, start: int, middle: int, end: int, made: list[int]) -> bool:
        """Whether what a round makes is gone by the end of the next, which frees nothing else."""
        left = dict.fromkeys(made, 0)
        for place, event in enumerate(self._old.events[start:end], start):
            if event.storage in left:
                left[event.storage] += event.delta_bytes
            elif event.storage is not None and place >= middle and self._born[event.storage] < middle:
                return False
        return not any(left.values())
