"""What torch's caching allocator on a CUDA device reserves for a trace of tensors: its rules, replayed.

    a size is rounded up to 512 bytes
    up to 1 MiB:   from segments of 2 MiB
    under 10 MiB:  from segments of 20 MiB
    from 10 MiB:   a segment of its own, rounded up to 2 MiB
    the smallest free block that holds it is taken, and what is left of it split off where that is at least 512 bytes
    (small segments) or over 1 MiB (large ones); a freed block grows together with free neighbours in its segment

(c10/cuda/CUDACachingAllocator.cpp of torch 2, default settings.) Segments go back to the device only where it is full.
Not modelled: several streams, `expandable_segments`, kernels' workspaces (cuBLAS takes its own through the allocator).
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from suites.measure.trace import Category, Trace

MIB = 1 << 20
SMALLEST = 512
SMALL = MIB
SMALL_SEGMENT, LARGE_SEGMENT, ROUND_LARGE = 2 * MIB, 20 * MIB, 2 * MIB
OWN_SEGMENT = 10 * MIB
WIDEST = 1000
"""Changes within which a block is freed that belongs to a stretch; others come to stay."""


class Held(NamedTuple):
    """Peaks: bytes of tensors as they are, of their blocks, and of the segments that hold the blocks."""

    tensor_bytes: int
    allocated_bytes: int
    reserved_bytes: int


Column = npt.NDArray[np.int64]
Changes = tuple[Column, Column]
"""Storages, and by how many bytes each becomes more or less, in the order of time."""


@dataclass(eq=False, slots=True)
class _Block:
    address: int
    size: int
    small: bool
    free: bool = False
    before: _Block | None = None
    after: _Block | None = None


class Allocator:
    """The allocator's blocks and segments; sizes in bytes."""

    def __init__(self) -> None:
        self.allocated = self.reserved = 0
        self._next = 0
        # Free blocks by size, then address, of small segments and of large ones; and which block lies at an address.
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._at: dict[int, _Block] = {}

    def take(self, size: int) -> _Block:
        """Return a block for a tensor of `size` bytes, from a new segment where no free block holds it."""
        wanted = rounded(size)
        small = wanted <= SMALL
        pool = self._free[small]
        index = bisect.bisect_left(pool, (wanted, -1))
        block = self._at.pop(pool.pop(index)[1]) if index < len(pool) else self._segment(wanted, small)
        rest = block.size - wanted
        if rest >= SMALLEST if small else rest > SMALL:
            left = _Block(block.address + wanted, rest, small, True, block, block.after)
            if block.after is not None:
                block.after.before = left
            block.after, block.size = left, wanted
            self._put(left)
        block.free = False
        self.allocated += block.size
        return block

    def give(self, block: _Block) -> None:
        """Take a block back."""
        self.allocated -= block.size
        block.free = True
        for other in (block.before, block.after):
            if other is not None and other.free:
                pool = self._free[block.small]
                del pool[bisect.bisect_left(pool, (other.size, other.address))]
                del self._at[other.address]
        if block.before is not None and block.before.free:
            block = self._merge(block.before, block)
        if block.after is not None and block.after.free:
            block = self._merge(block, block.after)
        self._put(block)

    def copied(self, taken: Iterable[_Block]) -> tuple[Allocator, dict[int, _Block]]:
        """Return an allocator in the same state, and its blocks by address; `taken`: those of this one in use."""
        every = [*taken, *self._at.values()]
        twins = {block.address: replace(block) for block in every}
        for block in twins.values():
            block.before = None if block.before is None else twins[block.before.address]
            block.after = None if block.after is None else twins[block.after.address]
        found = Allocator()
        found.allocated, found.reserved, found._next = self.allocated, self.reserved, self._next
        found._free = {small: list(pool) for small, pool in self._free.items()}
        found._at = {address: twins[address] for address in self._at}
        return found, twins

    def _merge(self, first: _Block, second: _Block) -> _Block:
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        return first

    def _put(self, block: _Block) -> None:
        bisect.insort(self._free[block.small], (block.size, block.address))
        self._at[block.address] = block

    def _segment(self, wanted: int, small: bool) -> _Block:
        size = SMALL_SEGMENT if small else LARGE_SEGMENT if wanted < OWN_SEGMENT else _up(wanted, ROUND_LARGE)
        block = _Block(self._next, size, small)
        self._next += size
        self.reserved += size
        return block


