"""Tables of our own runs by suite, profile and rank: never beside a paper's value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from reports.averages.glue import TASKS, Convention
from reports.figures.style import byte_unit, in_unit, looks, method_order, seed_words
from reports.paper.answers import reduction_of
from reports.records.context import MICRO, Context
from reports.records.frames import main_values
from reports.records.selection import ReportError, select, table_rank
from reports.stats.seeds import paired_difference, pareto_front, summarise
from reports.stats.significance import front_probability, rank_across_tasks
from reports.tables.render import Entry, Table
from results.metrics import gain, higher_is_better
from results.schema import Record

EMPTY = Entry("—")


@dataclass(frozen=True)
class Group:
    """The result runs of one suite, profile and rank; `trouble` says why they cannot be told apart, "" if they can."""

    suite: str
    profile: str
    rank: int | None
    records: tuple[Record, ...]
    trouble: str = ""

    @property
    def name(self) -> str:
        """Stem of its files."""
        rank = "" if self.rank is None else f"-r{self.rank}"
        return re.sub(r"[^\w.-]+", "-", f"{self.suite}-{self.profile}{rank}")

    @property
    def title(self) -> str:
        """What is printed."""
        return f"{self.suite.upper()}, profile {self.profile}" + ("" if self.rank is None else f", rank {self.rank}")

    @cached_property
    def context(self) -> Context | None:
        """The group as a GLUE report reads it; None where it holds no GLUE task or cannot be told apart.

        Averages need equal seeds on all tasks; where no method has such an average, the seeds that all tasks have are
        used.
        """
        if self.trouble or not any(record.plan.task in TASKS for record in self.records):
            return None
        context = Context(self.records, self.profile, self.rank or 0, Convention())
        if any(found.scores for found in context.averages.values()):
            return context
        return Context(self.records, self.profile, self.rank or 0, Convention(seeds="shared"))

    @property
    def is_micro(self) -> bool:
        """Whether the numbers say nothing about a paper."""
        return self.profile == "micro" or any(r.plan.data.source == "micro" for r in self.records)


def groups(records: Sequence[Record]) -> list[Group]:
    """Return the groups of the result runs; methods without a rank belong to every rank of their profile."""
    results = [record for record in records if record.plan.purpose == "result"]
    places = sorted({(record.plan.suite, record.plan.profile) for record in results})
    found = []
    for suite, profile in places:
        here = [r for r in results if (r.plan.suite, r.plan.profile) == (suite, profile)]
        ranks = sorted({rank for r in here if (rank := table_rank(r)) is not None})
        for rank in ranks or [None]:
            mine = [r for r in here if table_rank(r) in (rank, None)]
            try:
                chosen, trouble = (select(mine, suite, profile, rank) if rank is not None else mine), ""
            except ReportError as error:
                chosen, trouble = mine, str(error)
            found.append(Group(suite, profile, rank, tuple(chosen), trouble))
    return found


Scores = dict[str, dict[str, dict[int, float]]]


def scores_of(group: Group, context: Context | None) -> Scores:
    """Return method -> task -> seed -> score, larger is better; a cell with a run that brought none is left out."""
    if context is not None:
        found: Scores = {}
        for (method, task), cell in context.grid.items():
            if cell.scores and not cell.broken and task in context.convention.names:
                found.setdefault(method, {})[task] = cell.scores
        return found
    found, broken = {}, set()
    for record in group.records:
        plan, values = record.plan, main_values(record)
        if record.status != "ok" or not values:
            broken.add((plan.method, plan.task))
            continue
        score = gain(record.main_metric or "", values[-1][1])
        found.setdefault(plan.method, {}).setdefault(plan.task, {})[plan.seed] = score
    return {m: {t: s for t, s in tasks.items() if (m, t) not in broken} for m, tasks in found.items()}


def averages_of(scores: Scores, context: Context | None) -> dict[str, dict[int, float]]:
    """Return method -> seed -> mean over tasks; without a GLUE convention over the tasks that every method has."""
    if context is not None:
        return {method: dict(found.scores) for method, found in context.averages.items() if found.scores}
    tasks = set.intersection(*(set(of) for of in scores.values())) if scores else set()
    out = {}
    for method, of in scores.items():
        seeds = set.intersection(*(set(of[task]) for task in tasks)) if tasks else set()
        if seeds:
            out[method] = {s: sum(of[t][s] for t in sorted(tasks)) / len(tasks) for s in sorted(seeds)}
    return out


def peaks_of(records: Sequence[Record]) -> dict[str, int]:
    """Return method -> highest tracked peak of any of its finished runs; absent where none was measured."""
    found: dict[str, int] = {}
    for record in records:
        memory = record.memory
        peaks = [peak.total_bytes for peak in (memory.step_peak, memory.refresh_peak) if peak] if memory else []
        if record.status == "ok" and peaks:
            found[record.plan.method] = max(found.get(record.plan.method, 0), *peaks)
    return found


def standing_table(group: Group) -> Table | None:
    """Return mean rank across tasks, the front of score against memory, and the chance of being on it."""
    context = group.context
    scores = scores_of(group, context)
    means = {
        m: {t: summarise(s.values()).mean or 0.0 for t, s in tasks.items()} for m, tasks in scores.items() if tasks
    }
    ranks, mean, peaks = rank_across_tasks(means), averages_of(scores, context), peaks_of(group.records)
    placed = [method for method in method_order(mean) if method in peaks]
    if not ranks and not placed:
        return None
    front = pareto_front([peaks[m] for m in placed], [summarise(mean[m].values()).mean or 0.0 for m in placed])
    on_front = dict(zip(placed, front, strict=True))
    chance = front_probability({m: float(peaks[m]) for m in placed}, {m: mean[m] for m in placed})
    unit, size = byte_unit(max(peaks.values(), default=0))
    rows, data = [], []
    for method, look in looks({r.plan.method for r in group.records}).items():
        rank, peak = ranks.get(method), peaks.get(method)
        rows.append((
            Entry(look.title),
            Entry(f"{rank.mean_rank:.2f}") if rank else EMPTY,
            Entry(f"{rank.firsts} of {rank.tasks}") if rank else EMPTY,
            Entry(in_unit(peak, size)) if peak is not None else Entry("not measured"),
            Entry({True: "yes", False: "no"}[on_front[method]]) if method in on_front else EMPTY,
            Entry(f"{chance[method]:.2f}") if method in chance else EMPTY,
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
    frame = pd.DataFrame(data).astype(dict.fromkeys(["ranked_tasks", "firsts", "peak_bytes"], "Int64"))
    return Table(f"standing-{group.name}", caption, heads, tuple(rows), (*notes, *_marks(group)), frame)


def _means(tasks: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Return task -> mean over seeds; tasks without a score are left out."""
    means = {task: summarise(scores.values()).mean for task, scores in tasks.items()}
    return {task: mean for task, mean in means.items() if mean is not None}


