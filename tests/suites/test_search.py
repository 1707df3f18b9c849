"""Search: an equal budget, the same points for all, held-out train rows alone; stops, goes on, and is shared."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from baselines.method import REST_RATES, Work
from baselines.registry import methods
from results.catalogue import Catalogue, MetricEntry, SuiteEntry, TaskEntry
from results.schema import DataPlan, ModelPlan, Plan, Record, Status
from results.search import RATES, Choice, Range, Search, Space, joined, read_search
from results.store import StoreError, read_records, write_record
from suites import config, plan
from suites.__main__ import app
from suites.config import Settings
from suites.engines.away import Away
from suites.engines.engine import Gone, Resources, State, Task
from suites.glue.tasks import TASKS
from suites.plan import Request, make_plans
from suites.registry import get_suite
from suites.resolved import resolved
from suites.run import preflight
from suites.run.worker import Event, Listener
from suites.search import command, hunt
from suites.search.choice import choice_table, write_choice
from suites.search.command import searched
from suites.search.hunt import Hunt
from suites.search.journal import FILE, JournalError
from suites.search.space import at, edges, points, rates_at, widened
from suites.search.trials import Trials, trials_of
from suites.suite import Runtime, TrainAlone
from tests.suites.fake_engine import World

RUNTIME = Runtime(torch.device("cpu"), offline=True)
COMMON = 'model = "toy"\nsource = "micro"\nsteps = 10\n'
PROFILE = f"""
[toy]
{COMMON}
methods = ["full", "lora", "galore", "frozen"]
[toy.search]
tasks = ["a", "b"]
trials = 4
steps = 5
[toy.method.lora]
learning_rate = 1e-3
[toy.method.galore]
config = {{ refresh_gap = 50 }}
"""
METRIC = MetricEntry(name="loss", title="loss", better="lower")
FORK = multiprocessing.get_context("fork")
Score = Callable[[Plan], float | None]


@dataclass(frozen=True)
class ToySuite:
    """Three tasks without data; lower is better."""

    name: str = "toy"
    tasks: tuple[str, ...] = ("a", "b", "c")
    entry: SuiteEntry = SuiteEntry(
        name="toy", title="Toy", metrics=[METRIC],
        tasks=[TaskEntry(name=task, title=task, main_metric="validation/loss", metrics=["loss"]) for task in "abc"],
    )  # fmt: skip
    work: Work = "pre-training"
    settings: type[Settings] = Settings

    def model(self, settings: Settings, runtime: Runtime) -> ModelPlan:
        return ModelPlan(name="toy", source="config")

    def train_rows(self, task: str, settings: Settings, runtime: Runtime) -> int:
        return 100

    def data(self, task: str, settings: Settings, runtime: Runtime) -> DataPlan:
        return DataPlan(source=settings.source, name=task, max_length=settings.max_length)


@pytest.fixture(autouse=True)
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand a folder with one small profile in for the profiles, and a suite without data beside the suites."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "small.toml").write_text(PROFILE)
    monkeypatch.setattr(config, "PROFILES", folder)
    monkeypatch.setattr(plan, "get_suite", lambda name: get_suite(name) if name != "toy" else ToySuite())
    monkeypatch.setattr(hunt, "POLL_S", 0.05)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "search"


def request(**changes: Any) -> Request:
    return Request(**{"suite": "toy", "profile": "small", "rank": 8, "seeds": (0,), **changes})


def made(folder: Path, trials: int | None = None, **changes: Any) -> Trials:
    return trials_of(searched(request(**changes)), RUNTIME, folder, trials)


CONSTANT = 99.0
"""Score of the constant prediction."""


def record_of(run: Plan, score: float | None, status: Status = "ok", split: str = "held_out") -> Record:
    environment = {
        "commit": None, "dirty": None, "python": "3", "platform": "x", "packages": {}, "device": "cpu",
        "device_name": "x", "device_memory_bytes": None, "cpu_count": 1, "threads": 1, "workers": 1, "ram_bytes": 1,
    }  # fmt: skip
    # An earlier evaluation, and one of validation, that would mislead.
    evaluations = [
        {"step": step, "epoch": None, "rows": {split: 9}, "metrics": {f"{split}/loss": value, "validation/loss": -9.0}}
        for step, value in enumerate((0.0, score), start=1)
    ]
    record = {
        "plan": run.model_dump(), "plan_hash": run.hash(), "status": status, "started_at": "", "finished_at": "",
        "environment": environment, "evaluations": evaluations, "main_metric": f"{split}/loss",
        "catalogue": Catalogue(suites=[ToySuite.entry]),
        "data": {"train_rows": 9, "eval_rows": {}, "official": True, "constant_scores": {f"{split}/loss": CONSTANT}},
    }  # fmt: skip
    return Record.model_validate(record)


def bowl(run: Plan) -> float:
    """Return a score that is best at 1e-3 and 1e-2, inside every range, and a little different for each task."""
    own, rest = run.training.learning_rate, run.training.rest_learning_rate
    assert rest is not None
    centre = 1e-2 if run.method == "galore" else 1e-3
    found = math.log10(rest / 1e-2) ** 2 + (ord(run.task) - ord("a")) / 100
    return found if run.method == "frozen" else found + math.log10(own / centre) ** 2


def far(run: Plan) -> float:
    """Return a score that is best for full beyond its first range, at 2e-2."""
    if run.method != "full":
        return bowl(run)
    own, rest = run.training.learning_rate, run.training.rest_learning_rate
    assert rest is not None
    return math.log10(own / 2e-2) ** 2 + 0.05 * math.log10(rest / 1e-2) ** 2


def pretender(score: Score, log: Path | None = None, die_after: int | None = None, seconds: float = 0.0) -> Any:
    """Return what stands in for `launch`: records at once, a line in `log` each, SIGKILL after so many."""

    def launch(plans: Iterable[Plan], runtime: Runtime, store: Path, predicted: Any, listen: Listener) -> list[Record]:
        records = []
        for run in plans:
            if die_after is not None and len(records) == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(seconds)
            found = score(run)
            records.append(record_of(run, found, "diverged" if found is None else "ok"))
            write_record(store, records[-1])
            if log is not None:
                with log.open("a") as stream:
                    stream.write(f"{os.getpid()} {run.hash()}\n")
            listen(Event(run, record=records[-1]))
        return records

    return launch


def search(trials: Trials, launch: Any) -> Search:
    """Search to the end with a stand-in for `launch`."""
    before, hunt.launch = hunt.launch, launch
    try:
        hunting = Hunt(trials, RUNTIME)
        while True:
            if hunting.go({}, lambda event: None) or not hunting.goes_on():
                return hunting.settle()
    finally:
        hunt.launch = before


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


# Points and ranges


def test_the_points_are_always_the_same_and_a_longer_search_begins_with_a_shorter_ones() -> None:
    first = points(16)
    points.cache_clear()
    assert points(16) == first == points(32)[:16]
    assert len(set(first)) == 16
    assert all(0 <= share < 1 for point in first for share in point)


def test_the_points_fill_the_square_evenly() -> None:
    """A (0, 4, 2)-net: one point in every sixteenth of the square, however it is cut into rectangles."""
    for across in (1, 2, 4, 8, 16):
        cells = Counter((int(own * across), int(rest * 16 / across)) for own, rest in points(16))
        assert set(cells.values()) == {1}, across
        assert len(cells) == 16


def test_a_point_is_mapped_in_the_logarithm() -> None:
    span = Range(low=1e-4, high=1e-2, source="x")
    assert [at(span, share) for share in (0.0, 0.5, 1.0)] == [1e-4, 1e-3, 1e-2]
    space = Space(method="x", round=0, learning_rate=None, rest_learning_rate=span)
    assert rates_at(space, (0.3, 0.5)) == (None, 1e-3)


def _space(low: float = 1e-4, high: float = 1e-2, method: str = "x") -> Space:
    span = Range(low=low, high=high, source="x")
    return Space(method=method, round=0, learning_rate=span, rest_learning_rate=span)


@pytest.mark.parametrize(
    ("own", "rest", "expected"),
    [
        (1e-3, 1e-3, []),
        (1.5e-4, 1e-3, ["learning_rate low"]),
        (1.6e-4, 1e-3, []),
        (6.2e-3, 1e-3, []),
        (6.4e-3, 1e-4, ["learning_rate high", "rest_learning_rate low"]),
    ],
)
def test_an_edge_is_a_tenth_of_the_range_in_its_logarithm(own: float, rest: float, expected: list[str]) -> None:
    assert edges(_space(), own, rest) == expected


def _best(method: str, *at_edge: str) -> Choice:
    return Choice(
        method=method, round=0, number=0, learning_rate=1e-3, rest_learning_rate=1e-3, score=0.0, edges=list(at_edge)
    )


def test_ranges_are_widened_for_all_methods_by_the_same_factor() -> None:
    spaces = [_space(method=method) for method in ("x", "y", "z")]
    best = {"x": _best("x"), "y": _best("y", "learning_rate high"), "z": _best("z", "learning_rate low")}
    found = widened(spaces, best, 5)
    assert found is not None
    assert [(each.learning_rate.low, each.learning_rate.high) for each in found if each.learning_rate] == [
        (3.162e-5, 3.162e-2), (1e-4, 1e-1), (1e-5, 1e-2)
    ]  # fmt: skip
    assert all(each.rest_learning_rate == spaces[0].rest_learning_rate for each in found)
    assert {(each.round, each.first) for each in found} == {(1, 5)}
    assert widened(spaces, {each.method: _best(each.method) for each in spaces}, 5) is None
    late = widened(spaces, {each.method: _best(each.method) for each in spaces}, 5, ["rest_learning_rate"])
    assert late is not None
    assert all(each.learning_rate == spaces[0].learning_rate for each in late)


# What is tried


def test_every_method_gets_the_same_points_in_ranges_of_the_same_width(folder: Path) -> None:
    trials = made(folder, 8)
    assert list(trials.templates) == ["full", "lora", "galore", "frozen"]
    assert trials.tasks == ["a", "b"]
    spaces = trials.rounds[0]
    for name in RATES:
        spans = [span for space in spaces.values() if (span := getattr(space, name)) is not None]
        assert all(span.high / span.low == pytest.approx(100) for span in spans)
    assert spaces["galore"].learning_rate == Range(
        low=1e-3, high=1e-1, source=methods()["galore"].rates["pre-training"].source
    )
    assert {space.rest_learning_rate.source for space in spaces.values()} == {REST_RATES["pre-training"].source}
    for number, (own, rest) in enumerate(points(8)):
        for method, space in spaces.items():
            (first, second) = trials.plans_of(space, number).values()
            assert (first.task, second.task) == ("a", "b")
            assert (
                first.training.rest_learning_rate
                == second.training.rest_learning_rate
                == at(space.rest_learning_rate, rest)
            )
            expected = rest if space.learning_rate is None else own
            span = space.learning_rate or space.rest_learning_rate
            assert first.training.learning_rate == at(span, expected), method
    assert len(trials.plans(0)) == 8 * 4 * 2


def test_a_control_has_the_rests_rate_alone(folder: Path) -> None:
    trials = made(folder)
    assert trials.rounds[0]["frozen"].learning_rate is None
    runs = [run for run in trials.plans(0) if run.method == "frozen"]
    assert all(run.training.learning_rate == run.training.rest_learning_rate for run in runs)
    assert len({run.training.learning_rate for run in runs}) == 4


def test_runs_of_a_search_are_held_out_and_have_its_own_settings(folder: Path) -> None:
    runs = made(folder).plans(0)
    assert all(run.data.held_out and run.purpose == "tuning" for run in runs)
    assert {run.training.steps for run in runs} == {5}
    assert {run.training.steps for run in make_plans(request(), RUNTIME)} == {10}
    assert {run.method_config["refresh_gap"] for run in runs if run.method == "galore"} == {50}
    assert not {run.hash() for run in runs} & {run.hash() for run in make_plans(request(), RUNTIME)}


def test_what_is_typed_beats_the_searchs_settings(folder: Path) -> None:
    typed = (("steps", 3), ("method", {"lora": {"range": [1e-5, 1e-3]}}))
    trials = made(folder, tasks=("c",), methods=("lora",), overrides=typed)
    assert {(run.training.steps, run.task, run.method) for run in trials.plans(0)} == {(3, "c", "lora")}
    assert trials.rounds[0]["lora"].learning_rate == Range(low=1e-5, high=1e-3, source="setting")


def test_an_earlier_choice_does_not_colour_the_search(folder: Path, profiles: Path) -> None:
    before = [run.hash() for run in made(folder).plans(0)]
    (profiles / "small.toy.rank8.tuned.toml").write_text("steps = 99\n[method.lora]\nlearning_rate = 0.5\n")
    assert [run.hash() for run in made(folder).plans(0)] == before


@pytest.mark.parametrize("trials", [0, 1, -3])
def test_a_budget_below_two_is_refused(trials: int, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"trials {trials}: a search needs at least 2 .*nearest allowed value: 2"):
        made(folder, trials)


def test_no_budget_is_refused(folder: Path, profiles: Path) -> None:
    (profiles / "small.toml").write_text(f"[toy]\n{COMMON}")
    with pytest.raises(
        ValueError, match=r"trials: profile 'small' does not say .*--trials 16, or trials = 16 in \[toy"
    ):
        made(folder)


def test_a_method_without_a_range_is_refused_with_the_line_to_add(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    bare = replace(methods()["lora"], rates={})
    monkeypatch.setattr(plan, "get_method", lambda name: bare if name == "lora" else methods()[name])
    with pytest.raises(ValueError, match=r"'small' gives it no range .* add \[toy\.method\.lora\] with range = \["):
        made(folder)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"method": {"lora": {"range": [1e-2, 1e-4]}}},
            r"range of lora, range 0\.01 to 0\.0001: the lower end must be",
        ),
        (
            {"method": {"lora": {"range": [0.0, 1e-4]}}},
            r"range of lora, range 0 to 0\.0001: .*\(nearest allowed: 1e-05 to 0\.001\)",
        ),
        ({"rest_range": [1e-2, 1e-2]}, r"rest_range of full, range 0\.01 to 0\.01"),
        ({"method": {"lora": {"range": [1e-4, 1e-3]}}}, r"ranges of learning_rate: must be equally wide .*lora 1\.00"),
        ({"method": {"full": {"rest_range": [1e-4, 1e-3]}}}, r"ranges of rest_learning_rate: must be equally wide"),
        ({"range": [1e-4]}, r"setting range.* = "),
        (
            {"task": {"a": {"method": {"lora": {"range": [1e-5, 1e-3]}}}}},
            r"^range of lora: is not the same for all runs",
        ),
        ({"task": {"b": {"rest_range": [1e-4, 1e-2]}}}, r"^range of full: is not the same for all runs that share it"),
    ],
)
def test_ranges_that_are_none_or_unequal_are_refused(settings: dict[str, Any], text: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=text):
        made(folder, overrides=tuple(settings.items()))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"equal": "memory"}, r"^equal 'memory': a search gives every method the same batch \(nearest .*: tokens\)$"),
        ({"method": {"lora": {"equal": "memory"}}}, r"^equal 'memory'"),
        ({"method": {"lora": {"trials": 8}}}, r"^trials: is not the same for all runs that share it"),
        ({"task": {"b": {"rounds": 1}}}, r"^rounds: is not the same for all runs that share it"),
    ],
)
def test_what_all_runs_share_is_given_for_all(settings: dict[str, Any], text: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=text):
        made(folder, overrides=tuple(settings.items()))


# What came of it


def test_the_best_mean_over_the_tasks_is_chosen(folder: Path) -> None:
    found = search(made(folder, 8), pretender(bowl))
    assert found.metrics == {"a": "loss", "b": "loss"}
    assert len(found.results) == 8 * 4
    for choice in found.choices:
        own = [trial for trial in found.results if trial.method == choice.method]
        assert choice.score == min(trial.score for trial in own if trial.score is not None)
        best = own[choice.number]
        assert (best.learning_rate, best.rest_learning_rate) == (choice.learning_rate, choice.rest_learning_rate)
        runs = made(folder, 8).plans_of(
            found.spaces[[s.method for s in found.spaces].index(choice.method)], best.number
        )
        assert best.score == pytest.approx(sum(map(bowl, runs.values())) / 2)
        assert best.plans == {task: run.hash() for task, run in runs.items()}
    assert read_search(folder) == found
    assert len(read_records([folder])) == 8 * 4 * 2


def test_a_diverged_trial_is_a_result_worse_than_any(folder: Path) -> None:
    def score(run: Plan) -> float | None:
        return None if run.training.learning_rate > 2e-3 and run.method == "full" else bowl(run)

    found = search(made(folder, 8, overrides=(("rounds", 1),)), pretender(score))
    broken = [trial for trial in found.results if trial.status == "diverged"]
    assert broken
    assert all(trial.score is None and trial.method == "full" for trial in broken)
    assert {choice.method for choice in found.choices} == {"full", "lora", "galore", "frozen"}
    assert [each.get("value") for each in lines(folder)].count(math.inf) == len(broken)
    table = choice_table(found)
    assert list(table.columns[2].cells)[0] == str(len(broken))


def test_a_score_that_is_undefined_is_no_choice_and_a_missing_one_leaves_none(folder: Path) -> None:
    trials = made(folder, 2, methods=("lora",), tasks=("a",), overrides=(("rounds", 1),))
    first, second = trials.plans(0)
    folder.mkdir()
    write_record(folder, record_of(first, None))
    assert trials.search().choices == []
    write_record(folder, record_of(second, 5.0))
    (choice,) = made(folder, 2, methods=("lora",), tasks=("a",)).search().choices
    assert (choice.number, choice.score) == (1, 5.0)


@pytest.mark.parametrize("status", ["out_of_memory", "failed", "interrupted"])
def test_a_run_that_says_nothing_of_its_rates_leaves_no_choice(status: Status, folder: Path, profiles: Path) -> None:
    trials = made(folder, 2, methods=("lora",), tasks=("a",))
    folder.mkdir()
    for run, how in zip(trials.plans(0), ("ok", status), strict=True):
        write_record(folder, record_of(run, 1.0, how))
    found = trials.search()
    assert found.choices == []
    # What ran out of memory is not run again while its record is there.
    final = status == "out_of_memory"
    assert sum(not trials.done(run) for run in trials.plans(0)) == (0 if final else 1)
    with pytest.raises(ValueError, match="^no choice for lora: not all of its trials have a result: ") as raised:
        write_choice(found, folder)
    assert str(raised.value).endswith("give the same command again")
    assert (f"remove {trials.plans(0)[1].label}.json from {folder}" in str(raised.value)) is final
    assert [path.name for path in profiles.iterdir()] == ["small.toml"]


def test_a_method_whose_trials_all_diverge_needs_another_range(folder: Path) -> None:
    found = search(made(folder, methods=("lora",)), pretender(lambda run: None))
    with pytest.raises(
        ValueError, match=r"^no choice for lora: none .* a number; .*--set method\.lora\.range=.* --out"
    ):
        write_choice(found, folder)


LONG = 10
"""Steps of a run that is no trial."""


def _best_of(trials: Trials, method: str) -> list[int]:
    """Return the numbers of a method's trials, the best by `bowl` first."""
    space = trials.rounds[0][method]
    return sorted(range(trials.trials), key=lambda number: bowl(trials.plans_of(space, number)["a"]))


