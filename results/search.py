"""The record of a search: every method's ranges, its trials with their held-out scores, and what was chosen.

It lies as `search.json` beside the records of its runs, which it names by their plan hashes, and beside the journal
that the search goes on from. Readers of it need neither torch nor the journal's library.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from results.schema import Seconds, Status
from results.store import read_single, write_single
from results.strict import Strict

FILE = "search.json"
EDGE = 0.1
"""Share of a range, in its logarithm, at either end that counts as its edge."""
OF_METHODS = ("spaces", "results", "choices")
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
    first: int = Field(default=0, ge=0, description="place in the sequence of points of the round's first one")


class AtLength(Strict):
    """A trial again, as long as the runs that its rates are chosen for."""

    plans: dict[str, str] = Field(description="task -> hash of its run's plan")
    status: Status | None = Field(description="the worst of its runs; None: not all of them have a final record")
    score: float | None = Field(description="as a trial's")
    fallen: list[str] = Field(default=[], description="tasks on which it is no better than the constant prediction")
    wall_s: Seconds | None = Field(description="as a trial's")


class Trial(Strict):
    """One point of the unit square for one method: a run for each task of the search."""

    method: str
    round: int = Field(ge=0)
    number: int = Field(ge=0, description="place of the point among its round's, which are the same for every method")
    point: tuple[float, float] = Field(description="in the unit square: (learning rate, learning rate of the rest)")
    learning_rate: float | None = Field(description="None: the method trains no matrix")
    rest_learning_rate: float
    plans: dict[str, str] = Field(description="task -> hash of its run's plan")
    status: Status | None = Field(description="the worst of its runs; None: not all of them have a final record")
    score: float | None = Field(description="mean over the tasks of the last held-out score; None: none, or no number")
    wall_s: Seconds | None = Field(description="of its runs together; None: one of them says nothing")
    at_length: AtLength | None = Field(default=None, description="None: nobody asked")


class Choice(Strict):
    """The best trial of a method, over all rounds; ties go to the earlier one.

    Where the search confirms, the first that is no worse at the runs' own length and has not fallen on a task there;
    where none is, of those with the fewest fallen the best there.
    """

    method: str
    round: int
    number: int
    learning_rate: float | None
    rest_learning_rate: float
    score: float = Field(description="of the trial")
    confirmed: float | None = Field(default=None, description="at the runs' own length; None: nobody asked")
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
    confirm: int = Field(default=0, description="the most trials of a method that are asked at the runs' own length")
    confirm_tasks: list[str] = Field(default=[], description="tasks that they are asked on there beside the search's")
    metrics: dict[str, str] = Field(description="task -> metric that its score is in, on held-out train rows")
    better: Literal["higher", "lower"] = Field(description="which scores are")
    spaces: list[Space]
    results: list[Trial] = Field(description="by method, round and number")
    choices: list[Choice] = Field(description="one of each method whose runs all have a result")


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


def with_others(found: Search, earlier: Search | None) -> Search:
    """Return a search with what an earlier record of it says of methods that are not among its own."""
    if earlier is None:
        return found
    mine = {space.method for space in found.spaces}
    lists = {name: [each for each in getattr(earlier, name) if each.method not in mine] for name in OF_METHODS}
    return found.model_copy(update={name: [*kept, *getattr(found, name)] for name, kept in lists.items()})


def joined(searches: Iterable[Search]) -> list[Search]:
    """Return searches, as one those that gave the same points and budget to other methods, in folders of their own."""
    found: list[Search] = []
    for search in searches:
        alike = [place for place, other in enumerate(found) if _alike(other, search)]
        mine = {space.method for space in search.spaces}
        place = next((at for at in alike if mine.isdisjoint(each.method for each in found[at].spaces)), None)
        if place is None:
            found.append(search)
        else:
            found[place] = with_others(search, found[place])
    return found


def _alike(one: Search, other: Search) -> bool:
    if _asked(one) != _asked(other):
        return False
    points = {(trial.round, trial.number): trial.point for trial in one.results}
    return all(points.get((trial.round, trial.number), trial.point) == trial.point for trial in other.results)


def _asked(search: Search) -> dict[str, Any]:
    return {name: value for name, value in search if name not in OF_METHODS}
