"""The rules for runs on other machines, over any engine.

- The store is the truth: a run has ended when a record of this hand-over stands there, whatever the engine says.
- A run's own end, good or bad, is that record and is never tried again.
- Loss of a node or of the supervisor on it is tried again, up to a number of times, from the newest checkpoint.
- Memory that runs out beside other runs on a device says nothing: the run is tried again alone, and that counts.
- Nothing is submitted twice: one command a store, and the next one takes up what the engine still has in hand.
- What an engine does not take, since it has so much already, waits for a run in hand to end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from results.schema import Record
from results.store import FINAL, read_record
from suites.engines import journal
from suites.engines.engine import Engine, Gone, NotTaken, Running, State, Task
from suites.run.launch import Interrupted
from suites.run.worker import Event, Listener, keep, record_path

SETTLE_S = 60.0
"""How long a record may take to be seen here after its writer has ended: a network file system keeps names cached."""
GRACE_S = 30.0


Say = Callable[[str], None]


@dataclass(frozen=True)
class Clock:
    """Seconds from any start, and waiting: what a test puts its own in place of."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True)
class Ended:
    """Records as they came, and why there is none of the others, by plan hash."""

    records: list[Record]
    lost: dict[str, str]


@dataclass
class _Hand:
    """A run in an engine's hands; `earlier`: digest of the record before it; `silent_at`: when it ended without one."""

    task: Task
    handle: str
    earlier: str | None
    retries: int
    shown: Running | None = None
    silent_at: float | None = None


@dataclass
class _Following:
    """`waiting`: tasks that are not handed over yet, with their retries; `full`: runs in hand when one was refused."""

    engine: Engine
    listen: Listener
    say: Say
    clock: Clock
    waiting: list[tuple[Task, int]]
    ended: Ended = field(default_factory=lambda: Ended([], {}))
    full: int | None = None
    told: bool = False

    def check(self) -> None:
        """Raise ValueError, before anything is handed over, where a run was handed to another engine."""
        for task, _ in self.waiting:
            found = journal.entry(task.store, task.plan)
            if found is not None and found.engine != self.engine.name:
                raise ValueError(
                    f"{task.plan.label}: was handed to {found.engine} ({found.handle}) before: go on with "
                    f"--on {found.engine}, or end it there and remove {task.store / journal.FOLDER}"
                )

    def hand_over(self, hands: list[_Hand]) -> None:
        """Put what waits into the engine's hands, as far as it takes it.

        Raises:
            NotTaken: the engine takes none, and has none that could make room.
        """
        if self.full is not None and len(hands) >= self.full:
            return
        self.full = None
        while self.waiting:
            try:
                hands.append(self.taken_up(*self.waiting[0]))
            except NotTaken as refusal:
                if not hands:
                    raise
                self.full = len(hands)
                if not self.told:
                    self.say(f"{len(self.waiting)} runs wait for those in hand to end: {refusal}")
                self.told = True
                return
            self.waiting.pop(0)

    def taken_up(self, task: Task, retries: int) -> _Hand:
        """Return the hand that an earlier command left, if the engine still has it; else submit the task.

        Raises:
            NotTaken: the engine does not take it.
        """
        found = journal.entry(task.store, task.plan)
        if found is not None:
            hand = _Hand(task, found.handle, found.earlier, retries)
            if not isinstance(self.engine.poll(found.handle), Gone):
                self.say(f"{task.plan.label}: goes on as {found.handle}")
                return hand
            # It may have come to its end since the command looked at what is missing.
            record = self._record(hand)
            if record is not None and record.status != "interrupted":
                return hand
        return self.submitted(task, retries)

    def submitted(self, task: Task, retries: int) -> _Hand:
        earlier = journal.digest(task.store, task.plan)
        handle = self.engine.submit(task)
        if self.engine.outlives:
            journal.note(task.store, task.plan, journal.Entry(self.engine.name, handle, earlier))
        return _Hand(task, handle, earlier, retries)

    def step(self, hand: _Hand) -> _Hand | None:
        """Look at one run; return what is in hand of it now, None once it has ended or waits to be handed over anew.

        Raises:
            ValueError: a node refuses it.
            StoreError: a record that cannot be read or written.
        """
        state = self.engine.poll(hand.handle)
        if isinstance(state, Gone):
            return self._gone(hand, state)
        self._show(hand, state)
        return hand

    def _show(self, hand: _Hand, state: State) -> None:
        if isinstance(state, Running) and state != hand.shown:
            if hand.shown is None or state.step is not None:
                self.listen(Event(hand.task.plan, step=state.step or 0, loss=state.loss, device=state.device))
            hand.shown = state

    def _gone(self, hand: _Hand, gone: Gone) -> _Hand | None:
        task = hand.task
        if gone.cause == "crowded":
            self.say(f"{task.plan.label}: memory ran out beside other runs on its device; it is tried again alone")
            self.waiting.append((replace(task, resources=replace(task.resources, gpus=1.0)), hand.retries))
            return None
        if gone.record is not None:
            keep(task.store, gone.record)
        record = self._record(hand)
        if record is not None and record.status != "interrupted":
            self._end(hand, record)
            return None
        if gone.cause == "refused":
            raise ValueError(f"{task.plan.label}: {gone.why}")
        if gone.cause == "ended" and record is None:
            hand.silent_at = self.clock.now() if hand.silent_at is None else hand.silent_at
            if self.clock.now() - hand.silent_at < SETTLE_S:
                return hand
        return self._again(hand, gone)

    def _again(self, hand: _Hand, gone: Gone) -> _Hand | None:
        label = hand.task.plan.label
        if hand.retries > 0:
            self.say(f"{label}: lost ({gone.why}); tried again, {hand.retries - 1} more times at most")
            self.waiting.append((hand.task, hand.retries - 1))
            return None
        journal.drop(hand.task.store, hand.task.plan)
        self.say(f"{label}: lost ({gone.why}) and not tried again; the same command goes on with it")
        self.ended.lost[hand.task.plan.hash()] = gone.why
        return None

    def _record(self, hand: _Hand) -> Record | None:
        """Return the record of this hand-over; None while the store holds none, or an earlier one that is not final."""
        found = journal.digest(hand.task.store, hand.task.plan)
        if found is None:
            return None
        record = read_record(record_path(hand.task.store, hand.task.plan))
        return record if found != hand.earlier or record.status in FINAL else None

    def _end(self, hand: _Hand, record: Record) -> None:
        journal.drop(hand.task.store, hand.task.plan)
        if hand.shown is None:
            self.listen(Event(hand.task.plan))
        self.listen(Event(hand.task.plan, record=record))
        self.ended.records.append(record)

    def stop(self, hands: Sequence[_Hand]) -> None:
        """Ask all to end, and wait for what they write then, no longer than `GRACE_S`."""
        for hand in hands:
            self.engine.cancel(hand.handle)
        until = self.clock.now() + GRACE_S
        left = list(hands)
        while left and self.clock.now() < until:
            left = [hand for hand in left if not isinstance(self.engine.poll(hand.handle), Gone)]
            if left:
                self.clock.sleep(self.engine.pause_s)
        for hand in hands:
            if hand not in left:
                journal.drop(hand.task.store, hand.task.plan)


