"""The trials of a search: their plans, and what the records say of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from baselines.method import REST_RATES
from baselines.registry import checked_name, get_method
from results.catalogue import MetricEntry
from results.schema import Plan, Record, Status
from results.search import AtLength, Choice, Search, Space, Trial
from results.store import FINAL, read_record
from suites.plan import Comparison, comparison
from suites.run.worker import record_path
from suites.search.space import SAMPLER, Point, check_widths, checked_range, edges, points, rates_at
from suites.suite import HELD_OUT, Runtime

T = TypeVar("T")
ANY_SHAPE = (64, 64)
WORST: tuple[Status, ...] = ("ok", "diverged", "out_of_memory", "interrupted", "failed")
RESULT = frozenset({"ok", "diverged"})
"""How a run may end that says something of its rates: no other one is a trial's result."""


@dataclass
class Trials:
    """What a search tries.

    Attributes:
        templates: method -> task -> plan of its runs, but for the rates.
        trials: points of every method in every round.
        longer: the same at the runs' own length, on the search's tasks and `confirm_tasks`.
        confirm: how many trials of a method are asked there at most.
        rounds: method -> space, a table a round.
    """

    asked: Comparison
    folder: Path
    templates: Mapping[str, Mapping[str, Plan]]
    trials: int
    longer: Mapping[str, Mapping[str, Plan]]
    confirm: int
    confirm_tasks: tuple[str, ...]
    better: str
    rounds: list[Mapping[str, Space]]
    _known: dict[str, Record] = field(default_factory=dict)
    _ended: dict[tuple[str, int, int], Trial] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """The tasks, in order."""
        return list(next(iter(self.templates.values())))

    def plans_of(
        self, space: Space, number: int, templates: Mapping[str, Mapping[str, Plan]] | None = None
    ) -> dict[str, Plan]:
        """Return task -> plan of one trial."""
        own, rest = rates_at(space, self._point(space, number))
        # A method that trains no matrix has its one rate in both places.
        rates = {"learning_rate": rest if own is None else own, "rest_learning_rate": rest}
        return {
            task: plan.model_copy(update={"training": plan.training.model_copy(update=rates)})
            for task, plan in (templates or self.templates)[space.method].items()
        }

    def _point(self, space: Space, number: int) -> Point:
        return points(space.first + self.trials)[space.first + number]

    def plans(self, round_: int) -> list[Plan]:
        """Return the plans of a round, point by point and then method by method: a cut-off leaves whole comparisons."""
        made = [
            plan
            for number in range(self.trials)
            for space in self.rounds[round_].values()
            for plan in self.plans_of(space, number).values()
        ]
        return list({plan.hash(): plan for plan in made}.values())

    def at_length(self) -> list[Plan]:
        """Return the plans of what is asked at the runs' own length so far, by place among a method's best."""
        results = self.results()
        asked = [self.asked_at_length(method, results) for method in self.templates]
        places = [trial for place in zip_longest(*asked) for trial in place if trial is not None]
        return [plan for trial in places for plan in self._long_plans(trial).values()]

    def _long_plans(self, trial: Trial) -> dict[str, Plan]:
        return self.plans_of(self.rounds[trial.round][trial.method], trial.number, self.longer)

    def record(self, plan: Plan) -> Record | None:
        """Return the record of a plan, None where there is none."""
        key, path = plan.hash(), record_path(self.folder, plan)
        if key not in self._known and path.exists():
            found = read_record(path)
            if found.status not in FINAL:
                return found
            self._known[key] = found
        return self._known.get(key)

    def done(self, plan: Plan) -> bool:
        """Whether a plan has a final record."""
        record = self.record(plan)
        return record is not None and record.status in FINAL

    def trial(self, space: Space, number: int) -> Trial:
        """Return a trial as the records have it."""
        key = (space.method, space.round, number)
        if key not in self._ended:
            found = self._trial(space, number)
            if found.status is None:
                return found
            self._ended[key] = found
        return self._ended[key]

    def _trial(self, space: Space, number: int) -> Trial:
        point = self._point(space, number)
        own, rest = rates_at(space, point)
        return Trial(
            method=space.method,
            round=space.round,
            number=number,
            point=point,
            learning_rate=own,
            rest_learning_rate=rest,
            **self._ended_as(self.plans_of(space, number)),
        )

    def _ended_as(self, plans: Mapping[str, Plan]) -> dict[str, Any]:
        """Return what the records say of the runs of a trial, short or at length."""
        known = self._final(plans)
        whole = len(known) == len(plans)
        # The tasks that are asked at length alone have no short score to stand beside.
        found = [held_out_score(known[task]) for task in self.tasks if task in known]
        scores = [score for score in found if score is not None]
        walls = [record.timing.wall_s for record in known.values() if record.timing is not None]
        return {
            "plans": {task: plan.hash() for task, plan in plans.items()},
            "status": max((record.status for record in known.values()), key=WORST.index) if whole else None,
            "score": statistics.fmean(scores) if len(scores) == len(self.tasks) else None,
            "wall_s": sum(walls) if len(walls) == len(plans) else None,
        }

    def _final(self, plans: Mapping[str, Plan]) -> dict[str, Record]:
        """Return task -> record of those plans that have a final one."""
        records = {task: self.record(plan) for task, plan in plans.items()}
        return {task: record for task, record in records.items() if record is not None and record.status in FINAL}

    def _at_length(self, trial: Trial) -> AtLength:
        plans = self._long_plans(trial)
        ended = {task: record for task, record in self._final(plans).items() if record.status in RESULT}
        fallen = [task for task, record in ended.items() if not _clear(record, _main_metric(self.asked, task))]
        return AtLength(**self._ended_as(plans), fallen=fallen)

    def results(self) -> list[Trial]:
        """Return every trial of every round as the records have it, at the trials' length."""
        spaces = [space for each in self.rounds for space in each.values()]
        return [self.trial(space, number) for space in spaces for number in range(self.trials)]

    def search(self) -> Search:
        """Return the record of the search so far."""
        results = self.results()
        asked = [trial for method in self.templates for trial in self.asked_at_length(method, results)]
        again = {(trial.method, trial.round, trial.number): trial for trial in asked}
        results = [again.get((trial.method, trial.round, trial.number), trial) for trial in results]
        request = self.asked.request
        return Search(
            suite=request.suite,
            profile=request.profile,
            rank=request.rank,
            tasks=self.tasks,
            seed=request.seeds[0],
            sampler=SAMPLER,
            trials=self.trials,
            confirm=self.confirm,
            confirm_tasks=[*self.confirm_tasks] if self.confirm else [],
            metrics={task: _main_metric(self.asked, task).name for task in self.tasks},
            better="higher" if self.better == "higher" else "lower",
            spaces=[space for each in self.rounds for space in each.values()],
            results=results,
            choices=[choice for method in self.templates if (choice := self.choice(method, results)) is not None],
        )

    def ranked(self, method: str, results: Sequence[Trial]) -> list[Trial]:
        """Return a method's trials with a number, the best first, once all of them have a result; none before."""
        own = [trial for trial in results if trial.method == method]
        if any(trial.status not in RESULT for trial in own):
            return []
        scored = [(trial, trial.score) for trial in own if trial.score is not None]
        return [trial for trial, score in sorted(scored, key=lambda each: self._place(*each))]

    def _place(self, trial: Trial, score: float) -> tuple[float, int, int]:
        return (-score if self.better == "higher" else score, trial.round, trial.number)

    def asked_at_length(self, method: str, results: Sequence[Trial]) -> list[Trial]:
        """Return a method's best trials with what they came to at length, up to the first that stands or is undone."""
        found = []
        for trial in self.ranked(method, results)[: self.confirm]:
            ended = self._at_length(trial)
            found.append(trial.model_copy(update={"at_length": ended}))
            if ended.status not in RESULT or self.stands(found[-1]):
                break
        return found

    def stands(self, trial: Trial) -> bool:
        """Whether a trial is no worse at length, and better than the constant prediction on every task there.

        More steps at rates that a method bears do it no harm.
        """
        short, long = trial.score, None if trial.at_length is None else trial.at_length.score
        if trial.at_length is None or trial.at_length.fallen or short is None or long is None:
            return False
        return long >= short if self.better == "higher" else long <= short

    def leader(self, method: str, results: Sequence[Trial]) -> Choice | None:
        """Return a method's best trial at its own length; None where it has none, or not yet."""
        first = next(iter(self.ranked(method, results)), None)
        return None if first is None else self._chosen(first)

    def choice(self, method: str, results: Sequence[Trial]) -> Choice | None:
        """Return the trial that a method is given: the best one, where the search confirms the best one that stands.

        Where none stands, the best at length of those that fell on the fewest tasks. None before all that are asked
        have a result, or where none has a number.
        """
        if not self.confirm:
            return self.leader(method, results)
        asked = self.asked_at_length(method, results)
        if any(trial.at_length is None or trial.at_length.status not in RESULT for trial in asked):
            return None
        if asked and self.stands(asked[-1]):
            return self._chosen(asked[-1])
        scored = [
            ((len(t.at_length.fallen), *self._place(t, t.at_length.score)), t)
            for t in asked
            if t.at_length is not None and t.at_length.score is not None
        ]
        return self._chosen(min(scored, key=lambda each: each[0])[1]) if scored else None

    def _chosen(self, best: Trial) -> Choice:
        assert best.score is not None
        return Choice(
            method=best.method,
            round=best.round,
            number=best.number,
            learning_rate=best.learning_rate,
            rest_learning_rate=best.rest_learning_rate,
            score=best.score,
            confirmed=None if best.at_length is None else best.at_length.score,
            edges=edges(self.rounds[-1][best.method], best.learning_rate, best.rest_learning_rate),
        )


