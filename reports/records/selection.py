"""Which records a report is about: one suite, profile and rank, every plan once."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

from reports.records.frames import table_ranks
from results.choice import ChoiceError, check_choice
from results.schema import Record, flat

ALL: Final = "all"
EPOCHS = "training.epochs"
LENGTHS = frozenset({"training.steps", "training.batch_size", "data.train_rows"})
Rank = int | Literal["all"] | None
Values = TypeVar("Values")


class ReportError(ValueError):
    """A report that cannot be made from these records; the text says why and what to do."""


def existing(paths: list[Path]) -> list[Path]:
    """Return the paths.

    Raises:
        ReportError: one of them does not exist.
    """
    for path in paths:
        if not path.exists():
            raise ReportError(
                f"records folder {path} does not exist: run the suite first or name another with --records"
            )
    return paths


def table_rank(record: Record) -> int | None:
    """Return the rank that names a run's table: the factors', else the projection's, None for a method without one."""
    rank, projection_rank = table_ranks(record)
    return rank if rank is not None else projection_rank


def folder_name(suite: str, profile: str, rank: int | None, variant: str = "") -> str:
    """Return the stem of what is written about some runs, with the variant that all of them are of."""
    parts = (suite, profile, "" if rank is None else f"r{rank}", variant)
    return re.sub(r"[^\w.-]+", "-", "-".join(filter(None, parts)))


def select(
    records: Sequence[Record], suite: str, profile: str | None, rank: Rank, where: Iterable[str] = ()
) -> list[Record]:
    """Return the result runs of one suite, profile and rank; methods without a rank belong to every rank.

    Args:
        profile: None takes the only profile among the records.
        rank: None takes the only rank among them, "all" every one: each is a row.
        where: "field=value" conditions on the plan, such as "training.state_bits=32" or "method_config.alpha=16";
            a plan whose method has no such setting stays.

    Raises:
        ReportError: nothing fits, a name is unknown, or a plan has two records.
    """
    if not records:
        raise ReportError("no records: run the suite first (nox -s glue_rank8) or name a folder with --records")
    chosen = _named(
        [r for r in records if r.plan.purpose == "result"], "suite", suite, "only tuning runs in the records"
    )
    profiles = sorted({r.plan.profile for r in chosen})
    if profile is None and len(profiles) > 1:
        raise ReportError(f"the records hold several profiles, choose one with --profile: {', '.join(profiles)}")
    chosen = _named(chosen, "profile", profile or profiles[0], "no records")
    chosen = _of_rank(chosen, rank)
    chosen = matching(chosen, where)
    _check_unique(chosen)
    return chosen


def matching(records: list[Record], where: Iterable[str]) -> list[Record]:
    """Return the records whose plans fulfil every "field=value"; a plan whose method has no such setting stays.

    Raises:
        ReportError: no condition, an unknown field, or nothing left.
    """
    for condition in where:
        records = _matching(records, condition)
    return records


def _named(records: list[Record], field: str, value: str, empty: str) -> list[Record]:
    known = tuple(sorted({str(getattr(r.plan, field)) for r in records}))
    if not known:
        raise ReportError(f"{empty}: nothing to report")
    try:
        check_choice(value, known, f"{field} (of the records)")
    except ChoiceError as error:
        raise ReportError(str(error)) from None
    return [r for r in records if getattr(r.plan, field) == value]


def parse_rank(text: str | None) -> Rank:
    """Return the rank that was typed.

    Raises:
        ReportError: neither a whole number nor "all".
    """
    if text is None or text == ALL:
        return None if text is None else "all"
    try:
        return int(text)
    except ValueError:
        raise ReportError(f"rank {text!r}: must be a whole number, or {ALL} for a row each (nearest: {ALL})") from None


def _of_rank(records: list[Record], rank: Rank) -> list[Record]:
    if rank == ALL:
        return records
    known = sorted({found for r in records if (found := table_rank(r)) is not None})
    if rank is None and len(known) > 1:
        known_words = ", ".join(map(str, known))
        raise ReportError(f"the records hold several ranks, choose one with --rank: {known_words}, or {ALL}")
    rank = rank if rank is not None or not known else known[0]
    wanted = rank or 0
    if known and rank is not None and rank not in known:
        near = min(known, key=lambda other: abs(other - wanted))
        raise ReportError(f"no run of rank {rank}: known are {', '.join(map(str, known))}; nearest: {near}")
    return [r for r in records if table_rank(r) in (rank, None)]


def _matching(records: list[Record], condition: str) -> list[Record]:
    field, equals, text = condition.partition("=")
    if not equals:
        raise ReportError(f"condition {condition!r}: must be field=value, such as training.state_bits=32")
    try:
        wanted = json.loads(text)
    except json.JSONDecodeError:
        wanted = text
    plans = [flat(r.plan.model_dump(mode="json")) for r in records]
    try:
        check_choice(field, tuple(sorted({name for plan in plans for name in plan})), "plan field")
    except ChoiceError as error:
        raise ReportError(str(error)) from None
    if not field.startswith("method_config."):
        kept = [r for r, plan in zip(records, plans, strict=True) if plan[field] == wanted]
    else:
        kept = [r for r, plan in zip(records, plans, strict=True) if plan.get(field, wanted) == wanted]
    if not kept:
        values = sorted({str(plan[field]) for plan in plans if field in plan})
        raise ReportError(f"no run has {field} = {text}: known are {', '.join(values)}")
    return kept


def _check_unique(records: Sequence[Record]) -> None:
    seen: set[str] = set()
    for record in records:
        plan = record.plan
        if record.plan_hash in seen:
            where = f"{plan.suite} {plan.profile} {plan.task} {plan.method} seed {plan.seed}"
            raise ReportError(f"two records of {where} have the same plan {record.plan_hash}: keep one of the two")
        seen.add(record.plan_hash)


def uneven_settings(records: Sequence[Record]) -> list[str]:
    """Return "task: field values" texts for every setting that runs of one task should share and do not."""
    by_task: dict[str, dict[str, set[str]]] = {}
    for record in records:
        plan = record.plan.model_dump(mode="json", include={"targets", "model", "data", "training"})
        for name, value in flat(plan).items():
            if name not in ("training.learning_rate", "training.rest_learning_rate"):
                by_task.setdefault(record.plan.task, {}).setdefault(name, set()).add(json.dumps(value))
    uneven = {
        task: {name: values for name, values in names.items() if len(values) > 1} for task, names in by_task.items()
    }
    return [
        f"{task}: {spoken(name)} {_listed(values)}"
        for task, names in sorted(uneven.items())
        for name, values in sorted(without_epochs(names).items())
    ]


def spoken(name: str) -> str:
    """Return a plan's field as a reader calls it."""
    part, _, field = name.partition(".")
    return field.replace("_", " ") if part == "training" else name


def without_epochs(differing: Mapping[str, Values]) -> dict[str, Values]:
    """Return name -> value without the epochs, where steps, batch or rows say it already."""
    return {name: values for name, values in differing.items() if name != EPOCHS or not LENGTHS & differing.keys()}


def _listed(values: Iterable[str]) -> str:
    """Return values given as JSON, numbers in their order."""
    found = [(json.loads(text), text) for text in values]
    return ", ".join(text for _, text in sorted(found, key=lambda each: (_number(each[0]), each[1])))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.inf
