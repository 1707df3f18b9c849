"""What a method, a metric, a task and a suite are for a reader: titles, order, directions, formats.

Their owners say it, records embed what they need of it, reports read it from records alone. Records of before that are
described by the committed `results/reference/catalogue.json`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from results.strict import Strict

COMMITTED = Path(__file__).parent / "reference" / "catalogue.json"
UNLISTED = 1000
"""Order of what no owner gave a place: after everything that has one, by name."""

Name = Annotated[str, Field(min_length=1)]
Title = Annotated[str, Field(min_length=1, pattern=r"\S")]


class CatalogueError(ValueError):
    """A catalogue that does not say what is needed; the text names the entry and the field."""


class MethodEntry(Strict):
    """One training method."""

    name: Name
    title: Title
    arxiv: str | None = None
    order: int = Field(default=UNLISTED, ge=0, description="place among the rows of tables")
    slot: int | None = Field(default=None, ge=0, description="colour and marker kept for it; None: the next free ones")
    yardstick: bool = Field(default=False, description="what all others are measured against")
    control: bool = Field(default=False, description="no contender: shows what is reached without training a matrix")
    bases: bool = Field(default=False, description="keeps bases that gradients are projected on")
    factors: bool = Field(default=False, description="trains factors beside a frozen weight")
    drawn: bool = Field(default=False, description="projects gradients on what is drawn at a rank, and keeps no basis")

    @property
    def ranked(self) -> bool:
        """Whether it has a rank at all; a method without one belongs to the tables of every rank."""
        return self.bases or self.factors or self.drawn


class MetricEntry(Strict):
    """One metric; a value is printed as `format(scale * value, format)`."""

    name: Name
    title: Title = Field(description="as in running text: a table capitalises it")
    better: Literal["higher", "lower"]
    unit: str = ""
    format: str = ".3f"
    scale: float = 1.0

    @property
    def head(self) -> str:
        """Title of a column."""
        return self.title[0].upper() + self.title[1:] + (f", {self.unit}" if self.unit else "")

    @property
    def words(self) -> str:
        """Its unit in running text."""
        return "percent" if self.unit == "%" else self.unit or "its own unit"

    def gain(self, value: float) -> float:
        """Return the value so that more is better: itself, or its negative."""
        return value if self.better == "higher" else -value

    def text(self, value: float, sign: str = "") -> str:
        """Return a value as printed, "-" as a minus sign; `sign` "+" for differences."""
        shown = format(self.scale * value, sign + self.format)
        return format(0.0, self.format) if not float(shown.replace(",", "")) else shown.replace("-", "−")


class TaskEntry(Strict):
    """One task of a suite."""

    name: Name
    title: Title
    order: int = Field(default=UNLISTED, ge=0)
    main_metric: Name = Field(description='"split/metric" that stands for the task')
    metrics: list[Name] = Field(min_length=1, description="without their splits")
    readings: dict[str, list[Name]] = Field(
        default={}, description="other ways in which papers read it: name -> keys whose mean is the score"
    )
    official_rows: dict[str, int] = Field(
        default={}, description="rows of each evaluated split in the official release"
    )
    averaged: Literal["always", "by some", "never"] = Field(
        default="never", description="whether the suite's average is over it"
    )
    constant: str | None = Field(default=None, description="title of the best prediction that looks at nothing")
    constant_rule: str | None = Field(default=None, description="what that predicts")


class SuiteEntry(Strict):
    """One suite; in a record it holds the record's own task and metrics alone."""

    name: Name
    title: Title
    yardstick_title: Title | None = Field(default=None, description="what the yardstick is called here")
    average: str | None = Field(default=None, description="plug-in of the reports that makes its average; None: none")
    compared: str | None = Field(default=None, description="metric of differences; None: the main one")
    notes: list[str] = Field(default=[], description="what a reader of its scores must know")
    metrics: list[MetricEntry] = []
    tasks: list[TaskEntry] = []

    def metric(self, key: str) -> MetricEntry:
        """Return the metric of "split/metric".

        Raises:
            CatalogueError: the suite has no such metric, so that nobody knows which way it is better.
        """
        name = key.rpartition("/")[2]
        found = next((metric for metric in self.metrics if metric.name == name), None)
        if found is None:
            known = [metric.name for metric in self.metrics]
            raise CatalogueError(
                f"metric {name!r} of suite {self.name!r} is in no catalogue{_known(name, known)}: "
                "run it again with code that describes it"
            )
        return found

    def task(self, name: str) -> TaskEntry | None:
        """Return the task; None where no catalogue has it."""
        return next((task for task in self.tasks if task.name == name), None)

    def task_title(self, name: str) -> str:
        """Return the task's title; one that no catalogue has is printed under its own name."""
        found = self.task(name)
        return name if found is None else found.title

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Return the names of tasks in the suite's order."""
        orders = {task.name: task.order for task in self.tasks}
        return sorted(set(names), key=lambda name: (orders.get(name, UNLISTED), name))

    def reduced(self, task: str) -> SuiteEntry:
        """Return what a record of one task needs."""
        mine = [entry for entry in self.tasks if entry.name == task]
        used = {metric for entry in mine for metric in entry.metrics}
        return self.model_copy(
            update={"tasks": mine, "metrics": [metric for metric in self.metrics if metric.name in used]}
        )


