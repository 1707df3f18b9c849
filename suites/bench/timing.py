"""Timing of several ways to do the same work, in turns, so that what the machine does meets all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from results.bench import Candidate, Ratio, Rule

Work = Callable[[], object]
SHORTEST_S = 0.02
WARM_UPS = 2


def in_turns(work: Mapping[str, Work], budget_s: float, least: int = 3, most: int = 60) -> dict[str, list[float]]:
    """Return seconds per call and round of each candidate, after warm-up.

    A round calls every candidate, forwards in one round and backwards in the next; work under `SHORTEST_S` is called
    often enough to reach it. Rounds go on until the budget is spent, but `least` of them are done.
    """
    first: dict[str, float] = {}
    for name, call in work.items():
        for _ in range(WARM_UPS):
            first[name] = _seconds(call, 1)
            if first[name] > budget_s / 10:
                break
    counts = {name: max(1, math.ceil(SHORTEST_S / max(seconds, 1e-9))) for name, seconds in first.items()}
    found: dict[str, list[float]] = {name: [] for name in work}
    start, rounds = time.perf_counter(), 0
    while rounds < least or (rounds < most and time.perf_counter() - start < budget_s):
        order = list(work.items())
        for name, call in order if rounds % 2 == 0 else reversed(order):
            found[name].append(_seconds(call, counts[name]) / counts[name])
        rounds += 1
    return found


def ratio_claim(
    what: str,
    over: Sequence[float],
    under: Sequence[float],
    names: tuple[str, str],
    rule: Rule = "at most",
    target: float | None = None,
) -> Ratio:
    """Return the claim on `over` divided by `under`, round by round; `names` are ours and the peer's.

    Without a target the ratio is only stated, and `rule` says nothing.
    """
    values = [a / b for a, b in zip(over, under, strict=True)] if over and under else []
    kept = None if target is None else rule
    return Ratio(what=what, ours=names[0], peer=names[1], values=values, rule=kept, target=target)


def candidate(name: str, title: str, seconds: Mapping[str, list[float]], peak_bytes: int | None = None) -> Candidate:
    """Return a measured candidate."""
    return Candidate(name=name, title=title, seconds=seconds.get(name, []), peak_bytes=peak_bytes)


def _seconds(call: Work, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start
