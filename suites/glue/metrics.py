"""GLUE's metrics, computed locally with scikit-learn and scipy behind an `evaluate.Metric`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
import numpy.typing as npt
from datasets import Features, Value
from scipy import stats
from sklearn import metrics
from torch import Tensor

from results.catalogue import MetricEntry
from suites.glue.tasks import GlueTask, get_task

Values = Sequence[float] | npt.NDArray[Any] | Tensor
Floats = npt.NDArray[np.float64]


def accuracy(predictions: Floats, references: Floats) -> float:
    """Share of equal classes, in 0..1. Shapes (N,)."""
    return float(metrics.accuracy_score(references, predictions))


def f1(predictions: Floats, references: Floats) -> float:
    """2PR / (P + R) of class 1, in 0..1; 0.0 where no class 1 is predicted or none is there. Shapes (N,)."""
    return float(metrics.f1_score(references, predictions, zero_division=0.0))


def matthews(predictions: Floats, references: Floats) -> float:
    """Matthews correlation of classes, in -1..1; 0.0 where predictions or references are constant. Shapes (N,)."""
    return float(metrics.matthews_corrcoef(references, predictions))


def pearson(predictions: Floats, references: Floats) -> float | None:
    """Pearson correlation, in -1..1; None where it is undefined (either side constant). Shapes (N,)."""
    if _constant(predictions) or _constant(references):
        return None
    return _finite(stats.pearsonr(predictions, references).statistic)


def spearman(predictions: Floats, references: Floats) -> float | None:
    """Spearman rank correlation, ties by mean rank, in -1..1; None where it is undefined. Shapes (N,)."""
    if _constant(predictions) or _constant(references):
        return None
    return _finite(stats.spearmanr(predictions, references).statistic)


FUNCTIONS = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson, "spearman": spearman}
ENTRIES = [
    MetricEntry(name=name, title=title, better="higher", unit="%", format=".1f", scale=100.0)
    for name, title in (
        ("accuracy", "accuracy"), ("f1", "F1"), ("matthews", "Matthews correlation"),
        ("pearson", "Pearson correlation"), ("spearman", "Spearman correlation"),
    )
]  # fmt: skip


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """The metrics of one task as a metric module that needs no hub and keeps nothing between calls.

    `compute(predictions=, references=)` scores exactly what it is given; without arguments it scores what `add` and
    `add_batch` gathered since the last call, whether that call succeeded or not.
    """

    def __init__(self, task: str) -> None:
        self.task: GlueTask = get_task(task)
        # Predictions stay in memory; the base class makes a folder all the same, where a home may be read-only and
        # another user's folder is.
        with tempfile.TemporaryDirectory(prefix="gnlorp-") as folder:
            super().__init__(config_name=task, keep_in_memory=True, cache_dir=folder, seed=0)

    def _info(self) -> evaluate.MetricInfo:
        kind = Value("float64" if self.task.regression else "int64")
        return evaluate.MetricInfo(
            description=f"{', '.join(self.task.metrics)} of GLUE's {self.task.title}",
            citation="",
            inputs_description="predictions (N,) and references (N,): classes, or numbers for STS-B",
            features=Features({"predictions": kind, "references": kind}),
        )

    def compute(
        self, *, predictions: Values | None = None, references: Values | None = None
    ) -> dict[str, float | None]:
        """All metrics of the task.

        Raises:
            ValueError: lengths differ.
            RuntimeError: neither given nor gathered anything.
        """
        if predictions is not None or references is not None:
            self._forget()
        elif self.writer is None:
            raise RuntimeError("compute: no predictions given, and none added since the last call")
        try:
            return evaluate.Metric.compute(self, predictions=predictions, references=references)  # type: ignore[no-any-return]
        finally:
            self._forget()

    def _forget(self) -> None:
        self.writer = self.buf_writer = self.data = None

    def _compute(self, predictions: npt.ArrayLike, references: npt.ArrayLike) -> dict[str, float | None]:
        guess, truth = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
        return {name: FUNCTIONS[name](guess, truth) for name in self.task.metrics}


def compute(task: str, predictions: Values, references: Values) -> dict[str, float | None]:
    """All metrics of a task, under their bare names.

    Args:
        task: hub name.
        predictions: classes (N,), logits (N, C), or for STS-B numbers (N,) or (N, 1). Where any is not finite (a
            diverged run), every metric is None: an argmax over NaN would look like a prediction.
        references: (N,), classes or scores.

    Raises:
        ValueError: no rows, lengths differ, shape does not fit the task, class out of range.
    """
    row = get_task(task)
    guess, truth = _array(predictions), _array(references)
    if truth.ndim != 1 or not len(truth) or len(guess) != len(truth):
        raise ValueError(
            f"{task}: predictions of shape {guess.shape} for references of shape {truth.shape}; "
            "both need the same number of rows, at least one"
        )
    guess = decided(row, guess)
    if not np.isfinite(guess).all():
        return dict.fromkeys(row.metrics)
    if row.labels is not None:
        for name, values in (("prediction", guess), ("reference", truth)):
            wrong = values[~np.isin(values, np.arange(row.num_labels))]
            if len(wrong):
                raise ValueError(f"{task}: {name} {wrong[0]} is not a class; allowed are 0 to {row.num_labels - 1}")
        guess, truth = guess.astype(np.int64), truth.astype(np.int64)
    return GlueMetric(task).compute(predictions=guess, references=truth)


def majority(task: str, references: Values) -> dict[str, float | None]:
    """Scores of the best constant guess: the most frequent class (the lowest of equals), the mean for STS-B.

    Raises:
        ValueError: no rows, class out of range.
    """
    truth = _array(references)
    if truth.ndim != 1 or not len(truth):
        raise ValueError(f"{task}: references of shape {truth.shape}; need (N,) with at least one row")
    if get_task(task).regression:
        guess = truth.mean()
    else:
        classes, counts = np.unique(truth, return_counts=True)
        guess = classes[counts.argmax()]
    return compute(task, np.full_like(truth, guess), truth)


def decided(task: Any, guess: Floats) -> Floats:
    """Classes (N,) from classes or logits, or numbers (N,); not finite where any logit of the row is not."""
    if guess.ndim == 1:
        return guess
    if guess.ndim != 2 or guess.shape[1] != task.num_labels:
        raise ValueError(
            f"{task.name}: predictions of shape {guess.shape}; allowed are (N,) and (N, {task.num_labels})"
        )
    if task.regression:
        return guess[:, 0]
    return np.where(np.isfinite(guess).all(axis=1), guess.argmax(axis=1), np.nan)


def _array(values: Values) -> Floats:
    if isinstance(values, Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, np.float64)


def _constant(values: Floats) -> bool:
    return bool((values == values[0]).all())


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