def trials_of(asked: Comparison, runtime: Runtime, folder: Path, trials: int | None) -> Trials:
    """Return what a search tries in its first round.

    Args:
        asked: with the layers of a search, see `suites.search.command`.
        trials: how many for every method; None: as the profile says.

    Raises:
        ValueError: fewer than two, or none said; a method without a range; ranges upside down or of unequal width;
            tasks whose scores go different ways; what all runs share, given for some alone; batches by memory.
    """
    cells = asked.cells()
    tasks, methods = dict.fromkeys(task for task, _ in cells), dict.fromkeys(method for _, method in cells)
    settings = [asked.settings(*cell) for cell in cells]
    if any(each.equal != "tokens" for each in settings):
        raise ValueError("equal 'memory': a search gives every method the same batch (nearest allowed value: tokens)")
    _shared("rounds", [each.rounds for each in settings])
    confirm = _shared("confirm", [each.confirm for each in settings])
    count = trials if trials is not None else _shared("trials", [each.trials for each in settings])
    if count is None:
        raise ValueError(
            f"trials: profile {asked.request.profile!r} does not say how many points suite {asked.suite.name!r} tries "
            f"for every method: give --trials 16, or trials = 16 in [{asked.suite.name}.search]"
        )
    if count < 2:
        raise ValueError(f"trials {count}: a search needs at least 2 for every method (nearest allowed value: 2)")
    better = {_main_metric(asked, task).better for task in tasks}
    if len(better) > 1:
        raise ValueError(f"tasks {', '.join(tasks)}: their scores have no mean, lower is better in some of them alone")
    spaces = {
        method: _shared(f"range of {method}", [first_space(asked, task, method) for task in tasks])
        for method in methods
    }
    check_widths(list(spaces.values()))
    templates = {method: {task: _template(asked, task, method, runtime) for task in tasks} for method in methods}
    also = tuple(
        checked_name(task, asked.suite.tasks, "task of confirm_tasks")
        for task in dict.fromkeys(_shared("confirm_tasks", [each.confirm_tasks for each in settings]))
        if task not in tasks
    )
    runs = comparison(asked.request, tuned=False)
    longer = {m: {task: _template(runs, task, m, runtime) for task in (*tasks, *also)} for m in methods if confirm}
    return Trials(asked, folder, templates, count, longer, confirm, also, better.pop(), [spaces])