class Catalogue(Strict):
    """Methods and suites."""

    schema_version: Literal[1] = 1
    methods: list[MethodEntry] = []
    suites: list[SuiteEntry] = []

    def method(self, name: str) -> MethodEntry:
        """Return the method; one that no catalogue has is printed under its own name."""
        return next((entry for entry in self.methods if entry.name == name), MethodEntry(name=name, title=name))

    def suite(self, name: str) -> SuiteEntry:
        """Return the suite; one that no catalogue has is printed under its own name."""
        return next((entry for entry in self.suites if entry.name == name), SuiteEntry(name=name, title=name))

    def ordered(self, names: Iterable[str]) -> list[str]:
        """Return the names of methods in the order of rows, controls last."""
        found = {name: self.method(name) for name in names}
        return sorted(found, key=lambda name: (found[name].control, found[name].order, _natural(name)))

    def yardstick(self, names: Iterable[str]) -> str | None:
        """Return the yardstick among the names of methods; None where none of them is."""
        return next((name for name in self.ordered(names) if self.method(name).yardstick), None)


E = TypeVar("E", MethodEntry, MetricEntry, TaskEntry, SuiteEntry)


def _natural(name: str) -> list[tuple[float, str]]:
    """Return by what names are sorted: numbers in them by size, so that "alpha=8" comes before "alpha=16"."""
    parts = re.split(r"(?<![\w.])(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", name)
    return [(float(part), "") if at % 2 else (-1.0, part) for at, part in enumerate(parts)]


def _known(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    return f" (known: {', '.join(known) or 'none'}{f'; nearest: {near[0]}' if near else ''})"


def joined(catalogues: Iterable[Catalogue | None]) -> Catalogue:
    """Return all of them as one; of what several describe, as the last one does."""
    methods: dict[str, MethodEntry] = {}
    suites: dict[str, SuiteEntry] = {}
    metrics: dict[str, dict[str, MetricEntry]] = {}
    tasks: dict[str, dict[str, TaskEntry]] = {}
    for each in catalogues:
        if each is not None:
            methods |= {entry.name: entry for entry in each.methods}
            for suite in each.suites:
                suites[suite.name] = suite
                metrics.setdefault(suite.name, {}).update({entry.name: entry for entry in suite.metrics})
                tasks.setdefault(suite.name, {}).update({entry.name: entry for entry in suite.tasks})
    whole = [
        suite.model_copy(update={"metrics": [*metrics[name].values()], "tasks": [*tasks[name].values()]})
        for name, suite in suites.items()
    ]
    return Catalogue(methods=[*methods.values()], suites=whole)


def catalogue_of(embedded: Iterable[Catalogue | None]) -> Catalogue:
    """Return the committed catalogue, and in its place what records embed."""
    return joined([committed(), *embedded])


def entry_of(kind: type[E], owner: str, fields: Mapping[str, object]) -> E:
    """Return an entry from what its owner says.

    Raises:
        CatalogueError: a field is missing or wrong; the text names owner, field and rule.
    """
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise CatalogueError(
            f"{owner}: {where} {first.get('input')!r}: {first['msg']}; tables print it: say it there"
        ) from error


def read_catalogue(path: Path) -> Catalogue:
    """Return the catalogue in a file.

    Raises:
        CatalogueError: it cannot be read, or is none; the text names the entry and the field.
    """
    try:
        return Catalogue.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CatalogueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise CatalogueError(f"{path}: no catalogue: {where}: {first['msg']}") from error


@cache
def committed() -> Catalogue:
    """Return the catalogue of records that embed none."""
    return read_catalogue(COMMITTED)
