"""Tuning at an equal budget: the same number of learning rates for every method, chosen on held-out train rows."""

from __future__ import annotations

import statistics
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from results.catalogue import catalogue_of
from results.schema import Plan, Record
from results.store import read_records, write_atomically
from suites.config import tuned_path
from suites.plan import Comparison, Request, comparison
from suites.suite import Runtime

Point = dict[str, Any]
POINT_SETTINGS = ("learning_rate", "rest_learning_rate", "config.scale")


def grid_plans(request: Request, runtime: Runtime) -> list[Plan]:
    """Return the runs of the grid: every task and method of the request with every point of the method's grid.

    Raises:
        ValueError: a method with neither grid nor range, grids of different sizes (the budget must be equal), a method
            whose grid is not the same on every task, a point given twice, or one with other settings than
            POINT_SETTINGS.
    """
    # An earlier choice must not colour the new one.
    asked = comparison(request, tuned=False)
    plans = []
    grids: dict[str, list[Point]] = {}
    for task, method in asked.cells():
        points = points_of(asked, task, method)
        _check_grid(method, points)
        if grids.setdefault(method, points) != points:
            raise ValueError(f"grid of {method} on task {task!r}: must be the same on every task")
        for point in points:
            plan = asked.plan(task, method, runtime, point)
            data = plan.data.model_copy(update={"held_out": True})
            plans.append(plan.model_copy(update={"data": data, "purpose": "tuning"}))
    sizes = {method: len(points) for method, points in grids.items()}
    if not plans or len(set(sizes.values())) != 1:
        raise ValueError(f"grids must have the same size, at least 1, for every method; they have {sizes}")
    return plans


def points_of(asked: Comparison, task: str, method: str) -> list[Point]:
    """Return what is tried for a method: the profile's grid, else the profile's number of points of its own range.

    Raises:
        ValueError: neither is there, or a grid of another size than that number; with the line to add.
    """
    settings, suite, profile = asked.settings(task, method), asked.suite.name, asked.request.profile
    if settings.grid:
        if settings.trials not in (None, len(settings.grid)):
            raise ValueError(
                f"grid of {method}: has {len(settings.grid)} points; every method of suite {suite!r} in profile "
                f"{profile!r} gets trials = {settings.trials} (--set trials={len(settings.grid)} changes it for all)"
            )
        return settings.grid
    rates = asked.rates(method, "grid = [{ learning_rate = ... }, ...]")
    if settings.trials is None:
        raise ValueError(
            f"method {method!r}: profile {profile!r} gives it no grid for suite {suite!r}, and no number of points to "
            f"take from the method's own range {rates.low:g} to {rates.high:g}: add trials = 3 to [{suite}] in "
            f"suites/profiles/{profile}.toml, or --set trials=3"
        )
    return [{"learning_rate": rate} for rate in rates.points(settings.trials)]


def _check_grid(method: str, points: Sequence[Point]) -> None:
    # Points are told apart, and the choice is written, by these settings alone: another one would be lost silently.
    for index, point in enumerate(points):
        config = point.get("config", {})
        names = [name for name in point if name != "config"] + [f"config.{name}" for name in config]
        for name in names:
            if name not in POINT_SETTINGS:
                raise ValueError(f"grid of {method}: setting {name!r}: allowed are {', '.join(POINT_SETTINGS)}")
        if point in points[:index]:
            raise ValueError(f"grid of {method}: point {point} stands there twice")


def mean_scores(plans: Sequence[Plan], store: Path) -> dict[str, list[tuple[Point, float | None]]]:
    """Return method -> its grid points with their held-out scores, averaged over the tasks; None if one is missing."""
    scores = _scores(plans, store)
    table: dict[str, list[tuple[Point, float | None]]] = {}
    for method in dict.fromkeys(plan.method for plan in plans):
        own = [plan for plan in plans if plan.method == method]
        points: list[Point] = []
        for plan in own:
            if _point(plan) not in points:
                points.append(_point(plan))
        for point in points:
            found = [scores.get(plan.hash()) for plan in own if _point(plan) == point]
            known = [score for score in found if score is not None]
            whole = len(known) == len(found)
            table.setdefault(method, []).append((point, statistics.fmean(known) if whole else None))
    return table


