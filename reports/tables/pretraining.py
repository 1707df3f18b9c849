"""The pre-training report's own parts: its words, perplexity by method, paired differences, validation loss by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from reports.averages.glue import NOT_RECORDED, UNDEFINED, Cell, check_choice
from reports.figures.lines import Plot, draw, framed, panels, strip
from reports.figures.style import Look, byte_unit, in_unit, looks, seed_words
from reports.records.context import Context
from reports.stats.seeds import LEVEL, Summary, clear_best, paired_difference, summarise
from reports.tables.cost import EMPTY, byte_range, finished
from reports.tables.render import Entry, Table
from reports.tables.scores import BOLD_RULE
from results.metrics import gain

# Column title -> metric, and how its values are printed.
METRICS: dict[str, tuple[str, str]] = {
    "Perplexity": ("perplexity", ",.3f"),
    "Loss, nats": ("loss", ".4f"),
    "Bits per byte": ("bits_per_byte", ".4f"),
    "Over the floor, nats": ("excess", ".4f"),
    "Perplexity ÷ floor": ("perplexity_ratio", ".3f"),
}
TITLES = {"full": "Full training"}
VALIDATION_TITLE = "Validation loss"
Show = Callable[[float], str]


@dataclass(frozen=True)
class Pretraining(Context):
    """A pre-training report: the selected records and the words for them."""

    suite: ClassVar[str] = "c4"
    suite_title: ClassVar[str] = "C4"
    titles: ClassVar[Mapping[str, str]] = {"c4": "C4"}

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks that were run."""
        return [task for task in self.titles if (self.runs["task"] == task).any()]

    @cached_property
    def looks(self) -> dict[str, Look]:
        """Method -> look, in the order of rows; nothing is fine-tuned here."""
        return {
            name: replace(look, title=TITLES.get(name, look.title)) for name, look in looks(self.runs["method"]).items()
        }

    @property
    def split_words(self) -> str:
        """What was evaluated: the split and the budget of tokens."""
        counts = {
            f"{tokens:,} predicted tokens of {split.replace('_', '-')}"
            for record in self.records
            if record.data is not None
            for split, tokens in record.data.eval_tokens.items()
        }
        return " and ".join(sorted(counts)) or "an unknown number of tokens: no run got as far as loading them"

    @cached_property
    def last(self) -> dict[str, dict[str, Cell]]:
        """Metric -> method -> outcomes and values by seed at the last evaluation."""
        found: dict[str, dict[str, Cell]] = {}
        for metric, _ in METRICS.values():
            for record in self.records:
                cell = found.setdefault(metric, {}).setdefault(record.plan.method, Cell())
                value, seed = last_value(record, metric), record.plan.seed
                if record.status == "ok" and value is not None:
                    cell.scores[seed] = value
                reason = NOT_RECORDED if not record.evaluations else UNDEFINED
                cell.outcomes[seed] = record.status if record.status != "ok" or value is not None else reason
        return found

    @cached_property
    def floors(self) -> set[float]:
        """Floors of the source in nats a token; empty where none is known."""
        return {value for record in self.records if record.data for value in record.data.floor_nats.values()}


def last_value(record: Any, metric: str) -> float | None:
    """Return a metric's value at the last evaluation, on whichever split the main metric stands for."""
    if not record.evaluations or record.main_metric is None:
        return None
    split = record.main_metric.rpartition("/")[0]
    last = max(record.evaluations, key=lambda evaluation: evaluation.step)
    value: float | None = last.metrics.get(f"{split}/{metric}")
    return value


