"""What the page knows: records, published cells and looks as one JSON text, equal parts of records stored once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from reports.figures.style import PART_COLOURS, looks
from reports.page.tuning import tuning_view
from reports.page.views import group_view, ordered, run_scores, scaled, suite_view
from reports.paper.agreement import MEANINGS
from reports.paper.comparison import ComparedCell, PaperTable, elsewhere
from reports.paper.tables import INEQUALITY, difference_text, ours_text, printed, published_fields, ratio
from reports.records.frames import described, main_entry, tracked_peak
from reports.records.groups import Group, comparison_of
from reports.records.peft_results import Foreign
from reports.records.reading import Found, Gathered
from reports.records.selection import table_rank
from results.catalogue import Catalogue
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
    offered = ordered(groups)
    contexts = [group.context for group in offered]
    scores = {plan_hash: found for context in contexts for plan_hash, found in run_scores(context).items()}
    rows = {record.plan_hash: record for context in contexts for record in context.records}
    shown = [replace(found, record=rows.get(found.record.plan_hash, found.record)) for found in gathered.found]
    catalogue = described(found.record for found in shown)
    runs = [_run(found, pools, scores, catalogue) for found in shown]
    numbers = {run["id"]: at for at, run in enumerate(runs)}
    methods = {found.record.plan.method for found in shown} | {i.row["method"] for i in foreign}
    return {
        "looks": [{"method": m, **vars(look)} for m, look in looks(methods, catalogue).items()],
        "parts": PART_COLOURS, "suites": {context.suite: suite_view(context) for context in contexts},
        "groups": [{**group_view(group, gathered, numbers), "tuning": tuning_view(context, numbers)}
                   for group, context in zip(offered, contexts, strict=True)],
        "published": _published_line(papers),
        "runs": runs, "pools": {name: pool.table() for name, pool in pools.items()},
        "papers": [_paper(table) for table in papers], "verdicts": MEANINGS, "inequality": INEQUALITY,
        "conflicts": [{"ratio": ratio(found), "cells": list(map(_quoted, found))} for found in conflicts(published)],
        "elsewhere": [_quoted(cell) for cell in elsewhere(published)],
        "foreign": [_foreign(item) for item in foreign],
        "duplicates": [list(item) for item in gathered.duplicates], "others": list(gathered.others), "link": link,
    }  # fmt: skip


def _published_line(papers: Sequence[PaperTable]) -> list[str]:
    """Return [kind, sentence]: how many published numbers our runs may be held against, and with which verdict."""
    words = [cell.verdict.word for table in papers for row in table.rows for cell in row.cells.values()]
    ran = sum(cell.ours is not None for table in papers for row in table.rows for cell in row.cells.values())
    if not ran:
        text = f"No run of profile paper: none of {len(words)} published cells is confirmed or refuted here."
        return ["open", text]
    counts = ", ".join(f"{word} {words.count(word)}" for word in MEANINGS if word in words)
    return ["holds", f"Beside {ran} of {len(words)} published cells stands a run of ours: {counts}."]


def _main_score(record: Record, catalogue: Catalogue) -> Json:
    """Return the score of a run that stands in no table: its main metric at the last evaluation, if that has one."""
    last = max(record.evaluations, key=lambda evaluation: evaluation.step, default=None)
    value = None if last is None or record.status != "ok" else last.metrics.get(record.main_metric or "")
    return {} if value is None else {"main": scaled(main_entry(record, catalogue), value)}


def _run(found: Found, pools: dict[str, Pool], scores: Mapping[str, Json], catalogue: Catalogue) -> Json:
    record, plan = found.record, found.record.plan
    engagement, timing = record.engagement, record.timing
    return {
        "id": record.plan_hash, "suite": plan.suite, "profile": plan.profile, "task": plan.task,
        "method": plan.method, "rank": table_rank(record), "seed": plan.seed, "purpose": plan.purpose,
        "variant": comparison_of(record),
        "status": record.status, "error": record.error, "main": record.main_metric, "path": found.path,
        "targets": plan.targets, "skipped": record.skipped_steps,
        "scores": scores.get(record.plan_hash) or _main_score(record, catalogue),
        "started": record.started_at, "finished": record.finished_at,
        "environment": pools["environment"].add(record.environment),
        "model": pools["model"].add(plan.model), "data": pools["data"].add(plan.data),
        "config": pools["config"].add(plan.method_config), "training": pools["training"].add(plan.training),
        "facts": None if record.data is None else pools["facts"].add(record.data),
        "evaluations": [_evaluation(evaluation, pools["keys"]) for evaluation in record.evaluations],
        "memory": _memory(record.memory), "timing": _timing(timing),
        "peak": tracked_peak(record) if record.status == "ok" else None, "outside": not found.inside,
        "step": short(timing.train_s / timing.timed_steps) if timing is not None and timing.timed_steps else None,
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
