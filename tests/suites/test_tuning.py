"""Tuning: an equal budget, held-out train rows alone, the best mean over tasks, and a choice that is taken up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.method import Work
from baselines.registry import methods
from results.catalogue import Catalogue, MetricEntry, SuiteEntry
from results.schema import DataPlan, ModelPlan, Plan, Record, Status
from results.store import StoreError, write_record
from suites import config, models, plan, tuning
from suites.config import Settings, load_profile, resolve
from suites.plan import Request, make_plans
from suites.registry import get_suite
from suites.suite import Runtime
from suites.tuning import choice_table, choose, grid_plans, mean_scores, write_choice

RUNTIME = Runtime(torch.device("cpu"), offline=True)
PROFILE = """
[toy]
model = "toy"
source = "micro"
steps = 10
[toy.method.lora]
learning_rate = 1e-3
grid = [{ learning_rate = 1e-3 }, { learning_rate = 2e-3 }, { learning_rate = 5e-3 }]
[toy.method.galore]
learning_rate = 1e-4
config = { refresh_gap = 50 }
grid = [
  { learning_rate = 1e-4, config = { scale = 2.0 } },
  { learning_rate = 3e-4, config = { scale = 2.0 } },
  { learning_rate = 1e-4, config = { scale = 8.0 } },
]
"""
LORA = [{"learning_rate": rate} for rate in (1e-3, 2e-3, 5e-3)]
GALORE = [
    {"learning_rate": rate, "config": {"scale": scale}} for rate, scale in ((1e-4, 2.0), (3e-4, 2.0), (1e-4, 8.0))
]
ACCURACY = MetricEntry(name="acc", title="accuracy", better="higher")


@dataclass(frozen=True)
class ToySuite:
    """Two tasks of a few rows, no data behind them."""

    name: str = "toy"
    tasks: tuple[str, ...] = ("a", "b")
    work: Work = "fine-tuning"
    settings: type[Settings] = Settings

    def model(self, settings: Settings, runtime: Runtime) -> ModelPlan:
        return models.resolve_model(settings.model, runtime)

    def train_rows(self, task: str, settings: Settings, runtime: Runtime) -> int:
        return 100

    def data(self, task: str, settings: Settings, runtime: Runtime) -> DataPlan:
        return DataPlan(source=settings.source, name=task, max_length=settings.max_length)


@pytest.fixture(autouse=True)
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand a folder with one small profile in for the profiles, and a suite without data for the suites."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "small.toml").write_text(PROFILE)
    monkeypatch.setattr(config, "PROFILES", folder)
    monkeypatch.setattr(plan, "get_suite", lambda name: get_suite(name) if name == "glue" else ToySuite())
    true_model = models.resolve_model
    monkeypatch.setattr(
        models,
        "resolve_model",
        lambda name, runtime: ModelPlan(name=name, source="config") if name == "toy" else true_model(name, runtime),
    )
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def request(**changes: Any) -> Request:
    return Request(
        **{"suite": "toy", "profile": "small", "rank": 8, "methods": ("lora", "galore"), "seeds": (0,), **changes}
    )


def put(store: Path, run: Plan, score: float | None, status: Status = "ok", earlier: Sequence[float] = ()) -> None:
    """Write a record whose last held-out score is `score`; a validation score that would mislead stands beside it."""
    environment = {
        "commit": None, "dirty": None, "python": "3", "platform": "x", "packages": {}, "device": "cpu",
        "device_name": "x", "device_memory_bytes": None, "cpu_count": 1, "threads": 1, "workers": 1, "ram_bytes": 1,
    }  # fmt: skip
    evaluations = [
        {
            "step": step,
            "epoch": None,
            "rows": {"held_out": 9},
            "metrics": {"held_out/acc": value, "validation/acc": -step},
        }
        for step, value in enumerate([*earlier, score], start=1)
    ]
    record = {
        "plan": run.model_dump(), "plan_hash": run.hash(), "status": status, "started_at": "", "finished_at": "",
        "environment": environment, "evaluations": evaluations, "main_metric": "held_out/acc",
        "catalogue": Catalogue(suites=[SuiteEntry(name="toy", title="Toy", metrics=[ACCURACY])]),
    }  # fmt: skip
    write_record(store, Record.model_validate(record))


def fill(store: Path, plans: Sequence[Plan], scores: dict[str, list[float | None]]) -> None:
    """Write records for the plans: per method, scores in the order of its plans (tasks outermost, points inside)."""
    for method, values in scores.items():
        own = [run for run in plans if run.method == method]
        for run, value in zip(own, values, strict=True):
            put(store, run, value)


def test_the_grid_is_every_task_method_and_point() -> None:
    plans = grid_plans(request(), RUNTIME)
    expected = [
        (task, method, point)
        for task in ("a", "b")
        for method, points in (("lora", LORA), ("galore", GALORE))
        for point in points
    ]
    assert [(run.task, run.method, tuning._point(run)) for run in plans] == expected
    assert len({run.hash() for run in plans}) == 12
    assert {run.seed for run in plans} == {0}
    # What the profile gives the method besides stays.
    assert {run.method_config["refresh_gap"] for run in plans if run.method == "galore"} == {50}


def test_tuning_plans_are_held_out_and_never_those_of_a_result() -> None:
    plans = grid_plans(request(), RUNTIME)
    assert all(run.data.held_out and run.purpose == "tuning" for run in plans)
    results = {run.hash() for run in make_plans(request(), RUNTIME)}
    assert not results & {run.hash() for run in plans}


def test_a_tuning_run_evaluates_nothing_of_validation(profiles: Path) -> None:
    """On the generated data: every evaluated row is one that a result run would train on."""
    common = "[glue]\nmodel = 'micro'\nsource = 'micro'\nmax_length = 48\nsteps = 2\n"
    grid = "[glue.method.lora]\nlearning_rate = 1e-3\ngrid = [{ learning_rate = 1e-3 }, { learning_rate = 2e-3 }]"
    (profiles / "micro.toml").write_text(common + grid)
    asked = request(suite="glue", profile="micro", methods=("lora",), tasks=("wnli", "mnli"))
    plans = grid_plans(asked, RUNTIME)
    assert len(plans) == 4
    for run, result in ((plans[0], make_plans(asked, RUNTIME)[0]), (plans[2], make_plans(asked, RUNTIME)[1])):
        tuned, plain = (get_suite("glue").job(each, RUNTIME) for each in (run, result))
        assert set(tuned.facts.eval_rows) == {"held_out"}
        assert not any("held_out" in split for split in plain.facts.eval_rows)
        assert tuned.facts.eval_rows["held_out"] > 0
        assert tuned.facts.train_rows + tuned.facts.eval_rows["held_out"] == plain.facts.train_rows
        assert tuned.main_metric.startswith("held_out/")
        scores = tuned.evaluate(tuned.model())
        assert scores.metrics
        assert all(name.startswith("held_out/") for name in scores.metrics)


def _with_lora_grid(profiles: Path, text: str) -> None:
    written = next(line for line in PROFILE.splitlines() if line.startswith("grid = [{ learning_rate = 1e-3 }"))
    (profiles / "small.toml").write_text(PROFILE.replace(written, f"grid = {text}"))


@pytest.mark.parametrize("text", ["[{ learning_rate = 1e-3 }]", "[{learning_rate=1e-3},{learning_rate=2e-3}]"])
def test_grids_of_different_sizes_are_refused(text: str, profiles: Path) -> None:
    _with_lora_grid(profiles, text)
    count = text.count("learning_rate")
    with pytest.raises(ValueError, match=rf"same size, at least 1, .*'lora': {count}, 'galore': 3"):
        grid_plans(request(), RUNTIME)


def test_a_method_without_a_grid_takes_points_of_its_own_range(profiles: Path) -> None:
    full = ("full", "lora")
    plans = [run for run in grid_plans(request(methods=full, overrides=(("trials", 3),)), RUNTIME) if run.task == "a"]
    rates = methods()["full"].rates["fine-tuning"]
    assert [run.training.learning_rate for run in plans if run.method == "full"] == rates.points(3)
    assert [run.training.learning_rate for run in plans if run.method == "lora"] == [1e-3, 2e-3, 5e-3]


def test_a_grid_may_give_the_rest_a_rate_of_its_own(profiles: Path, store: Path) -> None:
    _with_lora_grid(
        profiles,
        "[{ learning_rate = 1e-3 }, { learning_rate = 1e-3, rest_learning_rate = 2e-2 }, { learning_rate = 2e-3 }]",
    )
    asked = request(methods=("lora",))
    plans = grid_plans(asked, RUNTIME)
    assert [run.training.rest_learning_rate for run in plans] == [None, 2e-2, None] * 2
    fill(store, plans, {"lora": [0.1, 0.9, 0.2] * 2})
    assert choose(plans, store)["lora"] == {"learning_rate": 1e-3, "rest_learning_rate": 2e-2}
    write_choice(asked, plans, store)
    after = make_plans(asked, RUNTIME)[0].training
    assert (after.learning_rate, after.rest_learning_rate) == (1e-3, 2e-2)


def test_without_a_grid_and_a_number_of_points_the_line_to_add_is_said() -> None:
    text = r"method 'full': profile 'small' gives it no grid for suite 'toy'.*add trials = 3 to \[toy\]"
    with pytest.raises(ValueError, match=text):
        grid_plans(request(methods=("full",)), RUNTIME)


def test_without_a_grid_and_a_range_the_line_to_add_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods(), "full", replace(methods()["full"], rates={}))
    text = r"method 'full': profile 'small' gives it no grid .*METHOD no rates for fine-tuning: .*toy\.method\.full\]"
    with pytest.raises(ValueError, match=text):
        grid_plans(request(methods=("full",), overrides=(("trials", 3),)), RUNTIME)


def test_a_grid_of_another_size_than_the_trials_is_refused() -> None:
    with pytest.raises(ValueError, match="grid of lora: has 3 points; every method .* gets trials = 4"):
        grid_plans(request(methods=("lora",), overrides=(("trials", 4),)), RUNTIME)


def test_a_grid_of_its_own_on_one_task_is_refused(profiles: Path) -> None:
    """Its points would be averaged over other tasks than the rest."""
    points = "[{ learning_rate = 1e-3 }, { learning_rate = 2e-3 }, { learning_rate = 6e-3 }]"
    (profiles / "small.toml").write_text(f"{PROFILE}[toy.task.b.method.lora]\ngrid = {points}\n")
    with pytest.raises(ValueError, match="grid of lora on task 'b': must be the same on every task"):
        grid_plans(request(), RUNTIME)
    assert len(grid_plans(request(tasks=("a",)), RUNTIME)) == 6


@pytest.mark.parametrize(
    ("point", "name"),
    [("{ batch_size = 4 }", "batch_size"), ("{ learning_rate = 1e-3, config = { alpha = 8.0 } }", "config.alpha")],
)
def test_a_point_that_could_not_be_written_back_is_refused(point: str, name: str, profiles: Path) -> None:
    _with_lora_grid(profiles, f"[{{ learning_rate = 1e-3 }}, {{ learning_rate = 2e-3 }}, {point}]")
    with pytest.raises(ValueError, match=rf"grid of lora: setting '{name}': allowed are .*, config\.scale"):
        grid_plans(request(), RUNTIME)


def test_a_point_given_twice_is_refused(profiles: Path) -> None:
    _with_lora_grid(profiles, "[{ learning_rate = 1e-3 }, { learning_rate = 2e-3 }, { learning_rate = 1e-3 }]")
    with pytest.raises(ValueError, match=r"grid of lora: point \{'learning_rate': 0.001\} stands there twice"):
        grid_plans(request(), RUNTIME)


def test_the_best_mean_over_the_tasks_is_chosen(store: Path) -> None:
    plans = grid_plans(request(), RUNTIME)
    # lora: the first is best on task a, the last on task b, the middle one on average.
    fill(store, plans, {"lora": [0.9, 0.8, 0.1, 0.2, 0.7, 0.8], "galore": [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]})
    assert choose(plans, store) == {"lora": LORA[1], "galore": GALORE[2]}
    found = mean_scores(plans, store)
    assert [point for point, _ in found["lora"]] == LORA
    assert [score for _, score in found["lora"]] == pytest.approx([0.55, 0.75, 0.45])


def test_the_order_of_the_tasks_does_not_change_the_choice(store: Path) -> None:
    plans = grid_plans(request(), RUNTIME)
    fill(store, plans, {"lora": [0.9, 0.8, 0.1, 0.2, 0.7, 0.8], "galore": [0.1] * 6})
    turned = grid_plans(request(tasks=("b", "a")), RUNTIME)
    assert choose(turned, store) == choose(plans, store)


@pytest.mark.parametrize("best", list(itertools.combinations(range(3), 2)))
def test_ties_go_to_the_first(best: tuple[int, int], store: Path) -> None:
    plans = grid_plans(request(), RUNTIME)
    scores: list[float | None] = [0.5 if index % 3 in best else 0.25 for index in range(6)]
    fill(store, plans, {"lora": scores, "galore": scores})
    assert choose(plans, store) == {"lora": LORA[best[0]], "galore": GALORE[best[0]]}


def test_a_point_with_a_missing_score_is_left_out(store: Path) -> None:
    plans = grid_plans(request(methods=("lora",)), RUNTIME)
    fill(store, plans, {"lora": [0.9, 0.2, 0.3, None, 0.2, 0.3]})
    assert choose(plans, store) == {"lora": LORA[2]}
    assert [score for _, score in mean_scores(plans, store)["lora"]] == [None, 0.2, 0.3]


def test_a_score_of_zero_and_below_counts(store: Path) -> None:
    plans = grid_plans(request(methods=("lora",)), RUNTIME)
    fill(store, plans, {"lora": [-0.2, 0.0, -0.1] * 2})
    assert choose(plans, store) == {"lora": LORA[1]}


@pytest.mark.parametrize("status", ["diverged", "out_of_memory", "failed", "interrupted"])
def test_a_run_that_did_not_end_well_has_no_score(status: Status, store: Path) -> None:
    plans = grid_plans(request(methods=("lora",), tasks=("a",)), RUNTIME)
    put(store, plans[0], 0.9, status)
    put(store, plans[1], 0.5)
    put(store, plans[2], 0.4)
    assert choose(plans, store) == {"lora": LORA[1]}


def test_the_last_evaluation_counts_not_the_best(store: Path) -> None:
    plans = grid_plans(request(methods=("lora",), tasks=("a",)), RUNTIME)
    put(store, plans[0], 0.3, earlier=(0.9,))
    put(store, plans[1], 0.5)
    put(store, plans[2], 0.4, earlier=(0.8, 0.1))
    assert choose(plans, store) == {"lora": LORA[1]}


def test_records_of_other_plans_are_not_looked_at(store: Path) -> None:
    plans = grid_plans(request(methods=("lora",), tasks=("a",)), RUNTIME)
    fill(store, plans, {"lora": [0.1, 0.2, 0.3]})
    for run in make_plans(request(methods=("lora",), tasks=("a",)), RUNTIME):
        put(store, run, 1.0)
    for run in grid_plans(request(methods=("lora",), tasks=("b",)), RUNTIME)[:1]:
        put(store, run, 1.0)
    assert choose(plans, store) == {"lora": LORA[2]}


def test_a_corrupt_record_is_an_error(store: Path) -> None:
    (store / "x.json").write_text("{")
    with pytest.raises(StoreError, match=r"x\.json"):
        choose(grid_plans(request(), RUNTIME), store)


@pytest.fixture
def tuned(store: Path) -> Callable[[], Path]:
    """Return a function that writes full records and then the choice."""

    def write() -> Path:
        plans = grid_plans(request(), RUNTIME)
        fill(store, plans, {"lora": [0.1, 0.9, 0.1] * 2, "galore": [0.1, 0.2, 0.9] * 2})
        return write_choice(request(), plans, store)

    return write


def test_the_written_choice_is_taken_up_by_the_profile(tuned: Callable[[], Path], profiles: Path) -> None:
    before = {run.method: run for run in make_plans(request(), RUNTIME)}
    path = tuned()
    assert path == profiles / "small.toy.rank8.tuned.toml"
    after = {run.method: run for run in make_plans(request(), RUNTIME)}
    assert (before["lora"].training.learning_rate, after["lora"].training.learning_rate) == (1e-3, 2e-3)
    assert after["galore"].training.learning_rate == 1e-4
    assert after["galore"].method_config == {**before["galore"].method_config, "scale": 8.0}
    assert after["galore"].method_config["refresh_gap"] == 50
    assert all(run.purpose == "result" and not run.data.held_out for run in after.values())


def test_a_choice_for_one_method_keeps_those_of_the_others(tuned: Callable[[], Path], store: Path) -> None:
    tuned()
    plans = [plan for plan in grid_plans(request(), RUNTIME) if plan.method == "lora"]
    fill(store, plans, {"lora": [0.1, 0.1, 0.9] * 2})
    write_choice(request(), plans, store)
    after = {run.method: run for run in make_plans(request(), RUNTIME)}
    assert after["lora"].training.learning_rate == 5e-3
    assert after["galore"].method_config["scale"] == 8.0


def test_the_choice_is_for_its_rank_and_profile_alone(tuned: Callable[[], Path], profiles: Path) -> None:
    tuned()
    assert len(load_profile("small", "toy", 8)) == 3
    assert len(load_profile("small", "toy", 4)) == 2
    assert resolve(Settings, load_profile("small", "toy", 4), "a", "lora").learning_rate == 1e-3


def test_the_command_line_beats_the_choice(tuned: Callable[[], Path]) -> None:
    tuned()
    plans = make_plans(request(methods=("lora",), overrides=(("learning_rate", 7e-3),)), RUNTIME)
    assert {run.training.learning_rate for run in plans} == {7e-3}


def test_a_choice_does_not_change_the_grid(tuned: Callable[[], Path]) -> None:
    """So that the same command finds its records again."""
    before = [run.hash() for run in grid_plans(request(), RUNTIME)]
    tuned()
    assert [run.hash() for run in grid_plans(request(), RUNTIME)] == before


def test_the_file_says_where_it_comes_from(tuned: Callable[[], Path]) -> None:
    head = tuned().read_text().splitlines()[:2]
    assert head[0] == "# Written by `suites tune toy --profile small --rank 8 --task a,b`:"
    assert "held-out train rows" in head[1]


def test_no_choice_is_written_while_a_method_lacks_scores(store: Path, profiles: Path) -> None:
    plans = grid_plans(request(), RUNTIME)
    fill(store, plans, {"lora": [0.5] * 6, "galore": [0.5, 0.5, 0.5, None, None, None]})
    with pytest.raises(ValueError, match="no grid point of galore has a score on every task; look at the records in"):
        write_choice(request(), plans, store)
    assert [path.name for path in profiles.iterdir()] == ["small.toml"]


def test_an_empty_store_gives_no_choice(store: Path) -> None:
    plans = grid_plans(request(), RUNTIME)
    assert choose(plans, store) == {}
    with pytest.raises(ValueError, match="no grid point of galore, lora has a score"):
        write_choice(request(), plans, store)


def test_the_table_marks_one_choice_a_method(store: Path) -> None:
    plans = grid_plans(request(), RUNTIME)
    fill(store, plans, {"lora": [0.1, 0.9, None] * 2, "galore": [0.1, 0.2, 0.9] * 2})
    table = choice_table(plans, store)
    columns = [list(column.cells) for column in table.columns]
    assert list(zip(*columns, strict=True)) == [
        ("lora", "0.001", "0.001", "-", "0.1000", ""),
        ("lora", "0.002", "0.002", "-", "0.9000", "yes"),
        ("lora", "0.005", "0.005", "-", "-", ""),
        ("galore", "0.0001", "0.0001", "2.0", "0.1000", ""),
        ("galore", "0.0003", "0.0003", "2.0", "0.2000", ""),
        ("galore", "0.0001", "0.0001", "8.0", "0.9000", "yes"),
    ]
