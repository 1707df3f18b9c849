"""A run told to TensorBoard, W&B, trackio or MLflow while it goes on, through accelerate's trackers; off by default."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from baselines.registry import checked_name
from results.schema import Plan
from results.store import TRACKERS as FOLDER
from suites.run.loop import Outcome
from suites.suite import Beside

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
PROJECT = "gnlorp"
LOCK = "mlflow.lock"


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
    """Tells the trackers each step's loss, rate and gradient norm, and each evaluation as it comes; then `finish`.

    `out`: what the run has reached already, where it goes on from a checkpoint; that was told when it came.
    """

    def __init__(self, plan: Plan, beside: Beside, out: Outcome) -> None:
        self._trackers: list[Any] = []
        self._evaluations = len(out.evaluations)
        if not beside.trackers:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        assert beside.folder is not None
        folder = beside.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        PartialState()
        for name in beside.trackers:
            places, options = arguments_of(name, plan.label, folder, out.steps_done)
            tracker = LOGGER_TYPE_TO_CLASS[name](*places, **options)
            # Runs that begin together would each make MLflow's tables, and the project in them.
            with FileLock(folder / LOCK) if name == "mlflow" else nullcontext():
                tracker.start()
            tracker.store_init_configuration(settings(plan))
            self._trackers.append(tracker)

    def step(self, out: Outcome) -> None:
        """Tell the last step of `out` where the curve has it, and the evaluation that came with it."""
        if not self._trackers:
            return
        values: dict[str, float] = {}
        # A long run's curve does not have every step.
        if out.curve and (point := out.curve[-1]).step == out.steps_done:
            values |= {"train/loss": point.loss, "train/learning_rate": point.learning_rate}
            if point.gradient_norm is not None:
                values["train/gradient_norm"] = point.gradient_norm
        for evaluation in out.evaluations[self._evaluations :]:
            values |= {name: value for name, value in evaluation.metrics.items() if value is not None}
        self._evaluations = len(out.evaluations)
        for tracker in self._trackers if values else ():
            tracker.log(values, step=out.steps_done)

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


def arguments_of(name: str, label: str, folder: Path, steps_done: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return what accelerate's tracker of that name is made with, by place and by name.

    A run is a folder of its own in TensorBoard, a name in the others' project. Files go to `folder`, unless the
    tracker's own environment variables name another place.
    """
    if name == "tensorboard":
        # Steps after a checkpoint that an earlier process has told are told again.
        return (label, str(folder)), {"purge_step": steps_done + 1} if steps_done else {}
    if name == "wandb":
        os.environ.setdefault("WANDB_SILENT", "true")
        return (PROJECT,), {"name": label, "dir": str(folder)}
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(folder))
        return (PROJECT,), {"name": label}
    if "MLFLOW_TRACKING_URI" in os.environ:
        return (PROJECT,), {"run_name": label}
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder.resolve()}/mlflow.db"
    return (PROJECT,), {"run_name": label, "logging_dir": str(folder.resolve() / "mlruns")}