def perplexity_table(context: Pretraining) -> Table:
    """Return a row a method: measures on the evaluated tokens, memory, speed; then what needs no training."""
    known = {
        head: (metric, form)
        for head, (metric, form) in METRICS.items()
        if any(cell.scores for cell in context.last[metric].values())
    }
    best = {metric: _best(context, metric) for metric, _ in known.values()}
    runs = finished(context)
    peaks = {m: byte_range(runs[runs["method"] == m], "tracked_peak_bytes") for m in context.methods}
    states = {m: byte_range(runs[runs["method"] == m], "state_bytes") for m in context.methods}
    unit, size = byte_unit(max((high for _, high in filter(None, (*peaks.values(), *states.values()))), default=0))
    rows = []
    for method in context.methods:
        row = [Entry(context.title(method))]
        row += [_entry(context, context.last[m][method], form, best[m] == method) for m, form in known.values()]
        row += [EMPTY if found is None else Entry(in_unit(found[1], size)) for found in (states[method], peaks[method])]
        speeds = runs.loc[runs["method"] == method, "tokens_per_s"].dropna()
        row.append(Entry(f"{speeds.mean():,.0f}") if len(speeds) else EMPTY)
        rows.append(tuple(row))
    rows += _reference_rows(context, known, 3)
    heads = ("Method", *known, f"Optimizer state, {unit}", f"Peak memory, {unit}", "Tokens/s")
    caption = context.caption("perplexity and its kin at the last evaluation, mean ± standard deviation over seeds")
    notes = (
        f"n = {len(context.seeds)} ({seed_words(context.seeds)}) where a cell says nothing else; lower is better. "
        "Each predicted token counts once; bits per byte: over the bytes of raw text that the predicted tokens cover",
        *_floor_note(context),
        BOLD_RULE.replace("highest mean", "lowest mean"),
        "Peak memory: the larger of a plain and a refresh step. Tokens/s: training alone, filling not counted; "
        "comparable only within one machine and load",
        *context.provenance(),
    )
    return Table("scores", caption, heads, tuple(rows), notes, _data(context))


def _best(context: Pretraining, metric: str) -> str | None:
    gains = {
        method: {seed: gain(f"validation/{metric}", value) for seed, value in cell.scores.items()}
        for method, cell in context.last[metric].items()
        if not cell.broken
    }
    return clear_best(gains)


def _entry(context: Pretraining, cell: Cell, form: str, bold: bool) -> Entry:
    if cell.broken:
        return Entry(cell.trouble(context.seeds))
    if not cell.scores:
        return EMPTY
    summary = cell.summary
    count = f" (n={summary.n})" if summary.n != len(context.seeds) else ""
    return Entry(_spread(summary, form) + count, bold)


def _spread(summary: Summary, form: str) -> str:
    assert summary.mean is not None
    text = format(summary.mean, form).replace("-", "−")
    return text if summary.sd is None else f"{text} ± {format(summary.sd, form)}"


def _floor_note(context: Pretraining) -> list[str]:
    if not context.floors:
        return []
    values = ", ".join(f"{value:.4f}" for value in sorted(context.floors))
    return [
        f"Floor: mean -log p of the same tokens under the source that generated them, {values} nats; no loss is "
        "expected below it. Unigram: each token by its share of the train tokens"
    ]


def _reference_rows(context: Pretraining, known: dict[str, tuple[str, str]], empty: int) -> list[tuple[Entry, ...]]:
    """Return the rows of the unigram prediction and of the floor, where the records hold them."""
    rows = []
    unigram: dict[str, set[float]] = {}
    for record in context.records:
        for key, value in (record.data.constant_scores if record.data else {}).items():
            if value is not None:
                unigram.setdefault(key.rpartition("/")[2], set()).add(value)
    if any(len(values) == 1 for values in unigram.values()):
        values = {metric: found.copy().pop() for metric, found in unigram.items() if len(found) == 1}
        rows.append(_reference_row("Unigram", values, known, empty))
    if len(context.floors) == 1:
        floor = next(iter(context.floors))
        values = {"loss": floor, "perplexity": math.exp(floor), "excess": 0.0, "perplexity_ratio": 1.0}
        bits = {
            floor * record.data.eval_tokens[split] / math.log(2) / record.data.eval_bytes[split]
            for record in context.records
            if record.data is not None
            for split in record.data.floor_nats
        }
        values |= {"bits_per_byte": bits.pop()} if len(bits) == 1 else {}
        rows.append(_reference_row("Floor of the source", values, known, empty))
    return rows


def _reference_row(
    title: str, values: dict[str, float], known: dict[str, tuple[str, str]], empty: int
) -> tuple[Entry, ...]:
    cells = [Entry(format(values[m], form)) if m in values else EMPTY for m, form in known.values()]
    return (Entry(title), *cells, *[EMPTY] * empty)


def _data(context: Pretraining) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for metric, by_method in context.last.items():
        for method in context.methods:
            cell = by_method[method]
            rows.append(
                {"method": method, "title": context.title(method), "metric": metric, "n": cell.summary.n,
                 "mean": cell.summary.mean, "sd": cell.summary.sd, "seeds": " ".join(map(str, cell.scores)),
                 "values": " ".join(map(repr, cell.scores.values()))}
            )  # fmt: skip
    return pd.DataFrame(rows).astype({"n": "Int64", "mean": "Float64", "sd": "Float64"})


