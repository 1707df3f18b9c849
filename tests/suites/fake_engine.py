"""An engine and a clock that are made up, for the rules over runs on other machines: no process, no second passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from results.schema import Plan, Record, Status
from results.store import write_record
from suites.catalogue import catalogue_for
from suites.engines.engine import Capacity, Gone, Queued, Resources, Running, State, Task
from suites.engines.follow import Clock, Ended, follow
from suites.measure.environment import environment
from suites.run.worker import Event, record_path

Script = Callable[["World", Task, int], State]


def record_of(plan: Plan, status: Status = "ok", error: str | None = None) -> Record:
    now = "2026-01-01T00:00:00+00:00"
    return Record(
        plan=plan,
        plan_hash=plan.hash(),
        status=status,
        error=error,
        started_at=now,
        finished_at=now,
        environment=environment(torch.device("cpu"), 1, 1),
        catalogue=catalogue_for(plan),
    )


@dataclass
class World:
    """An engine and a clock. `script` says what a hand-over is like so many seconds after it; it may write records.

    `entered`: how often a command connected to it, where a test counts that.
    """

    script: Script
    name: str = "fake"
    outlives: bool = False
    pause_s: float = 1.0
    now: float = 0.0
    begun: dict[str, tuple[Task, float]] = field(default_factory=dict)
    submitted: list[Task] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    stop_at: float | None = None
    entered: int = 0

    def capacity(self, resources: Resources) -> Capacity:
        return Capacity(2, "nowhere")

    def submit(self, task: Task) -> str:
        self.submitted.append(task)
        self.begun[f"job-{len(self.submitted)}"] = (task, self.now)
        return f"job-{len(self.submitted)}"

    def poll(self, handle: str) -> State:
        if handle in self.cancelled or handle not in self.begun:
            return Gone("nobody knows it", "lost")
        task, since = self.begun[handle]
        return self.script(self, task, int(self.now - since))

    def cancel(self, handle: str) -> None:
        self.cancelled.append(handle)

    def sleep(self, seconds: float) -> None:
        assert self.now < 10_000, "the rules wait for ever"
        self.now += seconds
        if self.stop_at is not None and self.now >= self.stop_at:
            self.stop_at = None
            raise KeyboardInterrupt

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)

    def tries(self, task: Task) -> int:
        return sum(each.plan == task.plan for each in self.submitted)


@dataclass
class Told:
    events: list[Event] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def run(self, world: World, tasks: list[Task], retries: int = 2) -> Ended:
        return follow(tasks, world, self.events.append, retries, self.lines.append, world.clock)


def usual(world: World, task: Task, second: int) -> State:
    """Queued for two seconds, three steps, a record."""
    if second < 2:
        return Queued()
    if second < 5:
        return Running(second - 1, 0.5, "H100")
    if not record_path(task.store, task.plan).exists():
        write_record(task.store, record_of(task.plan))
    return Gone("ok", "ended")


def facts(record: Record) -> dict[str, Any]:
    """What two runs of a plan have in common on one machine: all but times, resident sets and where it went on."""
    assert record.memory is not None
    memory = record.memory.model_dump(exclude={"rss_peak_bytes", "rss_start_bytes"})
    if memory["ledger"] is not None:
        memory["ledger"]["gaps"] = [gap for gap in memory["ledger"]["gaps"] if "process growth" not in gap["name"]]
    kept = record.model_dump(include={"plan_hash", "status", "evaluations", "curve", "final_digest", "engagement"})
    return {**kept, "memory": memory, "threads": record.environment.threads}
