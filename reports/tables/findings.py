"""What the differences of each pair of methods allow to say, by arithmetic: a table of pairs, and sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from reports.figures.style import seed_words
from reports.records.beside import beside
from reports.records.provenance import listed
from reports.records.report_runs import Column, Context
from reports.stats.over_seeds import LEAST_SEEDS, LEVEL, LEVEL_WORDS, paired_difference, summarise
from reports.stats.pairs import Pair, Scores, corrected
from reports.tables.table import EMPTY, Entry, Table
from results.catalogue import MetricEntry

SHOWN_PAIRS = 45
ROW_ERRORS = 2
"""Standard errors of the evaluated rows that a score has to lie above one which looks at nothing."""
Line = tuple[str, str]
"""(kind, sentence): "holds" for what may be concluded, "open" for what may not, "limits" for what it is about."""


@dataclass(frozen=True)
class Findings:
    """Every pair of methods of a report.

    Attributes:
        metric: how a difference is printed, and which way it is better.
        what: what is compared, as in running text.
        columns: those that are compared: the tasks of the average, or the lone task's measure of differences.
        left_out: tasks of the average that were not run, or with one seed where others have more.
        scores: method -> task -> seed -> score, larger is better; no score of a task where a run brought none.
    """

    context: Context
    metric: MetricEntry
    what: str
    columns: tuple[Column, ...]
    left_out: tuple[str, ...]
    scores: dict[str, Scores]
    pairs: tuple[Pair[str], ...]

    @property
    def order(self) -> bool:
        """Whether they tell any two methods apart over all that the report's average, or its lone task, is over."""
        return not self.left_out and any(pair.decided for pair in self.pairs)

    @property
    def unit(self) -> str:
        """Unit of a difference."""
        return unit_of(self.metric)

    @property
    def fewest(self) -> int:
        """Shared seeds of the pair and task that has most: with too few there is nothing to decide."""
        return max((pair.difference.fewest for pair in self.pairs), default=0)

    def mean(self, method: str) -> float | None:
        """Return a method's mean over tasks of its means over seeds; None where a task has no score."""
        means = [summarise(values.values()).mean for values in self.scores[method].values()]
        return None if not means or None in means else math.fsum(mean or 0.0 for mean in means) / len(means)

    def amount(self, value: float) -> str:
        """Return the size of a difference as text."""
        return f"{self.metric.text(abs(value))} {self.unit}"


def unit_of(metric: MetricEntry) -> str:
    """Return the unit of a difference: points for percent."""
    return "points" if metric.words == "percent" else metric.unit or f"of {metric.title}"


def findings_of(context: Context) -> Findings | None:
    """Return the findings of a report; None for fewer than two methods, tasks in different units, or no score.

    Of a method with variants its first row is compared: the others have a table of their own.
    """
    rows = [row for row in context.methods if row in {of[0] for of in context.variants.values()}]
    return None if len(rows) < 2 else compare(context, rows, list(combinations(rows, 2)))


def compare(context: Context, rows: Sequence[str], asked: Sequence[tuple[str, str]]) -> Findings | None:
    """Return what the asked pairs of rows allow to say; None for tasks in different units, and without a score."""
    compared = [c for c in context.compared if not context.averages or c.name in context.convention.names]
    if len({unit_of(column.metric) for column in compared}) != 1:
        return None
    seeds = {c.name: max((len(place.scores) for place in c.places.values()), default=0) for c in compared}
    enough = 2 if max(seeds.values()) > 1 else 1
    columns = tuple(column for column in compared if seeds[column.name] >= enough)
    if not columns:
        return None
    wanted = {c.name: c.head for c in compared} | {n: context.titles[n] for n in context.tasks if context.averages}
    counted = context.convention.names if context.averages else tuple(wanted)
    left_out = tuple(wanted[name] for name in counted if name not in {column.name for column in columns})
    scores: dict[str, Scores] = {method: {c.name: _gains(c, method) for c in columns} for method in rows}
    metric = context.averaged_metric if context.averages else compared[0].metric
    of_tasks = f"average over {len(columns)} tasks" if len(columns) > 1 else f"score on {columns[0].head}"
    what = of_tasks if context.by_task else metric.title
    return Findings(context, metric, what, columns, left_out, scores, tuple(corrected(scores, asked)))


def _gains(column: Column, method: str) -> dict[int, float]:
    return {} if column.place(method).broken else column.gains(method)


