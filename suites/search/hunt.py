"""Running a search: one of possibly several processes that share it, round after round, until no best lies at an edge;
then, where a search confirms, its methods' best trials again at the runs' own length.

A run is taken by a lock that the system frees with the process, so that a killed one's runs are taken up by the others
or by the next start, from their checkpoints. What is finished stands in the records; the journal and `search.json`
follow from them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import optuna
from filelock import FileLock, Timeout

from results.schema import Plan, Record
from results.search import Choice, Search, Space, read_search, with_others, write_search
from results.store import FINAL
from suites.run import checkpoint
from suites.run.checkpoint import LOCKS
from suites.run.launch import launch
from suites.run.worker import Event, Listener
from suites.search.journal import Journal, JournalError
from suites.search.space import widened, wider_rates
from suites.search.trials import RESULT, Trials
from suites.suite import Runtime

if TYPE_CHECKING:
    from suites.engines.away import Away

POLL_S = 2.0


class Hunt:
    """One process's part in a search.

    Raises:
        ValueError: methods that are not searched now have another number of trials, or are confirmed otherwise.
        JournalError: the folder's journal is of another search, or names runs whose records are not there.
    """

    def __init__(self, trials: Trials, runtime: Runtime) -> None:
        self.trials, self._runtime = trials, runtime
        self.journal = Journal(trials.folder)
        self._claims: dict[str, FileLock] = {}
        self._failed: set[str] = set()
        self._studies: dict[tuple[str, int], optuna.Study] = {}
        self._entered: set[tuple[str, int, int]] = set()
        self.confirming = False
        with self.journal.held():
            check_others(trials.search(), read_search(trials.folder))
            self._open(trials.rounds[0])
        while self.next_stage():
            pass

    @property
    def round(self) -> int:
        """The round in hand."""
        return len(self.trials.rounds) - 1

    def plans(self) -> list[Plan]:
        """Return the plans of the stage in hand, a round or what is asked at length."""
        return self.trials.at_length() if self.confirming else self.trials.plans(self.round)

    def undone(self) -> list[Plan]:
        """Return those of them without a final record."""
        return [plan for plan in self.plans() if not self.trials.done(plan)]

    def go(self, predicted: Mapping[str, int | None], listen: Listener, away: Away | None = None) -> int:
        """Run what is missing of the stage in hand, with other processes; return how many runs of this one failed.

        What comes to be asked at length by it is not run yet: `goes_on`.

        Args:
            predicted: plan hash -> peak bytes.
            listen: is told of this process's runs.
            away: runs them on other machines.
        """
        begun = self.undone()
        while undone := [p for p in begun if not self.trials.done(p) and p.hash() not in self._failed]:

            def heard(event: Event) -> None:
                if event.record is not None:
                    self._ended(event.plan, event.record.status in FINAL)
                listen(event)

            try:
                ran = self._run(self._claimed(undone), dict(predicted), heard, away)
                # Whoever ran them has given up on those that are still in hand.
                self._failed.update(self._claims)
            finally:
                for key in list(self._claims):
                    self._claims.pop(key).release()
            if not ran:
                # Others have what is left; a run of one that dies is taken up here.
                time.sleep(POLL_S)
        self.settle()
        return len(self._failed)

    def _run(
        self, plans: Iterator[Plan], predicted: dict[str, int | None], heard: Listener, away: Away | None
    ) -> list[Record]:
        if away is None:
            return launch(plans, self._runtime, self.trials.folder, predicted, heard)
        return away(list(plans), self._runtime, self.trials.folder, predicted, heard)

    def settle(self) -> Search:
        """Enter finished trials in the journal, write `search.json`, and return it."""
        with self.journal.held():
            found = self.trials.search()
            for trial in found.results:
                key = (trial.method, trial.round, trial.number)
                if trial.status in RESULT and key not in self._entered:
                    study = self._studies[trial.method, trial.round]
                    self.journal.add(study, self.trials.rounds[trial.round][trial.method], trial)
                    self._entered.add(key)
            found = with_others(found, read_search(self.trials.folder))
            write_search(self.trials.folder, found)
        return found

    def goes_on(self) -> bool:
        """Whether there is more to run: of the stage in hand, or of the next one, which is begun."""
        return bool(self.undone()) or self.next_stage()

    def next_stage(self) -> bool:
        """Go over to the next round, or to full length; False where the search is at its end, or the stage is not."""
        found = self.trials.search()
        chosen = {choice.method: choice for choice in found.choices}
        leaders = [self.trials.leader(method, found.results) for method in self.trials.templates]
        best = {each.method: chosen.get(each.method, each) for each in leaders if each is not None}
        if self._next_round(best):
            self.confirming = False
            return True
        if self.confirming or not self.trials.confirm or any(trial.status not in RESULT for trial in found.results):
            return False
        self.confirming = True
        return True

    def _next_round(self, best: Mapping[str, Choice]) -> bool:
        most = max(self.trials.asked.settings(*cell).rounds for cell in self.trials.asked.cells())
        if len(best) < len(self.trials.templates) or self.round + 1 >= most:
            return False
        with self.journal.held():
            before, begun = self.journal.spaces(self.round), self.journal.spaces(self.round + 1)
            also = {name for method, space in begun.items() for name in wider_rates(before[method], space)}
            last = list(self.trials.rounds[-1].values())
            # Where other methods have begun the round, its points are theirs.
            first = next((space.first for space in begun.values()), last[0].first + self.trials.trials)
            spaces = widened(last, best, first, also)
            if spaces is None:
                return False
            # Where a round has begun, its ranges stay: what was best before it may be another trial by now.
            self._open({space.method: begun.get(space.method, space) for space in spaces})
        return True

    def _open(self, spaces: Mapping[str, Space]) -> None:
        """Begin a round, or go on with it, and see that nothing that it had is lost."""
        if spaces not in self.trials.rounds:
            self.trials.rounds.append(spaces)
        for method, space in spaces.items():
            plans, larger = self.trials.templates[method], self.trials.better == "higher"
            study = self._studies[method, space.round] = self.journal.begin(space, plans, larger)
            entered = self.journal.entered(study)
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
                self._entered.add((method, space.round, number))

    def _claimed(self, plans: Sequence[Plan]) -> Iterator[Plan]:
        """Yield those of `plans` that no other process has in hand or has finished meanwhile."""
        for plan in plans:
            folder = self.trials.folder / LOCKS
            lock = FileLock(folder / f"trial-{plan.hash()}", timeout=0)
            with suppress(Timeout):
                lock.acquire()
                # A killed process may have left a run behind that has not noticed it yet.
                orphaned = checkpoint.is_held(self.trials.folder, plan)
                if orphaned or self.trials.done(plan):
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


def check_others(found: Search, earlier: Search | None) -> None:
    """Raise ValueError if methods that are not searched now have another number of trials, or another `confirm`."""
    mine = {space.method for space in found.spaces}
    others = [] if earlier is None else sorted({space.method for space in earlier.spaces} - mine)
    if earlier is not None and others and earlier.trials != found.trials:
        raise ValueError(
            f"trials {found.trials}: {', '.join(others)} have {earlier.trials} in this search, and every method gets "
            f"as many (nearest allowed value: {earlier.trials}; or search all of them: --method)"
        )
    for name in ("confirm", "confirm_tasks"):
        have, had = getattr(found, name), None if earlier is None else getattr(earlier, name)
        if others and had != have:
            raise ValueError(
                f"{name} {have}: {', '.join(others)} have {had} in this search, and all get the same (nearest allowed "
                f"value: {had}; or search all of them: --method)"
            )
