"""What the runs of one group allow to conclude, in sentences, and what they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reports.figures.style import byte_unit, in_unit, seed_words
from reports.records.frames import ROW
from reports.records.report_runs import MICRO, Context
from reports.stats.over_seeds import LEAST_SEEDS, clear_best, paired_difference, summarise
from reports.stats.significance import front_probability
from reports.tables.standing import averages_of, peaks_of
from results.catalogue import MetricEntry

SURE = 0.95
Line = tuple[str, str]
"""(kind, sentence): "holds" for what may be concluded, "open" for what may not, "limits" for what it is about."""


def conclusions(context: Context) -> list[Line]:
    """Return what may be concluded of scores, memory and both, and first of all about what."""
    gains, peaks = averages_of(context), peaks_of(context.records)
    lines = [("limits", _about(context))]
    lines += [_score_line(context, gains), *_difference_lines(context, gains)] if gains else [_no_score(context)]
    lines += _memory_lines(context, peaks)
    return [*lines, *_front_lines(context, gains, peaks)]


def _about(context: Context) -> str:
    runs = len(context.records)
    methods = len({row.partition(ROW)[0] for row in context.methods})
    rows = "" if methods == len(context.methods) else f" in {len(context.methods)} rows by their settings"
    words = f"{runs} runs, {methods} methods{rows}, {seed_words(context.seeds)}; data: {context.data_words}"
    return f"{words}. {MICRO}." if context.is_micro else f"{words}."


def _metric(context: Context) -> MetricEntry:
    return context.averaged_metric if context.averages else context.columns[0].metric


def _what(context: Context) -> str:
    if context.averages:
        return f"average score ({_metric(context).unit})"
    metric = _metric(context)
    return metric.title + (f" ({metric.unit})" if metric.unit else "")


def _no_score(context: Context) -> Line:
    return "open", "No method has a score for every task and one seed: nothing may be concluded about scores."


def _score_line(context: Context, gains: Mapping[str, Mapping[int, float]]) -> Line:
    """Return which method scores best, if the seeds tell it apart from every other."""
    metric, what = _metric(context), _what(context)
    seeds = max(len(scores) for scores in gains.values())
    if seeds < LEAST_SEEDS:
        count = "one seed" if seeds == 1 else f"{seeds} seeds"
        return "open", f"Scores: {count} behind the {what}: no order of the methods may be concluded."
    means = {method: summarise(scores.values()).mean or 0.0 for method, scores in gains.items()}
    top = max(means, key=lambda method: means[method])
    best = clear_best(gains)
    value = summarise(metric.gain(gain) for gain in gains[top].values()).text(metric)
    if best is not None:
        apart = "told apart from every other method (paired 95 % intervals)"
        return "holds", f"{context.title(best)} has the best {what}, {value}, {apart}."
    alike = [m for m in gains if m != top and not paired_difference(gains[top], gains[m]).excludes_zero]
    if not alike:
        return "open", f"{context.title(top)} alone has a {what}: {value}."
    mean = f"{context.title(top)} has the best mean {what}, {value}"
    return "open", f"No method is best: {mean}, but the seeds do not tell it apart from {_joined(context, alike)}."


def _difference_lines(context: Context, gains: Mapping[str, Mapping[int, float]]) -> list[Line]:
    """Return which methods differ from the yardstick, better and worse, and which are not told apart from it."""
    base = context.yardstick
    if base is None or base not in gains or len(gains) < 2:
        return []
    if max(len(scores) for scores in gains.values()) < LEAST_SEEDS:
        return []
    metric, title = _metric(context), context.title(base)
    kinds: dict[str, list[str]] = {"Better": [], "Worse": [], "alike": []}
    for method in gains:
        if method != base:
            found = paired_difference(gains[method], gains[base])
            shown = paired_difference(_raw(metric, gains[method]), _raw(metric, gains[base])).text(metric)
            kind = "alike" if not found.excludes_zero else "Better" if (found.mean or 0.0) > 0 else "Worse"
            kinds[kind].append(f"{context.title(method)} {shown}")
    how = "over shared seeds (difference, paired 95 % interval, not corrected for their number)"
    lines = [("holds", f"{k} than {title} {how}: {'; '.join(kinds[k])}.") for k in ("Better", "Worse") if kinds[k]]
    return [
        *lines,
        *([("open", f"Not told apart from {title}: {'; '.join(kinds['alike'])}.")] if kinds["alike"] else []),
    ]


def _raw(metric: MetricEntry, gains: Mapping[int, float]) -> dict[int, float]:
    return {seed: metric.gain(value) for seed, value in gains.items()}


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
    lines: list[Line] = []
    if sure:
        words = (
            f"On the front of score against memory in at least 95 % of draws of the seeds: {_joined(context, sure)}."
        )
        lines.append(("holds" if enough else "open", words + ("" if enough else " Too few seeds to conclude it.")))
    if perhaps:
        lines.append(("open", f"Perhaps on it: {_joined(context, perhaps)}."))
    return lines


def _joined(context: Context, methods: Sequence[str]) -> str:
    names = [context.title(method) for method in methods]
    if any("," in name for name in names):
        return "; ".join(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