def _rates(trials: Trials, method: str, number: int) -> float:
    return trials.plans_of(trials.rounds[0][method], number)["a"].training.learning_rate


def _falling(trials: Trials, places: int, diverge: bool = False) -> Score:
    """Return `bowl`, but that full's best `places` trials get worse, or diverge, at length."""
    falls = {_rates(trials, "full", number) for number in _best_of(trials, "full")[:places]}

    def score(run: Plan) -> float | None:
        falling = run.training.steps == LONG and run.method == "full" and run.training.learning_rate in falls
        return (None if diverge else bowl(run) + 9.0 - run.training.learning_rate) if falling else bowl(run)

    return score


@pytest.mark.parametrize("diverge", [False, True])
def test_the_best_trial_is_chosen_if_it_bears_the_length_of_the_runs(diverge: bool, folder: Path) -> None:
    trials = made(folder, 8, overrides=(("rounds", 1), ("confirm", 3)))
    once = search(made(folder.with_name("once"), 8, overrides=(("rounds", 1),)), pretender(bowl))
    found = search(trials, pretender(_falling(trials, 2, diverge)))
    first, last = ({choice.method: choice for choice in each.choices} for each in (once, found))
    best = _best_of(trials, "full")
    assert (first["full"].number, last["full"].number) == (best[0], best[2])
    assert last["full"].confirmed == last["full"].score
    assert first["full"].confirmed is None
    # Asked is no more than there is need for, and nobody but full falls.
    asked = [(trial.method, trial.number) for trial in found.results if trial.at_length is not None]
    assert sorted(asked) == sorted(
        [*(("full", n) for n in best[:3]), *((m, first[m].number) for m in first if m != "full")]
    )
    assert {m: choice.number for m, choice in first.items() if m != "full"} == {
        m: choice.number for m, choice in last.items() if m != "full"
    }
    records = read_records([folder])
    assert Counter(record.plan.training.steps for record in records) == {5: 8 * 4 * 2, LONG: (3 + 3) * 2}
    assert all(record.plan.data.held_out and record.plan.purpose == "tuning" for record in records)
    rule = "first of the best 3 that at full length is no worse and better than the constant prediction"
    assert f"the {rule}; mean held-out score" in str(choice_table(found).title)
    assert "at full length" not in write_choice(once, folder).read_text()
    told = write_choice(found, folder).read_text()
    assert f"# The {rule}." in told
    assert f"learning_rate = {last['full'].learning_rate!r}" in told


