"""Where the methods of one suite, profile and rank stand: ranks across tasks, the front, state saved."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reports.figures.style import byte_unit, in_unit, seed_words
from reports.records.groups import Group
from reports.records.report_runs import MICRO, Context
from reports.stats.over_seeds import pareto_front, summarise
from reports.stats.significance import front_probability, rank_across_tasks
from reports.tables.cost import peaks_of
from reports.tables.findings import findings_of, unordered
from reports.tables.table import EMPTY, Entry, Table
from results.schema import Record

Scores = dict[str, dict[str, dict[int, float]]]


def scores_of(context: Context) -> Scores:
    """Return method -> task -> seed -> score, larger is better; a place with a run that brought none is left out."""
    found: Scores = {method: {} for method in context.methods}
    for (method, task), place in context.grid.items():
        if place.scores and not place.broken and task in context.counted:
            metric = context.metric_of(task)
            found[method][task] = {seed: metric.gain(score) for seed, score in place.scores.items()}
    return found


def averages_of(context: Context) -> dict[str, dict[int, float]]:
    """Return method -> seed -> mean over tasks; without an average of the suite's over the tasks that all have."""
    if context.averages:
        return {method: dict(found.scores) for method, found in context.averages.items() if found.scores}
    scores = {method: of for method, of in scores_of(context).items() if of}
    tasks = sorted(set.intersection(*(set(of) for of in scores.values()))) if scores else []
    out = {}
    for method, of in scores.items():
        seeds = set.intersection(*(set(of[task]) for task in tasks)) if tasks else set()
        if seeds:
            out[method] = {s: sum(of[t][s] for t in tasks) / len(tasks) for s in sorted(seeds)}
    return out


def standing_table(group: Group) -> Table | None:
    """Return mean rank across tasks, the front of score against memory, and the chance of being on it."""
    context = group.context
    scores = scores_of(context)
    means = {
        m: {t: summarise(s.values()).mean or 0.0 for t, s in tasks.items()} for m, tasks in scores.items() if tasks
    }
    ranks, mean = rank_across_tasks(means), averages_of(context)
    measured = peaks_of(context, mean or context.methods, context.counted)
    peaks = measured.of
    placed = [method for method in context.methods if method in mean and method in peaks]
    if not ranks and not placed:
        return None
    front = pareto_front([peaks[m] for m in placed], [summarise(mean[m].values()).mean or 0.0 for m in placed])
    on_front = dict(zip(placed, front, strict=True))
    chance = front_probability({m: float(peaks[m]) for m in placed}, {m: mean[m] for m in placed})
    unit, size = byte_unit(max(peaks.values(), default=0))
    rows, data = [], []
    for method, look in context.looks.items():
        rank, peak = ranks.get(method), peaks.get(method)
        rows.append((
            Entry(look.title),
            Entry(f"{rank.mean_rank:.2f}") if rank else EMPTY,
            Entry(f"{rank.firsts} of {rank.tasks}") if rank else EMPTY,
            Entry(in_unit(peak, size)) if peak is not None else Entry("not measured"),
            Entry({True: "yes", False: "no"}[on_front[method]]) if method in on_front else EMPTY,
            Entry(_chance(chance[method])) if method in chance else EMPTY,
        ))  # fmt: skip
        data.append({"method": method, "title": look.title, "mean_rank": rank.mean_rank if rank else None,
                     "ranked_tasks": rank.tasks if rank else None, "firsts": rank.firsts if rank else None,
                     "peak_bytes": peak, "on_front": on_front.get(method), "front_probability": chance.get(method),
                     "seeds": len(mean.get(method, {}))})  # fmt: skip
    heads = ("Method", "Mean rank", "First on", f"Peak, {unit}", "On the front", "Chance of it")
    caption = f"{group.title}: ranks across tasks, and the front of average score against peak memory."
    notes = [
        "Mean rank: 1 is best, ties share; over the tasks on which every method has a score",
        "Front: nothing that needs no more memory scores as well. Chance: share of 2,000 bootstrap draws over seeds, "
        "the same seeds for every method; — where fewer than two seeds are shared",
    ]
    if measured.note:
        notes.append(measured.note)
    if why := unordered(findings_of(context)):
        notes.append(f"Neither ranks nor front are an order: {why} (findings)")
    frame = pd.DataFrame(data).astype(dict.fromkeys(["ranked_tasks", "firsts", "peak_bytes"], "Int64"))
    return Table(f"standing-{group.name}", caption, heads, tuple(rows), (*notes, *_marks(group)), frame)


def _chance(share: float) -> str:
    """Return a share of draws; only what no draw contradicts is printed as 0 or 1."""
    shown = f"{share:.2f}"
    return {"0.00": "<0.01", "1.00": ">0.99"}.get(shown, shown) if 0 < share < 1 else shown


def _marks(group: Group) -> list[str]:
    seeds = sorted({record.plan.seed for record in group.records})
    return [seed_words(seeds), *([MICRO] if group.is_micro else [])]


def reduction_of(record: Record) -> float | None:
    """Return 100 (1 - state / state of AdamW in fp32 on every weight), None where either was not counted."""
    certificate = record.engagement
    if certificate is None or record.status != "ok" or not certificate.dense_state_bytes:
        return None
    return 100 * (1 - certificate.state_bytes / certificate.dense_state_bytes)


def state_table(found: Sequence[Group]) -> Table | None:
    """Return how much optimizer memory every method saves in every group, counted, against dense AdamW in fp32."""
    rows, data = [], []
    for group in found:
        for method, bits, values in _reductions(group):
            title = group.context.title(method)
            low, high = min(values), max(values)
            text = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
            rows.append((Entry(title), Entry(group.title), Entry(f"{bits}-bit"), Entry(text.replace("-", "−"))))
            place = {"method": method, "suite": group.suite, "profile": group.profile, "rank": group.rank}
            found_values = {"state_bits": bits, "reduction_min": low, "reduction_max": high, "runs": len(values)}
            data.append({**place, **found_values})
    if not rows:
        return None
    notes = (
        "Counted from live optimizer states, bases included, against AdamW in fp32 on every weight of the same model",
        "Not the paper's claim, whose model and baseline are not stated: that stands in its own table",
    )
    caption = "Optimizer memory of our own runs: reduction in percent against dense AdamW, lowest to highest."
    heads = ("Method", "Runs", "State", "Reduction, %")
    return Table("state-reduction", caption, heads, tuple(rows), notes, pd.DataFrame(data))


def _reductions(group: Group) -> list[tuple[str, int, list[float]]]:
    found: dict[tuple[str, int], list[float]] = {}
    for record in group.context.records:
        if (value := reduction_of(record)) is not None:
            found.setdefault((record.plan.method, record.plan.training.state_bits), []).append(value)
    order = group.context.methods
    return [(m, bits, found[m, bits]) for m, bits in sorted(found, key=lambda key: (order.index(key[0]), key[1]))]
