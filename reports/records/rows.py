"""Rows: the runs of one method under one setting. Under several settings it is as many rows, named by what differs.

A row of a method that was run under one setting bears the method's name. The others are called as
`gradnormlorp:state_bits=8`, printed "GradNormLoRP, 8 bit"; from here on that name stands where the method's did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TypeVar

from reports.records.frames import ROW, described
from results.catalogue import Catalogue, MethodEntry
from results.choice import ChoiceError, check_choice
from results.schema import Record, TrainingPlan, flat

Row = TypeVar("Row")
Fields = Mapping[str, Any]
Key = tuple[str, ...]
BY_TASK = "by task"
UNSET = "null"
MANY = 3
"""Rows, and settings in which they differ, from which on a title says only what is not the base row's."""
IDENTITY = frozenset({"suite", "profile", "purpose", "task", "method", "seed"})
"""Fields of a plan that are no settings."""

# Fields that follow from others: no name is made of them where one of those differs too. Of alternatives (the first
# line) the one is taken that makes fewer rows: a run of two epochs has another number of steps on every task.
LENGTHS = ("training.steps", "training.epochs")
FOLLOWS: dict[str, tuple[str, ...]] = {
    "training.steps": ("training.batch_size", "data.train_rows"),
    "training.epochs": ("training.batch_size", "data.train_rows"),
    "training.warmup_steps": ("training.steps", "training.epochs", "training.batch_size", "data.train_rows"),
    **dict.fromkeys(["model.source", "model.revision", "model.digest", "model.disclosure", "model.vocabulary"],
                    ("model.name",)),
    "model.digest": ("model.name", "model.revision"),
    **dict.fromkeys(["data.source", "data.revision", "data.digest"], ("data.name",)),
    "data.digest": ("data.name", "data.revision", "data.source", "data.tokenizer"),
    **dict.fromkeys(["data.tokenizer_revision", "data.tokenizer_digest"], ("data.tokenizer", "model.name")),
}  # fmt: skip

WORDS: dict[str, Callable[[Any], str]] = {
    "training.state_bits": "{} bit".format,
    "training.precision": "{}".format,
    "training.per_layer": lambda on: "per-layer updates" if on else "",
    "training.checkpointing": lambda on: "checkpointing" if on else "",
    "model.digest": lambda digest: f"weights {digest[:8]}",
    "data.digest": lambda digest: f"data {digest[:8]}",
    "targets": "on {}".format,
    "variant": "{}".format,
}
"""Field -> how its value is called in a title, where that is not "name value"."""


@dataclass(frozen=True)
class Settings:
    """One row of a method: the fields that tell it from the others, with its values as JSON or `BY_TASK`."""

    fields: Key
    values: Key

    @property
    def name(self) -> str:
        """What stands behind the method's name: "state_bits=8,projection_rank=2"."""
        pairs = zip(self.fields, self.values, strict=True)
        return ",".join(f"{_short(field)}={_bare(value)}" for field, value in pairs)

    @property
    def words(self) -> str:
        """The same for a reader: "8 bit, projection rank 2"; empty where all of it is unset or off."""
        return _listed(zip(self.fields, self.values, strict=True))

    def words_beside(self, other: Settings) -> str:
        """The same of what `other` has otherwise."""
        mine, its = (list(zip(row.fields, row.values, strict=True)) for row in (self, other))
        return _listed(pair for pair in mine if pair not in its)


def told_apart(records: Sequence[Record]) -> list[Record]:
    """Return the records, those of a method under several settings under a name for each; the others as they are.

    The new name is described in the record's catalogue: title by what differs, the method's place among the rows. The
    method's colour and, of the yardstick, its role stay with one of its rows, see `_usual`.
    """
    catalogue = described(records)
    renamed: dict[str, Record] = {}
    for method in dict.fromkeys(record.plan.method for record in records):
        mine = [record for record in records if record.plan.method == method]
        rows = rows_of(mine)
        if len(rows) > 1:
            renamed |= _renamed(catalogue.method(method), rows, catalogue)
    return [renamed.get(record.plan_hash, record) for record in records]


