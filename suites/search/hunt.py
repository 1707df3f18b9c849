"""Running a search: one of possibly several processes that share it, round after round, until no best lies at an edge.

A run is taken by a lock that the system frees with the process, so that a killed one's runs are taken up by the others
or by the next start, from their checkpoints. What is finished stands in the records; the journal and `search.json`
follow from them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from filelock import FileLock, Timeout

from results.schema import Plan
from results.search import Search, write_search
from results.store import FINAL
from suites.run.checkpoint import LOCKS
from suites.run.launch import launch
from suites.run.worker import Event, Listener
from suites.search.journal import Journal, JournalError
from suites.search.space import widened
from suites.search.trials import RESULT, Trials
from suites.suite import Runtime

POLL_S = 2.0


class Hunt:
    """One process's part in a search.

    Args:
        predicted: plan hash -> peak bytes, for a round's plans.
        listen: is told of this process's runs.

    Raises:
        JournalError: the folder's journal is of another search, or names runs whose records are not there.
    """

    def __init__(self, trials: Trials, runtime: Runtime) -> None:
        self.trials, self._runtime = trials, runtime
        self.journal = Journal(trials.folder)
        self._claims: dict[str, FileLock] = {}
        self._failed: set[str] = set()
        with self.journal.held():
            self._begin(0)
            self._check_records(0)
        while self._next_round():
            pass

    @property
    def round(self) -> int:
        """The round in hand."""
        return len(self.trials.rounds) - 1

    def go(self, predicted: Mapping[str, int | None], listen: Listener) -> int:
        """Run what is missing of the round in hand, with other processes; return how many runs of this one failed."""
        while undone := [plan for plan in self.trials.undone(self.round) if plan.hash() not in self._failed]:
            before = len(undone)

            def heard(event: Event) -> None:
                if event.record is not None:
                    self._ended(event.plan, event.record.status in FINAL)
                listen(event)

            try:
                launch(self._claimed(undone), self._runtime, self.trials.folder, dict(predicted), heard)
            finally:
                for key in list(self._claims):
                    self._claims.pop(key).release()
            if not self._failed and len(self.trials.undone(self.round)) == before:
                # Others have what is left; a run of one that dies is taken up here.
                time.sleep(POLL_S)
        self.settle()
        return len(self._failed)

    def settle(self) -> Search:
        """Enter finished trials in the journal, write `search.json`, and return it."""
        with self.journal.held():
            found = self.trials.search()
            for trial in found.results:
                if trial.status in RESULT:
                    space = self.trials.rounds[trial.round][trial.method]
                    self.journal.add(self._begin_one(trial.round, trial.method), space, trial)
            write_search(self.trials.folder, found)
        return found

    def next_round(self) -> bool:
        """Go over to the next round; False where the search is at its end."""
        return self._next_round()

    def _next_round(self) -> bool:
        found = self.trials.search()
        best = {choice.method: choice for choice in found.choices}
        most = max(self.trials.asked.settings(*cell).rounds for cell in self.trials.asked.cells())
        if len(best) < len(self.trials.templates) or self.round + 1 >= most:
            return False
        spaces = widened(list(self.trials.rounds[-1].values()), best)
        if spaces is None:
            return False
        with self.journal.held():
            # Where this round has begun before, it stays what it was: its best may have changed with more trials.
            begun = [self.journal.space(_name(space.method, space.round)) or space for space in spaces]
            self.trials.rounds.append({space.method: space for space in begun})
            self._begin(self.round)
            self._check_records(self.round)
        return True

    def _begin(self, round_: int) -> None:
        for method in self.trials.rounds[round_]:
            self._begin_one(round_, method)

    def _begin_one(self, round_: int, method: str) -> object:
        space, plans = self.trials.rounds[round_][method], self.trials.templates[method]
        return self.journal.begin(_name(method, round_), space, plans, self.trials.better == "higher")

    def _check_records(self, round_: int) -> None:
        for method, space in self.trials.rounds[round_].items():
            entered = self.journal.trials(_name(method, round_))
            if entered and max(entered) >= self.trials.trials:
                raise JournalError(
                    f"{self.journal.path}: has {max(entered) + 1} trials of {method}, more than the "
                    f"{self.trials.trials} asked for (nearest allowed value: {max(entered) + 1})"
                )
            for number, hashes in entered.items():
                lost = [plan for plan in self.trials.plans_of(space, number).values() if not self.trials.done(plan)]
                if lost:
                    raise JournalError(
                        f"{self.journal.path}: names run {hashes[lost[0].task]} of trial {number} of {method}, whose "
                        f"record {lost[0].label}.json is not in {self.trials.folder}: put it back, or begin anew in "
                        "another --out folder"
                    )

    def _claimed(self, plans: Sequence[Plan]) -> Iterator[Plan]:
        """Yield those of `plans` that no other process has in hand or has finished meanwhile."""
        for plan in plans:
            lock = FileLock(self.trials.folder / LOCKS / f"trial-{plan.hash()}", timeout=0)
            with suppress(Timeout):
                lock.acquire()
                if self.trials.done(plan):
                    lock.release()
                    continue
                self._claims[plan.hash()] = lock
                yield plan

    def _ended(self, plan: Plan, final: bool) -> None:
        if final:
            self.settle()
        else:
            self._failed.add(plan.hash())
        self._claims.pop(plan.hash()).release()


def _name(method: str, round_: int) -> str:
    return f"{method} round {round_}"
