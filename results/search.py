"""The record of a search: every method's ranges, its trials with their held-out scores, and what was chosen.

It lies as `search.json` beside the records of its runs, which it names by their plan hashes, and beside the journal
that the search goes on from. Readers of it need neither torch nor the journal's library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from results.schema import Seconds, Status
from results.store import read_single, write_single
from results.strict import Strict

FILE = "search.json"
EDGE = 0.1
"""Share of a range, in its logarithm, at either end that counts as its edge."""
RATES = ("learning_rate", "rest_learning_rate")
"""The two sides of the unit square, in the order of a point's coordinates."""


class Range(Strict):
    """A range of learning rates, searched in their logarithm."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    source: str = Field(description="where its middle comes from")


class Space(Strict):
    """What a method's trials of one round are drawn from."""

    method: str
    round: int = Field(ge=0, description="0 first; one more each time that the ranges were widened, for all methods")
    learning_rate: Range | None = Field(description="of the method's matrices; None: it trains none")
    rest_learning_rate: Range = Field(description="of what every method trains alike")


class Trial(Strict):
    """One point of the unit square for one method: a run for each task of the search."""

    method: str
    round: int = Field(ge=0)
    number: int = Field(ge=0, description="place of the point in the sequence, which is the same for every method")
    point: tuple[float, float] = Field(description="in the unit square: (learning rate, learning rate of the rest)")
    learning_rate: float | None = Field(description="None: the method trains no matrix")
    rest_learning_rate: float
    plans: dict[str, str] = Field(description="task -> hash of its run's plan")
    status: Status | None = Field(description="the worst of its runs; None: not all of them have a final record")
    score: float | None = Field(description="mean over the tasks of the last held-out score; None: none, or no number")
    wall_s: Seconds | None = Field(description="of its runs together; None: one of them says nothing")


class Choice(Strict):
    """The best trial of a method, over all rounds; ties go to the earlier one."""

    method: str
    round: int
    number: int
    learning_rate: float | None
    rest_learning_rate: float
    score: float
    edges: list[str] = Field(description="rates that lie within EDGE of an end of their range: learning_rate low, ...")


class Search(Strict):
    """A search with an equal budget: the same points of the unit square for every method."""

    schema_version: Literal[1] = 1
    suite: str
    profile: str
    rank: int
    tasks: list[str]
    seed: int = Field(description="of the runs")
    sampler: str = Field(description="what the points are, with its seed")
    trials: int = Field(gt=1, description="of every method in every round")
    metrics: dict[str, str] = Field(description="task -> metric that its score is in, on held-out train rows")
    better: Literal["higher", "lower"] = Field(description="which scores are")
    spaces: list[Space]
    results: list[Trial] = Field(description="by method, round and number")
    choices: list[Choice] = Field(description="one of each method whose trials all have a result")


def read_search(folder: Path) -> Search | None:
    """Return the search recorded in `folder`, None where there is none.

    Raises:
        StoreError: the file is no such record.
    """
    path = folder / FILE
    return read_single(path, Search, "a record of a search") if path.exists() else None


def write_search(folder: Path, search: Search) -> Path:
    """Write the record into `folder` and return its path."""
    return write_single(folder / FILE, search)
