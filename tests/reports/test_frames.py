"""The frames: typed, complete, in a fixed order, right on missing parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from reports.records.frames import METRIC_COLUMNS, RUN_COLUMNS, curves_frame, metrics_frame, runs_frame
from results.schema import CurvePoint, Evaluation, Memory, Record, Timing

Make = Callable[..., Record]
Grid = Callable[..., list[Record]]


def test_empty_store_gives_empty_typed_frames() -> None:
    runs, metrics, curves = runs_frame([]), metrics_frame([]), curves_frame([])
    assert len(runs) == len(metrics) == len(curves) == 0
    assert {name: str(dtype) for name, dtype in runs.dtypes.items()} == RUN_COLUMNS
    assert {name: str(dtype) for name, dtype in metrics.dtypes.items()} == METRIC_COLUMNS
    assert curves["step"].dtype == np.int64
    assert curves["loss"].dtype == np.float64


def test_bytes_stay_exact_integers_beside_missing_ones(make_record: Make) -> None:
    record = make_record(method="galore")
    runs = runs_frame([record, make_record(method="lora", status="failed")])
    assert str(runs["weight_bytes"].dtype) == "Int64"
    galore, lora = runs.iloc[0], runs.iloc[1]
    assert record.memory is not None
    assert galore["weight_bytes"] == record.memory.weight_bytes
    assert lora["weight_bytes"] is pd.NA
    assert lora["step_s"] is pd.NA


def test_every_number_of_memory_and_timing_is_a_column(make_record: Make) -> None:
    runs = runs_frame([make_record(method="galore")])
    nested = {"step_peak", "refresh_peak", "ledger", "cuda_allocated_bytes", "cuda_reserved_bytes"}
    assert set(Memory.model_fields) - nested <= set(runs.columns)
    assert set(Timing.model_fields) - {"warmup_steps"} <= set(runs.columns)
    assert runs.loc[0, "timing_warmup_steps"] == 5
    assert runs.loc[0, "warmup_steps"] == 0


def test_peak_is_the_larger_of_plain_and_refresh(make_record: Make) -> None:
    record = make_record(method="galore")
    assert record.memory is not None
    assert record.memory.refresh_peak is not None
    run = runs_frame([record]).iloc[0]
    assert run["tracked_peak_bytes"] == record.memory.refresh_peak.total_bytes
    assert run["refresh_peak_temporary_bytes"] == record.memory.refresh_peak.temporary_bytes
    assert run["step_peak_total_bytes"] < run["tracked_peak_bytes"]


def test_last_and_best_are_both_kept(make_record: Make) -> None:
    points = [
        Evaluation(step=step, epoch=None, rows={"validation": 9}, metrics={"validation/accuracy": value})
        for step, value in ((30, 0.9), (10, 0.7), (20, 0.95), (25, 0.95), (40, None))
    ]
    run = runs_frame([make_record(parts={"evaluations": points})]).iloc[0]
    assert (run["best_score"], run["best_step"]) == (0.95, 20)
    assert run["last_score"] is pd.NA
    assert run["last_step"] == 40


def test_step_ratio_needs_the_same_environment(make_record: Make) -> None:
    full, lora = make_record(method="full"), make_record(method="lora")
    moved = lora.environment.model_copy(update={"threads": 8})
    other = make_record(method="dora", parts={"environment": moved})
    runs = runs_frame([lora, other, full]).set_index("method")
    assert full.timing is not None
    assert lora.timing is not None
    expected = lora.timing.train_s / full.timing.train_s
    assert runs.loc["lora", "step_ratio"] == pytest.approx(expected)
    assert runs.loc["full", "step_ratio"] == 1.0
    assert runs.loc["dora", "step_ratio"] is pd.NA


def test_metrics_are_long_and_mark_the_main_one(make_record: Make) -> None:
    metrics = metrics_frame([make_record("mnli")])
    assert len(metrics) == 4
    assert set(metrics["split"]) == {"validation_matched", "validation_mismatched"}
    assert metrics.loc[metrics["is_main"], "key"].unique().tolist() == ["validation_matched/accuracy"]


def test_curves_keep_a_loss_that_was_not_finite(make_record: Make) -> None:
    points = [
        CurvePoint(step=s, loss=loss, learning_rate=0.1, gradient_norm=None) for s, loss in ((1, 2.0), (2, np.inf))
    ]
    curves = curves_frame([make_record(status="diverged", parts={"curve": points}), make_record("cola")])
    mine = curves[curves["task"] == "rte"]
    assert mine["loss"].tolist() == [2.0, np.inf]
    assert mine["gradient_norm"].isna().all()
    assert len(curves) == 2 + 60


def test_order_of_records_does_not_matter(make_grid: Grid) -> None:
    records = make_grid(tasks=("rte", "cola"), seeds=(0, 1))
    pd.testing.assert_frame_equal(runs_frame(records), runs_frame(records[::-1]))
    pd.testing.assert_frame_equal(curves_frame(records), curves_frame(records[::-1]))