def follow(
    tasks: Sequence[Task],
    engine: Engine,
    listen: Listener,
    retries: int,
    say: Say = lambda line: None,
    clock: Clock = Clock(),  # noqa: B008  frozen
    detach: bool = False,
) -> Ended:
    """Hand `tasks` of one store to `engine`, follow them to their end, and return their records.

    Args:
        listen: told where each run stands, and its record.
        retries: how often one run may be lost and tried again.
        say: told in a line what people should know and no record says.
        detach: hand over what is in nobody's hands, and come back at once: the engine outlives the command.

    Raises:
        ValueError: a node refuses a run, all others are ended first; another command follows runs of this store, or a
            run was handed to another engine.
        NotTaken: the engine takes none, and has none in hand.
        Interrupted: Ctrl-C; what ran was asked to end and has a record of status interrupted.
    """
    if not tasks:
        return Ended([], {})
    with journal.alone(tasks[0].store):
        return follow_alone(tasks, engine, listen, retries, say, clock, detach)


def follow_alone(
    tasks: Sequence[Task], engine: Engine, listen: Listener, retries: int, say: Say, clock: Clock, detach: bool
) -> Ended:
    """Do as `follow`, for who keeps other commands off the store already."""
    following = _Following(engine, listen, say, clock, [(task, retries) for task in tasks])
    hands: list[_Hand] = []
    following.check()
    try:
        following.hand_over(hands)
        while hands and not detach:
            for index in reversed(range(len(hands))):
                after = following.step(hands[index])
                hands[index : index + 1] = [] if after is None else [after]
            following.hand_over(hands)
            if hands:
                clock.sleep(engine.pause_s)
    except KeyboardInterrupt as stop:
        following.stop(hands)
        raise Interrupted from stop
    except BaseException:
        following.stop(hands)
        raise
    if following.waiting:
        say(f"{len(following.waiting)} runs are not handed over: give the same command again once others have ended")
    return following.ended
