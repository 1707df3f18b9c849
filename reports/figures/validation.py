"""The loss of a suite's only task by optimizer step, with the floor where it is known."""

from __future__ import annotations

from matplotlib.figure import Figure

from reports.figures.front_and_curves import Plot, draw, framed, legend_line, not_shown, panels, strip, subtitle
from reports.records.report_runs import Column, Context
from reports.stats.over_seeds import Summary, summarise
from reports.tables.scores import floors

DODGE = 0.006
"""Distance between neighbours at one step, as a share of the run."""
Points = dict[str, dict[int, Summary]]


def validation_points(context: Context, column: Column) -> Points:
    """Return method -> step -> value over the seeds that finished, at every evaluation."""
    values: dict[str, dict[int, list[float]]] = {}
    for record in context.records:
        if record.status == "ok" and record.main_metric is not None:
            key = f"{record.main_metric.rpartition('/')[0]}/{column.metric.name}"
            for evaluation in record.evaluations:
                if (value := evaluation.metrics.get(key)) is not None:
                    values.setdefault(record.plan.method, {}).setdefault(evaluation.step, []).append(value)
    return {m: {step: summarise(found) for step, found in sorted(steps.items())} for m, steps in values.items()}


def validation_plot(context: Context) -> Plot | None:
    """Draw the metric of differences by step; None for several tasks, and without evaluations."""
    if context.by_task or not context.compared:
        return None
    (column,) = context.compared
    points = validation_points(context, column)
    if not points:
        return None
    title = f"Validation {column.metric.title}"
    name = column.metric.title
    what = f"{name} on the evaluated tokens by optimizer step, mean over seeds, error bars ± standard deviation"
    return draw("validation", title, context.caption(what), lambda: _validation(context, column, points, title))


def _validation(context: Context, column: Column, points: Points, title: str) -> Figure:
    height = 4.4
    known = floors(context) if column.name == "loss" else set()
    footer = "Marker: an evaluation; line: mean over seeds of the runs that finished; bar: ± standard deviation. "
    footer += "Methods stand beside each other at each step. "
    footer += "Dashed grey: floor of the source. " if known else ""
    places = {context.title(method): column.place(method) for method in context.methods}
    broken = [f"{title} ({place.trouble(context.seeds)})" for title, place in places.items() if place.broken]
    footer += not_shown("runs without a score", broken)
    figure, (bottom, top) = framed(9.2, height, title, subtitle(context), f"{footer}The scale is logarithmic.")
    (axes,) = panels(figure, 1, bottom + 0.5 / height, top - 0.57 / height, 0.085, 0.2, 0.42)
    present = [method for method in context.methods if method in points]
    # Bars of methods that agree would hide each other: each method stands a little beside its step.
    reach = max(step for steps in points.values() for step in steps)
    for place, method in enumerate(present):
        look, steps = context.looks[method], points[method]
        beside = DODGE * reach * (place - (len(present) - 1) / 2)
        means = [column.metric.scale * (summary.mean or 0.0) for summary in steps.values()]
        spread = [column.metric.scale * (summary.sd or 0.0) for summary in steps.values()]
        axes.errorbar([step + beside for step in steps], means, yerr=spread, color=look.colour, marker=look.marker,
                      markersize=5, linewidth=1.5, linestyle=look.line, capsize=3)  # fmt: skip
    for floor in sorted(known):
        axes.axhline(floor, color="#8A8A8A", linewidth=1.2, linestyle=(0, (5, 3)))
    axes.set_yscale("log")
    axes.grid(which="both", axis="y")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("Optimizer step")
    axes.set_ylabel(column.metric.head)
    shown = [context.looks[method] for method in present]
    strip(figure, [legend_line(look) for look in shown], top)
    return figure
