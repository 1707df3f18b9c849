"""Where a run departs from a published protocol: checked on its plan, setting by setting, never assumed."""

from __future__ import annotations

import re
from collections.abc import Callable

from reports.records.selection import table_rank
from results.published import read_protocols
from results.schema import Record

PUBLISHED = read_protocols()
UNSTATED = "the source does not state its protocol"
Check = Callable[[Record], list[str]]


def glue_departures(record: Record) -> list[str]:
    """Return where a GLUE run departs from GaLore's table 4, as "setting value (published value)"."""
    plan, protocol = record.plan, PUBLISHED.glue
    epochs = plan.training.epochs
    rows = [
        _unlike("model", plan.model.name.rpartition("/")[2], protocol.model),
        _unlike("epochs", None if epochs is None else round(epochs), protocol.epochs),
        _unlike("batch size", plan.training.batch_size, protocol.batches.get(plan.task, protocol.batch)),
        _unlike("length", plan.data.max_length, protocol.length),
    ]
    return [text for text in rows if text] + _data_departures(record)


def c4_departures(record: Record) -> list[str]:
    """Return where a C4 run departs from GaLore's table 2 at the size of its model."""
    size = model_size(record)
    if size is None:
        return [f"model {record.plan.model.name} (published: {', '.join(PUBLISHED.c4.sizes)})"]
    protocol = PUBLISHED.c4.sizes[size]
    training, found = record.plan.training, table_rank(record)
    rows = [
        _unlike("steps", training.steps, protocol.steps),
        _unlike("batch size", training.batch_size, protocol.batch),
        _unlike("length", record.plan.data.max_length, protocol.length),
        _unlike("rank", found, protocol.rank) if found is not None else None,
    ]
    return [text for text in rows if text] + _data_departures(record)


def model_size(record: Record) -> str | None:
    """Return the published size that a model's name ends in or holds as a word, as "60m"; None for any other."""
    words = set(re.split(r"[^a-z0-9]+", record.plan.model.name.lower()))
    return next((size for size in PUBLISHED.c4.sizes if size in words), None)


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
