"""Metrics of own tasks: by the names that Hugging Face's `evaluate` gives them, or a function of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn import metrics as sk
from torch import Tensor

from baselines.registry import checked_name
from results.catalogue import MetricEntry, entry_of
from suites.glue import metrics as glue

Floats = npt.NDArray[np.float64]
Function = Callable[[Any, Any], float | None]


@dataclass(frozen=True)
class Metric:
    """One metric: (predictions (N,), references (N,)) -> a number, or None where it is undefined.

    Predictions and references are classes, 0 to C - 1, or numbers; a table prints scale * value in `format` and `unit`.
    """

    name: str
    function: Function
    title: str
    better: Literal["higher", "lower"] = "higher"
    unit: str = ""
    format: str = ".3f"
    scale: float = 1.0

    @property
    def entry(self) -> MetricEntry:
        """The metric as readers of records know it."""
        fields = {name: getattr(self, name) for name in MetricEntry.model_fields}
        return entry_of(MetricEntry, f"metric {self.name!r}", fields)


def _share(name: str, title: str, function: Function) -> Metric:
    return Metric(name, function, title, unit="%", format=".1f", scale=100.0)


def _averaged(function: Callable[..., Any], average: str) -> Function:
    return lambda guess, truth: float(function(truth, guess, average=average, zero_division=0.0))


KNOWN: tuple[Metric, ...] = (
    _share("accuracy", "accuracy", glue.accuracy),
    _share("balanced_accuracy", "balanced accuracy", lambda g, t: float(sk.balanced_accuracy_score(t, g))),
    _share("f1", "F1", _averaged(sk.f1_score, "binary")),
    _share("f1_macro", "macro F1", _averaged(sk.f1_score, "macro")),
    _share("f1_weighted", "weighted F1", _averaged(sk.f1_score, "weighted")),
    _share("precision", "precision", _averaged(sk.precision_score, "macro")),
    _share("recall", "recall", _averaged(sk.recall_score, "macro")),
    _share("matthews_correlation", "Matthews correlation", glue.matthews),
    _share("pearsonr", "Pearson correlation", glue.pearson),
    _share("spearmanr", "Spearman correlation", glue.spearman),
    Metric("mse", lambda g, t: float(sk.mean_squared_error(t, g)), "mean squared error", "lower"),
    Metric("mae", lambda g, t: float(sk.mean_absolute_error(t, g)), "mean absolute error", "lower"),
    Metric("r_squared", lambda g, t: float(sk.r2_score(t, g)) if len(t) > 1 else None, "R squared"),
)
NUMERIC = frozenset({"pearsonr", "spearmanr", "mse", "mae", "r_squared"})
TWO_CLASSES = frozenset({"f1"})
ENTRIES = [metric.entry for metric in KNOWN]


def metrics_of(given: Sequence[str | Metric], regression: bool, what: str) -> tuple[Metric, ...]:
    """Return the metrics of a task, the first one the one that stands for it.

    Raises:
        ValueError: an unknown name, one that does not go with the task's labels, or a name twice.
    """
    by_name = {metric.name: metric for metric in KNOWN}
    wanted = list(given) or (["pearsonr", "spearmanr"] if regression else ["accuracy"])
    found = []
    for each in wanted:
        if isinstance(each, str):
            fitting = [name for name in by_name if (name in NUMERIC) == regression]
            checked_name(each, fitting, f"metric of {what} ({'numbers' if regression else 'classes'})")
            found.append(by_name[each])
            continue
        if each.name in by_name:
            raise ValueError(f"metric {each.name!r} of {what}: is called as a known one: give it another name")
        found.append(each)
    names = [metric.name for metric in found]
    if len(set(names)) != len(names):
        raise ValueError(f"metrics of {what}: {', '.join(names)}: a name stands there twice")
    return tuple(found)


def compute(task: Any, predictions: Tensor, references: Tensor) -> dict[str, float | None]:
    """Return all metrics of a task from logits (N, C), classes or numbers (N,); all None where any is not finite."""
    guess = glue.decided(task, predictions.detach().double().cpu().numpy())
    truth = references.detach().double().cpu().numpy()
    if not np.isfinite(guess).all():
        return {metric.name: None for metric in task.metrics}
    if task.labels is not None:
        guess, truth = guess.astype(np.int64), truth.astype(np.int64)
    return {metric.name: _finite(metric.function(guess, truth)) for metric in task.metrics}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and np.isfinite(value) else None
