"""What tuning did, drawn: the score over both learning rates, a panel a method, and the expected best by trials."""

from __future__ import annotations

import math
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from reports.figures.front_and_curves import FAINT, INK, Plot, draw, framed, legend_line, not_shown, panels, strip
from reports.figures.style import Look, looks
from reports.records.report_runs import Context
from reports.records.tuning import Trial, Tuning
from reports.stats.budget import ExpectedBest
from reports.tables.tuning import trial_words, tuning_caption

SENSITIVITY_TITLE, BUDGET_TITLE = "Score over both learning rates", "Expected best score by number of trials"
COLOURS = "viridis"
DIAGONAL = "On the diagonal both rates are one. "
SHOWN = 0.75
"""Share of the trials whose scores the colours tell apart; the worst quarter has the colour of the scale's end."""
MATRICES, REST = "Learning rate of the matrices", "Learning rate of the rest"


@dataclass(frozen=True)
class Shade:
    """One trial as drawn: its place, and how good it is from 0 (the end of the scale) to 1 (the best of all)."""

    trial: Trial
    shade: float | None
    best: bool


def scale_of(tuning: Tuning) -> tuple[float, float]:
    """Return the scores (more is better) at the bad and the good end of the colours, the same for all methods."""
    gains = sorted(found for of in tuning.trials.values() for t in of if (found := tuning.gain(t)) is not None)
    if not gains:
        return 0.0, 1.0
    low = gains[math.floor((1 - SHOWN) * (len(gains) - 1))]
    return (low, gains[-1]) if low < gains[-1] else (low - 1.0, low)


def shades(tuning: Tuning) -> dict[str, list[Shade]]:
    """Return method -> its trials, worst first so that the best lies on top; those without a score have no shade."""
    low, high = scale_of(tuning)
    found = {}
    for method, trials in tuning.trials.items():
        best = tuning.best(method)
        rows = []
        for trial in trials:
            gain = tuning.gain(trial)
            shade = None if gain is None else min(1.0, max(0.0, (gain - low) / (high - low)))
            rows.append(Shade(trial, shade, trial is best))
        found[method] = sorted(rows, key=lambda row: (row.best, -1.0 if row.shade is None else row.shade))
    return found


def looks_of(context: Context, tuning: Tuning) -> dict[str, Look]:
    """Return the look of every method that was searched: as in the report's other figures where it stands there."""
    found = looks(tuning.trials, tuning.catalogue, tuning.entry)
    return {method: context.looks.get(method, look) for method, look in found.items()}


def sensitivity_plot(context: Context) -> Plot | None:
    """Draw every trial over both learning rates, a panel a method, one colour scale; None without trials."""
    tuning = context.tuning
    if tuning is None or tuning.metric is None or tuning.worst is None:
        return None
    what = f"held-out {tuning.metric.title} of every trial over both learning rates, a panel a method"
    caption = tuning_caption(context, tuning, what)
    return draw("sensitivity", SENSITIVITY_TITLE, caption, lambda: _sensitivity(context, tuning))


def _under(context: Context, tuning: Tuning) -> str:
    assert tuning.metric is not None
    tasks = ", ".join(tuning.entry.task_title(task) for task in tuning.tasks)
    score = f"Held-out {tuning.metric.title} of {tasks}, {tuning.metric.better} is better"
    return f"{context.about}. {score}; {trial_words(tuning)}."


