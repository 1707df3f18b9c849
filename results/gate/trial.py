"""The record of the mutation trial: which seeded faults the gate saw, and by what."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from results.gate.quantities import Kind
from results.schema import Strict

FILE = "trial.json"


class Shown(Strict):
    """The most telling finding of a fault, as text."""

    sort: str
    cell: str
    quantity: str
    kind: Kind
    before: str
    after: str
    cause: str


class TrialRow(Strict):
    """One seeded fault, or one change that changes nothing, and what the gate said."""

    name: str
    what: str
    files: list[str]
    no_op: bool
    runs: list[str] = Field(description="labels of the gate's runs that were made with it")
    caught: bool = Field(description="the gate fired, and the first finding names a cell where the fault is")
    fired: bool = Field(description="the gate fired at all")
    first: Shown | None
    findings: int
    right_cells: list[str] = Field(description="cells with findings where the fault is")
    wrong_cells: list[str] = Field(description="cells with findings where the fault is not")
    expected: Literal["exact", "peak", "loss", "gradient", "score", "none"]
    seconds: float
    error: str | None = Field(default=None, description="what the runs' process said, where it failed as a whole")


class Trial(Strict):
    """All rows of a trial on one state of the code."""

    schema_version: Literal[1] = 1
    commit: str | None
    fingerprint: str
    rows: list[TrialRow]
