"""Where a run departs from a published protocol: checked on its plan, setting by setting, never assumed.

Held against are the settings that the compared source itself states. Where it states none, a run may choose, and the
verdict says what was chosen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from pydantic import JsonValue

from reports.records.frames import ROW
from reports.records.selection import table_rank
from results.protocols import Protocol, read_protocols
from results.schema import Plan, Record

UNSTATED = "the source does not state its protocol"
Check = Callable[[Record], list[str]]
CONFIG = "config."


def _epochs(plan: Plan) -> int | None:
    return None if plan.training.epochs is None else round(plan.training.epochs)


def _warmup(plan: Plan) -> float:
    return plan.training.warmup_steps / plan.training.steps


READ: dict[str, Callable[[Plan], Any]] = {
    "model": lambda plan: plan.model.name.rpartition("/")[2],
    "targets": lambda plan: plan.targets,
    "max_length": lambda plan: plan.data.max_length,
    "epochs": _epochs,
    "warmup_fraction": _warmup,
    "clip_norm": lambda plan: plan.training.clip_norm or 0,
}
"""Settings of a profile that a plan holds under another name; all others stand in its training settings."""
NAMES = {"batch_size": "batch size", "max_length": "length", "clip_norm": "clipping", "default_rank": "rank"}


def suite_departures(record: Record) -> list[str]:
    """Return where a run departs from the published protocol of its suite, as "setting value (published: value)"."""
    protocol = read_protocols()[record.plan.suite]
    place = _place(record, protocol)
    if place is None:
        return [f"model {record.plan.model.name} (published: {', '.join(protocol.stated_places)})"]
    rank = table_rank(record)
    settings = protocol.settings(_method(record), rank, place)
    stated = {name: given.value for name, given in settings.items() if given.statement.status == "stated"}
    rows = [_unlike(record, name, value) for name, value in stated.items()]
    found = [text for text in rows if text] + _data_departures(record)
    if protocol.ranks and rank is not None and rank not in protocol.ranks:
        found.append(f"rank {rank} (published: {', '.join(map(str, protocol.ranks))})")
    return found


def unstated(record: Record) -> list[str]:
    """Return what the run chose where the compared source states nothing, as "learning rate 0.001 (own choice)"."""
    protocol = read_protocols()[record.plan.suite]
    place = _place(record, protocol)
    if place is None:
        return []
    found = protocol.settings(_method(record), table_rank(record), place)
    return [
        f"{_name(name)} {_show(_value(record, name))}: not stated by {protocol.source}"
        for name, given in found.items()
        if given.statement.status != "stated" and name != "default_rank"
    ]


def model_size(record: Record) -> str | None:
    """Return the published size that a model's name ends in or holds as a word, as "60m"; None for any other."""
    words = set(re.split(r"[^a-z0-9]+", record.plan.model.name.lower()))
    return next((size for size in read_protocols()["c4"].stated_places if size in words), None)


def _method(record: Record) -> str:
    """Return the method of a run, whatever row of several settings it stands in."""
    return record.plan.method.partition(ROW)[0]


def _place(record: Record, protocol: Protocol) -> str | None:
    """Return the task or size that statements may speak of; None for a size that the source did not run."""
    return record.plan.task if protocol.places == "tasks" else model_size(record)


def _value(record: Record, name: str) -> JsonValue:
    plan = record.plan
    if name == "default_rank":
        return table_rank(record)
    if name.startswith(CONFIG):
        return plan.method_config.get(name.removeprefix(CONFIG))
    read = READ.get(name)
    found: JsonValue = getattr(plan.training, name) if read is None else read(plan)
    return found


def _unlike(record: Record, name: str, published: JsonValue) -> str | None:
    """Return what is other than published; None where it is the same, or where the method has no such setting."""
    ours = _value(record, name)
    if name == "default_rank" and ours is None:
        return None
    if isinstance(ours, (int, float)) and isinstance(published, (int, float)):
        # Warm-up is held in whole steps.
        slack = 0.5 / record.plan.training.steps if name == "warmup_fraction" else 0.0
        same = math.isclose(ours, published, rel_tol=1e-9, abs_tol=slack)
    else:
        same = ours == published
    return None if same else f"{_name(name)} {_show(ours, 'unknown')} (published: {_show(published, 'one for all')})"


def _name(setting: str) -> str:
    return NAMES.get(setting, setting.removeprefix(CONFIG).replace("_", " "))


def _show(value: JsonValue, none: str = "none") -> str:
    return none if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _data_departures(record: Record) -> list[str]:
    plan, facts = record.plan, record.data
    found = ["evaluated on a held-out part of train"] if plan.data.held_out else []
    found += ["not the official data"] if facts is not None and not facts.official else []
    capped = [n for n in ("train_rows", "eval_rows") if getattr(plan.data, n) is not None]
    return found + [f"{name.replace('_', ' ')} capped at {getattr(plan.data, name)}" for name in capped]


def departures(records: list[Record], check: Check = suite_departures) -> tuple[str, ...]:
    """Return the distinct departures of some runs, in order of first appearance."""
    return tuple(dict.fromkeys(text for record in records for text in check(record)))
