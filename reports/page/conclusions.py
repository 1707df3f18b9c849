"""What the runs of one group allow to conclude, in sentences, and what they do not."""

from __future__ import annotations

from reports.figures.style import byte_unit, in_unit, seed_words
from reports.records.frames import ROW
from reports.records.provenance import listed
from reports.records.report_runs import MICRO, Context
from reports.stats.over_seeds import LEVEL_WORDS
from reports.tables.cost import peaks_of
from reports.tables.findings import Findings, Line, findings_of, lines, unordered
from reports.tables.standing import averages_of
from results.schema import EQUAL_MEMORY

NOTHING: Line = (
    "open",
    "Scores: one method alone, tasks in different units, or no score at all: there is no difference to take.",
)


def conclusions(context: Context) -> list[Line]:
    """Return what may be concluded of scores, memory and both, and first of all about what."""
    found = findings_of(context)
    scores = [NOTHING] if found is None else [*lines(found), *_compared_by(found)]
    equal = context.variant == EQUAL_MEMORY
    memory = [_equal_line(context)] if equal else [*_memory_lines(context), *_front_lines(context, found)]
    return [("limits", _about(context)), *scores, *memory]


def _compared_by(found: Findings) -> list[Line]:
    """Return how the differences above were taken; nothing where there is none to take."""
    count = sum(pair.p is not None for pair in found.pairs)
    if not count:
        return []
    text = f"Differences: paired by seed and task, decided by Holm's method for {count} comparisons; {LEVEL_WORDS} "
    return [("limits", f"{text}intervals that hold all at once (Bonferroni).")]


def _about(context: Context) -> str:
    runs = len(context.records)
    methods = len({row.partition(ROW)[0] for row in context.methods})
    rows = "" if methods == len(context.methods) else f" in {len(context.methods)} rows by their settings"
    words = f"{runs} runs, {methods} methods{rows}, {seed_words(context.seeds)}; data: {context.data_words}"
    return f"{words}. {MICRO}." if context.is_micro else f"{words}."


def _equal_line(context: Context) -> Line:
    """Return what is said of memory where it is equal: what is left of the room is no merit of a method."""
    peaks = peaks_of(context, context.methods, context.tasks).of.values()
    unit, size = byte_unit(max(peaks, default=0))
    found = f"; peaks from {in_unit(min(peaks), size)} to {in_unit(max(peaks), size)} {unit}" if peaks else ""
    return ("limits", f"Memory is equal by intent: the most rows a step that fit in the same room{found}.")


def _memory_lines(context: Context) -> list[Line]:
    """Return what the tracked peaks say: they are counted, so that one run is enough."""
    measured = peaks_of(context, context.methods, context.tasks)
    peaks = measured.of
    if not peaks:
        why = "no task was measured for every method" if measured.words else "no peak was measured here"
        return [("open", f"Memory: {why}.")]
    unit, size = byte_unit(max(peaks.values()))
    least = min(peaks, key=lambda method: peaks[method])
    amount = f"{in_unit(peaks[least], size)} {unit} at the highest step{measured.words}"
    text = f"Least memory: {context.title(least)}, {amount}, counted from live tensors"
    base = context.yardstick
    if base in peaks and base != least and base is not None:
        text += f"; {peaks[least] / peaks[base]:.2f} of {context.title(base)}"
    return [("holds", f"{text}.")]


def _front_lines(context: Context, found: Findings | None) -> list[Line]:
    """Return which methods are on the front of score against memory, and which may be.

    Sure is what the findings decide: how often a method is on the front of drawn seeds is no test of it, since of few
    seeds every draw agrees by chance now and then.
    """
    if found is None or not found.order:
        return [("open", f"Score against memory: no front, since {unordered(found)}.")]
    gains = averages_of(context)
    peaks = peaks_of(context, gains, context.counted).of
    placed = [method for method in context.methods if method in gains and method in peaks]
    if len(placed) < 2:
        return []
    better = {(pair.first, pair.second) for pair in found.pairs if pair.decided}
    rivals = {m: [other for other in placed if other != m and peaks[other] <= peaks[m]] for m in placed}
    sure = [m for m in placed if all((m, other) in better for other in rivals[m])]
    perhaps = [m for m in placed if m not in sure and not any((other, m) in better for other in rivals[m])]
    texts = {
        "holds": (sure, "On the front of score against memory, with least of it or better than all that needs no more"),
        "open": (perhaps, "Perhaps on the front, not shown to be better than all that needs no more memory"),
    }
    return [(kind, f"{text}: {listed(list(map(context.title, of)))}.") for kind, (of, text) in texts.items() if of]
