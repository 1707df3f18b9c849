"""The other two figures: memory parts as stacked bars, and per-task scores as dots with every seed shown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from reports.figures.front_and_curves import FAINT, INK, Plot, draw, framed, not_shown, panels, strip, subtitle
from reports.figures.style import GIB, PART_COLOURS, byte_unit, in_unit
from reports.records.frames import PEAKS, in_order
from reports.records.report_runs import Column, Context
from reports.tables.cost import memory_place, memory_task
from results.schema import Peak, Record

PARTS_TITLE, DOTS_TITLE = "What peak memory consists of", "Scores by task, every seed shown"
WIDTH = 9.2
LONGEST_LABEL = 40
"""Characters of a row's label that stand in one line."""
VISIBLE = 0.004
CARD_BYTES = 24 * GIB
"""Memory of the card that published claims of this field are about."""
LIGHT_PARTS = ("Gradients", "Activations", "Buffers and other", "Weights")


@dataclass(frozen=True)
class Bar:
    """One stacked bar: bytes by part, adding up to the tracked peak."""

    method: str
    title: str
    refresh: bool
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        """The tracked peak."""
        return sum(self.parts.values())


def memory_bars(context: Context) -> list[Bar]:
    """Return the bars of the memory task: a plain step of every method, and a refresh step where it has one."""
    task = memory_task(context)
    of_task = [record for record in in_order(context.records) if record.plan.task == task]
    bars = []
    for method in context.methods:
        mine = [record for record in of_task if record.plan.method == method]
        for peak in PEAKS:
            worst = heaviest(mine, peak)
            if worst is not None:
                refresh = peak == "refresh_peak"
                title = context.title(method) + (", refresh" if refresh else "")
                bars.append(Bar(method, title, refresh, peak_parts(worst, peak)))
    return bars


def heaviest(records: Iterable[Record], peak: str) -> Record | None:
    """Return the finished run whose peak of that phase is highest, the first of equal ones; None if none has one."""
    known = [(found.total_bytes, each) for each in records if each.status == "ok" and (found := peak_of(each, peak))]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def peak_of(record: Record, peak: str) -> Peak | None:
    """Return one of a run's peaks, None where it was not measured."""
    return None if record.memory is None else {
        "step_peak": record.memory.step_peak, "refresh_peak": record.memory.refresh_peak
    }[peak]  # fmt: skip


def peak_parts(record: Record, peak: str) -> dict[str, int]:
    """Return the bytes by part at one measured peak of a run; the bases are taken out of the optimizer's bytes.

    The bases in force at the peak are counted, at most what the tracker saw as optimizer state.
    """
    found = peak_of(record, peak)
    assert found is not None
    assert record.memory is not None
    bases = min(record.memory.basis_bytes, found.optimizer_bytes)
    return {
        "Weights": found.parameter_bytes,
        "Gradients": found.gradient_bytes,
        "Optimizer state": found.optimizer_bytes - bases,
        "Bases": bases,
        "Activations": found.activation_bytes,
        "Temporaries": found.temporary_bytes,
        "Buffers and other": found.buffer_bytes + found.other_bytes,
    }


def parts_plot(context: Context) -> Plot | None:
    """Draw what the tracked peak consists of, per method; None where no peak was measured."""
    bars = memory_bars(context)
    task = memory_task(context)
    if not bars or task is None:
        return None
    what = f"parts of the measured peak memory at {memory_place(context)}"
    return draw("parts", PARTS_TITLE, context.caption(what), lambda: _parts(context, bars, context.titles[task]))


def in_lines(names: Iterable[str]) -> list[str]:
    """Return row labels, long ones in several lines."""
    return ["\n".join(textwrap.wrap(name, LONGEST_LABEL)) for name in names]


def name_room(labels: Sequence[str], size: float) -> float:
    """Return the fraction of the figure's width that row labels of `size` points need, with some air."""
    longest = max(len(line) for label in labels for line in label.split("\n"))
    return (longest * size * 0.6 / 72 + 0.2) / WIDTH


def used_parts(bars: list[Bar]) -> list[str]:
    """Return the parts that can be seen in at least one bar; the others need no colour."""
    return [part for part in PART_COLOURS if any(bar.parts.get(part, 0) > VISIBLE * bar.total_bytes for bar in bars)]


def _parts(context: Context, bars: list[Bar], task: str) -> Figure:
    footer = (
        "Tracked bytes at the moment of the highest total within one optimizer step, counted from live tensors at the "
        f"longest batch of {task}. Refresh: a step that also computes new bases."
    )
    hidden = [part for part in PART_COLOURS if part not in used_parts(bars) and any(bar.parts[part] for bar in bars)]
    footer += f" Too small to see (under {100 * VISIBLE:.1f} % of every bar): {', '.join(hidden)}." if hidden else ""
    drawn = {bar.method for bar in bars}
    footer += " " + not_shown("no measured peak", [context.title(m) for m in context.methods if m not in drawn])
    return stacked(bars, PARTS_TITLE, subtitle(context), footer)


