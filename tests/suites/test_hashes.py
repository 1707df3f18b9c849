"""Every committed record's plan comes out of today's profiles again, hash for hash: settings moved nowhere.

Data and model are taken from the record: their digests are the business of other tests, and need files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from baselines.registry import get_method
from results.schema import Plan, Record
from results.store import read_records
from suites.config import method_config
from suites.gate.runs import rows
from suites.plan import REFERENCE, Request, comparison, training_plan
from suites.tuning import points_of

FOLDERS = sorted(path for path in REFERENCE.iterdir() if path.is_dir() and any(path.glob("*-*-*-*.json")))


def asked(folder: Path, plan: Plan) -> list[Request]:
    """Return the requests that the record's run may have come from."""
    common = {"tasks": (plan.task,), "methods": (plan.method,), "seeds": (plan.seed,)}
    if plan.purpose == "gate":
        return [
            Request(plan.suite, plan.profile, row.rank, overrides=tuple(row.settings.items()), **common)
            for row in rows()
            if (row.suite, row.variant) == (plan.suite, plan.variant) and plan.task in (row.tasks or [plan.task])
        ]
    rank = int(folder.name.rpartition("-r")[2])
    found = [Request(plan.suite, plan.profile, rank, **common)]
    if plan.purpose == "tuning":
        # The study of forms typed the method's settings, and points of its own, on the command line.
        typed = get_method(plan.method).config_type(**plan.method_config).model_dump()
        point = (("config", typed), ("learning_rate", plan.training.learning_rate))
        found.append(replace(found[0], overrides=(*point, ("grid", [dict(point)]), ("trials", 1))))
    return found


def candidates(folder: Path, record: Record) -> Iterator[Plan]:
    """Yield the plans that today's settings make of the record's request: one, or one a point of the grid."""
    plan = record.plan
    assert plan.training.epochs is not None
    train_rows = round(plan.training.steps / plan.training.epochs * plan.training.batch_size)
    for request in asked(folder, plan):
        made = comparison(request, tuned=plan.purpose != "tuning")
        for point in points_of(made, plan.task, plan.method) if plan.purpose == "tuning" else [{}]:
            settings = made.settings(plan.task, plan.method, point)
            changes = {
                "method_config": method_config(plan.method, request.rank, settings.config).settings(),
                "targets": settings.targets,
                "training": training_plan(settings, train_rows),
            }
            yield plan.model_copy(update=changes)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_committed_plan_is_resolved_to_its_hash(folder: Path) -> None:
    records = [record for record in read_records([folder]) if record.status == "ok"]
    assert records
    moved = [
        record.plan.label
        for record in records
        if record.plan_hash not in {plan.hash() for plan in candidates(folder, record)}
    ]
    assert not moved
