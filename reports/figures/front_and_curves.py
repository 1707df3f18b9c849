"""The figures: PNG and SVG with the same bytes for the same records. No pyplot, so no state outside the figure."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import Bbox

from reports.figures.labels import Label, place_labels
from reports.figures.style import Look, byte_unit, seed_words
from reports.records.provenance import listed
from reports.records.report_runs import MICRO, Context
from reports.stats.over_seeds import pareto_front
from reports.tables.cost import peaks_of
from reports.tables.findings import findings_of, unordered

DPI = 150
SMOOTHED = 0.05
DRAWN_POINTS = 400
LEGEND_COLUMNS = 7
CURVES_TITLE = "Training loss"
FORMATS = {"png": ("Software",), "svg": ("Date", "Creator"), "pdf": ("CreationDate", "Creator", "Producer")}
"""Format -> what would make two files of the same records differ, left out."""
INK, FAINT = "#222222", "#5A5A5A"
STYLE: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#8A8A8A",
    "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.7, "axes.axisbelow": True, "text.color": INK,
    "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK, "svg.hashsalt": "gnlorp", "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "figure.dpi": DPI, "savefig.dpi": DPI, "font.family": "DejaVu Sans", "axes.titlelocation": "left",
    "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """One finished figure: the stem of its files, a short title, its caption, its bytes by format, and itself."""

    name: str
    title: str
    caption: str
    files: Mapping[str, bytes]
    figure: Figure | None = field(default=None, compare=False, repr=False)

    @property
    def png(self) -> bytes:
        """The picture."""
        return self.files["png"]

    @property
    def svg(self) -> bytes:
        """The drawing."""
        return self.files["svg"]


def draw(name: str, title: str, caption: str, build: Callable[[], Figure]) -> Plot:
    """Build a figure under the house style and return it as PNG, SVG and PDF without dates or versions in them."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = build()
        FigureCanvasAgg(figure)
        files = {}
        for form, unsaid in FORMATS.items():
            content = io.BytesIO()
            figure.savefig(content, format=form, metadata=dict.fromkeys(unsaid))
            files[form] = content.getvalue()
    return Plot(name, title, caption, files, figure)


def subtitle(context: Context) -> str:
    """Return the line under every figure's title: which runs it is about."""
    line = f"{context.heading}, {seed_words(context.seeds)}"
    return f"{line}. {MICRO}." if context.is_micro else f"{line}. Evaluated on {context.split_words}."


def framed(width: float, height: float, title: str, under: str, footer: str) -> tuple[Figure, tuple[float, float]]:
    """Return a figure with title, a line under it and footer written, and the (bottom, top) fractions for axes."""
    figure = Figure(figsize=(width, height))
    figure.text(0.12 / width, 1 - 0.14 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.12 / width, 1 - 0.42 / height, under, fontsize=9, color=FAINT, va="top")
    lines = textwrap.wrap(footer, int(width * 15.2))
    figure.text(0.12 / width, 0.09 / height, "\n".join(lines), fontsize=8, color=FAINT, va="bottom", linespacing=1.25)
    return figure, ((0.14 + 0.15 * len(lines)) / height, 1 - 0.72 / height)


def not_shown(why: str, titles: Sequence[str]) -> str:
    """Return the sentence of a footer on what a figure leaves out; empty for nothing."""
    return f"Not shown, {why}: {listed(titles)}. " if titles else ""


def front_plot(context: Context) -> Plot | None:
    """Draw the average score against the highest tracked peak over the tasks.

    None if no method has both, and where the average orders nothing: a figure would show an order.
    """
    points = front_points(context)
    if not points or unordered(findings_of(context)):
        return None
    what = "average score against measured peak memory (highest over the tasks)"
    caption = context.caption(what + ", error bars ± standard deviation over seeds, front of the means", scores=True)
    title = f"Average {context.entry.title} score against peak memory"
    return draw("front", title, caption, lambda: _front(context, points, title))


@dataclass(frozen=True)
class FrontPoint:
    """One method: peak bytes, average and its sd as printed, and whether no other method dominates it."""

    method: str
    peak_bytes: int
    score: float
    sd: float | None
    on_front: bool


def front_points(context: Context) -> list[FrontPoint]:
    """Return the methods that have both an average and a measured peak, cheapest first."""
    averages = {method: mean.summary for method, mean in context.averages.items() if mean.scores}
    peaks = peaks_of(context, averages, context.counted).of
    scale = context.averaged_metric.scale if context.averages else 1.0
    found = []
    for method, summary in averages.items():
        if method in peaks and summary.mean is not None:
            sd = None if summary.sd is None else scale * summary.sd
            found.append((peaks[method], scale * summary.mean, sd, method))
    on_front = pareto_front([peak for peak, *_ in found], [score for _, score, *_ in found])
    points = [FrontPoint(m, p, s, sd, front) for (p, s, sd, m), front in zip(found, on_front, strict=True)]
    return sorted(points, key=lambda point: (point.peak_bytes, point.method))


