"""The settings of the papers' own runs, each with its source: what the profile `paper` runs and is held against.

A statement gives settings for some methods, ranks and places (tasks of fine-tuning, model sizes of pre-training; none
named: all). Where several speak of one setting, the last one counts, so that the special stands after the general.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, JsonValue, RootModel, ValidationError

from results.published import FOLDER, PublishedError
from results.schema import Strict

Status = Literal["stated", "elsewhere", "chosen"]
MEANINGS: dict[Status, str] = {
    "stated": "by the paper whose table is compared, or by its release",
    "elsewhere": "by another source: the compared table does not state it",
    "chosen": "own choice, since no source states it; a search can replace it",
}


class Statement(Strict):
    """Some settings of the published runs, under the names that profiles use, and where they stand."""

    values: dict[str, JsonValue] = Field(min_length=1, description="setting -> value; a method's own as config.<name>")
    source: str = Field(min_length=1)
    status: Status
    methods: list[str] = []
    ranks: list[int] = []
    places: list[str] = []

    def speaks_of(self, method: str, rank: int | None, place: str) -> bool:
        """Whether it is about the runs of a method at a rank in a task or at a size; rank None: of whatever rank."""
        return (
            (not self.methods or method in self.methods)
            and (not self.ranks or rank is None or rank in self.ranks)
            and (not self.places or place in self.places)
        )


class Given(NamedTuple):
    """One setting of one published run."""

    value: JsonValue
    statement: Statement


class Protocol(Strict):
    """How the runs behind one table were made, and how far a number may lie from it to count as the same."""

    source: str = Field(min_length=1, description="the table that is compared")
    places: Literal["tasks", "sizes"] = Field(description="what the places of its statements are")
    margins: dict[str, float] = Field(description="quantity -> equivalence margin: points, or a share of a perplexity")
    margins_source: str = Field(min_length=1)
    statements: list[Statement] = Field(min_length=1)

    def settings(self, method: str, rank: int | None, place: str) -> dict[str, Given]:
        """Return setting -> value with its source, for the runs of a method at a rank in a task or at a size."""
        found: dict[str, Given] = {}
        for statement in self.statements:
            if statement.speaks_of(method, rank, place):
                found |= {name: Given(value, statement) for name, value in statement.values.items()}
        return found

    @property
    def ranks(self) -> list[int]:
        """Return the ranks that some settings are given for; none where no setting depends on the rank."""
        return sorted({rank for statement in self.statements for rank in statement.ranks})

    @property
    def stated_places(self) -> list[str]:
        """Return the tasks or sizes that the source itself speaks of by name."""
        named = [place for each in self.statements if each.status == "stated" for place in each.places]
        return list(dict.fromkeys(named))

    def margin(self, quantity: str, published: float) -> float:
        """Return the equivalence margin of a published number, in its unit; 0 for a quantity without one."""
        size = self.margins.get(quantity, 0.0)
        return size * published if quantity == "perplexity" else size


class Protocols(RootModel[dict[str, Protocol]]):
    """Suite -> the protocol of its published runs."""


@cache
def read_protocols(path: Path = FOLDER / "protocols.json") -> dict[str, Protocol]:
    """Return suite -> the protocol of its published runs.

    Raises:
        PublishedError: naming the file, the field and the rule, such as a statement without a source.
    """
    try:
        return Protocols.model_validate_json(path.read_bytes()).root
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise PublishedError(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