def rows_of(records: Sequence[Record]) -> dict[Settings, list[Record]]:
    """Return the rows of one method's runs; a single one where runs of one task never differ."""
    plans = {record.plan_hash: _settings(record) for record in records}
    differing = _differing(records, plans)
    fields = _leading(records, plans, differing)
    rows = _grouped(records, plans, fields)
    # Fields that were thought to follow and do not: two runs of one row share task and seed.
    for field in (field for field in differing if field not in fields):
        if any(_clashes(found) for found in rows.values()):
            fields = (*fields, field)
            rows = _grouped(records, plans, fields)
    return rows


def row_named(text: str, rows: Mapping[str, str]) -> str:
    """Return the row that a person means: its name, its title, or a method that has one row.

    Args:
        rows: name -> title.

    Raises:
        ChoiceError: unknown, or a method with several rows; the text lists them.
    """
    if text in rows:
        return text
    titled = [name for name, title in rows.items() if title.casefold() == text.casefold()]
    of_method = [name for name in rows if name.partition(ROW)[0] == text]
    if len(titled or of_method) == 1:
        return (titled or of_method)[0]
    if of_method:
        raise ChoiceError(f"{text!r} was run under several settings: name one of {', '.join(of_method)}")
    check_choice(text, tuple(rows), "method to compare with")
    raise AssertionError("an unknown name is refused above")


def base_of(settings: Mapping[Row, AbstractSet[object]], runs: Mapping[Row, int]) -> Row:
    """Return the row that the others are variants of: least different from them; of equal ones that of most runs."""
    return min(settings, key=lambda row: (sum(len(settings[row] - other) for other in settings.values()), -runs[row]))


def _settings(record: Record) -> dict[str, str]:
    """Return field -> value as JSON of everything in a plan that is a setting."""
    plan = record.plan.model_dump(mode="json", exclude=set(IDENTITY))
    return {name: json.dumps(value) for name, value in flat(plan).items()}


def _differing(records: Sequence[Record], plans: Mapping[str, Fields]) -> Key:
    """Return the fields in which two runs of one task differ, in the order of the plan."""
    by_task: dict[str, list[Fields]] = {}
    for record in records:
        by_task.setdefault(record.plan.task, []).append(plans[record.plan_hash])
    names = dict.fromkeys(name for plan in plans.values() for name in plan)
    return tuple(
        name for name in names if any(len({plan.get(name, UNSET) for plan in of}) > 1 for of in by_task.values())
    )


def _leading(records: Sequence[Record], plans: Mapping[str, Fields], differing: Key) -> Key:
    """Return the fields that rows are named by: what follows from another differing field is left out.

    A variant's name alone, where it tells apart all that the other fields do.
    """
    if "variant" in differing and _as_many(records, plans, ("variant",), differing):
        return ("variant",)
    lengths = [name for name in LENGTHS if name in differing]
    if len(lengths) > 1:
        spare = max(lengths, key=lambda name: len(_grouped(records, plans, (name,))))
        spare = lengths[1] if spare == lengths[0] and _as_many(records, plans, (lengths[0],), (lengths[1],)) else spare
        differing = tuple(name for name in differing if name != spare)
    return tuple(name for name in differing if not any(other in differing for other in FOLLOWS.get(name, ())))


def _as_many(records: Sequence[Record], plans: Mapping[str, Fields], *chosen: Key) -> bool:
    return len({len(_grouped(records, plans, fields)) for fields in chosen}) == 1


def _grouped(records: Sequence[Record], plans: Mapping[str, Fields], fields: Key) -> dict[Settings, list[Record]]:
    """Return the runs by their values of `fields`.

    Settings that a profile gives task by task are one row: values of which every task has one, and no value stands
    in all of them, are called `BY_TASK`.
    """
    keys = {h: tuple(plan.get(name, UNSET) for name in fields) for h, plan in plans.items()}
    by_task: dict[str, set[Key]] = {}
    for record in records:
        by_task.setdefault(record.plan.task, set()).add(keys[record.plan_hash])
    everywhere = set.intersection(*by_task.values())
    rest = {task: found - everywhere for task, found in by_task.items()}
    spread = set().union(*rest.values())
    joined: dict[Key, Key] = {}
    if len(spread) > 1 and all(len(found) <= 1 for found in rest.values()):
        columns = zip(*spread, strict=True)
        joined = dict.fromkeys(spread, tuple(c[0] if len(set(c)) == 1 else BY_TASK for c in columns))
    rows: dict[Settings, list[Record]] = {}
    for record in records:
        key = keys[record.plan_hash]
        rows.setdefault(Settings(fields, joined.get(key, key)), []).append(record)
    return rows


