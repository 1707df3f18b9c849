"""The journal of a search: optuna's, one study a method and round, in one file that several processes share.

It holds what was searched (plan, range), and each finished trial once, with the hashes of its runs' plans. What a run
did stands in its record; the journal is what a search is continued from, and what tells that it is the same search.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from results.differences import plan_differences
from results.schema import Plan
from results.search import RATES, Range, Space, Trial
from results.store import write_atomically
from suites.run.checkpoint import LOCKS
from suites.search.space import SAMPLER

FILE = "journal.log"
VERSION = 1
ABOUT = "about"


class JournalError(ValueError):
    """A journal that cannot be read, or that is of another search."""


class _SystemLock(JournalFileOpenLock):
    """The journal's own lock for the library too: the system frees it with a process, however that ends."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def acquire(self) -> bool:
        """Wait for the lock; one that this process holds already is held once more."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let go of it, once."""
        self._lock.release()


class Journal:
    """What a search knows of itself between processes; every change is made under one lock.

    Raises:
        JournalError: the file is no journal.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / LOCKS / "journal")
        with self.held():
            self._mend()
            backend = JournalFileBackend(str(self.path), _SystemLock(self._lock))
            self._storage = JournalStorage(backend)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from changing the journal; freed with this process, however it ends."""
        with self._lock:
            yield

    def spaces(self, round_: int) -> dict[str, Space]:
        """Return method -> what it searches in a round, of all methods that have begun it."""
        abouts = [_about(optuna.load_study(study_name=name, storage=self._storage)) for name in self._names()]
        found = [Space.model_validate(about["space"]) for about in abouts if about is not None]
        return {space.method: space for space in found if space.round == round_}

    def begin(self, space: Space, plans: Mapping[str, Plan], larger: bool) -> optuna.Study:
        """Return the study of a method's round, made if it is not there yet.

        Args:
            plans: task -> plan of the study's runs, but for the rates.
            larger: whether larger scores are better.

        Raises:
            JournalError: it is of another version, plan or range; the text names what differs.
        """
        name = f"{space.method} round {space.round}"
        # Not `load_if_exists`: that writes into the journal of a search that is at its end, a committed one's too.
        if name in self._names():
            study = optuna.load_study(study_name=name, storage=self._storage)
        else:
            study = optuna.create_study(
                study_name=name, storage=self._storage, direction="maximize" if larger else "minimize"
            )
        if _about(study) is None:
            about = {
                "version": VERSION,
                "sampler": SAMPLER,
                "space": space.model_dump(mode="json"),
                "plans": {task: plan.model_dump(mode="json") for task, plan in plans.items()},
            }
            study.set_user_attr(ABOUT, json.dumps(about))
        self._check(study, space, plans)
        return study

    def add(self, study: optuna.Study, space: Space, trial: Trial) -> None:
        """Add a trial with a result unless it is there; one without a number counts as worse than any.

        Raises:
            JournalError: it is there with other rates.
        """
        known = {each.user_attrs["number"]: each for each in study.get_trials(deepcopy=False)}
        rates = dict(zip(RATES, (trial.learning_rate, trial.rest_learning_rate), strict=True))
        params = {name: rate for name, rate in rates.items() if rate is not None}
        if trial.number in known:
            if known[trial.number].params != params or known[trial.number].user_attrs["plans"] != trial.plans:
                raise JournalError(
                    f"{self.path}: trial {trial.number} of {study.study_name} has other rates or plans than the same "
                    "one now: the sequence of points changed with the libraries; begin anew in another --out folder"
                )
            return
        worst = -math.inf if study.direction == optuna.study.StudyDirection.MAXIMIZE else math.inf
        spans: dict[str, BaseDistribution] = {
            name: FloatDistribution(getattr(space, name).low, getattr(space, name).high, log=True) for name in params
        }
        about: dict[str, Any] = {"number": trial.number, "plans": trial.plans, "status": trial.status}
        study.add_trial(
            optuna.trial.create_trial(
                value=worst if trial.score is None else trial.score,
                params=params,
                distributions=spans,
                user_attrs=about,
            )
        )

    @staticmethod
    def entered(study: optuna.Study) -> dict[int, dict[str, str]]:
        """Return number -> {task: hash of its run's plan} of the trials that stand in a study."""
        return {each.user_attrs["number"]: each.user_attrs["plans"] for each in study.get_trials(deepcopy=False)}

    def _names(self) -> list[str]:
        return optuna.get_all_study_names(self._storage)

    def _check(self, study: optuna.Study, space: Space, plans: Mapping[str, Plan]) -> None:
        about = _about(study)
        assert about is not None
        if (about.get("version"), about.get("sampler")) != (VERSION, SAMPLER):
            raise JournalError(
                f"{self.path}: {study.study_name} is of another version of the search (version {about.get('version')}, "
                f"{about.get('sampler')}; this code: version {VERSION}, {SAMPLER}): begin anew in another --out folder"
            )
        before = {task: Plan.model_validate(plan) for task, plan in about["plans"].items()}
        found = [] if list(before) == list(plans) else [f"tasks {','.join(before)} -> {','.join(plans)}"]
        for task in before.keys() & plans.keys():
            found += [f"{name} {old} -> {new}" for name, old, new in plan_differences(before[task], plans[task])]
        stored = Space.model_validate(about["space"])
        for name in RATES:
            old, new = _told(getattr(stored, name)), _told(getattr(space, name))
            found += [f"range of {name} {old} -> {new}"] if old != new else []
        if found:
            raise JournalError(
                f"{self.path}: is of another plan than {study.study_name} is now; what differs: "
                f"{', '.join(dict.fromkeys(found))}; give its settings to go on with it, or begin anew in another "
                "--out folder"
            )

    def _mend(self) -> None:
        """Take away a last line that was cut off in writing; what it held is found again in the records."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole, end, _ = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
            try:
                json.loads(line)
            except ValueError as error:
                raise JournalError(f"{self.path}: line {number} is no line of a journal: {error}") from error
        if len(whole + end) < len(content):
            write_atomically(self.path, whole + end)


def _about(study: optuna.Study) -> dict[str, Any] | None:
    text = study.user_attrs.get(ABOUT)
    return None if text is None else dict(json.loads(text))


def _told(span: Range | None) -> str:
    return "none" if span is None else f"{span.low:g} to {span.high:g}"