def unordered(found: Findings | None) -> str:
    """Return why the findings are no order of the methods, as a clause; empty where they are one."""
    if found is None:
        return "there is no difference to take"
    if found.order:
        return ""
    if found.left_out:
        return f"for {', '.join(found.left_out)} there are too few seeds or no runs"
    if found.fewest < LEAST_SEEDS:
        return f"fewer than {LEAST_SEEDS} seeds are shared"
    return "no two methods are told apart by the score"


def findings_table(context: Context) -> Table | None:
    """Return every pair with its difference, interval, seed noise, and in what else the two differ."""
    found = findings_of(context)
    if found is None:
        return None
    settings = beside(context)
    told = {(pair.first, pair.second): settings.differing(pair.first, pair.second) for pair in found.pairs}
    shown = found.pairs if len(found.pairs) <= SHOWN_PAIRS else _most_telling(found)
    rows = [_row(found, pair, told[pair.first, pair.second]) for pair in shown]
    heads = ("Better in the mean", "Other", f"By, {found.unit}", f"{LEVEL_WORDS} interval, all at once", "p, Holm",
             "Seed noise", "By ÷ noise", "Over tasks as a sample", "What else differs")  # fmt: skip
    notes = [text for _, text in lines(found)] + _how(found)
    if len(shown) < len(found.pairs):
        notes.append(f"{len(shown)} of {len(found.pairs)} pairs shown: those of the yardstick, of controls and of the "
                     "best mean; all: the CSV of this table")  # fmt: skip
    caption = context.caption(f"every pair of methods, {found.what}", context.by_task)
    data = pd.DataFrame([_data(found, pair, told[pair.first, pair.second]) for pair in found.pairs])
    data = data.astype({"shared_pairs": "Int64", "fewest_seeds": "Int64"})
    return Table("findings", caption, heads, tuple(rows), tuple(notes), data)


def _most_telling(found: Findings) -> tuple[Pair[str], ...]:
    names = {found.context.yardstick, best_of(found), *controls(found)}
    return tuple(pair for pair in found.pairs if names & {pair.first, pair.second})


def _row(found: Findings, pair: Pair[str], differing: Sequence[str]) -> tuple[Entry, ...]:
    text, mean = found.metric.text, pair.difference.mean
    over = {None: "—", True: "yes", False: "no"}[pair.over_tasks]
    ends = "—" if pair.low is None or pair.high is None else f"{text(pair.low)} to {text(pair.high)}"
    return (
        Entry(found.context.title(pair.first)), Entry(found.context.title(pair.second)),
        EMPTY if mean is None else Entry(text(mean), pair.decided), Entry(ends),
        EMPTY if pair.p is None else Entry("<0.001" if pair.p < 0.001 else f"{pair.p:.3f}"),
        EMPTY if pair.noise is None else Entry(text(pair.noise)),
        EMPTY if pair.effect is None else Entry(f"{pair.effect:.1f}"), Entry(over),
        Entry("; ".join(differing)) if differing else EMPTY,
    )  # fmt: skip


def _data(found: Findings, pair: Pair[str], differing: Sequence[str]) -> dict[str, Any]:
    one = pair.difference
    alone = one.interval(LEVEL) or (None, None)
    return {
        "better": pair.first, "other": pair.second, "decided": pair.decided, "difference": one.mean,
        "low": pair.low, "high": pair.high, "low_alone": alone[0], "high_alone": alone[1], "p_alone": one.p,
        "p_holm": pair.p, "error": one.error, "freedom": one.freedom, "seed_noise": pair.noise, "effect": pair.effect,
        "tasks_low": pair.tasks_low, "tasks_high": pair.tasks_high, "shared_pairs": one.pairs,
        "fewest_seeds": one.fewest, "tasks": " ".join(one.by_task), "metric": found.metric.name, "level": LEVEL,
        "what_else_differs": "; ".join(differing), "sentence": sentence(found, pair),
    }  # fmt: skip


def _how(found: Findings) -> list[str]:
    asked = sum(pair.p is not None for pair in found.pairs)
    over = f" on {', '.join(column.head for column in found.columns)}" if found.context.by_task else ""
    lines = [
        f"Runs are paired by seed and task{over}; the interval speaks of other seeds on the same tasks. Bold: the "
        f"first is better by Holm's method for {asked} comparisons; the intervals hold all at once (Bonferroni; cut at "
        f"zero where Holm's method decides alone). At least {LEAST_SEEDS} shared seeds a task to decide",
        "Seed noise: standard deviation over seeds of what is compared, pooled over the two",
    ]
    if found.context.by_task:
        lines.append(
            "Over tasks as a sample: whether the interval over the tasks' mean differences lies above zero too"
        )
    rates = "" if found.context.tuning is None else " and the learning rates, which a search chose for each"
    return [*lines, f"What else differs: beside the methods' own settings{rates}"]