def test_where_none_stands_the_best_at_length_is_chosen(folder: Path, tmp_path: Path) -> None:
    trials = made(folder, 8, methods=("full",), overrides=(("rounds", 1), ("confirm", 3)))
    found = search(trials, pretender(_falling(trials, 8)))
    (choice,) = found.choices
    asked = [trial for trial in found.results if trial.at_length is not None]
    assert len(asked) == 3
    best = min(asked, key=lambda trial: trial.at_length.score if trial.at_length and trial.at_length.score else 0.0)
    assert choice.number == best.number
    assert choice.confirmed is not None
    assert choice.confirmed > choice.score
    none = made(tmp_path / "none", 4, methods=("full",), overrides=(("rounds", 1), ("confirm", 2)))
    broken = search(none, pretender(_falling(none, 4, diverge=True)))
    with pytest.raises(
        ValueError, match=r"^no choice for full: none of its trials has a number at the runs' own length;"
    ):
        write_choice(broken, folder)


ALSO = (("rounds", 1), ("confirm", 3), ("confirm_tasks", "c"))


def _fallen(trials: Trials, places: int, score: float = CONSTANT) -> Score:
    """Return `bowl`, but that full's best `places` trials come to `score` on c, where no trial is made."""
    falls = {_rates(trials, "full", number) for number in _best_of(trials, "full")[:places]}

    def found(run: Plan) -> float:
        fallen = run.task == "c" and run.method == "full" and run.training.learning_rate in falls
        return score if fallen else bowl(run)

    return found


