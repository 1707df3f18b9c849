"""The largest batch whose step stays within a limit; both the answer and the next one are looked at."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

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


def largest(peak: Callable[[int], int], limit_bytes: int, most: int = MOST_ROWS) -> tuple[int, int, int | None]:
    """Return (n, peak of n, peak of n + 1) for the largest n from 1 to `most` whose peak is within the limit.

    n is 0 where not even 1 fits, with the peak of 1 as the third; the third is None where n is `most`. The peak is the
    highest of many moments that each grow in proportion to n, so the search follows straight lines, but both ends of
    the answer are traced.
    """
    low, low_peak = 1, peak(1)
    if low_peak > limit_bytes:
        return 0, 0, low_peak
    high, high_peak = 2, peak(2)
    while high_peak <= limit_bytes:
        if high == most:
            return high, high_peak, None
        slope = max(1.0, (high_peak - low_peak) / (high - low))
        low, low_peak = high, high_peak
        # Peaks grow ever faster with n, never slower: the line overshoots, and so finds an upper end.
        high = min(most, max(low + 1, low + int((limit_bytes - low_peak) / slope) + 1))
        high_peak = peak(high)
    while high - low > 1:
        share = (limit_bytes - low_peak) / (high_peak - low_peak)
        guess = min(high - 1, max(low + 1, low + int(share * (high - low))))
        guess_peak = peak(guess)
        if guess_peak <= limit_bytes:
            low, low_peak = guess, guess_peak
            if low + 1 < high and (after := peak(low + 1)) > limit_bytes:
                high, high_peak = low + 1, after
        else:
            high, high_peak = guess, guess_peak
    return low, low_peak, high_peak


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