def controls(found: Findings) -> set[str]:
    """Return the compared rows that are no contenders."""
    return {method for method in found.scores if found.context.catalogue.method(method).control}


def best_of(found: Findings) -> str | None:
    """Return the contender with the best mean; None where none has one."""
    control = controls(found)
    means = {method: mean for method in found.scores if (mean := found.mean(method)) is not None}
    contenders = [method for method in means if method not in control]
    return max(contenders, key=lambda method: means[method], default=None)


def lines(found: Findings) -> list[Line]:
    """Return the findings as sentences: who is best, who is better than whom by how much, what is not told apart."""
    idle = _idle_columns(found)
    made = [_best_line(found), *_better_lines(found), *_apart_lines(found), *_alike_lines(found)]
    made += [*_fallen_lines(found, idle), *_idle_lines(found, idle)]
    if found.left_out:
        made.append(("limits", f"Not in these differences, too few seeds or not run: {', '.join(found.left_out)}."))
    if found.context.tuning is None and found.pairs:
        made.append(("limits", "No search stands behind the learning rates: a difference may be that of the rates."))
    return made


def _best_line(found: Findings) -> Line:
    context, best = found.context, best_of(found)
    if best is None:
        return "open", "No method has a score for every task and one seed: nothing may be concluded about scores."
    if found.fewest < LEAST_SEEDS:
        count = {0: "no shared seed", 1: "one seed"}.get(found.fewest, f"{found.fewest} seeds")
        return "open", f"Scores: {count} behind the {found.what}: no order of the methods may be concluded."
    mean = found.mean(best)
    assert mean is not None
    what = found.what if context.by_task else f"mean {found.what}"
    own = len({frozenset(values) for values in found.scores[best].values()}) > 1
    value = f"{context.title(best)} has the best {what}, {found.metric.text(found.metric.gain(mean))}"
    value += " with each task over all its own seeds" if own else ""
    beaten = {pair.second for pair in found.pairs if pair.decided and pair.first == best}
    left = [method for method in found.scores if method not in beaten | {best}]
    unbeaten = listed([context.title(method) for method in left])
    if not left:
        return "holds", f"{value}, told apart from every other method."
    if controls(found).issuperset(left):
        return "holds", f"{value}, told apart from every other contender; not shown to be better than {unbeaten}."
    return "open", f"No method is best: {value}, but it is not shown to be better than {unbeaten}."


def _better_lines(found: Findings) -> list[Line]:
    """Return a sentence for each method that is better than others, with by how much."""
    made = []
    for method in found.scores:
        won = [pair for pair in found.pairs if pair.decided and pair.first == method]
        if won:
            title, than = found.context.title(method), "; ".join(_than(found, pair) for pair in won)
            made.append(("holds", f"{title} is better than {than} ({found.what})."))
    return made


def _than(found: Findings, pair: Pair[str]) -> str:
    assert pair.difference.mean is not None
    assert pair.low is not None
    assert pair.high is not None
    reach = f"by {found.amount(pair.difference.mean)} ({found.metric.text(pair.low)} to {found.metric.text(pair.high)})"
    noise = "" if pair.effect is None else f", {pair.effect:.1f} times the seed noise"
    tasks = ", not over tasks as a sample" if pair.over_tasks is False else ""
    return f"{found.context.title(pair.second)} {reach}{noise}{tasks}"


def _alike_lines(found: Findings) -> list[Line]:
    """Return what is not told apart, with the size that no difference exceeds; nothing where nothing is known.

    Where a method's runs end far apart, which has a line of its own, the others are looked at without it.
    """
    wild = {method for column in found.columns for method in column.far_apart(list(found.scores))}
    pairs = [pair for pair in found.pairs if not wild & {pair.first, pair.second}]
    open_ = [pair for pair in pairs if not pair.decided and pair.p is not None and pair.bound is not None]
    if not open_:
        return []
    most = max(pair.bound or 0.0 for pair in open_)
    if len(open_) == len(pairs):
        count, rows = len(found.scores) - len(wild), "others" if wild else "methods"
        between = f"the two {rows}" if count == 2 else f"any two of {'the ' if wild else ''}{count} {rows}"
        return [("open", f"No difference larger than {found.amount(most)} was found between {between} ({found.what}).")]
    parts = [
        f"{found.context.title(pair.first)} and {found.context.title(pair.second)} ({found.amount(pair.bound or 0.0)})"
        for pair in open_
    ]
    return [("open", f"No difference was found, none larger than: {'; '.join(parts)}.")]