def _front(context: Context, points: list[FrontPoint], title: str) -> Figure:
    left_out = [context.title(m) for m in context.methods if m not in {p.method for p in points}]
    footer = f"Average: {context.convention.words()}; error bars: ± standard deviation over seeds. "
    footer += "Dashed: Pareto front of the means; filled: on it (nothing that needs no more memory scores as well). "
    note = peaks_of(context, [point.method for point in points], context.counted).note
    footer += f"{note}. " if note else ""
    footer += not_shown("no average or no measured peak", left_out)
    figure, (bottom, top) = framed(8, 5.4, title, subtitle(context), footer)
    axes = figure.add_axes((0.085, bottom + 0.105, 0.885, top - bottom - 0.12))
    unit, size = byte_unit(max(point.peak_bytes for point in points))
    axes.set_xlabel(f"Peak memory of a training step, measured ({unit})")
    axes.set_ylabel(f"Average score ({context.averaged_metric.unit})")
    xs = [point.peak_bytes / size for point in points]
    for x, point in zip(xs, points, strict=True):
        look = context.looks[point.method]
        face = look.colour if point.on_front else "white"
        axes.errorbar(x, point.score, yerr=point.sd, color=look.colour, capsize=4, elinewidth=1.4, fmt="none", zorder=3)
        axes.plot(x, point.score, look.marker, markersize=9, color=look.colour, markerfacecolor=face, zorder=4)
    _limits(axes, xs, points)
    front = [(x, point.score) for x, point in zip(xs, points, strict=True) if point.on_front]
    edge = axes.get_xlim()[1]
    axes.step([x for x, _ in front] + [edge], [y for _, y in front] + [front[-1][1]], where="post", color="#9A9A9A",
              linestyle=(0, (5, 3)), linewidth=1.3, zorder=2)  # fmt: skip
    labels = [Label(x, point.score, context.title(point.method), INK) for x, point in zip(xs, points, strict=True)]
    place_labels(axes, labels, _obstacles(axes, xs, points, front))
    return figure


def _limits(axes: Axes, xs: list[float], points: list[FrontPoint]) -> None:
    lows = [point.score - (point.sd or 0) for point in points]
    highs = [point.score + (point.sd or 0) for point in points]
    x_room = 0.14 * (max(xs) - min(xs)) or 0.2 * max(xs)
    y_room = 0.15 * (max(highs) - min(lows)) or 1.0
    axes.set_xlim(max(0.0, min(xs) - x_room), max(xs) + x_room)
    axes.set_ylim(min(lows) - y_room, max(highs) + y_room)


def _obstacles(axes: Axes, xs: list[float], points: list[FrontPoint], front: list[tuple[float, float]]) -> list[Bbox]:
    """Return the boxes of markers, error bars and front segments in pixels."""
    boxes = []
    for x, point in zip(xs, points, strict=True):
        spread = point.sd or 0.0
        low = axes.transData.transform((x, point.score - spread))
        high = axes.transData.transform((x, point.score + spread))
        boxes += [Bbox([low, high]).padded(9), Bbox([low, high]).padded(2)]
    corners = [*front, (axes.get_xlim()[1], front[-1][1])]
    for (x, y), (next_x, next_y) in zip(corners, corners[1:], strict=False):
        for start, end in (((x, y), (next_x, y)), ((next_x, y), (next_x, next_y))):
            boxes.append(Bbox([axes.transData.transform(start), axes.transData.transform(end)]).padded(2))
    return [Bbox.from_extents(*np.sort(box.get_points(), axis=0).ravel()) for box in boxes]


