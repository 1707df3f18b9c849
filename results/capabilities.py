"""The record of the capability pack: what each method, or one optimizer, can do, each answer found by a check."""

from __future__ import annotations

from typing import Literal

from results.schema import Environment, Strict

Answer = Literal["yes", "no", "refused", "not applicable"]
"""`no`: the check failed. `refused`: a clear error when asked. `not applicable`: there is nothing to ask for."""


class Answered(Strict):
    """What one check found."""

    check: str
    answer: Answer
    reason: str


class Capabilities(Strict):
    """All answers about one method or optimizer."""

    name: str
    title: str
    cells: list[Answered]

    @property
    def passed(self) -> bool:
        """Whether no check failed and one at least was answered yes: what refuses everything has shown nothing."""
        answers = {cell.answer for cell in self.cells}
        return "yes" in answers and "no" not in answers

    @property
    def checks(self) -> list[str]:
        """The checks that were answered, in order."""
        return [cell.check for cell in self.cells]

    def cell(self, check: str) -> Answered:
        """Return what `check` found.

        Raises:
            KeyError: there is no such check.
        """
        for cell in self.cells:
            if cell.check == check:
                return cell
        raise KeyError(f"{check!r}: checks are {', '.join(self.checks)}")

    def __str__(self) -> str:
        wide = max((len(cell.check) for cell in self.cells), default=0)
        return "\n".join(
            [self.title, *(f"  {cell.check:<{wide}}  {cell.answer}: {cell.reason}" for cell in self.cells)]
        )


class CapabilityMatrix(Strict):
    """The capability matrix: a row a method."""

    schema_version: Literal[1] = 1
    started_at: str
    finished_at: str
    environment: Environment
    networks: list[str]
    compile_backend: str
    rows: list[Capabilities]
