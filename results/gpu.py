"""The record of the device check: what a CUDA device does with this code, a verdict a question."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from results.schema import Environment, Seconds, Strict

Answer = Literal["holds", "fails", "stated", "skipped"]
"""`stated`: measured, with nothing to hold it against. `skipped`: not asked, the words say why."""


class Verdict(Strict):
    """One question and its answer."""

    check: str
    what: str
    answer: Answer
    words: str
    numbers: dict[str, JsonValue] = {}


class GpuReport(Strict):
    """One run of the check. `rehearsal`: on a processor, with tiny shapes, to see that it works: no evidence."""

    schema_version: Literal[1] = 1
    started_at: str
    finished_at: str
    rehearsal: bool
    environment: Environment
    budget_s: Seconds
    seconds: dict[str, Seconds] = Field(description="spent by check")
    verdicts: list[Verdict]

    @property
    def failed(self) -> int:
        """How many answers are no."""
        return sum(verdict.answer == "fails" for verdict in self.verdicts)