def _apart_lines(found: Findings) -> list[Line]:
    """Return a sentence for each method and task whose runs end so far apart that their mean describes none."""
    title, by_task = found.context.title, found.context.by_task
    return [
        ("open", f"{title(method)}'s runs{f' on {column.head}' if by_task else ''} end far apart, {scores}: their mean "
                 "describes none of them, and every interval with it is wide.")
        for column in found.columns
        for method, scores in column.far_apart(list(found.scores)).items()
    ]  # fmt: skip


def sentence(found: Findings, pair: Pair[str]) -> str:
    """Return what may be said of one pair."""
    first, second = found.context.title(pair.first), found.context.title(pair.second)
    if pair.decided:
        return f"{first} is better than {_than(found, pair)}"
    if pair.bound is not None and pair.p is not None:
        return f"no difference larger than {found.amount(pair.bound)} was found between {first} and {second}"
    lacking = [f"{found.context.title(method)} on {column.head}" for method in (pair.first, pair.second)
               for column in found.columns if not found.scores[method][column.name]]  # fmt: skip
    if lacking:
        return f"nothing may be said of {first} and {second}: no score of {', '.join(lacking)}"
    seeds = {1: "one shared seed"}.get(pair.difference.fewest, f"{pair.difference.fewest} shared seeds")
    return f"nothing may be said of {first} and {second}: {seeds} on some task"


def _fallen_lines(found: Findings, idle: Mapping[str, str]) -> list[Line]:
    """Return a sentence for each method and task of which a run learnt nothing where the yardstick learns."""
    context, made = found.context, []
    for column in found.columns:
        fallen = {} if column.name in idle else context.fallen(column, list(found.scores))
        for method, seeds in fallen.items():
            scores = column.place(method).scores
            rest = sorted(score for seed, score in scores.items() if seed not in seeds)
            ends = " to ".join(dict.fromkeys(map(column.metric.text, rest[:1] + rest[-1:])))
            what = (
                f", {ends} otherwise: its mean is of two kinds of run" if ends else ": none of its runs learnt the task"
            )
            where = f" on {column.head}" if context.by_task else ""
            least = column.metric.text(context.constants[column.name])
            text = f"{context.title(method)}{where}: no better than {context.constant_words} ({least}) with "
            made.append(("open", f"{text}{seed_words(seeds)}{what}."))
    return made


def _idle_lines(found: Findings, idle: Mapping[str, str]) -> list[Line]:
    """Return where the yardstick does not leave the prediction that looks at nothing: such columns order nothing."""
    context = found.context
    if not idle or context.yardstick is None:
        return []
    title, where = context.title(context.yardstick), listed(list(idle.values()))
    return [("open", f"{title} is not shown to leave {context.constant_words} on {where}: no order there.")]


def _idle_columns(found: Findings) -> dict[str, str]:
    """Return column -> its name with both scores, where the yardstick is not shown to leave the constant prediction."""
    context = found.context
    method = context.yardstick
    if method is None or context.constant is None or not context.by_task:
        return {}
    idle: dict[str, str] = {}
    for column in context.columns:
        constant, place = context.constants.get(column.name), column.place(method)
        if constant is None or not place.scores:
            continue
        why = _idle(column, method, constant, context.rows_shared(column))
        scores = f"{place.summary.text(column.metric)} against {column.metric.text(constant)}"
        idle |= {} if why is None else {column.name: f"{column.head} ({scores}{why})"}
    return idle


def _idle(column: Column, method: str, constant: float, rows: int | None) -> str | None:
    """Return why a method is not shown to leave a constant score, "" where its seeds say it; None where it is shown.

    Seeds share the evaluated rows, so that their spread says nothing of what other rows would give: a share of
    `rows` that looks at nothing has a standard error of its own, sqrt(p (1 - p) / rows).
    """
    gains = column.gains(method)
    found = paired_difference(gains, dict.fromkeys(gains, column.metric.gain(constant)))
    if (found.mean or 0.0) <= 0 or (found.n >= LEAST_SEEDS and not found.excludes_zero):
        return ""
    error = math.sqrt(constant * (1 - constant) / rows) if rows else 0.0
    if (found.mean or 0.0) >= ROW_ERRORS * error:
        return None
    return f", less than {ROW_ERRORS} standard errors of its {rows:,} rows, {column.metric.text(error)} each"