def _sensitivity(context: Context, tuning: Tuning) -> Figure:
    metric = tuning.metric
    assert metric is not None
    found, styles = shades(tuning), looks_of(context, tuning)
    rows = -(-len(found) // min(3, len(found)))
    height = 1.95 + 2.55 * rows
    footer = (
        f"A mark is a trial. Ring: chosen for the method; cross: no score. One colour scale; the worst quarter of all "
        f"trials has the colour of its end. {DIAGONAL if _one_rate(tuning) else ''}{_others(tuning)}"
    )
    figure, (bottom, top) = framed(9.2, height, SENSITIVITY_TITLE, _under(context, tuning), footer)
    axes = panels(figure, len(found), bottom + 0.55 / height, top - 0.28 / height, 0.075, 0.24, 0.42)
    for ax in axes:
        box = ax.get_position()
        ax.set_position((box.x0 * 0.885 + 0.022, box.y0, box.width * 0.885, box.height))
    low, high = scale_of(tuning)
    x_ends, y_ends = _ends(tuning, "learning_rate"), _ends(tuning, "rest_learning_rate")
    for index, (ax, (method, marks)) in enumerate(zip(axes, found.items(), strict=True)):
        _panel(ax, marks, styles[method], x_ends, y_ends)
        if index % 3 == 0:
            ax.set_ylabel(REST)
        else:  # the same scale as the first of the row
            ax.tick_params(labelleft=False)
        if index + 3 >= len(found) and any(mark.trial.learning_rate is not None for mark in marks):
            ax.set_xlabel(MATRICES)
    first, last = sorted(metric.scale * metric.gain(value) for value in (low, high))
    colours = mpl.colormaps[COLOURS]
    bar = ScalarMappable(Normalize(first, last), colours if metric.better == "higher" else colours.reversed())
    place = (0.925, bottom + 0.55 / height, 0.013, top - bottom - 0.85 / height)
    figure.colorbar(bar, cax=figure.add_axes(place), label=metric.head)
    return figure


def _panel(ax: Axes, marks: list[Shade], look: Look, x_ends: tuple[float, float], y_ends: tuple[float, float]) -> None:
    """Draw one method; one that trains no matrix has no horizontal axis: its trials stand in a column."""
    trained = any(mark.trial.learning_rate is not None for mark in marks)
    middle = math.sqrt(x_ends[0] * x_ends[1])
    ax.set_title(look.title)
    ax.set_xscale("log")
    ax.set_yscale("log")
    for mark in marks:
        x, y = mark.trial.learning_rate or middle, mark.trial.rest_learning_rate
        if mark.shade is None:
            ax.plot(x, y, "x", color=FAINT, markersize=7, markeredgewidth=1.6)
            continue
        ax.plot(x, y, "o", color=mpl.colormaps[COLOURS](mark.shade), markersize=8, markeredgewidth=0)
        if mark.best:
            ax.plot(x, y, "o", color=INK, markersize=13, markerfacecolor="none", markeredgewidth=1.6)
    ax.set_xlim(x_ends[0] / 1.6, x_ends[1] * 1.6)
    ax.set_ylim(y_ends[0] / 1.6, y_ends[1] * 1.6)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(lambda value, _: "")
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    if not trained:
        ax.set_xticks([])
        ax.set_xticks([], minor=True)
        ax.set_xlabel("no matrix is trained")


def _ends(tuning: Tuning, name: str) -> tuple[float, float]:
    values = [value for of in tuning.trials.values() for t in of if (value := getattr(t, name)) is not None]
    return (min(values), max(values)) if values else (1e-3, 1e-3)


def _one_rate(tuning: Tuning) -> bool:
    return any(t.learning_rate == t.rest_learning_rate for of in tuning.trials.values() for t in of)


def _others(tuning: Tuning) -> str:
    """Return which methods' trials differ in more than the rates: marks may lie on each other there."""
    names = {method: sorted({name for t in of for name, _ in t.others}) for method, of in tuning.trials.items()}
    told = [f"{tuning.catalogue.method(m).title} ({', '.join(found)})" for m, found in names.items() if found]
    return f"Trials of {', '.join(told)} differ in more than the rates." if told else ""


def budget_curves(tuning: Tuning) -> dict[str, list[ExpectedBest]]:
    """Return method -> expected best by trials, of those that have one."""
    return {method: found for method in tuning.trials if (found := tuning.expected(method))}


def budget_plot(context: Context) -> Plot | None:
    """Draw the expected best score by number of trials; None without trials, and with one for every method."""
    tuning = context.tuning
    if tuning is None or tuning.metric is None:
        return None
    curves = budget_curves(tuning)
    if max(map(len, curves.values()), default=0) < 2:
        return None
    what = "expected best held-out score by number of trials, band ± its standard deviation (Dodge et al. 2019)"
    caption = tuning_caption(context, tuning, what)
    return draw("budget", BUDGET_TITLE, caption, lambda: _budget(context, tuning, curves))


def _budget(context: Context, tuning: Tuning, curves: dict[str, list[ExpectedBest]]) -> Figure:
    metric = tuning.metric
    assert metric is not None
    height, styles = 4.4, looks_of(context, tuning)
    footer = (
        "Expectation of the best of n draws, with replacement, from the trials that were made (Dodge et al. 2019, "
        "arXiv 1909.03004); band: ± its standard deviation. A trial without a score counts as the worst of any trial. "
    )
    footer += not_shown("no trial with a score", [styles[method].title for method in styles if method not in curves])
    figure, (bottom, top) = framed(9.2, height, BUDGET_TITLE, _under(context, tuning), footer)
    (ax,) = panels(figure, 1, bottom + 0.5 / height, top - 0.57 / height, 0.085, 0.2, 0.42)
    for method, points in curves.items():
        look, counts = styles[method], [point.trials for point in points]
        means = [metric.scale * metric.gain(point.mean) for point in points]
        spread = [metric.scale * point.sd for point in points]
        ax.plot(counts, means, color=look.colour, marker=look.marker, markersize=5, linewidth=1.5, linestyle=look.line)
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        ax.fill_between(counts, low, high, color=look.colour, alpha=0.1, linewidth=0)
    ax.set_xlabel("Trials")
    ax.set_ylabel(metric.head)
    ax.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    strip(figure, [legend_line(styles[method]) for method in curves], top)
    return figure
