"""A run told to TensorBoard, W&B, trackio or MLflow while it goes on, through accelerate's trackers; off by default."""

from __future__ import annotations

import os
from typing import Any

from baselines.registry import checked_name
from results.schema import Plan
from suites.run.loop import Outcome
from suites.suite import Beside

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
PROJECT = "gnlorp"
FOLDER = "trackers"


def check_trackers(names: list[str]) -> tuple[str, ...]:
    """Return the trackers.

    Raises:
        ValueError: an unknown one, or one whose package is not installed.
    """
    if not names:
        return ()
    from accelerate.tracking import get_available_trackers

    there = {str(each) for each in get_available_trackers()}
    for name in names:
        checked_name(name, TRACKERS, "tracker")
        if name not in there:
            raise ValueError(f"tracker {name!r}: its package is not installed: pip install {name}")
    return tuple(names)


class Followed:
    """Tells the trackers each step's loss, rate and gradient norm, and each evaluation as it comes; then `finish`."""

    def __init__(self, plan: Plan, beside: Beside) -> None:
        self._trackers: list[Any] = []
        self._evaluations = 0
        if not beside.trackers:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        assert beside.folder is not None
        folder = beside.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        PartialState()
        for name in beside.trackers:
            kind = LOGGER_TYPE_TO_CLASS[name]
            self._trackers.append(_made(kind, name, plan.label, str(folder)))
        for tracker in self._trackers:
            tracker.start()
            tracker.store_init_configuration(settings(plan))

    def step(self, out: Outcome) -> None:
        """Tell the last step of `out`, and the evaluation that came with it."""
        if not self._trackers or not out.curve:
            return
        point = out.curve[-1]
        values: dict[str, float] = {"train/loss": point.loss, "train/learning_rate": point.learning_rate}
        if point.gradient_norm is not None:
            values["train/gradient_norm"] = point.gradient_norm
        for evaluation in out.evaluations[self._evaluations :]:
            values |= {name: value for name, value in evaluation.metrics.items() if value is not None}
        self._evaluations = len(out.evaluations)
        for tracker in self._trackers:
            tracker.log(values, step=point.step)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []


def settings(plan: Plan) -> dict[str, int | float | str | bool]:
    """Return what a plan says as flat settings: names, the method's own, and the training's."""
    names = {"suite": plan.suite, "task": plan.task, "profile": plan.profile, "method": plan.method, "seed": plan.seed}
    found = {**names, "model": plan.model.name, **plan.method_config, **plan.training.model_dump(mode="json")}
    return {name: value for name, value in found.items() if isinstance(value, (int, float, str, bool))}


def _made(kind: Any, name: str, label: str, folder: str) -> Any:
    """Return a tracker with a run called `label`: a folder of its own in TensorBoard, a name in the others' project."""
    if name == TRACKERS[0]:
        return kind(label, folder)
    if kind.requires_logging_directory:
        return kind(PROJECT, folder, run_name=label)
    options = {"dir": folder} if name == TRACKERS[1] else {}
    os.environ.setdefault("WANDB_SILENT", "true")
    return kind(PROJECT, name=label, **options)
