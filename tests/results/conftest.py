"""Plans and records written out in full, so that every part of the schema is filled once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from results.schema import Plan, Record

PLAN: dict[str, Any] = {
    "suite": "glue",
    "task": "rte",
    "profile": "paper",
    "method": "gradnormlorp",
    "method_config": {"rank": 8, "projection_rank": 4, "scale": 4.0},
    "targets": "attention+mlp",
    "seed": 1,
    "model": {"name": "FacebookAI/roberta-base", "source": "hub", "revision": "e2da8e2"},
    "data": {"source": "hub", "name": "nyu-mll/glue", "revision": "bcdcba7", "max_length": 512},
    "training": {"steps": 4680, "epochs": 30.0, "batch_size": 16, "learning_rate": 3e-5},
}
PEAK = {
    "total_bytes": 36, "parameter_bytes": 1, "buffer_bytes": 2, "gradient_bytes": 3, "activation_bytes": 4,
    "temporary_bytes": 5, "optimizer_bytes": 6, "other_bytes": 15,
}  # fmt: skip
PARTS: dict[str, Any] = {
    "status": "ok",
    "started_at": "2026-01-02T03:04:05+00:00",
    "finished_at": "2026-01-02T03:05:05+00:00",
    "environment": {
        "commit": None, "dirty": None, "python": "3.11.9", "platform": "Linux", "packages": {"torch": "2.13.0"},
        "device": "cpu", "device_name": "cpu", "device_memory_bytes": None, "cpu_count": 2, "threads": 1, "workers": 2,
        "ram_bytes": 8 * 2**30,
    },
    "data": {"train_rows": 2490, "eval_rows": {"validation": 277}, "official": True, "notes": ["é, \"quoted\""],
             "constant_scores": {"validation/accuracy": 0.527, "validation/f1": None}},
    "engagement": {
        "layers": [{"name": "a.query", "shape": [768, 768], "rank": 8, "projection_rank": 4}],
        "trainable_parameters": 10, "total_parameters": 20, "state_shapes": {"exp_avg 8x4 float32": 2},
        "state_bytes": 100, "dense_state_bytes": 2**40, "basis_bytes": 12, "refreshes": 10,
    },
    "memory": {
        "weight_bytes": 2**33, "trainable_bytes": 2, "buffer_bytes": 3, "gradient_bytes": 4, "state_bytes": 5,
        "basis_bytes": 6, "formula_state_bytes": 5, "predicted_peak_bytes": None, "step_peak": PEAK,
        "refresh_peak": None, "rss_peak_bytes": 8, "rss_start_bytes": 7,
        "cuda_allocated_bytes": {"train": 9}, "cuda_reserved_bytes": None,
    },
    "timing": {
        "timed_steps": 4675, "warmup_steps": 5, "train_s": 59.5, "forward_s": 20.25, "backward_s": 30.0,
        "optimizer_s": 9.25, "refresh_s": None, "refresh_steps": 10, "tokens": 100000, "tokens_per_s": 1680.6722689,
        "evaluation_s": 1.0, "wall_s": 61.0,
    },
    "evaluations": [
        {"step": 4680, "epoch": 30.0, "rows": {"validation": 277},
         "metrics": {"validation/accuracy": 0.7256317689530686, "validation/other": None}},
    ],
    "curve": [
        {"step": 1, "loss": 0.1 + 0.2, "learning_rate": 3e-5, "gradient_norm": None},
        {"step": 2, "loss": 5e-324, "learning_rate": 1e-300, "gradient_norm": 1.7976931348623157e308},
    ],
    "main_metric": "validation/accuracy",
    "skipped_steps": 1,
}  # fmt: skip


@pytest.fixture
def plan_table() -> dict[str, Any]:
    """Return the JSON table of a plan; the test may change it."""
    return copy.deepcopy(PLAN)


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """Return a builder: fields of the plan and, under `parts`, of the record, can be set."""

    def make(parts: dict[str, Any] | None = None, **changes: Any) -> Record:
        plan = Plan.model_validate({**copy.deepcopy(PLAN), **changes})
        fields = {**copy.deepcopy(PARTS), **(parts or {})}
        return Record.model_validate({"plan": plan.model_dump(), "plan_hash": plan.hash(), **fields})

    return make
