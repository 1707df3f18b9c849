"""Where a run departs from a published protocol: checked on its plan, setting by setting, never assumed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from reports.records.selection import table_rank
from results.schema import Record

# GaLore, arXiv 2403.03507, table 4: 30 epochs, batch 16 (CoLA 32), length 512.
GLUE_EPOCHS, GLUE_LENGTH, GLUE_BATCH, GLUE_BATCHES = 30, 512, 16, {"cola": 32}
# The same paper's table 2 and its LLaMA-7B run: (steps, projection rank, total batch, sequence).
C4_RUNS: Mapping[str, tuple[int, int, int, int]] = {
    "60m": (10_000, 128, 512, 256),
    "130m": (20_000, 256, 512, 256),
    "350m": (60_000, 256, 512, 256),
    "1b": (100_000, 512, 512, 256),
    "7b": (150_000, 1024, 512, 256),
}
UNSTATED = "the source does not state its protocol"
Check = Callable[[Record], list[str]]


def glue_departures(record: Record) -> list[str]:
    """Return where a GLUE run departs from GaLore's table 4, as "setting value (published value)"."""
    plan, data = record.plan, record.plan.data
    model = plan.model.name.rpartition("/")[2]
    rows = [
        _unlike("model", model, "roberta-base"),
        _unlike("epochs", None if plan.training.epochs is None else round(plan.training.epochs), GLUE_EPOCHS),
        _unlike("batch size", plan.training.batch_size, GLUE_BATCHES.get(plan.task, GLUE_BATCH)),
        _unlike("length", data.max_length, GLUE_LENGTH),
    ]
    return [text for text in rows if text] + _data_departures(record)


def c4_departures(record: Record) -> list[str]:
    """Return where a C4 run departs from GaLore's table 2 at the size of its model."""
    size = model_size(record)
    if size is None:
        return [f"model {record.plan.model.name} (published: {', '.join(C4_RUNS)})"]
    steps, rank, batch, length = C4_RUNS[size]
    training, found = record.plan.training, table_rank(record)
    rows = [
        _unlike("steps", training.steps, steps),
        _unlike("batch size", training.batch_size, batch),
        _unlike("length", record.plan.data.max_length, length),
        _unlike("rank", found, rank) if found is not None else None,
    ]
    return [text for text in rows if text] + _data_departures(record)


def model_size(record: Record) -> str | None:
    """Return the published size that a model's name ends in or holds as a word, as "60m"; None for any other."""
    words = set(re.split(r"[^a-z0-9]+", record.plan.model.name.lower()))
    return next((size for size in C4_RUNS if size in words), None)


def _data_departures(record: Record) -> list[str]:
    plan, facts = record.plan, record.data
    found = ["evaluated on a held-out part of train"] if plan.data.held_out else []
    found += ["not the official data"] if facts is not None and not facts.official else []
    capped = [n for n in ("train_rows", "eval_rows") if getattr(plan.data, n) is not None]
    return found + [f"{name.replace('_', ' ')} capped at {getattr(plan.data, name)}" for name in capped]


def _unlike(what: str, ours: object, published: object) -> str | None:
    return None if ours == published else f"{what} {'unknown' if ours is None else ours} (published: {published})"


def departures(records: list[Record], check: Check) -> tuple[str, ...]:
    """Return the distinct departures of some runs, in order of first appearance."""
    return tuple(dict.fromkeys(text for record in records for text in check(record)))