def _clashes(records: Iterable[Record]) -> bool:
    places = [(record.plan.task, record.plan.seed) for record in records]
    return len(places) != len(set(places))


def _renamed(entry: MethodEntry, rows: Mapping[Settings, Sequence[Record]], catalogue: Catalogue) -> dict[str, Record]:
    """Return plan hash -> record under its row's name."""
    usual, words = _usual(rows), _told(rows)
    found = {}
    for row, records in rows.items():
        suite = catalogue.suite(records[0].plan.suite)
        title = suite.yardstick_title if entry.yardstick and suite.yardstick_title else entry.title
        changes: dict[str, Any] = {
            "name": f"{entry.name}{ROW}{row.name}",
            "title": ", ".join(filter(None, (title, words[row]))),
        }
        changes |= {} if row == usual else {"slot": None, "yardstick": False}
        mine = entry.model_copy(update=changes)
        for record in records:
            known = record.catalogue or Catalogue()
            known = known.model_copy(update={"methods": [*known.methods, mine]})
            plan = record.plan.model_copy(update={"method": mine.name})
            found[record.plan_hash] = record.model_copy(update={"plan": plan, "catalogue": known})
    return found


def _told(rows: Mapping[Settings, Sequence[Record]]) -> dict[Settings, str]:
    """Return what each row's title says of its settings: all that differs, or of many what is not the base row's.

    The base differs from the others in least, as in a study that changes one setting at a time; its title says nothing.
    """
    every = {row: row.words for row in rows}
    if min(len(rows), len(next(iter(rows)).fields)) < MANY:
        return every
    settings = {row: set(zip(row.fields, row.values, strict=True)) for row in rows}
    base = base_of(settings, {row: len(records) for row, records in rows.items()})
    found = {row: row.words_beside(base) for row in rows}
    return found if len(set(found.values())) == len(rows) else every


def _usual(rows: Mapping[Settings, Sequence[Record]]) -> Settings:
    """Return the row that keeps the method's looks and role: of the most runs, the nearest to the defaults, by name."""

    def unusual(row: Settings) -> int:
        return sum(value != _default(field) for field, value in zip(row.fields, row.values, strict=True))

    def changed(row: Settings) -> int:
        return len(rows[row][0].plan.training.model_dump(exclude_defaults=True))

    return min(rows, key=lambda row: (-len(rows[row]), unusual(row), changed(row), row.name))


def _default(field: str) -> str:
    part, _, name = field.partition(".")
    known = TrainingPlan.model_fields.get(name) if part == "training" else None
    return json.dumps(known.default) if known is not None and not known.is_required() else UNSET


def _short(field: str) -> str:
    """Return a field's name without the part of the plan that it stands in, where that says nothing."""
    part, _, name = field.partition(".")
    return name if part in ("training", "method_config") else field


def _bare(value: str) -> str:
    """Return a value as it stands in a row's name, where blanks, quotes and commas would read as something else."""
    found = value if value == BY_TASK else json.loads(value)
    if isinstance(found, float) and found.is_integer():
        return str(int(found))
    if isinstance(found, list):
        return "+".join(_bare(json.dumps(each)) for each in found) or "none"
    return re.sub(r"[\s\"',]+", "_", found) if isinstance(found, str) else value


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(words for field, value in pairs if (words := _words(field, value)))


def _words(field: str, value: str) -> str:
    name = _short(field).replace(".name", "").replace(".", " ").replace("_", " ")
    if value == BY_TASK:
        return f"{name} {BY_TASK}"
    found = json.loads(value)
    if found is None:
        return ""
    if field in WORDS:
        return WORDS[field](found)
    if isinstance(found, bool):
        return name if found else f"no {name}"
    if isinstance(found, (int, float)):
        return f"{name} {found:g}" if abs(found) < 1e5 else f"{name} {found:,}"
    return f"{name} {found if isinstance(found, str) else json.dumps(found)}"