def loss_differences(context: Pretraining, against: str | None = None) -> Table | None:
    """Return paired differences of the last loss to one method with their t interval; None without another method.

    Raises:
        ChoiceError: `against` is not among the methods of the report.
    """
    against = against or ("full" if "full" in context.methods else context.methods[0])
    check_choice(against, tuple(context.methods), "method to compare with")
    cells = context.last["loss"]
    rows, data = [], []
    for method in (name for name in context.methods if name != against):
        found = paired_difference(cells[method].scores, cells[against].scores)
        broken = [cell.trouble(context.seeds) for cell in (cells[method], cells[against]) if cell.broken]
        text = "; ".join(broken) or _interval(found.mean, found.low, found.high)
        rows.append((Entry(context.title(method)), Entry(text)))
        data.append({"method": method, "against": against, "n": found.n, "mean": found.mean, "sd": found.sd,
                     "low": found.low, "high": found.high, "level": LEVEL})  # fmt: skip
    if not rows:
        return None
    what = f"loss minus that of {context.title(against)} in nats, mean over shared seeds [{LEVEL:.0%} t interval]"
    frame = pd.DataFrame(data).astype({"n": "Int64", **dict.fromkeys(["mean", "sd", "low", "high"], "Float64")})
    note = "Without an interval: one shared seed. Not corrected for the number of comparisons"
    return Table("differences", context.caption(what), ("Method", "Loss difference"), tuple(rows), (note,), frame)


def _interval(mean: float | None, low: float | None, high: float | None) -> str:
    if mean is None:
        return EMPTY.text
    parts = [f"{value:+.4f}".replace("-", "−") for value in (mean, low, high) if value is not None]
    return parts[0] if len(parts) == 1 else f"{parts[0]} [{parts[1]}, {parts[2]}]"


def validation_points(context: Pretraining) -> dict[str, dict[int, Summary]]:
    """Return method -> step -> loss over the seeds that finished, at every evaluation."""
    values: dict[str, dict[int, list[float]]] = {}
    for record in context.records:
        if record.status == "ok" and record.main_metric is not None:
            key = f"{record.main_metric.rpartition('/')[0]}/loss"
            for evaluation in record.evaluations:
                if (value := evaluation.metrics.get(key)) is not None:
                    values.setdefault(record.plan.method, {}).setdefault(evaluation.step, []).append(value)
    return {m: {step: summarise(found) for step, found in sorted(steps.items())} for m, steps in values.items()}


def validation_plot(context: Pretraining) -> Plot | None:
    """Draw the loss on the evaluated tokens by step, with the floor where it is known; None without evaluations."""
    points = validation_points(context)
    if not points:
        return None
    what = "loss on the evaluated tokens by optimizer step, mean over seeds, error bars ± standard deviation"
    return draw("validation", VALIDATION_TITLE, context.caption(what), lambda: _validation(context, points))


def _validation(context: Pretraining, points: dict[str, dict[int, Summary]]) -> Figure:
    height = 4.4
    footer = "Marker: an evaluation; line: mean over seeds of the runs that finished; bar: ± standard deviation. "
    footer += "Dashed: floor of the source. " if context.floors else ""
    figure, (bottom, top) = framed(
        9.2, height, VALIDATION_TITLE, context, footer + "The scale of the loss is logarithmic."
    )
    (axes,) = panels(figure, 1, bottom + 0.5 / height, top - 0.57 / height, 0.085, 0.2, 0.42)
    present = [method for method in context.methods if method in points]
    for method in present:
        look, steps = context.looks[method], points[method]
        means = [summary.mean for summary in steps.values()]
        spread = [summary.sd or 0.0 for summary in steps.values()]
        axes.errorbar(list(steps), means, yerr=spread, color=look.colour, marker=look.marker, markersize=5,
                      linewidth=1.5, capsize=3)  # type: ignore[arg-type]  # fmt: skip
    for floor in sorted(context.floors):
        axes.axhline(floor, color="#8A8A8A", linewidth=1.2, linestyle=(0, (5, 3)))
    axes.set_yscale("log")
    axes.grid(which="both", axis="y")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("Optimizer step")
    axes.set_ylabel("Loss, nats a token")
    shown = [context.looks[method] for method in present]
    handles = [Line2D([], [], color=k.colour, marker=k.marker, markersize=5, linewidth=2, label=k.title) for k in shown]
    strip(figure, handles, top)
    return figure
