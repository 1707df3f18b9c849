"""Every committed record's plan comes out of today's profiles again, hash for hash: settings moved nowhere.

Data and model are taken from the record: their digests are the business of other tests, and need files. So is the batch
that fits in equal memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from results.schema import EQUAL_MEMORY, Plan, Record
from results.search import RATES
from results.store import read_records
from suites.config import method_config
from suites.equal import with_batch
from suites.gate.runs import rows
from suites.plan import REFERENCE, Comparison, Request, comparison, training_plan
from suites.search.command import searched

FORMER = frozenset({"tuning-c4-micro-r24", "tuning-c4-small-r32"})
"""Of a profile that was changed on purpose since: grids before there was a search."""
FOLDERS = sorted(
    path for path in REFERENCE.iterdir() if path.is_dir() and any(path.glob("*-*-*-*.json")) and path.name not in FORMER
)


def asked(folder: Path, plan: Plan) -> list[Comparison]:
    """Return the comparisons that the record's run may have come from."""
    common = {"tasks": (plan.task,), "methods": (plan.method,), "seeds": (plan.seed,)}
    if plan.purpose == "gate":
        return [
            comparison(Request(plan.suite, plan.profile, row.rank, overrides=tuple(row.settings.items()), **common))
            for row in rows()
            if (row.suite, row.variant) == (plan.suite, plan.variant) and plan.task in (row.tasks or [plan.task])
        ]
    request = Request(plan.suite, plan.profile, int(folder.name.rpartition("-r")[2].partition("-")[0]), **common)
    if plan.purpose == "tuning":
        # A trial, or one again at the runs' own length.
        return [searched(request), comparison(request, tuned=False)]
    return [comparison(request)]


def candidates(folder: Path, record: Record) -> Iterator[Plan]:
    """Yield the plans that today's settings make of the record's request; of a search's run, at the point it tried."""
    plan = record.plan
    assert plan.training.epochs is not None
    train_rows = round(plan.training.steps / plan.training.epochs * plan.training.batch_size)
    tried = {name: getattr(plan.training, name) for name in RATES} if plan.purpose == "tuning" else {}
    for made in asked(folder, plan):
        settings = made.settings(plan.task, plan.method, tried)
        if settings.learning_rate is None:
            settings = settings.model_copy(update={"learning_rate": made.rates(plan.method).usual})
        changes = {
            "method_config": method_config(plan.method, made.request.rank, settings.config).settings(),
            "targets": settings.targets,
            "training": training_plan(settings, train_rows),
        }
        resolved = plan.model_copy(update=changes)
        yield with_batch(resolved, plan.training.batch_size) if plan.variant == EQUAL_MEMORY else resolved


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