def _shared(what: str, found: Sequence[T]) -> T:
    if any(each != found[0] for each in found):
        raise ValueError(f"{what}: is not the same for all runs that share it: take it out of the table of one of them")
    return found[0]


def first_space(asked: Comparison, task: str, method: str) -> Space:
    """Return a method's ranges in the first round: the settings', else the method's own and the common one.

    Raises:
        ValueError: it has none, or one that is upside down.
    """
    settings = asked.settings(task, method)
    rest = REST_RATES[asked.suite.work]
    rest_span = settings.rest_range or (rest.low, rest.high)
    space = Space(
        method=method,
        round=0,
        learning_rate=None,
        rest_learning_rate=checked_range(
            f"rest_range of {method}", *rest_span, _source(settings.rest_range, rest.source)
        ),
    )
    chosen = get_method(method)
    if not any(part.trained for part in chosen.layer_parts(ANY_SHAPE, chosen.configure(asked.request.rank))):
        return space
    if settings.range is not None:
        own = checked_range(f"range of {method}", *settings.range, _source(settings.range, ""))
    else:
        rates = asked.rates(method, "range = [..., ...]")
        own = checked_range(f"range of {method}", rates.low, rates.high, rates.source)
    return space.model_copy(update={"learning_rate": own})


def _source(given: tuple[float, float] | None, source: str) -> str:
    return source if given is None else "setting"


def _template(asked: Comparison, task: str, method: str, runtime: Runtime) -> Plan:
    plan = asked.plan(task, method, runtime, {"learning_rate": 1.0, "rest_learning_rate": 1.0, "held_out": True})
    return plan.model_copy(update={"purpose": "tuning"})


def _main_metric(asked: Comparison, task: str) -> MetricEntry:
    entry = asked.suite.entry.task(task)
    assert entry is not None
    return asked.suite.entry.metric(entry.main_metric)


def held_out_score(record: Record) -> float | None:
    """Return the last held-out score of a run; None where it has none, or one that is undefined.

    Raises:
        ValueError: its score is of other rows.
    """
    if record.main_metric is not None and not record.main_metric.startswith(f"{HELD_OUT}/"):
        raise ValueError(
            f"{record.plan.label}: its score is {record.main_metric}, and a search looks at held-out rows alone"
        )
    if record.status != "ok" or not record.evaluations or record.main_metric is None:
        return None
    return record.evaluations[-1].metrics.get(record.main_metric)


def _clear(record: Record, metric: MetricEntry) -> bool:
    """Whether a run is better than the constant prediction; an undefined one of that has no score to be better than."""
    score = held_out_score(record)
    constant = None if record.data is None else record.data.constant_scores.get(record.main_metric or "")
    return score is not None and (constant is None or metric.gain(score) > metric.gain(constant))
