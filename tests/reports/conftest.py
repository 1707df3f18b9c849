"""Synthetic records that look like real ones: scores, curves and memory follow the method, seeds differ."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from results.schema import (
    CurvePoint,
    DataFacts,
    DataPlan,
    Engagement,
    Environment,
    Evaluation,
    Layer,
    Memory,
    ModelPlan,
    Peak,
    Plan,
    Record,
    Timing,
    TrainingPlan,
)

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
METHODS = ("full", "lora", "dora", "galore", "gradnormlorp")
LEVEL = {"cola": 0.52, "sst2": 0.9, "mrpc": 0.86, "stsb": 0.84, "qqp": 0.83, "mnli": 0.76, "qnli": 0.84, "rte": 0.66,
         "wnli": 0.58}  # fmt: skip
GAIN = {"full": 0.03, "lora": -0.01, "dora": 0.0, "galore": 0.01, "gradnormlorp": 0.02}
CONFIG: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"rank": 8, "alpha": 16.0},
    "dora": {"rank": 8, "alpha": 16.0},
    "galore": {"projection_rank": 8, "scale": 2.0},
    "gradnormlorp": {"rank": 8, "projection_rank": 8, "scale": 4.0},
}
MAIN = {"cola": "validation/matthews", "mrpc": "validation/f1", "stsb": "validation/pearson",
        "mnli": "validation_matched/accuracy"}  # fmt: skip
# parameter, gradient, optimizer, bases, activation, temporary: thousands of bytes
PARTS = {
    "full": (2400, 2400, 4800, 0, 1900, 60),
    "lora": (2520, 130, 260, 0, 2150, 50),
    "dora": (2530, 140, 280, 0, 3100, 420),
    "galore": (2400, 2400, 900, 70, 1900, 240),
    "gradnormlorp": (2530, 140, 190, 25, 2300, 110),
}


def metrics_of(task: str, score: float) -> dict[str, float | None]:
    """Return every metric of a task around one score."""
    if task == "mnli":
        return {"validation_matched/accuracy": score, "validation_mismatched/accuracy": score - 0.01}
    names = {
        "cola": ("matthews",),
        "mrpc": ("accuracy", "f1"),
        "qqp": ("accuracy", "f1"),
        "stsb": ("pearson", "spearman"),
    }
    shift = {"accuracy": -0.04 if task == "mrpc" else 0.0, "f1": 0.0 if task == "mrpc" else -0.03, "spearman": -0.005}
    return {f"validation/{name}": score + shift.get(name, 0.0) for name in names.get(task, ("accuracy",))}


def peak_of(parts: Sequence[int], extra: int = 0) -> Peak:
    """Return a peak whose total is the sum of its parts."""
    parameter, gradient, optimizer, _, activation, temporary = (1000 * part for part in parts)
    temporary += extra
    return Peak(
        total_bytes=parameter + gradient + optimizer + activation + temporary + 4096,
        parameter_bytes=parameter, buffer_bytes=4096, gradient_bytes=gradient, activation_bytes=activation,
        temporary_bytes=temporary, optimizer_bytes=optimizer,
    )  # fmt: skip


def memory_of(method: str, task: str) -> Memory:
    """Return memory that depends on method and task alone."""
    parameter, gradient, optimizer, bases, activation, temporary = PARTS.get(method, PARTS["lora"])
    activation += 10 * len(task) * (TASKS.index(task) if task in TASKS else 0)
    parts = (parameter, gradient, optimizer + bases, bases, activation, temporary)
    return Memory(
        weight_bytes=1000 * parameter, trainable_bytes=1000 * gradient, buffer_bytes=4096,
        gradient_bytes=1000 * gradient, state_bytes=1000 * (optimizer + bases), basis_bytes=1000 * bases,
        formula_state_bytes=1000 * (optimizer + bases) - 24, predicted_peak_bytes=peak_of(parts).total_bytes,
        step_peak=peak_of(parts), refresh_peak=peak_of(parts, 500_000) if bases else None,
        rss_peak_bytes=780_000_000 + 1000 * optimizer, rss_start_bytes=620_000_000,
    )  # fmt: skip


def curve_of(rng: random.Random, level: float, steps: int) -> list[CurvePoint]:
    """Return a falling, noisy loss."""
    return [
        CurvePoint(step=step, loss=0.7 * math.exp(-3 * level * step / steps) + 0.12 * rng.random(),
                   learning_rate=1e-3 * (1 - step / steps), gradient_norm=1.0)
        for step in range(1, steps + 1)
    ]  # fmt: skip


def timing_of(rng: random.Random, method: str, steps: int) -> Timing:
    """Return times near those of the method."""
    step = 0.01 * {"full": 1.0, "lora": 0.9, "dora": 1.3, "galore": 1.25}.get(method, 1.1) * (1 + 0.04 * rng.random())
    has_basis = method in ("galore", "gradnormlorp")
    return Timing(
        timed_steps=steps - 5, warmup_steps=5, train_s=step * (steps - 5), forward_s=0.3 * step * (steps - 5),
        backward_s=0.45 * step * (steps - 5), optimizer_s=0.25 * step * (steps - 5),
        refresh_s=0.08 if has_basis else None, refresh_steps=2 if has_basis else 0, tokens=20000, tokens_per_s=9000.0,
        evaluation_s=0.4, wall_s=step * steps + 1,
    )  # fmt: skip


def plan_of(task: str, method: str, seed: int, profile: str, **changes: Any) -> Plan:
    """Return a plan; `changes` set fields of the plan, or of training under their own names."""
    made = profile == "micro"
    training: dict[str, Any] = {
        "steps": 60,
        "epochs": 1.0,
        "batch_size": 16,
        "learning_rate": 1e-3 if method != "full" else 3e-4,
    }
    training |= {name: changes.pop(name) for name in list(changes) if name in TrainingPlan.model_fields}
    fields: dict[str, Any] = {
        "suite": "glue", "task": task, "profile": profile, "method": method,
        "method_config": CONFIG.get(method, {"rank": 8}),
        "targets": "encoder", "seed": seed,
        "model": ModelPlan(name="micro-encoder" if made else "roberta-base", source="micro" if made else "hub"),
        "data": DataPlan(
            source="micro" if made else "hub", name="micro language" if made else "nyu-mll/glue", max_length=64
        ),
        "training": TrainingPlan(**training),
    }  # fmt: skip
    return Plan(**{**fields, **changes})


def environment_of() -> Environment:
    """Return one machine."""
    return Environment(
        commit="0123456789abcdef", dirty=False, python="3.11.2", platform="Linux", packages={"torch": "2.13.0"},
        device="cpu", device_name="Example CPU", device_memory_bytes=None, cpu_count=2, threads=1, workers=2,
        ram_bytes=24 * 1024**3,
    )  # fmt: skip


def record_of(
    task: str = "rte",
    method: str = "lora",
    seed: int = 0,
    profile: str = "micro",
    status: str = "ok",
    score: float | None = None,
    measured: bool = True,
    curve: bool = True,
    parts: dict[str, Any] | None = None,
    **changes: Any,
) -> Record:
    """Return one record. A run that is not ok has no evaluation, no memory and no times; `parts` replaces fields."""
    plan = plan_of(task, method, seed, profile, **changes)
    rng = random.Random(f"{task} {method} {seed}")
    level = LEVEL[task] + GAIN.get(method, 0.0) + rng.gauss(0, 0.012) if score is None else score
    ok, steps = status == "ok", plan.training.steps
    fields: dict[str, Any] = {
        "plan": plan, "plan_hash": plan.hash(), "status": status,
        "error": None if ok else f"{status}: told by the test",
        "started_at": "2026-01-01T00:00:00Z", "finished_at": "2026-01-01T00:00:05Z", "environment": environment_of(),
        "data": DataFacts(train_rows=2000, eval_rows={"validation": 400}, official=profile != "micro",
                          notes=["generated language"] if profile == "micro" else []),
        "main_metric": MAIN.get(task, "validation/accuracy"),
        "curve": curve_of(rng, level, steps if ok else steps // 3) if curve else [],
    }  # fmt: skip
    if ok:
        fields["evaluations"] = [
            Evaluation(
                step=steps * part // 2, epoch=part / 2, rows={"validation": 400}, metrics=metrics_of(task, value)
            )
            for part, value in ((1, level + 0.005), (2, level))
        ]
        fields["timing"] = timing_of(rng, method, steps)
    if ok and measured:
        fields["memory"] = memory_of(method, task)
        layers = [Layer(name="encoder.0", shape=(128, 128), rank=8, projection_rank=None)]
        fields["engagement"] = Engagement(
            layers=layers, trainable_parameters=1000, total_parameters=600_000, state_shapes={}, state_bytes=8000,
            dense_state_bytes=4_800_000, basis_bytes=0,
        )  # fmt: skip
    return Record(**{**fields, **(parts or {})})


def grid_of(
    methods: Sequence[str] = METHODS, tasks: Sequence[str] = TASKS, seeds: Sequence[int] = (0, 1, 2), **changes: Any
) -> list[Record]:
    """Return one record for each method, task and seed."""
    return [record_of(task, method, seed, **changes) for method in methods for task in tasks for seed in seeds]


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build every figure and save none, which is most of a report's time: for what asks about something else."""
    monkeypatch.setattr("reports.figures.front_and_curves.FORMATS", {})


@pytest.fixture
def one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save figures as PNG alone."""
    monkeypatch.setattr("reports.figures.front_and_curves.FORMATS", {"png": ("Software",)})


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """Return the factory of one record."""
    return record_of


@pytest.fixture(scope="session")
def make_grid() -> Callable[..., list[Record]]:
    """Return the factory of a full grid."""
    return grid_of
