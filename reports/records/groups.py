"""The result runs by suite, profile, rank and what is equal among them: what one report each is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from reports.averages.convention import convention_of
from reports.records.report_runs import Context
from reports.records.selection import folder_name, table_rank
from reports.records.tuning import Tuning, tuning_of
from results.schema import EQUAL_MEMORY, Record
from results.search import Search


@dataclass(frozen=True)
class Group:
    """The result runs of one suite, profile and rank, with one batch for all (variant empty) or at equal memory."""

    suite: str
    profile: str
    rank: int | None
    records: tuple[Record, ...]
    tuning: Tuning | None = None
    variant: str = ""

    @property
    def name(self) -> str:
        """Stem of its files."""
        return folder_name(self.suite, self.profile, self.rank, self.variant)

    @property
    def title(self) -> str:
        """What is printed."""
        return self.context.heading

    @cached_property
    def context(self) -> Context:
        """The group as a report reads it.

        Averages need equal seeds on all tasks; where no method has such an average, the seeds that all tasks have are
        used.
        """
        return self.context_of(self.records)

    def context_of(self, records: Sequence[Record]) -> Context:
        """Return the context of the same runs, read with or without their curves."""
        context = Context(records, self.profile, self.rank, tuning=self.tuning)
        if not context.averages or any(found.scores for found in context.averages.values()):
            return context
        return Context(records, self.profile, self.rank, convention_of(context.entry, seeds="shared"), self.tuning)

    @property
    def is_micro(self) -> bool:
        """Whether the numbers say nothing about a paper."""
        return self.context.is_micro


def comparison_of(record: Record) -> str:
    """Return the variant that makes a comparison of its own: equal memory; empty for any other run."""
    return record.plan.variant if record.plan.variant == EQUAL_MEMORY else ""


def groups(records: Sequence[Record], searches: Sequence[Search] = ()) -> list[Group]:
    """Return the groups of the result runs; methods without a rank belong to every rank of their profile.

    Tuning runs among the records go to the groups whose settings they chose.
    """
    results = [record for record in records if record.plan.purpose == "result"]
    places = sorted({(record.plan.suite, record.plan.profile, comparison_of(record)) for record in results})
    found = []
    for suite, profile, variant in places:
        place = (suite, profile, variant)
        here = [r for r in results if (r.plan.suite, r.plan.profile, comparison_of(r)) == place]
        ranks: list[int | None] = [*sorted({rank for r in here if (rank := table_rank(r)) is not None})]
        for rank in ranks or [None]:
            mine = [r for r in here if table_rank(r) in (rank, None)]
            found.append(Group(suite, profile, rank, tuple(mine), tuning_of(records, searches, mine), variant))
    return found
