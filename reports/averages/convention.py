"""How a run becomes a score, and which scores an average is over: papers differ, so that a table names what it uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from results.catalogue import SuiteEntry
from results.choice import check_choice

EPOCHS, SEEDS = ("last", "best"), ("same", "shared")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SEED_WORDS = {"same": "", "shared": ", average over the seeds that all tasks have"}


@dataclass(frozen=True)
class Convention:
    """Every choice that moves a score or an average of a suite.

    Attributes:
        suite: what the suite says of its tasks.
        epoch: "last" evaluation, or the "best" one (chosen on the evaluated split itself, so optimistic).
        tasks: how many tasks the average is over: all, or all but those that some papers leave out.
        readings: (task, reading) for each task that papers read in several ways, in the suite's order.
        seeds: "same": an average exists only if every task has the same seeds; "shared": seeds that were not run on
            some task are left out. A seed that was run and brought no score leaves no average under either.
    """

    suite: SuiteEntry = field(compare=False, repr=False)
    epoch: Literal["last", "best"]
    tasks: int
    readings: tuple[tuple[str, str], ...]
    seeds: Literal["same", "shared"]

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks of the average, in the suite's order."""
        return members(self.suite, self.tasks)

    def reading(self, task: str) -> str | None:
        """Return the reading of a task that has several, None for a task that is read by its main metric alone."""
        return dict(self.readings).get(task)

    def keys(self, task: str) -> tuple[str, ...]:
        """Return the "split/metric" keys whose mean is the task's score; none for a task that no catalogue has."""
        found = self.suite.task(task)
        if found is None:
            return ()
        chosen = self.reading(task)
        return (found.main_metric,) if chosen is None else tuple(found.readings[chosen])

    def choices(self) -> dict[str, object]:
        """Return every choice by its name, without that of the seeds."""
        return {"epoch": self.epoch, "tasks": self.tasks, **dict(self.readings)}

    def words(self) -> str:
        """Return the convention as one sentence without a full stop."""
        shown = self.names or tuple(self.suite.ordered(task.name for task in self.suite.tasks))
        plain = [self._spoken(task) for task in shown if self.reading(task) is None]
        common = Counter(plain).most_common(1)[0] if plain else ("", 0)
        parts = [] if len(self.names) < 2 else [self._count()]
        parts.append(
            "last evaluation" if self.epoch == "last" else "best evaluation (chosen on the same split: optimistic)"
        )
        for task in shown:
            if self.reading(task) is not None or self._spoken(task) != common[0] or common[1] < 2:
                parts.append(f"{self.suite.task_title(task)} {self._spoken(task)}")
        parts += [f"all others {common[0]}"] if common[1] > 1 else []
        return ", ".join(parts) + (SEED_WORDS[self.seeds] if self.names else "")

    def _count(self) -> str:
        everything = members(self.suite, None)
        left_out = [self.suite.task_title(task) for task in everything if task not in self.names]
        number = NUMBERS[len(self.names)] if len(self.names) < len(NUMBERS) else str(len(self.names))
        return f"{number} tasks" + (f" ({', '.join(left_out)} left out)" if left_out else "")

    def _spoken(self, task: str) -> str:
        keys, reading = self.keys(task), self.reading(task)
        titles = list(dict.fromkeys(self.suite.metric(key).title for key in keys))
        if len(keys) > 1 and len(titles) > 1:
            return f"mean of {' and '.join(titles)}"
        if len(keys) > 1:
            parts = [key.partition("/")[0].rpartition("_")[2] for key in keys]
            return f"mean of {' and '.join(parts)} {titles[0]}"
        of_split = reading is not None and reading != keys[0].rpartition("/")[2]
        return f"{reading} {titles[0]}" if of_split else titles[0]


def members(suite: SuiteEntry, tasks: int | None) -> tuple[str, ...]:
    """Return the tasks that the suite's average is over, in order: `tasks` of them, or all."""
    averaged = [task for task in suite.tasks if task.averaged != "never"]
    if tasks is not None and tasks < len(averaged):
        averaged = [task for task in averaged if task.averaged == "always"]
    return tuple(suite.ordered(task.name for task in averaged))


def counts(suite: SuiteEntry) -> tuple[int, ...]:
    """Return how many tasks an average may be over, fewest first."""
    always = sum(task.averaged == "always" for task in suite.tasks)
    return tuple(sorted({always, len(members(suite, None))}))


def choices(suite: SuiteEntry) -> dict[str, tuple[object, ...]]:
    """Return what may be chosen for a suite, without the seeds: name -> values, the usual one first but for tasks."""
    read = {task.name: tuple(task.readings) for task in suite.tasks if task.readings}
    ordered = {name: read[name] for name in suite.ordered(read)}
    return {"epoch": EPOCHS, "tasks": counts(suite), **ordered}


def convention_of(
    suite: SuiteEntry, epoch: str = "last", tasks: int | None = None, seeds: str = "same", **readings: str
) -> Convention:
    """Return a convention; what is not chosen is as the suite itself has it: main metrics, the last evaluation.

    The tasks are then those that every average holds; a task that only some average stands apart (in GLUE: WNLI, whose
    validation rows are built against its train rows).

    Raises:
        ChoiceError: a value that is not among the allowed ones, or a task that has no readings.
    """
    allowed = choices(suite)
    number = counts(suite)[0] if tasks is None else tasks
    chosen: dict[str, object] = {"epoch": epoch, "tasks": number, **readings}
    for name in readings:
        check_choice(name, _tasks(allowed), f"task with several readings in {suite.title}")
    for name, value in chosen.items():
        check_choice(value, allowed[name], name)
    check_choice(seeds, SEEDS, "seeds")
    whole = tuple((task, str(chosen.get(task, allowed[task][0]))) for task in _tasks(allowed))
    return Convention(
        suite, cast('Literal["last", "best"]', epoch), number, whole, cast('Literal["same", "shared"]', seeds)
    )


def every_reading(suite: SuiteEntry, seeds: str) -> list[Convention]:
    """Return conventions that together read every task in each of its ways at both evaluations."""
    read = {task.name: tuple(task.readings) for task in suite.tasks if task.readings}
    found = []
    for epoch in EPOCHS:
        for at in range(max(map(len, read.values()), default=1)):
            readings = {task: names[min(at, len(names) - 1)] for task, names in read.items()}
            found.append(convention_of(suite, epoch, None, seeds, **readings))
    return found


def _tasks(allowed: Mapping[str, Sequence[object]]) -> tuple[str, ...]:
    return tuple(name for name in allowed if name not in ("epoch", "tasks"))
