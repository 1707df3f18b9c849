"""GLUE's metrics against hand-computed cases and scikit-learn; nothing stays between calls."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics

from suites.glue.metrics import GlueMetric, compute, majority
from suites.glue.tasks import TASKS


def test_hand_computed_classes() -> None:
    # True and false positives 2 and 1, true and false negatives 1 and 1: F1 is 4 / 6, Matthews (2 - 1) / sqrt(36).
    guess, truth = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert compute("mrpc", guess, truth) == pytest.approx({"accuracy": 0.6, "f1": 4 / 6})
    assert compute("cola", guess, truth) == pytest.approx({"matthews": 1 / 6, "accuracy": 0.6})


def test_hand_computed_scores() -> None:
    # Deviations (-1, 0, 1) and (-2, -1, 3): covariance sum 5, variances 2 and 14. The ranks agree.
    out = compute("stsb", [1.0, 2.0, 3.0], [0.0, 1.0, 5.0])
    assert out == pytest.approx({"pearson": 5 / math.sqrt(28), "spearman": 1.0})
    assert compute("stsb", [3.0, 2.0, 1.0], [0.0, 1.0, 5.0])["spearman"] == pytest.approx(-1.0)


def test_spearman_gives_ties_their_mean_rank() -> None:
    # Ranks (1.5, 1.5, 3) and (1, 2, 3): 1.5 / sqrt(1.5 * 2).
    assert compute("stsb", [1.0, 1.0, 2.0], [0.0, 1.0, 2.0])["spearman"] == pytest.approx(math.sqrt(3) / 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.regression])
def test_classes_against_scikit_learn(name: str, seed: int) -> None:
    random = np.random.RandomState(seed)
    truth = random.randint(TASKS[name].num_labels, size=200)
    logits = random.randn(200, TASKS[name].num_labels)
    guess = logits.argmax(axis=1)
    expected = {
        "accuracy": sklearn_metrics.accuracy_score(truth, guess),
        "f1": sklearn_metrics.f1_score(truth, guess) if TASKS[name].num_labels == 2 else None,
        "matthews": sklearn_metrics.matthews_corrcoef(truth, guess),
    }
    for given in (guess, logits, torch.tensor(logits), torch.tensor(logits, dtype=torch.float32)):
        out = compute(name, given, torch.tensor(truth))
        assert out == pytest.approx({metric: expected[metric] for metric in TASKS[name].metrics}, abs=1e-12)
        assert all(type(value) is float for value in out.values())


@pytest.mark.parametrize("seed", range(5))
def test_scores_against_scipy(seed: int) -> None:
    random = np.random.RandomState(seed)
    truth = random.rand(100) * 5
    guess = truth + random.randn(100)
    expected = {"pearson": np.corrcoef(guess, truth)[0, 1], "spearman": stats.spearmanr(guess, truth).statistic}
    assert compute("stsb", guess, truth) == pytest.approx(expected, abs=1e-12)
    assert compute("stsb", torch.tensor(guess).unsqueeze(1), truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_constant_predictions() -> None:
    truth = [1, 0, 1, 1]
    assert compute("mrpc", [0, 0, 0, 0], truth) == {"accuracy": 0.25, "f1": 0.0}
    assert compute("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}
    for constant in (0, 1):
        assert compute("cola", [constant] * 4, truth)["matthews"] == 0.0
    undefined = {"pearson": None, "spearman": None}
    assert compute("stsb", [2.5] * 4, [1.0, 2.0, 3.0, 4.0]) == undefined
    assert compute("stsb", [1.0, 2.0, 3.0, 4.0], [2.5] * 4) == undefined
    assert compute("stsb", [1.0], [2.0]) == undefined


def test_predictions_that_are_not_finite_score_nothing() -> None:
    assert compute("mrpc", [[math.nan, 0.0], [0.0, 1.0]], [0, 1]) == {"accuracy": None, "f1": None}
    assert compute("rte", [[math.inf, 0.0], [0.0, 1.0]], [0, 1]) == {"accuracy": None}
    assert compute("stsb", [math.nan, 1.0], [1.0, 2.0]) == {"pearson": None, "spearman": None}


def test_metric_forgets_between_calls() -> None:
    metric = GlueMetric("rte")
    assert metric.compute(predictions=[0, 0, 0, 0], references=[1, 1, 1, 1]) == {"accuracy": 0.0}
    assert metric.compute(predictions=[1, 1], references=[1, 1]) == {"accuracy": 1.0}
    assert len(metric) == 0


def test_metric_forgets_a_failed_call() -> None:
    metric = GlueMetric("rte")
    with pytest.raises(ValueError, match="Mismatch in the number"):
        metric.compute(predictions=[0, 0, 0], references=[1, 1])
    with pytest.raises(RuntimeError, match="none added since the last call"):
        metric.compute()
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}


def test_metric_gathers_and_scores_once() -> None:
    metric = GlueMetric("rte")
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add(prediction=1, reference=0)
    assert metric.compute() == pytest.approx({"accuracy": 2 / 3})
    with pytest.raises(RuntimeError, match="none added since the last call"):
        metric.compute()
    metric.add_batch(predictions=[0], references=[1])
    assert metric.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}


def test_nothing_is_left_that_another_user_could_not_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    metric = GlueMetric("rte")
    assert list(tmp_path.iterdir()) == []
    assert metric.compute(predictions=[0, 1], references=[0, 1]) == {"accuracy": 1.0}
    assert list(tmp_path.iterdir()) == []


def test_compute_does_not_touch_numpy_seed() -> None:
    np.random.seed(5)
    expected = np.random.rand(3).tolist()
    np.random.seed(5)
    compute("rte", [0, 1], [0, 1])
    assert np.random.rand(3).tolist() == expected


def test_majority() -> None:
    assert majority("mrpc", [1, 1, 0, 1]) == pytest.approx({"accuracy": 0.75, "f1": 6 / 7})
    assert majority("qqp", [0, 1, 0, 0]) == {"accuracy": 0.75, "f1": 0.0}
    assert majority("cola", [1, 1, 0]) == pytest.approx({"matthews": 0.0, "accuracy": 2 / 3})
    assert majority("mnli", [2, 2, 0, 1]) == {"accuracy": 0.5}
    assert majority("wnli", [1, 0]) == {"accuracy": 0.5}
    assert majority("stsb", [1.0, 2.0]) == {"pearson": None, "spearman": None}


@pytest.mark.parametrize(
    ("name", "guess", "truth", "told"),
    [
        ("rte", [], [], "at least one"),
        ("rte", [0, 1], [0], "same number of rows"),
        ("rte", np.zeros((2, 3)), [0, 1], r"allowed are \(N,\) and \(N, 2\)"),
        ("stsb", np.zeros((2, 2)), [0, 1], r"allowed are \(N,\) and \(N, 1\)"),
        ("rte", [0, 2], [0, 1], "prediction 2.0 is not a class; allowed are 0 to 1"),
        ("rte", [0.3, 1.0], [0, 1], "prediction 0.3 is not a class"),
        ("mnli", [0, 2], [0, -1], "reference -1.0 is not a class; allowed are 0 to 2"),
        ("rtee", [0], [0], "nearest is 'rte'"),
    ],
)
def test_bad_input(name: str, guess: list[float], truth: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        compute(name, guess, truth)
