"""What the page knows: records, published cells and looks as one JSON text, equal parts of records stored once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from reports.averages.convention import choices
from reports.figures.style import PART_COLOURS, looks
from reports.paper.agreement import MEANINGS
from reports.paper.comparison import ComparedCell, PaperTable, elsewhere
from reports.paper.tables import INEQUALITY, difference_text, ours_text, printed, published_fields
from reports.records.frames import described
from reports.records.groups import Group
from reports.records.peft_results import Foreign
from reports.records.reading import Found, Gathered
from reports.records.selection import table_rank
from results.catalogue import Catalogue, SuiteEntry
from results.published import Cell, conflicts
from results.schema import Memory, Peak, Record, Strict, Timing

Json = dict[str, Any]
DIGITS = 6


class Pool:
    """Equal values once each: a run names its environment by number."""

    def __init__(self) -> None:
        self.items: dict[str, int] = {}

    def add(self, value: object) -> int:
        """Return the number of `value`, new or known."""
        text = value.model_dump_json() if isinstance(value, Strict) else dumps(value)
        return self.items.setdefault(text, len(self.items))

    def table(self) -> list[Any]:
        """Return the values in order of their numbers."""
        return [json.loads(text) for text in self.items]


def dumps(value: object) -> str:
    """Return compact JSON; a number that is not finite is null, since JSON has none."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def short(value: float | None) -> float | None:
    """Return the number with `DIGITS` significant digits: what a screen can show."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def page_data(
    gathered: Gathered, papers: Sequence[PaperTable], published: Sequence[Cell], groups: Sequence[Group],
    foreign: Sequence[Foreign], link: str | None,
) -> Json:  # fmt: skip
    """Return everything the page shows, in an order that does not depend on files."""
    pools = {name: Pool() for name in ("environment", "model", "data", "config", "training", "facts", "steps", "keys")}
    runs = [_run(found, pools) for found in gathered.found]
    methods = {found.record.plan.method for found in gathered.found} | {i.row["method"] for i in foreign}
    catalogue = described(gathered.records)
    return {
        "looks": [{"method": m, **vars(look)} for m, look in looks(methods, catalogue).items()],
        "parts": PART_COLOURS, "tasks": {task.name: task.title for task in _averaged(catalogue).tasks},
        "suites": {suite.name: suite.title for suite in catalogue.suites},
        "lower": sorted({m.name for suite in catalogue.suites for m in suite.metrics if m.better == "lower"}),
        "average": average_rules(catalogue),
        "runs": runs, "pools": {name: pool.table() for name, pool in pools.items()},
        "troubles": [{"suite": g.suite, "profile": g.profile, "rank": g.rank, "text": g.trouble}
                     for g in groups if g.trouble],
        "papers": [_paper(table) for table in papers], "verdicts": MEANINGS, "inequality": INEQUALITY,
        "conflicts": [[_quoted(cell) for cell in found] for found in conflicts(published)],
        "elsewhere": [_quoted(cell) for cell in elsewhere(published)],
        "foreign": [_foreign(item) for item in foreign],
        "duplicates": [list(item) for item in gathered.duplicates], "others": list(gathered.others), "link": link,
    }  # fmt: skip


def _averaged(catalogue: Catalogue) -> SuiteEntry:
    return next(suite for suite in catalogue.suites if suite.average is not None)


def average_rules(catalogue: Catalogue) -> Json:
    """Return the choices of the suite that has an average, and the metric keys that each stands for."""
    suite = _averaged(catalogue)
    read = {name: values for name, values in choices(suite).items() if suite.task(name) is not None}
    rules = {task.name: dict(task.readings) for task in suite.tasks if task.readings}
    fixed = {task.name: [task.main_metric] for task in suite.tasks if not task.readings and task.averaged != "never"}
    return {"suite": suite.name, "choices": {name: rules[name] for name in read},
            "of_task": {name: name for name in read}, "fixed": fixed}  # fmt: skip


def _run(found: Found, pools: dict[str, Pool]) -> Json:
    record, plan = found.record, found.record.plan
    engagement = record.engagement
    return {
        "id": record.plan_hash, "suite": plan.suite, "profile": plan.profile, "task": plan.task,
        "method": plan.method, "rank": table_rank(record), "seed": plan.seed, "purpose": plan.purpose,
        "status": record.status, "error": record.error, "main": record.main_metric, "path": found.path,
        "targets": plan.targets, "skipped": record.skipped_steps,
        "started": record.started_at, "finished": record.finished_at,
        "environment": pools["environment"].add(record.environment),
        "model": pools["model"].add(plan.model), "data": pools["data"].add(plan.data),
        "config": pools["config"].add(plan.method_config), "training": pools["training"].add(plan.training),
        "facts": None if record.data is None else pools["facts"].add(record.data),
        "evaluations": [_evaluation(evaluation, pools["keys"]) for evaluation in record.evaluations],
        "memory": _memory(record.memory), "timing": _timing(record.timing),
        "engagement": None if engagement is None else _engagement(record),
        "curve": [pools["steps"].add(found.trace.steps), [short(loss) for loss in found.trace.losses]],
    }  # fmt: skip


def _evaluation(evaluation: Any, keys: Pool) -> list[Any]:
    values = {keys.add(key): value for key, value in evaluation.metrics.items()}
    return [evaluation.step, short(evaluation.epoch), values]


def _memory(memory: Memory | None) -> Json | None:
    if memory is None:
        return None
    plain = {name: getattr(memory, name) for name in type(memory).model_fields if name.endswith("_bytes")}
    return {**plain, "step_peak": _peak(memory.step_peak), "refresh_peak": _peak(memory.refresh_peak)}


def _peak(peak: Peak | None) -> Json | None:
    return None if peak is None else dict(peak)


def _timing(timing: Timing | None) -> Json | None:
    if timing is None:
        return None
    return {name: short(value) if isinstance(value, float) else value for name, value in timing}


def _engagement(record: Record) -> Json:
    found = record.engagement
    assert found is not None
    shown = ("trainable_parameters", "total_parameters", "state_bytes", "dense_state_bytes", "basis_bytes", "refreshes")
    return {"layers": len(found.layers), **{name: getattr(found, name) for name in shown}}


def _paper(table: PaperTable) -> Json:
    return {
        "name": table.name, "title": table.title, "what": table.what, "columns": table.columns,
        "notes": list(table.notes),
        "rows": [
            {"title": row.title, "method": row.method, "source": row.source, "scope": row.scope,
             "cells": {column: _judged(judged) for column, judged in row.cells.items()}}
            for row in table.rows
        ],
    }  # fmt: skip


def _judged(judged: ComparedCell) -> Json:
    ran = judged.ours is not None
    return {
        **_quoted(judged.cell), "verdict": judged.verdict.word, "reasons": list(judged.verdict.reasons),
        "ours": ours_text(judged) if ran else None, "difference": difference_text(judged) if ran else None,
        "records": list(judged.ours.records) if judged.ours else [],
    }  # fmt: skip


def _quoted(cell: Cell) -> Json:
    """Return a published cell without what is unknown about it."""
    fields = {
        "benchmark": cell.benchmark, "method": cell.row.method, "title": cell.row.title, "rank": cell.row.rank,
        "setting": cell.row.setting, "column": cell.column, "shown": printed(cell), **published_fields(cell),
    }  # fmt: skip
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _foreign(item: Foreign) -> Json:
    shown = ("title", "method", "experiment", "task", "rank", "seed", "status", "error", "model_name", "last_score",
             "cuda_reserved_peak_bytes", "train_s", "trainable_parameters", "device_name", "torch", "peft",
             "started_at", "origin", "path")  # fmt: skip
    return {name: item.row.get(name) for name in shown}