def stacked(bars: list[Bar], title: str, under: str, footer: str) -> Figure:
    """Return a figure with a bar a row, its parts side by side and its total at the end."""
    labels = in_lines(bar.title for bar in bars)
    height = 1.95 + max(0.42, 0.17 * max(1 + label.count("\n") for label in labels)) * len(bars)
    figure, (bottom, top) = framed(WIDTH, height, title, under, footer)
    left_edge = name_room(labels, 10) + 0.03
    axes = figure.add_axes((left_edge, bottom + 0.5 / height, 0.98 - left_edge, top - bottom - 0.92 / height))
    unit, size = byte_unit(max(bar.total_bytes for bar in bars))
    longest = max(bar.total_bytes for bar in bars) / size
    for row, bar in enumerate(bars):
        left = 0.0
        for part in PART_COLOURS:
            width = bar.parts.get(part, 0) / size
            axes.barh(row, width, left=left, height=0.72, color=PART_COLOURS[part], edgecolor="white", linewidth=0.4)
            if width > 0.075 * longest:
                ink = INK if part in LIGHT_PARTS else "white"
                text = in_unit(bar.parts[part], size)
                axes.text(left + width / 2, row, text, ha="center", va="center", fontsize=8.5, color=ink)
            left += width
        axes.text(
            left + 0.01 * longest, row, in_unit(bar.total_bytes, size), va="center", fontsize=9.5, fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    handles: list[Patch | Line2D] = [Patch(color=PART_COLOURS[part], label=part) for part in used_parts(bars)]
    if CARD_BYTES / size < 1.11 * longest:
        # Behind the bars: their numbers stay readable, and the line shows between them.
        axes.axvline(CARD_BYTES / size, color=INK, linewidth=1.3, linestyle=(0, (5, 3)), zorder=0.5)
        label = f"{CARD_BYTES // GIB} GiB: a consumer card"
        handles.append(Line2D([], [], color=INK, linewidth=1.3, linestyle=(0, (5, 3)), label=label))
    axes.set_yticks(range(len(bars)), labels, fontsize=10)
    axes.set_ylabel("Method")
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1.11 * longest)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"Bytes at the peak ({unit})")
    strip(figure, handles, top)
    return figure


def dots_plot(context: Context) -> Plot | None:
    """Draw every seed's score, the mean, and that of a constant prediction, a panel a task.

    None for a lone task, whose table says it, and without scores.
    """
    columns = [column for column in context.columns if column.places]
    if not context.by_task or not any(place.scores for column in columns for place in column.places.values()):
        return None
    caption = context.caption("score of every seed (markers) and mean (bar) by task", scores=True)
    return draw("dots", DOTS_TITLE, caption, lambda: _dots(context, columns))


def _dots(context: Context, columns: list[Column]) -> Figure:
    titles = in_lines(context.title(method) for method in context.methods)
    rows = -(-len(columns) // min(3, len(columns)))
    panel = 0.75 + 0.24 * len(context.methods) * max(1 + title.count("\n") for title in titles)
    height = 1.5 + panel * rows
    footer = f"Marker: one seed; bar: mean over seeds. Scores: {context.convention.words()}. "
    footer += "Scales differ between panels and do not start at zero."
    if context.constants and context.constant is not None:
        footer += f" Vertical line: {context.constant[1]}."
    figure, (bottom, top) = framed(WIDTH, height, DOTS_TITLE, subtitle(context), footer)
    axes = panels(
        figure,
        len(columns),
        bottom + 0.48 / height,
        top - 0.22 / height,
        name_room(titles, 9.5),
        0.13,
        0.66 / (panel - 0.66),
    )
    for index, (ax, column) in enumerate(zip(axes, columns, strict=True)):
        ax.set_title(column.head)
        for row, method in enumerate(context.methods):
            _draw_place(context, ax, row, method, column)
        if column.name in context.constants:
            ax.axvline(
                column.metric.scale * context.constants[column.name],
                color=FAINT,
                linewidth=1.1,
                linestyle=(0, (4, 3)),
                zorder=1,
            )
        ax.set_yticks(range(len(titles)), titles if index % 3 == 0 else [""] * len(titles), fontsize=9.5)
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(context.methods) - 0.4, -0.6)
        ax.margins(x=0.08)
        ax.xaxis.get_major_locator().set_params(nbins=5)  # type: ignore[call-arg]
        _write_trouble(context, ax, column)
        if index + 3 >= len(columns):
            ax.set_xlabel(f"Score ({column.metric.unit})" if column.metric.unit else "Score")
    return figure


def _draw_place(context: Context, ax: Axes, row: int, method: str, column: Column) -> None:
    look, place = context.looks[method], column.place(method)
    scores = [column.metric.scale * score for score in place.scores.values()]
    if not scores:
        return
    ax.plot(scores, [row] * len(scores), look.marker, color=look.colour, markersize=6, alpha=0.6, markeredgewidth=0)
    if not place.broken:
        ax.vlines(sum(scores) / len(scores), row - 0.34, row + 0.34, color=look.colour, linewidth=2.2, zorder=3)


def _write_trouble(context: Context, ax: Axes, column: Column) -> None:
    """Write what went wrong at the right end of its row, on room made for it: no dot lies under the words."""
    texts = {}
    for row, method in enumerate(context.methods):
        place = column.place(method)
        if place.broken:
            texts[row] = place.trouble(context.seeds)
        elif not place.outcomes:
            texts[row] = "not run"
    if not texts:
        return
    low, high = ax.get_xlim()
    ax.set_xlim(low, high + 0.75 * (high - low))
    for row, text in texts.items():
        words = "\n".join(textwrap.wrap(text, 26))
        where = ax.get_yaxis_transform()
        ax.text(
            0.995, row, words, transform=where, ha="right", va="center", fontsize=7.5, color=FAINT, linespacing=0.95
        )
