"""What the runs of one group allow to conclude, in sentences, and what they do not."""

from __future__ import annotations

from collections.abc import Mapping

from reports.figures.style import byte_unit, in_unit, seed_words
from reports.records.frames import ROW
from reports.records.report_runs import MICRO, Context
from reports.stats.over_seeds import LEAST_SEEDS
from reports.stats.significance import front_probability
from reports.tables.findings import Findings, Line, findings_of, joined, lines
from reports.tables.standing import averages_of, peaks_of

SURE = 0.95
NOTHING: Line = ("open", "Scores: one method alone, or tasks in different units: there is no difference to take.")
NO_FRONT: Line = (
    "open",
    "Score against memory: no two methods are told apart by the score, so memory alone orders them.",
)


def conclusions(context: Context) -> list[Line]:
    """Return what may be concluded of scores, memory and both, and first of all about what."""
    found, peaks = findings_of(context), peaks_of(context.records)
    scores = [NOTHING] if found is None else [*lines(found), *_compared_by(found)]
    front = _front_lines(context, averages_of(context), peaks) if found is not None and found.order else [NO_FRONT]
    return [("limits", _about(context)), *scores, *_memory_lines(context, peaks), *front]


def _compared_by(found: Findings) -> list[Line]:
    """Return how the differences above were taken; nothing where there is none to take."""
    count = sum(pair.low is not None for pair in found.pairs)
    if not count:
        return []
    text = f"Differences: paired by seed and task, 95 % intervals that hold all at once for {count} comparisons (Holm)."
    return [("limits", text)]


def _about(context: Context) -> str:
    runs = len(context.records)
    methods = len({row.partition(ROW)[0] for row in context.methods})
    rows = "" if methods == len(context.methods) else f" in {len(context.methods)} rows by their settings"
    words = f"{runs} runs, {methods} methods{rows}, {seed_words(context.seeds)}; data: {context.data_words}"
    return f"{words}. {MICRO}." if context.is_micro else f"{words}."


def _memory_lines(context: Context, peaks: Mapping[str, int]) -> list[Line]:
    """Return what the tracked peaks say: they are counted, so that one run is enough."""
    if not peaks:
        return [("open", "Memory: no peak was measured here.")]
    unit, size = byte_unit(max(peaks.values()))
    least = min(peaks, key=lambda method: peaks[method])
    amount = f"{in_unit(peaks[least], size)} {unit} at the highest step"
    text = f"Least memory: {context.title(least)}, {amount}, counted from live tensors"
    base = context.yardstick
    if base in peaks and base != least and base is not None:
        text += f"; {peaks[least] / peaks[base]:.2f} of {context.title(base)}"
    return [("holds", f"{text}.")]


def _front_lines(context: Context, gains: Mapping[str, Mapping[int, float]], peaks: Mapping[str, int]) -> list[Line]:
    """Return which methods are on the front of score against memory whichever seeds are drawn, and which may be."""
    placed = [method for method in context.methods if method in gains and method in peaks]
    if len(placed) < 2:
        return []
    chance = front_probability({m: float(peaks[m]) for m in placed}, {m: gains[m] for m in placed})
    if not chance:
        return [
            (
                "open",
                "Score against memory: fewer than two seeds are shared, so that nobody's place on the front is known.",
            )
        ]
    sure = [m for m in placed if chance[m] >= SURE]
    never = [m for m in placed if chance[m] <= 1 - SURE]
    perhaps = [m for m in placed if m not in sure and m not in never]
    enough = min(len(gains[m]) for m in placed) >= LEAST_SEEDS
    made: list[Line] = []
    if sure:
        words = f"On the front of score against memory in at least 95 % of draws of the seeds: {joined(context, sure)}."
        made.append(("holds" if enough else "open", words + ("" if enough else " Too few seeds to conclude it.")))
    if perhaps:
        made.append(("open", f"Perhaps on it: {joined(context, perhaps)}."))
    return made