def choose(plans: Sequence[Plan], store: Path) -> dict[str, Point]:
    """Return method -> the grid point with the best mean held-out score over the tasks, at the end of the runs."""
    chosen: dict[str, Point] = {}
    gain = _gain(plans, store)
    for method, points in mean_scores(plans, store).items():
        known = [(gain(score), index) for index, (_, score) in enumerate(points) if score is not None]
        if known:
            _, best = max(known, key=lambda pair: (pair[0], -pair[1]))
            chosen[method] = points[best][0]
    return chosen


def choice_table(plans: Sequence[Plan], store: Path) -> Table:
    """Return the grid as a table, the choice marked."""
    chosen = choose(plans, store)
    tasks = ", ".join(dict.fromkeys(plan.task for plan in plans))
    table = Table(
        "method", "learning rate", "of the rest", "scale", "mean held-out score", "chosen", title=f"Grid on {tasks}"
    )
    for method, points in mean_scores(plans, store).items():
        for point, score in points:
            table.add_row(
                method,
                f"{point['learning_rate']:g}",
                f"{point.get('rest_learning_rate', point['learning_rate']):g}",
                str(point.get("config", {}).get("scale", "-")),
                "-" if score is None else f"{score:.4f}",
                "yes" if chosen.get(method) == point else "",
            )
    return table


def write_choice(request: Request, plans: Sequence[Plan], store: Path) -> Path:
    """Write the choice beside the profile, as a delta that the profile takes up by itself, and return its path.

    Methods that were not tuned this time keep what an earlier choice gave them.

    Raises:
        ValueError: a method has no point with a score on every task.
    """
    chosen = choose(plans, store)
    lost = sorted({plan.method for plan in plans} - set(chosen))
    if lost:
        raise ValueError(
            f"no grid point of {', '.join(lost)} has a score on every task; look at the records in {store}"
        )
    tasks = ",".join(dict.fromkeys(plan.task for plan in plans))
    lines = [
        f"# Written by `suites tune {request.suite} --profile {request.profile} --rank {request.rank} --task {tasks}`:",
        "# per method the grid point of the best mean score on held-out train rows, one seed; validation not looked at",
    ]
    path = tuned_path(request.profile, request.suite, request.rank)
    earlier = tomllib.loads(path.read_text()).get("method", {}) if path.exists() else {}
    for method, point in sorted({**earlier, **chosen}.items()):
        lines += ["", f"[method.{method}]", f"learning_rate = {point['learning_rate']!r}"]
        if "rest_learning_rate" in point:
            lines.append(f"rest_learning_rate = {point['rest_learning_rate']!r}")
        if "config" in point:
            lines.append(f"config = {{ scale = {point['config']['scale']!r} }}")
    return write_atomically(path, ("\n".join(lines) + "\n").encode())


def _point(plan: Plan) -> Point:
    point: Point = {"learning_rate": plan.training.learning_rate}
    if plan.training.rest_learning_rate is not None:
        point["rest_learning_rate"] = plan.training.rest_learning_rate
    if "scale" in plan.method_config:
        point["config"] = {"scale": plan.method_config["scale"]}
    return point


def _scores(plans: Sequence[Plan], store: Path) -> dict[str, float]:
    wanted = {plan.hash() for plan in plans}
    return {
        record.plan_hash: score
        for record in read_records([store])
        if record.plan_hash in wanted and (score := _held_out_score(record)) is not None
    }


def _gain(plans: Sequence[Plan], store: Path) -> Callable[[float], float]:
    """Return score -> the same so that more is better, as the runs' own main metric is; all of a suite are alike.

    Raises:
        CatalogueError: nobody says which way that metric is better.
    """
    wanted = {plan.hash() for plan in plans}
    records = [r for r in (read_records([store]) if store.exists() else []) if r.plan_hash in wanted and r.main_metric]
    if not records:
        return float
    suite = catalogue_of(record.catalogue for record in records).suite(records[0].plan.suite)
    return suite.metric(records[0].main_metric or "").gain


def _held_out_score(record: Record) -> float | None:
    if record.status != "ok" or not record.evaluations or record.main_metric is None:
        return None
    return record.evaluations[-1].metrics.get(record.main_metric)
