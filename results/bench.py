"""The record of the speed and memory bench: every timing, and the claims that are read from them."""

from __future__ import annotations

import statistics
from typing import Literal

from pydantic import JsonValue

from results.schema import Bytes, Environment, Seconds, Strict

Rule = Literal["at most", "at least"]
Group = Literal["layer", "refresh", "step", "methods", "model"]
FORMER = "former"
"""Begins the name of a candidate that is our layer as an earlier commit had it; `settings["against"]` is its hash."""


class Candidate(Strict):
    """One way of doing a cell's work; `missing` says why it was not measured."""

    name: str
    title: str
    seconds: list[Seconds] = []
    peak_bytes: Bytes | None = None
    missing: str | None = None


class Ratio(Strict):
    """A ratio with one value a round, and the target it is held against; without a target it is only stated."""

    what: str
    ours: str
    peer: str
    values: list[float]
    rule: Rule | None = None
    target: float | None = None

    @property
    def median(self) -> float | None:
        """The middle value; None where nothing was measured."""
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The quartiles; None under two values."""
        if len(self.values) < 2:
            return None
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    @property
    def met(self) -> bool | None:
        """Whether the median keeps to the target; None without a target or a value."""
        if self.target is None or self.rule is None or self.median is None:
            return None
        return self.median <= self.target if self.rule == "at most" else self.median >= self.target


class BenchCell(Strict):
    """One comparison on one shape or model. `agreement`: relative differences of outputs, none above the limit."""

    group: Group
    label: str
    settings: dict[str, JsonValue]
    candidates: list[Candidate]
    claims: list[Ratio]
    agreement: dict[str, float]
    agreement_limit: float
    note: str | None = None

    @property
    def former(self) -> list[str]:
        """The titles of our layer as an earlier commit had it."""
        return [each.title for each in self.candidates if each.name.startswith(FORMER)]

    @property
    def agrees(self) -> bool:
        """Whether all candidates computed the same, within the limit."""
        return all(value <= self.agreement_limit for value in self.agreement.values())


class Bench(Strict):
    """One run of the bench."""

    schema_version: Literal[1] = 1
    started_at: str
    finished_at: str
    command: str
    quick: bool
    environment: Environment
    peers: dict[str, str | None]
    load_average: float | None
    cells: list[BenchCell]