def _marks(group: Group) -> list[str]:
    seeds = sorted({record.plan.seed for record in group.records})
    return [seed_words(seeds), *([MICRO] if group.is_micro else [])]


def metric_table(group: Group) -> Table | None:
    """Return mean ± sd of the main metric by method and task, and paired differences to the yardstick.

    For suites without a convention of their own; None for a GLUE group, whose report says more, and without scores.
    """
    if group.context is not None or group.trouble:
        return None
    scores = scores_of(group, None)
    if not scores:
        return None
    keys = {record.plan.task: record.main_metric for record in group.records}
    tasks = sorted({task for of in scores.values() for task in of})
    base = "full" if "full" in scores else method_order(scores)[0]
    rows, data = [], []
    for method in method_order(scores):
        entries = []
        for task in tasks:
            values = {s: gain(keys[task], v) for s, v in scores[method].get(task, {}).items()}
            against = {s: gain(keys[task], v) for s, v in scores[base].get(task, {}).items()}
            found, summary = paired_difference(values, against), summarise(values.values())
            entries += [_plain(summary.mean, summary.sd, summary.n), _interval(found.mean, found.low, found.high)]
            data.append({"method": method, "task": task, "metric": keys[task], "n": summary.n, "mean": summary.mean,
                         "sd": summary.sd, "difference": found.mean, "low": found.low, "high": found.high})  # fmt: skip
        rows.append((Entry(looks([method])[method].title), *entries))
    heads = ("Method", *(text for task in tasks for text in (f"{task}, {keys[task]}", f"to {base}")))
    way = {task: "higher" if higher_is_better(keys[task]) else "lower" for task in tasks}
    caption = f"{group.title}: main metric at the last evaluation, mean ± standard deviation over seeds."
    notes = [f"{task}: {text} is better" for task, text in way.items()]
    notes.append(
        f"to {base}: mean paired difference over shared seeds [95 % t interval], not corrected for their number"
    )
    return Table(f"scores-{group.name}", caption, heads, tuple(rows), (*notes, *_marks(group)), pd.DataFrame(data))


def _plain(mean: float | None, sd: float | None, n: int) -> Entry:
    if mean is None:
        return EMPTY
    return Entry(f"{mean:.3f} (n={n})" if sd is None else f"{mean:.3f} ± {sd:.3f} (n={n})")


def _interval(mean: float | None, low: float | None, high: float | None) -> Entry:
    if mean is None:
        return EMPTY
    text = f"{mean:+.3f}" + ("" if low is None or high is None else f" [{low:+.3f}, {high:+.3f}]")
    return Entry(text.replace("-", "−"))


def state_table(found: Sequence[Group]) -> Table | None:
    """Return how much optimizer memory every method saves in every group, counted, against dense AdamW in fp32."""
    rows, data = [], []
    for group in found:
        for method, bits, values in _reductions(group.records):
            title = looks([method])[method].title
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


def _reductions(records: Sequence[Record]) -> list[tuple[str, int, list[float]]]:
    found: dict[tuple[str, int], list[float]] = {}
    for record in records:
        if (value := reduction_of(record)) is not None:
            found.setdefault((record.plan.method, record.plan.training.state_bits), []).append(value)
    order = method_order({method for method, _ in found})
    return [(m, bits, found[m, bits]) for m, bits in sorted(found, key=lambda key: (order.index(key[0]), key[1]))]


def totals(records: Sequence[Record]) -> Mapping[str, int]:
    """Return how many records ended how."""
    found: dict[str, int] = {}
    for record in records:
        found[record.status] = found.get(record.status, 0) + 1
    return found
