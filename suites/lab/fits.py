"""The largest batch whose step stays within a limit; both the answer and the next one are looked at."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from functools import cache

from baselines.registry import checked_name

UNITS = {"KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
OVERHEAD_WORDS = (
    "an assumption, not a measurement: a CUDA context of about half a GiB, and what the allocator rounds up"
)
MOST_ROWS = 1 << 16
STRAIGHT = 12
FAR = 4
"""Rows apart that two peaks are at least where they say how steep the line is: blocks come in steps."""


def parse_bytes(text: str, what: str) -> int:
    """Return the bytes that a size with a unit means, such as 24GiB or 24GB.

    Raises:
        ValueError: no number, no unit, an unknown unit, or a negative size.
    """
    match = re.fullmatch(r"\s*(-?[\d.]+)\s*([A-Za-z]*)\s*", text)
    try:
        number = float(match[1]) if match else None
    except ValueError:
        number = None
    if match is None or number is None or number < 0:
        raise ValueError(f"{what} {text!r}: must be a number of at least 0 with a unit, such as 24GiB")
    if not match[2]:
        raise ValueError(f"{what} {text!r}: has no unit; allowed are {', '.join(UNITS)} (nearest: {match[1]}GiB)")
    known = {unit.lower(): unit for unit in UNITS}
    unit = known.get(match[2].lower()) or checked_name(match[2], UNITS, f"unit of {what} {text!r}")
    return round(number * UNITS[unit])


def gib(size: int | None) -> str:
    """Return a size in GiB, a dash for none."""
    return "-" if size is None else f"{size / 2**30:.3f} GiB"


def largest(peak: Callable[[int], int], limit_bytes: int, most: int = MOST_ROWS) -> tuple[int, int, int | None]:
    """Return (n, peak of n, peak of n + 1) for the largest n from 1 to `most` whose peak is within the limit.

    n is 0 where not even 1 fits, with the peak of 1 as the third; the third is None where n is `most`. The peak is the
    highest of many moments that each grow in proportion to n, so the search follows straight lines, but both ends of
    the answer are traced.
    """
    looked = cache(peak)
    if looked(1) > limit_bytes:
        return 0, 0, looked(1)
    return largest_near(looked, limit_bytes, 2, looked(2) - looked(1), most)


def largest_near(
    peak: Callable[[int], int], limit_bytes: int, guess: int, slope: float, most: int = MOST_ROWS
) -> tuple[int, int, int | None]:
    """Return what `largest` does, from a guess on and by straight lines, the first of about `slope` bytes a row.

    Peaks that go up and down a little may cross the limit several times: one such place is found.

    One row is looked at last, and only if two do not fit.
    """
    low, high, rows = 0, most + 1, min(max(guess, 2), most)
    before = rows
    known: dict[int, int] = {}
    for turn in itertools.count():
        known[rows] = peak(rows)
        low, high = (rows, high) if known[rows] <= limit_bytes else (low, rows)
        if high - low == 1:
            break
        if turn and abs(rows - before) >= FAR:
            slope = max(1.0, (known[rows] - known[before]) / (rows - before))
        before = rows
        step = math.floor((limit_bytes - known[rows]) / max(1.0, slope))
        wanted = rows + (step or (1 if rows == low else -1)) if turn < STRAIGHT else (low + high) // 2
        rows = min(max(wanted, low + 1), high - 1)
    return low, known.get(low, 0), known.get(high)
