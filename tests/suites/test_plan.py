"""From request to plans: numbers, order, what is missing, what it will take, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.method import Work
from baselines.registry import default_methods, methods
from results.schema import DataPlan, ModelPlan, Plan, Record, Status
from suites import config, models, plan
from suites.config import Settings
from suites.plan import Request, comparison, expected_seconds, make_plans, missing, training_plan
from suites.suite import Runtime

RUNTIME = Runtime(torch.device("cpu"), offline=True)
ROWS = {"a": 100, "b": 16}
PROFILE = """
[toy]
model = "toy"
source = "micro"
epochs = 3
batch_size = 16
[toy.method.lora]
learning_rate = 4e-3
config = { alpha = 32.0 }
[toy.task.b]
batch_size = 8
"""


@dataclass(frozen=True)
class ToySuite:
    """Two tasks of a few rows, no data behind them."""

    name: str = "toy"
    tasks: tuple[str, ...] = tuple(ROWS)
    work: Work = "fine-tuning"
    settings: type[Settings] = Settings

    def model(self, settings: Settings, runtime: Runtime) -> ModelPlan:
        return models.resolve_model(settings.model, runtime)

    def train_rows(self, task: str, settings: Settings, runtime: Runtime) -> int:
        return min(ROWS[task], settings.train_rows or ROWS[task])

    def data(self, task: str, settings: Settings, runtime: Runtime) -> DataPlan:
        return DataPlan(source=settings.source, name=task, max_length=settings.max_length)


@pytest.fixture(autouse=True)
def _toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "micro.toml").write_text(PROFILE)
    monkeypatch.setattr(config, "PROFILES", tmp_path)
    monkeypatch.setattr(plan, "get_suite", lambda name: ToySuite(name))
    monkeypatch.setattr(models, "resolve_model", lambda name, runtime: ModelPlan(name=name, source="config"))


def request(**changes: Any) -> Request:
    return Request(**{"suite": "toy", "profile": "micro", "rank": 8, "seeds": (0, 1), **changes})


def training(rows: int = 100, **settings: Any) -> Any:
    return training_plan(Settings(model="toy", learning_rate=1e-3, **settings), rows)


@pytest.fixture
def record_of() -> Callable[..., Record]:
    """Return a builder of records with a status and a wall time."""

    def make(run: Plan, status: Status = "ok", wall_s: float | None = None) -> Record:
        seconds = dict.fromkeys(("train_s", "forward_s", "backward_s", "optimizer_s", "evaluation_s"), 0.0)
        timing = {
            **seconds, "timed_steps": 1, "warmup_steps": 0, "refresh_s": None, "refresh_steps": 0, "tokens": 1,
            "tokens_per_s": None, "wall_s": wall_s,
        }  # fmt: skip
        environment = {
            "commit": None, "dirty": None, "python": "3", "platform": "x", "packages": {}, "device": "cpu",
            "device_name": "x", "device_memory_bytes": None, "cpu_count": 1, "threads": 1, "workers": 1, "ram_bytes": 1,
        }  # fmt: skip
        fields = {"status": status, "started_at": "", "finished_at": "", "environment": environment}
        fields["timing"] = timing if wall_s is not None else None
        return Record.model_validate({"plan": run.model_dump(), "plan_hash": run.hash(), **fields})

    return make


def test_plans_go_seed_by_seed_then_tasks_then_methods() -> None:
    plans = make_plans(request(methods=("lora", "full")), RUNTIME)
    expected = [(seed, task, method) for seed in (0, 1) for task in ("a", "b") for method in ("lora", "full")]
    assert [(run.seed, run.task, run.method) for run in plans] == expected
    assert len({run.hash() for run in plans}) == 8


def test_nothing_named_means_every_task_and_default_method() -> None:
    plans = make_plans(request(seeds=(5,)), RUNTIME)
    assert [(run.task, run.method) for run in plans] == [
        (task, method) for task in ROWS for method in default_methods()
    ]
    assert {run.seed for run in plans} == {5}


def test_a_method_without_a_rate_in_the_profile_takes_its_usual_one_and_it_is_said() -> None:
    asked = comparison(request(methods=("full", "lora"), tasks=("a",)))
    rates = methods()["full"].rates["fine-tuning"]
    assert asked.plan("a", "full", RUNTIME).training.learning_rate == rates.usual
    assert asked.plan("a", "lora", RUNTIME).training.learning_rate == 4e-3
    (note,) = asked.notes()
    assert note.startswith("Full fine-tuning: profile micro gives it no learning_rate; the usual one for fine-tuning")
    assert f"{rates.usual:g} ({rates.source})" in note


def test_a_method_without_any_rate_is_refused_with_the_line_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(methods(), "full", replace(methods()["full"], rates={}))
    text = (
        r"^method 'full': profile 'micro' gives it no learning_rate for suite 'toy', and its METHOD no rates for "
        r"fine-tuning: add \[toy\.method\.full\] with learning_rate = \.\.\. to suites/profiles/micro\.toml, or rates="
    )
    with pytest.raises(ValueError, match=text):
        make_plans(request(methods=("full",)), RUNTIME)
    assert make_plans(request(methods=("full",), overrides=(("learning_rate", 1e-3),)), RUNTIME)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("batchsize = 3", r"^micro\.toml, \[toy\]: unknown setting 'batchsize': .*; nearest: batch_size$"),
        (
            "[toy.method.laura]\nsteps = 1",
            r"unknown method in the profile 'laura': .*; nearest: lora",
        ),
        ("[toy.rank.4.task.z]\nsteps = 1", r"unknown task in the profile 'z': known are a, b"),
        ("[toy.size.9m]\nlayout = 'packed'", r"unknown setting 'layout'"),
        ("config = 3", r"the profile config=3: must be config\.<setting of a method>=value$"),
    ],
)
def test_a_profile_is_held_against_the_suites_own_settings(tmp_path: Path, line: str, text: str) -> None:
    (tmp_path / "micro.toml").write_text(
        PROFILE.replace("epochs = 3", f"epochs = 3\n{line}") if line[0] != "[" else PROFILE + line
    )
    with pytest.raises(ValueError, match=text):
        make_plans(request(), RUNTIME)


def test_equal_memory_may_be_said_for_each_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suites.equal.with_equal_memory", lambda plans, runtime: plans[:1])
    asked = request(tasks=("b",), methods=("full", "lora"), seeds=(0,))
    assert len(make_plans(asked, RUNTIME)) == 2
    assert len(make_plans(replace(asked, overrides=(("task", {"b": {"equal": "memory"}}),)), RUNTIME)) == 1


def test_a_plan_holds_the_resolved_numbers() -> None:
    run = make_plans(request(tasks=("b",), methods=("lora",), seeds=(3,), overrides=(("clip_norm", 0),)), RUNTIME)[0]
    assert (run.suite, run.profile, run.task, run.method, run.seed) == ("toy", "micro", "b", "lora", 3)
    assert run.method_config == {"rank": 8, "alpha": 32.0, "dropout": 0.1}
    assert run.training.model_dump(exclude_defaults=True) == {
        "steps": 6, "epochs": 3.0, "batch_size": 8, "learning_rate": 4e-3,
    }  # fmt: skip
    assert run.purpose == "result"
    assert not run.data.held_out


def test_a_run_may_be_asked_for_on_held_out_rows() -> None:
    """What a search looks at, for any run: all else of the plan stays as it is."""
    plain, held = (make_plans(request(overrides=more), RUNTIME)[0] for more in ((), (("held_out", True),)))
    assert held.data.held_out
    assert held == plain.model_copy(update={"data": plain.data.model_copy(update={"held_out": True})})
    assert held.hash() != plain.hash()


def test_equal_requests_give_equal_hashes() -> None:
    first, second = (make_plans(request(), RUNTIME) for _ in range(2))
    assert [run.hash() for run in first] == [run.hash() for run in second]


def test_plans_of_a_comparison_share_everything_but_the_method() -> None:
    plans = make_plans(request(tasks=("a",), seeds=(0,)), RUNTIME)
    shared = [
        {
            **run.model_dump(exclude={"method", "method_config"}),
            "training": run.training.model_dump(exclude={"learning_rate"}),
        }
        for run in plans
    ]
    assert all(other == shared[0] for other in shared)


def test_an_override_beats_the_profile() -> None:
    (run,) = make_plans(request(methods=("lora",), tasks=("a",), seeds=(0,), overrides=(("steps", 5),)), RUNTIME)
    assert (run.training.steps, run.training.epochs) == (5, 5 / 7)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tasks": ("c",)}, r"^unknown task 'c': known are a, b"),
        ({"methods": ("lorra",)}, r"^unknown method 'lorra': .*; nearest: lora$"),
        ({"profile": "mikro"}, r"^unknown profile 'mikro': .*; nearest: micro$"),
        ({"rank": 0}, r"^rank 0: must be at least 1 \(nearest allowed value: 1\)$"),
        ({"rank": -3}, r"^rank -3: must be at least 1 \(nearest allowed value: 1\)$"),
        ({"rank": 1}, r"^rank 1: gradnormlorp needs at least 2"),
        ({"seeds": (0, -1)}, r"^seed -1: must be at least 0 \(nearest allowed value: 0\)$"),
        ({"overrides": (("stepz", 3),)}, r"^unknown setting 'stepz': .*; nearest: steps$"),
        ({"overrides": (("batch_size", -1),)}, r"^setting batch_size = -1: "),
        ({"overrides": (("config", {"alfa": 1}),), "methods": ("lora",)}, r"^unknown lora setting 'alfa'"),
        (
            {"overrides": (("task", {"b": {"equal": "memory"}}),)},
            r"^equal: is tokens for some runs and memory for others; it is of the whole comparison",
        ),
        ({"overrides": (("method", {"lora": {"equal": "memory"}}),)}, r"^equal: is tokens for some runs and memory"),
        ({"sweep": (("equal", ("memory", "tokens")),)}, r"^equal: is memory for some runs and tokens"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_plans(request(**changes), RUNTIME)


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "steps"),
    [
        *[(100, 16, 3, 21), (96, 16, 3, 18), (100, 16, 0.5, 4), (3, 16, 2, 2), (3, 16, 1e-9, 1)],
        # Products that floats round to just above the whole number, and one that is above it.
        *[(100, 1, 1.1, 110), (1000, 1, 1.001, 1001), (10, 1, 0.1 * 3, 3), (100, 1, 1.1001, 111)],
    ],
)
def test_epochs_become_steps(rows: int, batch: int, epochs: float, steps: int) -> None:
    found = training(rows, batch_size=batch, epochs=epochs)
    assert found.steps == steps
    assert found.epochs == steps / -(-rows // batch)


def test_a_cap_holds_for_epochs_and_not_for_steps_that_were_asked_for() -> None:
    assert training(epochs=30, max_steps=40).steps == 40
    assert training(epochs=30, max_steps=40).epochs == 40 / 7
    assert training(epochs=1, max_steps=40).steps == 7
    assert training(steps=50, max_steps=40).steps == 50


@pytest.mark.parametrize("lengths", [{}, {"steps": 3, "epochs": 1.0}])
def test_a_length_must_be_given_once(lengths: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="steps and epochs: give exactly one of the two"):
        training(**lengths)


@pytest.mark.parametrize(
    ("batch", "accumulation", "near"),
    [(16, 3, 2), (16, 7, 8), (16, 6, 4), (16, 20, 16), (12, 5, 4), (7, 5, 7), (1, 2, 1)],
)
def test_an_accumulation_that_does_not_divide(batch: int, accumulation: int, near: int) -> None:
    text = f"accumulation {accumulation}: must divide batch_size {batch} (nearest allowed value: {near})"
    with pytest.raises(ValueError, match="must divide") as raised:
        training(steps=1, batch_size=batch, accumulation=accumulation)
    assert str(raised.value) == text
    assert batch % near == 0
    assert abs(near - accumulation) == min(abs(n - accumulation) for n in range(1, batch + 1) if batch % n == 0)


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8, 16])
def test_an_accumulation_that_divides(accumulation: int) -> None:
    assert training(steps=1, batch_size=16, accumulation=accumulation).accumulation == accumulation


def test_other_settings_become_numbers() -> None:
    found = training(steps=50, warmup_fraction=0.1, evaluations=4, clip_norm=0, weight_decay=0.01, state_bits=8)
    assert (found.warmup_steps, found.evaluations, found.clip_norm) == (5, 4, None)
    assert (found.weight_decay, found.state_bits) == (0.01, 8)
    assert training(steps=2, evaluations=4).evaluations == 2
    assert training(steps=2, clip_norm=0.5).clip_norm == 0.5


@pytest.mark.parametrize(
    ("status", "final"),
    [("ok", True), ("diverged", True), ("out_of_memory", True), ("failed", False), ("interrupted", False)],
)
def test_missing_by_status(status: Status, final: bool, record_of: Callable[..., Record]) -> None:
    plans = make_plans(request(methods=("lora",), tasks=("a",), seeds=(0, 1)), RUNTIME)
    assert missing(plans, [record_of(plans[0], status)]) == plans[1 if final else 0 :]


def test_missing_goes_by_plan_and_keeps_the_order(record_of: Callable[..., Record]) -> None:
    plans = make_plans(request(methods=("lora", "full"), tasks=("a",)), RUNTIME)
    other = make_plans(request(methods=("lora",), tasks=("a",), overrides=(("batch_size", 4),)), RUNTIME)
    assert missing(plans, []) == plans
    assert missing(plans, [record_of(run) for run in other]) == plans
    assert missing(plans, [record_of(plans[2]), record_of(plans[0])]) == [plans[1], plans[3]]
    assert missing([], [record_of(plans[0])]) == []


def test_expected_seconds_are_the_median_per_step_of_like_runs(record_of: Callable[..., Record]) -> None:
    plans = make_plans(request(methods=("lora",), tasks=("a",), seeds=(0, 1, 2, 3)), RUNTIME)
    steps = plans[0].training.steps
    known = [record_of(run, wall_s=steps * per_step) for run, per_step in zip(plans, (1.0, 2.0, 90.0), strict=False)]
    assert expected_seconds(plans[3:], known, workers=1) == pytest.approx(2.0 * steps)
    assert expected_seconds(plans[2:], known, workers=1) == pytest.approx(4.0 * steps)
    assert expected_seconds(plans[2:], known, workers=2) == pytest.approx(2.0 * steps)


def test_expected_seconds_scale_with_the_batch(record_of: Callable[..., Record]) -> None:
    known, wanted = (
        make_plans(request(methods=("lora",), tasks=("a",), seeds=(0,), overrides=(("batch_size", size),)), RUNTIME)
        for size in (4, 8)
    )
    rows = {plan.training.batch_size: plan.training.steps * plan.training.batch_size for plan in (*known, *wanted)}
    found = expected_seconds(wanted, [record_of(known[0], wall_s=10.0)], workers=1)
    assert found == pytest.approx(10.0 * rows[8] / rows[4])


def test_expected_seconds_scale_with_steps_and_fill_in_unknown_runs(record_of: Callable[..., Record]) -> None:
    known = record_of(
        make_plans(request(methods=("lora",), tasks=("a",), overrides=(("steps", 10),)), RUNTIME)[0], wall_s=20.0
    )
    wanted = make_plans(request(methods=("lora", "full"), tasks=("a",), seeds=(0,), overrides=(("steps", 5),)), RUNTIME)
    assert expected_seconds(wanted, [known], workers=1) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("changes", "status", "wall_s"),
    [
        ({"tasks": ("b",)}, "ok", 5.0),
        ({"methods": ("full",)}, "ok", 5.0),
        ({"overrides": (("precision", "bf16-autocast"),)}, "ok", 5.0),
        ({"overrides": (("max_length", 16),)}, "ok", 5.0),
        ({}, "failed", 5.0),
        ({}, "diverged", 5.0),
        ({}, "ok", None),
    ],
)
def test_nothing_is_expected_without_a_like_run(
    changes: dict[str, Any], status: Status, wall_s: float | None, record_of: Callable[..., Record]
) -> None:
    base = {"methods": ("lora",), "tasks": ("a",)}
    wanted = make_plans(request(**base), RUNTIME)
    (known, *_) = make_plans(request(**{**base, **changes}), RUNTIME)
    assert expected_seconds(wanted, [record_of(known, status, wall_s)], workers=1) is None
    assert expected_seconds(wanted, [record_of(wanted[0], "ok", 5.0)], workers=1) is not None
    assert expected_seconds(wanted, [], workers=1) is None