@pytest.mark.parametrize(("score", "place"), [(CONSTANT, 1), (CONSTANT + 1.0, 1), (CONSTANT - 0.1, 0)])
def test_a_trial_at_the_constant_prediction_on_another_task_does_not_stand(
    score: float, place: int, folder: Path
) -> None:
    trials = made(folder, 8, overrides=ALSO)
    found = search(trials, pretender(_fallen(trials, 1, score)))
    best = _best_of(trials, "full")
    choice = next(choice for choice in found.choices if choice.method == "full")
    assert choice.number == best[place]
    # The score at length is of the tasks that the trial has one of.
    assert choice.confirmed == choice.score
    asked = [t.at_length for t in found.results if t.method == "full" and t.at_length is not None]
    assert sorted(each.fallen for each in asked) == [[], ["c"]][: place + 1]
    assert all({*each.plans} == {"a", "b", "c"} for each in asked)
    assert found.confirm_tasks == ["c"]
    assert sum(record.plan.task == "c" for record in read_records([folder])) == len(found.choices) + place
    assert "the constant prediction, on c too." in write_choice(found, folder).read_text()


def test_where_none_stands_the_fewest_fallen_are_chosen_before_the_best(folder: Path) -> None:
    trials = made(folder, 8, methods=("full",), overrides=ALSO)
    best = _best_of(trials, "full")
    first, third = (_rates(trials, "full", best[place]) for place in (0, 2))

    def score(run: Plan) -> float:
        own = run.training.learning_rate
        if run.task == "c" and own != third:
            return CONSTANT
        return bowl(run) + 9.0 if own == third and run.training.steps == LONG else bowl(run)

    assert first != third
    (choice,) = search(trials, pretender(score)).choices
    assert choice.number == best[2]


