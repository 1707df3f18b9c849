"""A cluster that has no node yet which takes a run: waited for as long as is said, over a made-up engine and clock."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field

import pytest

from suites.engines import away
from suites.engines.cluster import seconds_of
from suites.engines.engine import Capacity, NoRoom, Resources
from suites.engines.room import awaited
from suites.suite import Runtime
from tests.suites.fake_engine import World, usual

SIZE = Resources(8, 1.0)
NONE = "no node has what a run asks for"


@dataclass
class Elastic(World):
    """A cluster whose first fitting node comes so many seconds after it was asked for; None: never."""

    comes_in: float | None = 0.0
    broken: bool = False
    asked: list[tuple[Resources, float]] = field(default_factory=list)

    def capacity(self, resources: Resources) -> Capacity:
        if self.broken and self.asked:
            raise ValueError("a node joined as 127.0.0.1")
        here = self.comes_in == 0 or (self.asked and self.comes_in is not None and self.now >= self.comes_in)
        if not here:
            raise NoRoom(NONE)
        return super().capacity(resources)

    def ask_for(self, resources: Resources) -> None:
        self.asked.append((resources, self.now))


def test_a_node_that_is_there_is_neither_asked_for_nor_waited_for() -> None:
    for wait_s in (None, 0.0, 60.0):
        world, lines = Elastic(usual), []  # type: tuple[Elastic, list[str]]
        assert awaited(world, SIZE, wait_s, lines.append, world.clock).where == "nowhere"
        assert (world.now, world.asked, lines) == (0.0, [], [])


def test_a_node_that_comes_in_time_is_asked_for_once_and_said_to_be_waited_for() -> None:
    world, lines = Elastic(usual, comes_in=31.0), []  # type: tuple[Elastic, list[str]]
    assert awaited(world, SIZE, 600.0, lines.append, world.clock).slots == 2
    assert world.asked == [(SIZE, 0.0)]
    assert 31 <= world.now < 40
    assert lines == [f"{NONE}; one is asked for and waited for, 10 min 0 s at most (--wait-nodes)"]


def test_a_node_that_does_not_come_is_refused_when_the_time_is_over() -> None:
    world, lines = Elastic(usual, comes_in=None), []  # type: tuple[Elastic, list[str]]
    with pytest.raises(NoRoom, match=f"^{NONE}; none came in 1 min 31 s$"):
        awaited(world, SIZE, 91.0, lines.append, world.clock)
    assert (world.now, len(lines), len(world.asked)) == (91.0, 1, 1)


def test_nobody_waits_unasked_and_the_way_to_wait_is_named_where_nodes_can_come() -> None:
    world = Elastic(usual, comes_in=5.0)
    with pytest.raises(NoRoom, match=f"^{NONE}; if nodes can still come: --wait-nodes 10m$"):
        awaited(world, SIZE, 0.0, lambda line: None, world.clock)
    with pytest.raises(NoRoom, match=f"^{NONE}$"):
        awaited(world, SIZE, None, lambda line: None, world.clock)
    assert (world.now, world.asked) == (0.0, [])


def test_what_waiting_does_not_mend_ends_it() -> None:
    world = Elastic(usual, comes_in=None, broken=True)
    with pytest.raises(ValueError, match=r"joined as 127\.0\.0\.1"):
        awaited(world, SIZE, 600.0, lambda line: None, world.clock)
    assert world.now < 10


def test_times_are_read_with_their_unit() -> None:
    assert [seconds_of(text) for text in ("0", "90s", "10m", "2h")] == [0, 90, 600, 7200]
    for wrong in ("", "-1m", "1.5h", "10 m", "m"):
        with pytest.raises(ValueError, match=r"with s, m or h, such as 10m, or 0$"):
            seconds_of(wrong)
    with pytest.raises(ValueError, match=r"nearest allowed value: 15m\)"):
        seconds_of("15")


def test_no_node_joins_a_ray_that_the_command_starts(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match="--wait-nodes: no node joins .* give --address"):
        away.on_ray(runtime, None, None, 0, lambda line: None, wait_s=60.0)
    away.on_ray(runtime, "head:6379", None, 0, lambda line: None, wait_s=60.0)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    away.on_ray(runtime, None, None, 0, lambda line: None, wait_s=60.0)
