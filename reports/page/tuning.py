"""What tuning did, as the page shows it: every trial with its colour, expected best by trials, default and tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.colors import to_hex

from reports.figures.tuning import COLOURS, Shade, scale_of, shades
from reports.page.views import digits, scaled
from reports.records.report_runs import Context
from reports.records.tuning import Trial, Tuning
from reports.tables.tuning import fallen_words, rows_of_method, tuning_caption
from results.catalogue import MetricEntry

Json = dict[str, Any]
STEPS = 9
"""Colours of the scale's bar."""


def tuning_view(context: Context, numbers: Mapping[str, int]) -> Json | None:
    """Return the trials behind a group's settings; None where none are among the records.

    Args:
        numbers: plan hash -> place of the run in the page's list.
    """
    tuning = context.tuning
    if tuning is None or tuning.metric is None or tuning.worst is None:
        return None
    metric, marks = tuning.metric, shades(tuning)
    ends = [scaled(metric, metric.gain(value)) for value in scale_of(tuning)]
    return {
        "caption": tuning_caption(context, tuning, "what tuning did"), "metric": metric.head, "digits": digits(metric),
        "lower": metric.better == "lower", "ends": ends,
        "colours": [_hex(index / (STEPS - 1)) for index in range(STEPS)],
        "methods": [_method(context, tuning, metric, method, marks[method], numbers) for method in tuning.trials],
    }  # fmt: skip


def _hex(shade: float) -> str:
    return str(to_hex(mpl.colormaps[COLOURS](shade)))


def _method(
    context: Context, tuning: Tuning, metric: MetricEntry, method: str, marks: list[Shade], numbers: Mapping[str, int]
) -> Json:
    best, usual = tuning.best(method), tuning.usual(method)
    rows = {row: tuning.trial_of(row, context.records) for row in rows_of_method(context, method)}
    trials = [_trial(mark.trial, mark, metric, numbers) for mark in marks]
    order = [mark.trial for mark in marks]

    def place(trial: Trial | None) -> int | None:
        return None if trial is None else order.index(trial)

    gained = None
    if best is not None and usual is not None and usual.score is not None:
        gained = scaled(metric, (tuning.gain(best) or 0.0) - (tuning.gain(usual) or 0.0))
    return {
        "method": method, "trials": trials, "best": place(best), "usual": place(usual), "gained": gained,
        "edges": [edge.replace("_", " ") for edge in tuning.edges(method)],
        "rows": [[context.title(row), place(trial)] for row, trial in rows.items()],
        "expected": [[point.trials, scaled(metric, metric.gain(point.mean)), scaled(metric, point.sd)]
                     for point in tuning.expected(method)],
    }  # fmt: skip


def _trial(trial: Trial, mark: Shade, metric: MetricEntry, numbers: Mapping[str, int]) -> Json:
    return {
        "rate": trial.learning_rate, "rest": trial.rest_learning_rate, "others": trial.other_words,
        "score": scaled(metric, trial.score), "status": trial.status, "atLength": scaled(metric, trial.at_length),
        "fallen": fallen_words(trial),
        "colour": None if mark.shade is None else _hex(mark.shade),
        "runs": [numbers[plan] for plan in trial.hashes if plan in numbers],
    }  # fmt: skip