def test_tasks_of_the_confirmation_are_of_the_suite_and_the_same_for_all(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^unknown task of confirm_tasks 'd': known are a, b, c"):
        made(folder, overrides=(("confirm_tasks", "d"),))
    search(made(folder, methods=("full",), overrides=(("confirm", 2), ("confirm_tasks", "c"))), pretender(bowl))
    with pytest.raises(
        ValueError, match=r"^confirm_tasks \[\]: full have \['c'\] in this search, and all get the same"
    ):
        Hunt(made(folder, methods=("lora",), overrides=(("confirm", 2),)), RUNTIME)


def test_no_more_is_run_at_once_than_was_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = made(folder, 8, overrides=(("rounds", 1), ("confirm", 3)))
    monkeypatch.setattr(hunt, "launch", pretender(_falling(trials, 2)))
    hunting = Hunt(trials, RUNTIME)
    shown = []
    while not shown or hunting.goes_on():
        shown.append({run.hash() for run in hunting.undone()})
        ran: set[str] = set()
        hunting.go({}, lambda event: ran.add(event.plan.hash()))  # noqa: B023
        assert ran == shown[-1]
    assert [len(each) for each in shown] == [8 * 4 * 2, 4 * 2, 2, 2]


def test_a_run_at_length_that_says_nothing_leaves_no_choice(folder: Path) -> None:
    asked = (("rounds", 1), ("confirm", 2))
    trials = made(folder, methods=("full",), overrides=asked)
    assert search(trials, pretender(bowl)).choices
    lost = trials.at_length()[0]
    assert lost.training.steps == LONG
    write_record(folder, record_of(lost, None, "out_of_memory"))
    with pytest.raises(ValueError, match=rf"not all of its trials .*remove {lost.label}\.json") as raised:
        write_choice(made(folder, methods=("full",), overrides=asked).search(), folder)
    assert str(raised.value).endswith("give the same command again")


def test_trials_that_are_as_long_as_runs_are_asked_nothing_more(folder: Path) -> None:
    trials = made(folder, 2, overrides=(("rounds", 1), ("confirm", 2), ("steps", 5)))
    found = search(trials, pretender(bowl))
    assert len(read_records([folder])) == 2 * 4 * 2
    assert all(choice.confirmed == choice.score for choice in found.choices)


def test_a_choice_at_an_edge_widens_the_ranges_too(folder: Path) -> None:
    """The best trial lies inside and falls at length; the one that stands lies at an edge."""
    asked = (("rounds", 2), ("confirm", 8))
    trials = made(folder, 8, methods=("full",), overrides=asked)
    inner = search(made(folder.with_name("one"), 8, methods=("full",), overrides=asked[:1]), pretender(bowl))
    assert {each.round for each in inner.spaces} == {0}
    space, ranked = trials.rounds[0]["full"], _best_of(trials, "full")
    outer = next(place for place, n in enumerate(ranked) if edges(space, *rates_at(space, points(8)[n])))
    assert outer
    found = search(trials, pretender(_falling(trials, outer)))
    assert {each.round for each in found.spaces} == {0, 1}
    again = Hunt(made(folder, 8, methods=("full",), overrides=asked), RUNTIME)
    assert not again.undone()
    assert again.settle() == found


def test_a_search_at_its_end_is_left_as_it_is(folder: Path) -> None:
    search(made(folder, **CONFIRMED), pretender(bowl))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    search(made(folder, **CONFIRMED), pretender(bowl))
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_method_that_joins_later_is_confirmed_alike(folder: Path) -> None:
    search(made(folder, methods=("full",), overrides=(("confirm", 2),)), pretender(bowl))
    with pytest.raises(
        ValueError, match=r"^confirm 0: full have 2 in this search, and all get the same \(nearest .*: 2;"
    ):
        Hunt(made(folder, methods=("lora",)), RUNTIME)


def test_ranges_are_widened_and_tried_again_until_no_best_lies_at_an_edge(folder: Path) -> None:
    found = search(made(folder, 16), pretender(far))
    rounds = Counter(space.method for space in found.spaces)
    assert set(rounds.values()) == {2}
    assert Counter((trial.method, trial.round) for trial in found.results) == dict.fromkeys(
        [(method, round_) for method in rounds for round_ in (0, 1)], 16
    )
    assert all(not choice.edges for choice in found.choices)
    best = next(choice for choice in found.choices if choice.method == "full")
    assert best.round == 1
    assert best.learning_rate is not None
    assert best.learning_rate > 1e-2
    for method in rounds:
        # The later round's points are new ones: where a range stayed, its rates too.
        assert [trial.point for trial in found.results if trial.method == method] == list(points(32))
    # No further than it is told.
    alone = search(made(folder.with_name("one"), 16, overrides=(("rounds", 1),)), pretender(far))
    assert next(choice for choice in alone.choices if choice.method == "full").edges == ["learning_rate high"]


def test_a_method_that_joins_later_gets_as_many_rounds(folder: Path, profiles: Path) -> None:
    search(made(folder, 16, methods=("full",)), pretender(far))
    with pytest.raises(ValueError, match=r"trials 4: full have 16 in this search.*nearest allowed value: 16"):
        Hunt(made(folder, 4, methods=("lora",)), RUNTIME)
    found = search(made(folder, 16, methods=("lora",)), pretender(far))
    assert Counter(space.method for space in found.spaces) == {"full": 2, "lora": 2}
    assert {choice.method for choice in found.choices} == {"full", "lora"}
    widths = {(s.method, s.round): s.learning_rate.high / s.learning_rate.low for s in found.spaces if s.learning_rate}
    assert widths["lora", 1] == pytest.approx(widths["full", 1], rel=1e-2)
    full, lora = ([trial.point for trial in found.results if trial.method == method] for method in ("full", "lora"))
    assert lora == full
    write_choice(found, folder)
    behind = found.model_copy(update={"spaces": [s for s in found.spaces if (s.method, s.round) != ("lora", 1)]})
    with pytest.raises(ValueError, match=r"no choice: lora have had fewer than 2 rounds.*--method full,lora"):
        write_choice(behind, folder)


def test_a_round_that_has_begun_goes_on_at_its_own_points(folder: Path) -> None:
    """Searches that were begun when every round had the same points."""

    def high(run: Plan) -> float:
        return -run.training.learning_rate

    trials = made(folder, 9, methods=("full",))
    hunting = Hunt(trials, RUNTIME)
    for plan_ in trials.plans(0):
        write_record(folder, record_of(plan_, high(plan_)))
    hunting.settle()
    best = {choice.method: choice for choice in trials.search().choices}
    with hunting.journal.held():
        for space in widened(list(trials.rounds[0].values()), best, 0) or ():
            hunting.journal.begin(space, trials.templates[space.method], larger=False)
    found = search(made(folder, 9, methods=("full",), overrides=(("rounds", 3),)), pretender(high))
    assert [space.first for space in found.spaces] == [0, 0, 9]
    told = [trial.point for trial in found.results if trial.round < 2]
    assert told == [*points(9), *points(9)]


def test_searches_are_joined_where_their_points_are_the_same(folder: Path) -> None:
    ours = search(made(folder / "a", 4, methods=("full",)), pretender(far))
    theirs = search(made(folder / "b", 4, methods=("lora",)), pretender(far))
    assert [{space.method for space in each.spaces} for each in joined([ours, theirs])] == [{"full", "lora"}]
    moved = [trial.model_copy(update={"point": trial.point[::-1]}) for trial in theirs.results]
    assert len(joined([ours, theirs.model_copy(update={"results": moved})])) == 2


# It stops, goes on, and is shared


def _content(folder: Path) -> tuple[Search, set[str], list[tuple[str, int]]]:
    """Return what a search left: its record, its runs, and the journal's trials, sorted."""
    found = read_search(folder)
    assert found is not None
    names: list[str] = []
    trials = []
    for line in lines(folder):
        if line["op_code"] == 0:
            names.append(line["study_name"])
        elif line["op_code"] == 4:
            about = json.loads(line["user_attrs"]) if isinstance(line["user_attrs"], str) else line["user_attrs"]
            trials.append((names[line["study_id"]], about["number"]))
    return found, {record.plan_hash for record in read_records([folder])}, sorted(trials)


CONFIRMED: dict[str, Any] = {"overrides": (("confirm", 2), ("confirm_tasks", "c"))}


def _started(folder: Path, launch: Any) -> Any:
    process = FORK.Process(target=lambda: search(made(folder, **CONFIRMED), launch))
    process.start()
    return process


def test_killed_and_gone_on_with_it_is_the_same_as_uninterrupted(folder: Path, tmp_path: Path) -> None:
    whole, log = tmp_path / "whole", tmp_path / "log"
    search(made(whole, **CONFIRMED), pretender(bowl))
    for die_after in (0, 3, 7, 1, 20, 1, 3):  # the last two at length
        process = _started(folder, pretender(bowl, log, die_after))
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    # Cut off in the middle of writing a line of the journal, too.
    with (folder / FILE).open("a") as stream:
        stream.write('{"op_code":4,"wor')
    search(made(folder, **CONFIRMED), pretender(bowl, log))
    assert _content(folder) == _content(whole)
    assert max(Counter(line.split()[1] for line in log.read_text().splitlines()).values()) == 1


def test_two_processes_share_a_search_without_a_lost_or_double_trial(folder: Path, tmp_path: Path) -> None:
    whole, log = tmp_path / "whole", tmp_path / "log"
    search(made(whole, **CONFIRMED), pretender(bowl))
    processes = [_started(folder, pretender(bowl, log, seconds=0.01)) for _ in range(3)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert _content(folder) == _content(whole)
    runs = [line.split() for line in log.read_text().splitlines()]
    assert max(Counter(key for _, key in runs).values()) == 1
    assert len({pid for pid, _ in runs}) == 3


def test_what_a_killed_process_had_in_hand_is_taken_up_by_the_other(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    doomed = _started(folder, pretender(bowl, log, die_after=2, seconds=0.05))
    other = _started(folder, pretender(bowl, log, seconds=0.05))
    doomed.join(120)
    other.join(120)
    assert (doomed.exitcode, other.exitcode) == (-signal.SIGKILL, 0)
    keys = [line.split()[1] for line in log.read_text().splitlines()]
    trials = made(folder, **CONFIRMED)
    assert sorted(keys) == sorted(run.hash() for run in [*trials.plans(0), *trials.at_length()])


def test_more_trials_go_on_from_fewer(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    search(made(folder, 4), pretender(bowl, log))
    search(made(folder, 8), pretender(bowl, log))
    whole = tmp_path / "whole"
    search(made(whole, 8), pretender(bowl))
    assert _content(folder) == _content(whole)
    assert max(Counter(line.split()[1] for line in log.read_text().splitlines()).values()) == 1
    with pytest.raises(JournalError, match=r"has 8 trials of full, more than the 4 asked for \(nearest .*: 8\)"):
        Hunt(made(folder, 4), RUNTIME)


def test_a_search_on_an_engine_is_that_of_here(folder: Path, tmp_path: Path) -> None:
    """One run is lost once on the way, and tried again; two rounds, since a best lies at an edge."""

    def script(world: World, task: Task, second: int) -> State:
        if task.plan == world.submitted[0].plan and world.tries(task) == 1:
            return Gone("its node went away", "lost")
        write_record(task.store, record_of(task.plan, far(task.plan)))
        return Gone("ok", "ended")

    world = World(script, pause_s=0.0)
    hunting = Hunt(made(folder), RUNTIME)
    away = Away(world, Resources(1), 1, 2, lambda line: None)
    assert hunting.go({}, lambda event: None, away) == 0
    while hunting.goes_on():
        assert hunting.go({}, lambda event: None, away) == 0
    assert hunting.round > 0
    hunting.settle()
    search(made(tmp_path / "here"), pretender(far))
    assert _content(folder) == _content(tmp_path / "here")
    assert len(world.submitted) == 1 + len({task.plan.hash() for task in world.submitted})


def test_a_search_that_is_at_its_end_starts_no_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds in one connection; a command that finds every record makes none."""

    def script(world: World, task: Task, second: int) -> State:
        write_record(task.store, record_of(task.plan, far(task.plan)))
        return Gone("ok", "ended")

    entered: list[World] = []

    @contextmanager
    def there() -> Iterator[Away]:
        entered.append(World(script, pause_s=0.0))
        yield Away(entered[-1], Resources(1), 1, 2, lambda line: None)

    monkeypatch.setattr(preflight, "check", lambda plans, runtime: [])
    monkeypatch.setattr(preflight, "predict_peaks", lambda plans, runtime: {})
    monkeypatch.setattr(command, "trials_of", lambda asked, runtime, folder, trials: made(folder))
    rounds: list[int] = []

    def show(plans: Sequence[Plan], todo: Sequence[Plan], *given: Any) -> None:
        rounds.append(len(todo))

    for _ in range(2):
        console = Console(file=io.StringIO())
        assert command.tune(console, request(), RUNTIME, folder, None, False, False, show, there()) == 0
    assert len(entered) == 1
    assert len(entered[0].submitted) == sum(rounds)
    assert len(rounds) > 2
    assert rounds[-1] == 0


def test_a_run_that_fails_is_tried_once_and_again_the_next_time(folder: Path) -> None:
    failing: list[str] = []

    def launch(plans: Iterable[Plan], runtime: Runtime, store: Path, predicted: Any, listen: Listener) -> list[Record]:
        records = []
        for run in plans:
            bad = run.method == "lora" and run.task == "a" and len(failing) < 2
            failing.extend([run.hash()] if bad else [])
            records.append(record_of(run, bowl(run), "failed" if bad else "ok"))
            write_record(store, records[-1])
            listen(Event(run, record=records[-1]))
        return records

    before, hunt.launch = hunt.launch, launch
    try:
        first = Hunt(made(folder), RUNTIME)
        assert first.go({}, lambda event: None) == 2
        assert not first.next_stage()
        assert len(set(failing)) == 2
        second = Hunt(made(folder), RUNTIME)
        assert second.go({}, lambda event: None) == 0
    finally:
        hunt.launch = before
    assert len(second.settle().choices) == 4


# Journals of something else


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"overrides": (("batch_size", 4),)},
            r"journal\.log: is of another plan than full round 0 is now; what differs: training\.epochs .*, "
            r"training\.batch_size 16 -> 4",
        ),
        ({"tasks": ("a",)}, r"what differs: tasks a,b -> a"),
        ({"overrides": (("range", [1e-5, 1e-3]),)}, r"range of learning_rate 0\.0001 to 0\.01 -> 1e-05 to 0\.001"),
    ],
)
def test_a_journal_of_another_plan_is_refused(changes: dict[str, Any], text: str, folder: Path) -> None:
    search(made(folder), pretender(bowl))
    with pytest.raises(JournalError, match=text):
        Hunt(made(folder, **changes), RUNTIME)


def test_a_journal_of_another_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(made(folder), pretender(bowl))
    monkeypatch.setattr("suites.search.journal.VERSION", 2)
    with pytest.raises(
        JournalError, match=r"full round 0 is of another version of the search \(version 1, .*version 2"
    ):
        Hunt(made(folder), RUNTIME)


def test_a_journal_with_other_points_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(made(folder), pretender(bowl))
    turned = tuple((rest, own) for own, rest in points(4))
    monkeypatch.setattr("suites.search.trials.points", lambda count: turned)
    with pytest.raises(JournalError, match="whose record .* is not in"):
        Hunt(made(folder), RUNTIME)


def test_a_record_that_the_journal_names_must_be_there(folder: Path) -> None:
    found = search(made(folder), pretender(bowl))
    lost = found.results[5].plans["b"]
    (path,) = folder.glob(f"*-{lost}.json")
    path.unlink()
    with pytest.raises(JournalError, match=rf"names run {lost} of trial 1 of lora, whose record .*{lost}\.json is not"):
        Hunt(made(folder), RUNTIME)


def test_a_corrupt_journal_or_record_is_an_error(folder: Path) -> None:
    search(made(folder), pretender(bowl))
    content = (folder / FILE).read_text()
    (folder / FILE).write_text("nonsense\n" + content)
    with pytest.raises(JournalError, match=r"journal\.log: line 1 is no line of a journal"):
        Hunt(made(folder), RUNTIME)
    (folder / FILE).write_text(content)
    next(folder.glob("toy-*.json")).write_text("{")
    with pytest.raises(StoreError, match="not a record"):
        Hunt(made(folder), RUNTIME)


# The choice


def test_the_written_choice_is_taken_up_by_the_profile(folder: Path, profiles: Path) -> None:
    (profiles / "small.toy.rank8.tuned.toml").write_text(
        "[method.dora]\nlearning_rate = 0.5\nconfig = { scale = 2.0, side = 'both' }\n"
        "[method.lora]\nlearning_rate = 9.0\n"
    )
    found = search(made(folder), pretender(bowl))
    path = write_choice(found, folder)
    assert path == profiles / "small.toy.rank8.tuned.toml"
    chosen = {choice.method: choice for choice in found.choices}
    for run in make_plans(request(), RUNTIME):
        best = chosen[run.method]
        assert run.training.rest_learning_rate == best.rest_learning_rate
        assert run.training.learning_rate == (best.learning_rate or best.rest_learning_rate)
        assert (run.purpose, run.data.held_out, run.training.steps) == ("result", False, 10)
    kept = config.load_profile("small", "toy", 8)[-1]["method"]["dora"]
    assert kept == {"learning_rate": 0.5, "config": {"scale": 2.0, "side": "both"}}
    head = path.read_text().splitlines()[:5]
    assert head[0] == "# Written by `suites tune toy --profile small --rank 8 --task a,b`:"
    assert "4 trials in each of 1 round(s), as many for every method" in head[1]
    assert "held-out train rows" in head[2]
    assert f"journal: search, {FILE} in it" in head[3]
    assert str(folder.parent) not in path.read_text()


# Validation is never looked at


def test_a_search_sees_train_alone() -> None:
    splits = TrainAlone({"train": 1, "validation": 2})
    assert (splits["train"], list(splits), len(splits)) == (1, ["train"], 1)
    with pytest.raises(ValueError, match="split 'validation': a search never looks at it"):
        splits["validation"]


def _glue(*more: tuple[str, Any], **changes: Any) -> Plan:
    settings = {"model": "micro", "source": "micro", "max_length": 48, "steps": 2}
    asked = Request("glue", "micro", 8, ("mnli",), ("lora",), (0,), (*settings.items(), *more))
    (run,) = make_plans(asked, RUNTIME)
    return run.model_copy(update=changes)


def test_a_plan_of_a_search_that_holds_nothing_out_is_refused(profiles: Path) -> None:
    (profiles / "micro.toml").write_text("[glue]\nmodel = 'micro'\n")
    with pytest.raises(ValueError, match="a search looks at held-out train rows alone: held_out must be true"):
        resolved(_glue(purpose="tuning"), RUNTIME)


def test_the_data_object_of_a_glue_search_has_no_validation_rows(
    profiles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows that would be read are guarded themselves: the first touch of another split raises."""
    from suites import glue

    (profiles / "micro.toml").write_text("[glue]\nmodel = 'micro'\n")
    plain, held = _glue(), _glue(("held_out", True), purpose="tuning")
    whole = get_suite("glue").job(plain, RUNTIME)
    loaded = glue._load("mnli", "micro", None, True)

    class Guarded(dict[str, Any]):
        def __getitem__(self, split: str) -> Any:
            assert split == "train", f"touched {split}"
            return super().__getitem__(split)

    from dataclasses import replace

    monkeypatch.setattr(glue, "_load", lambda *given: replace(loaded, splits=Guarded(loaded.splits)))
    job = resolved(held, RUNTIME).job()
    assert set(job.facts.eval_rows) == {"held_out"}
    assert job.facts.train_rows + job.facts.eval_rows["held_out"] == whole.facts.train_rows
    scores = job.evaluate(job.model())
    assert scores.metrics
    assert all(name.startswith("held_out/") for name in scores.metrics)
    assert set(whole.facts.eval_rows) == set(TASKS["mnli"].eval_splits)
    # And a suite that would evaluate on it all the same is refused.
    with pytest.raises(AssertionError, match="touched validation_matched"):
        get_suite("glue").job(plain, RUNTIME)


def test_a_suite_that_evaluates_on_validation_all_the_same_is_refused(folder: Path, profiles: Path) -> None:
    from dataclasses import replace

    (profiles / "micro.toml").write_text("[glue]\nmodel = 'micro'\n")
    plain, held = _glue(), _glue(("held_out", True), purpose="tuning")
    case = resolved(held, RUNTIME)

    class Stubborn:
        name = "glue"

        def job(self, given: Plan, runtime: Runtime) -> Any:
            return get_suite("glue").job(plain, runtime)

    with pytest.raises(ValueError, match="a search looks at held-out train rows alone, not at validation_matched"):
        replace(case, suite=Stubborn()).job()  # type: ignore[arg-type]
    trials = made(folder, 2, methods=("lora",), tasks=("a",))
    folder.mkdir()
    write_record(folder, record_of(trials.plans(0)[0], 1.0, split="validation"))
    with pytest.raises(ValueError, match=r"its score is validation/loss, and a search looks at held-out rows"):
        trials.search()


# The command line


@pytest.fixture
def real_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()


Few = Sequence[str]
FEW: Few = ("c4", "--profile", "micro", "--method", "full", "--no-write", "--workers", "1", "--device", "cpu")


@pytest.mark.usefixtures("real_profiles")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--trials", "0"), ("trials 0", "at least 2", "nearest allowed value: 2")),
        (("--trials", "1"), ("trials 1", "at least 2")),
        (("--set", "range=[1e-2, 1e-4]"), ("range of full", "the lower end must be above 0 and below the upper")),
        (("--set", "search.tasks=['c5']"), ("unknown tasks", "'c5'", "nearest: c4")),
        (("--set", "search.stepps=3"), ("unknown setting 'stepps'", "nearest: steps")),
        (("--set", "search=3"), ("search=3", "search.<setting>=value")),
        (("--set", "grid=[]"), ("unknown setting 'grid'",)),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(arguments: Few, parts: Few, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["tune", *FEW, "--out", str(tmp_path / "out"), *arguments])
    assert found.exit_code == 2
    assert len(found.stderr.strip().splitlines()) == 1
    for part in parts:
        assert part in found.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("real_profiles")
def test_a_folder_with_validation_alone_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "c4"
    data.mkdir()
    (data / "validation.jsonl").write_text('{"text": "one"}\n')
    arguments = ["tune", "c4", "--profile", "small", "--data-dir", str(data), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert "has no file for train" in found.stderr


@pytest.mark.usefixtures("real_profiles")
@pytest.mark.parametrize("profile", ["paper", "fair"])
def test_the_hubs_stream_is_refused_before_anything_is_run(profile: str, tmp_path: Path) -> None:
    arguments = ["tune", "c4", "--profile", profile, "--trials", "2", "--device", "cpu", "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert "tune on a folder given with --data-dir" in found.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("real_profiles")
@pytest.mark.parametrize("rank", [4, 8])
def test_the_fair_profile_says_what_is_searched(rank: int, tmp_path: Path) -> None:
    asked = searched(Request("glue", "fair", rank, seeds=(0,)))
    trials = trials_of(asked, Runtime(torch.device("cpu"), dry=True), tmp_path, None)
    assert (trials.trials, trials.tasks, trials.better) == (16, ["cola", "mrpc", "stsb", "rte"], "higher")
    assert {round(run.training.epochs or 0) for run in trials.plans(0)} == {30}


@pytest.mark.slow
@pytest.mark.usefixtures("real_profiles")
def test_the_command_searches_writes_nothing_it_should_not_and_goes_on(tmp_path: Path) -> None:
    few = ["--set", "rounds=1", "--set", "eval_tokens=400", "--set", "batch_size=4", "--steps", "2", "--trials", "2"]
    command = ["tune", *FEW, *few, "--out", str(tmp_path)]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    folder = tmp_path / "search-c4-micro-r24"
    first = read_search(folder)
    assert first is not None
    assert [trial.status for trial in first.results] == ["ok", "ok"]
    assert all(set(record.data.eval_rows) == {"held_out"} for record in read_records([folder]) if record.data)
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("c4-*.json")}
    assert CliRunner().invoke(app, command).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("c4-*.json")} == stamps
    refused = CliRunner().invoke(app, [*command, "--set", "weight_decay=0.1"])
    assert refused.exit_code == 2
    assert "is of another plan" in refused.stderr
    assert "training.weight_decay 0.0 -> 0.1" in refused.stderr