def rounded(size: int) -> int:
    """Return the bytes of the block that a tensor of `size` bytes asks for."""
    return -(-size // SMALLEST) * SMALLEST or SMALLEST


def held(trace: Trace, at_start: Mapping[Category, Sequence[int]] | None = None) -> Held:
    """Return the peaks of a trace under the allocator, from an empty cache on.

    Args:
        at_start: sizes of the single tensors of a category that the trace begins with, where it has them as one lump.
    """
    lumps = at_start or {}
    changes: list[tuple[int, int]] = []
    for event in trace.events:
        if event.storage is None or event.delta_bytes == 0:
            continue
        if event.phase == "start" and event.delta_bytes > 0 and trace.categories[event.storage] in lumps:
            changes += [(event.storage, size) for size in lumps[trace.categories[event.storage]] if size]
        else:
            changes.append((event.storage, event.delta_bytes))
    storage, size = np.array(changes or [(0, 0)], dtype=np.int64).T
    return replay((storage, size))


def replay(changes: Changes, ends: Sequence[Changes] = ()) -> Held:
    """Return the peaks under the allocator of changes.

    A storage that is taken several times before it is freed, as where a trace says a layer again, has a block a time.

    Args:
        ends: ways to go on after `changes`, such as an optimizer's, that do much the same again and again; the peaks
            are those of the highest.
    """
    begun = _Replay()
    begun.go_on(*changes)
    ways = [*(begun.copied() for _ in ends[1:]), begun]
    for way, end in zip(ways, ends, strict=False):
        way.go_on_again(*end)
    # Nothing goes back to the device: the last of it is the most of it.
    found = [Held(way.most_tensors, way.most_allocated, way.allocator.reserved) for way in ways]
    return Held(*map(max, zip(*found, strict=True)))


class _Replay:
    """An allocator, the blocks of each storage, and the peaks so far."""

    def __init__(self) -> None:
        self.allocator = Allocator()
        self.blocks: defaultdict[int, list[tuple[int, _Block]]] = defaultdict(list)
        self.tensors = self.most_tensors = self.most_allocated = 0

    def go_on(self, storages: Column, sizes: Column) -> None:
        allocator, blocks = self.allocator, self.blocks
        # Two flat lists: a list a change is what Python's collector of cycles would go through again and again.
        for storage, size in zip(storages.tolist(), sizes.tolist(), strict=True):
            self.tensors += size
            if size > 0:
                blocks[storage].append((size, allocator.take(size)))
            else:
                _give_back(allocator, blocks[storage], -size)
            if self.tensors > self.most_tensors:
                self.most_tensors = self.tensors
            if allocator.allocated > self.most_allocated:
                self.most_allocated = allocator.allocated

    def go_on_again(self, storages: Column, sizes: Column) -> None:
        """Do as `go_on`, of stretches that leave every block where it was each kind once as long as nothing moves."""
        seen: set[Hashable] = set()
        for start, end, kind in stretches(storages, sizes):
            if kind in seen:
                continue
            segments = self.allocator.reserved
            self.go_on(storages[start:end], sizes[start:end])
            if kind is None or self.allocator.reserved > segments:
                seen.clear()
            else:
                seen.add(kind)

    def copied(self) -> _Replay:
        found = _Replay()
        found.tensors, found.most_tensors, found.most_allocated = self.tensors, self.most_tensors, self.most_allocated
        found.allocator, twins = self.allocator.copied(block for held in self.blocks.values() for _, block in held)
        for storage, held in self.blocks.items():
            found.blocks[storage] = [(size, twins[block.address]) for size, block in held]
        return found


def stretches(storage: Column, size: Column) -> Iterator[tuple[int, int, Hashable]]:
    """Yield (start, end, kind) of stretches of changes, which are all of them in order.

    A stretch with a kind frees what it takes and nothing else: the free blocks are as before it, unless it needed a new
    segment. Two of a kind take and free the same sizes in the same order. Kind None: all else.
    """
    if not len(size):
        return
    count, place = len(size), np.arange(len(size))
    # Storage by storage: its bytes, from 0 to 0 a life; `begin` and `end`: of the life that a change belongs to.
    order = np.argsort(storage, kind="stable")
    new = np.diff(storage[order], prepend=storage[order[0]] - 1) != 0
    total = np.cumsum(size[order])
    total -= (total - size[order])[new][np.cumsum(new) - 1]
    born = total == size[order]
    life = np.cumsum(born) - 1
    first, last = np.flatnonzero(born), np.append(np.flatnonzero(born)[1:], count) - 1
    begin, end = order[first], order[last]
    stays = (total[last] != 0) | (np.minimum.reduceat(total, first) < 0) | (end - begin >= WIDEST)
    of = np.empty(count, dtype=np.int64)
    of[order] = life
    moves = stays[of]
    # Lives that overlap are one stretch; one in which a block comes to stay, or goes, has no kind.
    ends = np.flatnonzero(np.maximum.accumulate(np.where(moves, place, end[of])) == place)
    starts = np.append(0, ends[:-1] + 1)
    plain = np.add.reduceat(moves, starts) > 0
    whole = np.flatnonzero(~plain | np.append(True, ~plain[:-1]))
    since = place - begin[of]
    for at, after in zip(whole.tolist(), [*whole[1:].tolist(), len(starts)], strict=True):
        one, other = int(starts[at]), int(ends[after - 1]) + 1
        yield one, other, None if plain[at] else (size[one:other].tobytes(), since[one:other].tobytes())


def _give_back(allocator: Allocator, mine: list[tuple[int, _Block]], size: int) -> None:
    """Free the newest blocks of a storage: one that a trace says again for many layers has one a layer."""
    left = size
    while left > 0 and mine:
        freed, block = mine.pop()
        allocator.give(block)
        left -= freed
    if left < 0:
        # Part of a storage that shrank: the rest of it lives on, in a block of its own.
        mine.append((-left, allocator.take(-left)))


def _up(size: int, unit: int) -> int:
    return -(-size // unit) * unit