def panels(
    figure: Figure, count: int, bottom: float, top: float, left: float, wspace: float, hspace: float
) -> list[Axes]:
    """Return `count` axes in rows of up to three."""
    columns = min(3, count)
    rows = -(-count // columns)
    grid = figure.add_gridspec(
        rows, columns, left=left, right=0.985, bottom=bottom, top=top, wspace=wspace, hspace=hspace
    )
    return [figure.add_subplot(grid[index // columns, index % columns]) for index in range(count)]


def curve_plot(context: Context) -> Plot | None:
    """Draw the training loss of every task, mean and band over seeds; None without curves."""
    curves = context.curves
    tasks = [task for task in context.tasks if (curves["task"] == task).any()]
    if not tasks:
        return None
    what = (
        f"training loss, moving mean over {100 * SMOOTHED:.0f} % of a run's steps, line: mean over seeds, band: "
        "± standard deviation"
    )
    return draw("curves", CURVES_TITLE, context.caption(what), lambda: _curves(context, curves, tasks))


def _curves(context: Context, curves: pd.DataFrame, tasks: list[str]) -> Figure:
    rows = -(-len(tasks) // min(3, len(tasks)))
    height = 1.75 + 2.15 * rows
    footer = (
        f"Each run's loss is smoothed by a centred moving mean over {100 * SMOOTHED:.0f} % of its steps. "
        "Line: mean over seeds of the runs that finished; band: ± standard deviation. "
        "Dotted with ×: a run that did not finish."
    )
    figure, (bottom, top) = framed(9.2, height, CURVES_TITLE, subtitle(context), footer)
    present = [method for method in context.methods if (curves["method"] == method).any()]
    room = (0.35 + 0.22 * -(-len(present) // LEGEND_COLUMNS)) / height
    axes = panels(figure, len(tasks), bottom + 0.5 / height, top - room, 0.075, 0.2, 0.42)
    for index, (ax, task) in enumerate(zip(axes, tasks, strict=True)):
        ax.set_title(context.titles[task])
        of_task = curves[curves["task"] == task]
        for place, method in enumerate(present):
            _draw_curves(ax, of_task[of_task["method"] == method], context.looks[method], place / len(present))
        if index % 3 == 0:
            ax.set_ylabel("Loss")
        if index + 3 >= len(tasks):
            ax.set_xlabel("Optimizer step")
        ax.margins(x=0.02)
    shown = [context.looks[method] for method in present]
    strip(figure, [legend_line(look) for look in shown], top)
    return figure


def legend_line(look: Look) -> Line2D:
    """Return what stands for a method in a legend of lines."""
    return Line2D(
        [], [], color=look.colour, marker=look.marker, linestyle=look.line, markersize=5, linewidth=2, label=look.title
    )


def strip(figure: Figure, handles: Sequence[Line2D | Patch], top: float) -> None:
    """Write one legend for all panels, in a line below the subtitle."""
    spacing = {"handlelength": 1.4, "columnspacing": 1.4, "handletextpad": 0.5}
    place = (0.003, top + min(0.02, 0.2 / float(figure.get_figheight())))
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, ncols=LEGEND_COLUMNS, frameon=False, **spacing
    )


def _draw_curves(ax: Axes, curves: pd.DataFrame, look: Look, shift: float) -> None:
    """Draw one method; `shift` (0 to 1) moves its few markers along the line, away from those of others."""
    colour = look.colour
    smoothed: dict[int, pd.Series] = {}
    for (seed, status), run in curves.groupby(["seed", "status"], observed=True):
        line = smooth(run.set_index("step")["loss"].sort_index())
        if status == "ok":
            smoothed[int(str(seed))] = line
            continue
        known = line.dropna()
        if len(known):
            ax.plot(*_thinned(known), color=colour, linewidth=1, linestyle=":")
            ax.plot(known.index[-1], known.iloc[-1], "x", color=colour, markersize=7, markeredgewidth=1.8)
    if not smoothed:
        return
    table = pd.DataFrame(smoothed).dropna()
    mean = table.mean(axis=1)
    every = max(1, min(len(mean), DRAWN_POINTS) // 4)
    marks: dict[str, Any] = {"marker": look.marker, "markersize": 4.5, "markevery": (int(shift * every), every)}
    ax.plot(*_thinned(mean), color=colour, linewidth=1.5, linestyle=look.line, **marks)
    if len(smoothed) > 1:
        spread = table.std(axis=1, ddof=1)
        steps, low = _thinned(mean - spread)
        ax.fill_between(steps, low, _thinned(mean + spread)[1], color=colour, alpha=0.16, linewidth=0)


def smooth(loss: pd.Series) -> pd.Series:
    """Return the centred moving mean over `SMOOTHED` of the points (one at least)."""
    window = max(1, round(SMOOTHED * len(loss)))
    return loss.rolling(window, center=True, min_periods=1).mean()


def _thinned(line: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return at most `DRAWN_POINTS` points of a line, evenly spaced, both ends kept."""
    keep = np.unique(np.linspace(0, len(line) - 1, min(len(line), DRAWN_POINTS)).round().astype(int))
    return line.index.to_numpy()[keep], line.to_numpy(dtype=float)[keep]
