"""In what else than the method two rows of a report differ: what a reader must know before a difference is believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reports.records.selection import spoken, without_epochs
from results.schema import Plan, flat

if TYPE_CHECKING:
    from reports.records.report_runs import Context

OWN = ("method", "method_config", "seed", "variant", "purpose")
"""Parts of a plan that are the method's own, or say which run of a row it is."""
TUNED = "training.learning_rate"
RULE = "training.rest_learning_rate"


def settings_beside(plan: Plan, searched: bool) -> dict[str, Any]:
    """Return the settings of a plan that two methods of a comparison should share, by dotted name.

    Learning rates that were `searched` may differ. Whether the rest has a rate of its own is a rule, and may not.
    """
    found = flat(plan.model_dump(mode="json", exclude={*OWN}))
    if found[RULE] is None:
        found[RULE] = "one rate"
    elif searched:
        found[RULE] = "its own rate"
    return {name: value for name, value in found.items() if not (searched and name == TUNED)}


Settings = dict[str, set[str]]


@dataclass(frozen=True)
class Beside:
    """The settings of every row of a report, and where they come from.

    Attributes:
        settings: row -> task -> setting -> its values over seeds.
        origins: row -> what the search behind its settings was; empty where no trials are among the records.
    """

    settings: dict[str, dict[str, Settings]]
    origins: dict[str, dict[str, str]]

    def differing(self, first: str, second: str) -> tuple[str, ...]:
        """Return "setting value and value" for every setting in which two rows differ on a task both have."""
        ours, theirs = self.settings[first], self.settings[second]
        found: dict[str, tuple[set[str], set[str]]] = {}
        for task in sorted(set(ours) & set(theirs)):
            for name in sorted({*ours[task], *theirs[task]}):
                mine, other = ours[task].get(name, set()), theirs[task].get(name, set())
                if mine != other:
                    sides = found.setdefault(name, (set(), set()))
                    sides[0].update(mine)
                    sides[1].update(other)
        texts = [
            f"{_spoken(name)} {_joined(mine)} and {_joined(other)}"
            for name, (mine, other) in without_epochs(found).items()
        ]
        here, there = self.origins.get(first, {}), self.origins.get(second, {})
        return (*texts, *(f"{n} {here[n] or 'none'} and {there[n] or 'none'}" for n in here if here[n] != there[n]))


def beside(context: Context) -> Beside:
    """Return the settings of every row of a report."""
    tuning = context.tuning
    found: dict[str, dict[str, Settings]] = {row: {} for row in context.methods}
    for record in context.records:
        place = found[record.plan.method].setdefault(record.plan.task, {})
        for name, value in settings_beside(record.plan, tuning is not None).items():
            place.setdefault(name, set()).add(str(value))
    return Beside(found, {} if tuning is None else {r: tuning.origin(r, context.records) for r in context.methods})


def _spoken(name: str) -> str:
    return "learning rate of the rest" if name == RULE else spoken(name)


def _joined(values: set[str]) -> str:
    return ", ".join(sorted(values)) or "unset"
