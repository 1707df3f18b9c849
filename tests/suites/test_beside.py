"""What a run leaves beside its record: trackers' files, its model with a card, lines of progress where nobody looks."""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from baselines.registry import get_method
from results.schema import CurvePoint, Evaluation, Plan, Record
from results.store import read_record
from suites import console as view
from suites import models
from suites.registry import get_suite
from suites.run import saved
from suites.run.execute import execute
from suites.run.follow import TRACKERS, Followed, arguments_of, check_trackers
from suites.run.loop import Outcome
from suites.run.worker import Event, keep, record_path
from suites.suite import Beside, Runtime

MakePlan = Callable[..., Plan]


def run(plan: Plan, runtime: Runtime, store: Path, **beside: Any) -> Record:
    """Run a plan as a worker does, and return its record from the store."""
    record = execute(plan, replace(runtime, beside=Beside(store, **beside)), None, lambda step, loss: None)
    assert record.status == "ok", record.error
    keep(store, record)
    return read_record(record_path(store, plan))


def scores(model: torch.nn.Module, plan: Plan, runtime: Runtime) -> dict[str, float | None]:
    return get_suite(plan.suite).job(plan, runtime).evaluate(model).metrics


@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.slow), "lora", "gradnormlorp"])
def test_a_merged_model_loads_with_the_recorded_score(
    method: str, make_plan: MakePlan, runtime: Runtime, tmp_path: Path
) -> None:
    plan = make_plan(method=method, steps=6, learning_rate=3e-3)
    record = run(plan, runtime, tmp_path, model="merged")
    folder = saved.folder_of(tmp_path, plan)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert scores(model, plan, runtime) == record.evaluations[-1].metrics
    assert (folder / "model.safetensors").is_file()
    assert type(AutoTokenizer.from_pretrained(folder)).__name__ == type(models.tokenizer(plan.model, runtime)).__name__
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}
    assert Record.model_validate_json((folder / saved.RECORD).read_text()) == record
    assert not list(folder.parent.glob(".*"))


def test_the_card_says_the_records_numbers(make_plan: MakePlan, runtime: Runtime, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    plan = make_plan(method="lora")
    record = run(plan, runtime, tmp_path, model="merged")
    card = ModelCard.load(saved.folder_of(tmp_path, plan) / saved.CARD)
    found = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert found == {name.partition("/")[2]: value for name, value in record.evaluations[-1].metrics.items()}
    assert record.memory is not None
    for number in (record.memory.state_bytes, plan.training.steps, *found.values()):
        assert str(number) in card.text


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.slow), "gradnormlorp"])
def test_adapters_alone_fill_the_model_that_the_run_started_from(
    method: str, make_plan: MakePlan, runtime: Runtime, tmp_path: Path
) -> None:
    plan = make_plan(method=method, steps=6, learning_rate=3e-3)
    record = run(plan, runtime, tmp_path, model="adapters")
    folder = saved.folder_of(tmp_path, plan)
    assert not (folder / "model.safetensors").exists()
    base = models.classifier(plan.model, runtime, 2, seed=123)
    model = get_method(method).merge(saved.load_adapters(base, folder).eval())
    assert scores(model, plan, runtime) == record.evaluations[-1].metrics
    save_file({"another.weight": torch.zeros(1)}, str(folder / saved.ADAPTERS))
    with pytest.raises(ValueError, match="its adapters are not of this model"):
        saved.load_adapters(models.classifier(plan.model, runtime, 2, seed=0), folder)


def test_a_run_that_failed_leaves_no_model(make_plan: MakePlan, runtime: Runtime, tmp_path: Path) -> None:
    plan = make_plan(learning_rate=1e30)
    record = execute(plan, replace(runtime, beside=Beside(tmp_path, model="merged")), None, lambda step, loss: None)
    assert record.status == "diverged"
    assert not saved.folder_of(tmp_path, plan).exists()


class Hub:
    """A hub that notes what it is sent."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.problem = problem
        self.made: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []

    def create_repo(self, name: str, **options: Any) -> None:
        if self.problem is not None:
            raise self.problem
        self.made.append({"name": name, **options})

    def upload_folder(self, **options: Any) -> None:
        assert (Path(options["folder_path"]) / saved.CARD).is_file()
        self.sent.append(options)


def test_models_are_pushed_to_a_private_repository(make_plan: MakePlan, runtime: Runtime, tmp_path: Path) -> None:
    plans = [make_plan(seed=seed) for seed in (0, 1)]
    records = [run(plan, runtime, tmp_path, model="merged") for plan in plans]
    one, two = Hub(), Hub()
    assert saved.published(records[:1], tmp_path, "me/mine", one) == {plans[0].label: "me/mine"}
    assert one.made == [{"name": "me/mine", "private": True, "exist_ok": True}]
    assert one.sent[0]["path_in_repo"] is None
    places = saved.published(records, tmp_path, "me/mine", two)
    assert places == {plan.label: f"me/mine/{plan.label}" for plan in plans}
    assert [sent["path_in_repo"] for sent in two.sent] == [plan.label for plan in plans]
    with pytest.raises(ValueError, match=r"push-to-hub 'me/mine': no token; the models stand in"):
        saved.published(records, tmp_path, "me/mine", Hub(OSError("no token\nmore")))


def test_tensorboard_files_hold_the_curve_and_the_scores(make_plan: MakePlan, runtime: Runtime, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = make_plan(steps=4, evaluations=2)
    record = run(plan, runtime, tmp_path, trackers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "trackers" / plan.label)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(point.step, pytest.approx(point.loss, rel=1e-6)) for point in record.curve]
    main = [(event.step, event.value) for event in events.Scalars("validation/accuracy")]
    expected = [(each.step, each.metrics["validation/accuracy"]) for each in record.evaluations]
    assert main == [(step, pytest.approx(value)) for step, value in expected]
    untold = run(plan, runtime, tmp_path / "off")
    assert untold.final_digest == record.final_digest
    assert not (tmp_path / "off" / "trackers").exists()


def stand_in(name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Put a module in a tracker's place that takes what the real one does, and return what it is told."""
    told: list[tuple[str, Any]] = []

    def noted(what: str) -> Callable[..., None]:
        return lambda *given, **options: told.append((what, (*given, options)))

    def init(project: str, name: str | None = None, dir: str | None = None) -> Any:
        told.append(("init", (project, name, dir)))
        return SimpleNamespace(log=noted("log"), finish=noted("finish"))

    def create_experiment(name: str, artifact_location: str | None = None, tags: object = None) -> str:
        told.append(("create_experiment", (name, artifact_location)))
        return "7"

    def start_run(
        run_id: str | None, experiment_id: str, run_name: str | None, nested: bool, tags: object, description: object
    ) -> None:
        told.append(("start_run", (experiment_id, run_name)))

    made = {
        "init": init,
        "config": SimpleNamespace(update=noted("config")),
        "search_experiments": lambda filter_string: [],
        "create_experiment": create_experiment,
        "start_run": start_run,
        "log_params": noted("config"),
        "log_metrics": noted("log"),
        "end_run": noted("finish"),
        "utils": SimpleNamespace(validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)),
    }
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**made))  # type: ignore[arg-type]
    for variable in ("MLFLOW_TRACKING_URI", "TRACKIO_DIR", "WANDB_SILENT"):
        # Set first, so that what the run sets is undone after the test.
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    return told


def reached(*steps: int, done: int, evaluated: tuple[int, ...] = ()) -> Outcome:
    """What a run has reached: a point of the curve and an evaluation for each of these steps."""
    return Outcome(
        steps_done=done,
        curve=[CurvePoint(step=step, loss=0.5, learning_rate=0.1, gradient_norm=None) for step in steps],
        evaluations=[
            Evaluation(step=step, epoch=None, rows={}, metrics={"validation/accuracy": step / 10}) for step in evaluated
        ],
    )


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_each_tracker_is_made_as_it_takes_it_and_keeps_its_files_in_the_folder(
    name: str, make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = stand_in(name, monkeypatch)
    plan, folder = make_plan(), str(tmp_path / "trackers")
    followed = Followed(plan, Beside(tmp_path, trackers=(name,)), Outcome())
    followed.step(reached(1, done=1, evaluated=(1,)))
    followed.finish()
    said = dict(told)
    if name == "mlflow":
        assert said["create_experiment"] == ("gnlorp", f"{folder}/mlruns")
        assert said["start_run"] == ("7", plan.label)
        assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{folder}/mlflow.db"
    else:
        assert said["init"] == ("gnlorp", plan.label, folder if name == "wandb" else None)
        assert os.environ.get("TRACKIO_DIR") == (folder if name == "trackio" else None)
    values = {"train/loss": 0.5, "train/learning_rate": 0.1, "validation/accuracy": 0.1}
    assert said["log"] == (values, {"step": 1})
    assert said["config"][0]["method"] == "full"
    assert [what for what, _ in told][-1] == "finish"


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("steps_done", [0, 4])
def test_accelerate_takes_what_a_tracker_is_made_with(
    name: str, steps_done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    stand_in("none", monkeypatch)
    places, options = arguments_of(name, "label", tmp_path, steps_done)
    inspect.signature(LOGGER_TYPE_TO_CLASS[name]).bind(*places, **options)


def test_a_tracking_server_of_mlflow_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://example.org")
    assert arguments_of("mlflow", "label", tmp_path, 0) == (("gnlorp",), {"run_name": "label"})
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://example.org"


def test_a_tracker_is_told_nothing_twice(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = stand_in("trackio", monkeypatch)
    # Gone on from step 4, with an evaluation at step 2; a long run's curve has step 5 and not step 6.
    out = reached(2, 4, done=4, evaluated=(2,))
    followed = Followed(make_plan(), Beside(tmp_path, trackers=("trackio",)), out)
    followed.step(reached(2, 4, 5, done=5, evaluated=(2,)))
    followed.step(reached(2, 4, 5, done=6, evaluated=(2,)))
    followed.step(reached(2, 4, 5, done=7, evaluated=(2, 7)))
    said = [(given[0], given[1]["step"]) for what, given in told if what == "log"]
    assert said == [({"train/loss": 0.5, "train/learning_rate": 0.1}, 5), ({"validation/accuracy": 0.7}, 7)]


@pytest.mark.parametrize(
    ("name", "words"), [("tensorbord", "nearest: tensorboard"), ("trackio", "its package is not installed")]
)
def test_trackers_that_are_not_there_are_refused(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=words):
        check_trackers([name])
    assert check_trackers(["tensorboard"]) == ("tensorboard",)


def test_a_line_now_and_then_stands_for_the_bars_where_nobody_looks(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    plans = [make_plan(steps=10), make_plan(steps=10, seed=1)]
    with view.ProgressListener(Console(file=out, width=200), plans) as listen:
        listen(Event(plans[0], step=5, loss=0.25))
        listen(Event(plans[1], step=5, loss=0.25, device="H100"))
    assert "[  0/2] rte full seed 1 on H100: step 5 of 10, loss 0.25; 50% of all steps" in out.getvalue()
    assert "[  0/2] rte full seed 0: step 5 of 10, loss 0.25; 25% of all steps, about 0 s left" in out.getvalue()
    # One step, behind the set-up, is no measure of hundreds.
    plans = [make_plan(steps=200)]
    with view.ProgressListener(Console(file=out, width=200), plans) as listen:
        listen(Event(plans[0], step=1, loss=0.25))
        listen(Event(plans[0], step=2, loss=0.25))
    assert "step 1 of 200, loss 0.25; 0% of all steps\n" in out.getvalue()
    assert "step 2 of 200, loss 0.25; 1% of all steps, about 0 s left\n" in out.getvalue()
    # What a checkpoint brought took no time now: 10 of 110 steps in a second leave ten seconds, not one.
    clock = iter([0.0, 1.0, 1.0, 1.0])
    monkeypatch.setattr(view.time, "monotonic", lambda: next(clock, 1.0))
    with view.ProgressListener(Console(file=out, width=200), plans) as listen:
        listen(Event(plans[0], step=91))
        listen(Event(plans[0], step=100))
    assert "step 100 of 200; 50% of all steps, about 10 s left\n" in out.getvalue()
    terminal = io.StringIO()
    with view.ProgressListener(Console(file=terminal, force_terminal=True, width=200), plans) as listen:
        listen(Event(plans[0], step=5, loss=0.25))
    assert "of all steps" not in terminal.getvalue()


def test_a_pre_trained_model_is_kept_with_its_tokenizer(runtime: Runtime, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from suites.plan import Request, make_plans

    overrides = (("steps", 2), ("batch_size", 4), ("train_rows", 60), ("eval_tokens", 500), ("evaluations", 1))
    (plan,) = make_plans(Request("c4", "micro", 4, ("c4",), ("lora",), (0,), overrides), runtime)
    record = run(plan, runtime, tmp_path, model="merged")
    folder = saved.folder_of(tmp_path, plan)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = scores(model, plan, runtime)["validation/loss"]
    assert found == pytest.approx(record.evaluations[-1].metrics["validation/loss"], rel=1e-5)
    assert len(AutoTokenizer.from_pretrained(folder)) == plan.model.vocabulary


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--push-to-hub", "me/mine"], "needs --save-model merged, or adapters"),
        (["--push-to-hub", "me/mine", "--save-model", "merged", "--offline"], "which --offline forbids"),
        (["--save-model", "merge"], "nearest: merged"),
        (["--tracker", "tensorbord"], "nearest: tensorboard"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_runs(
    words: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from suites.__main__ import app

    monkeypatch.setattr("suites.offline.go_offline", lambda: None)
    found = CliRunner().invoke(app, ["run", "glue", "--task", "rte", "--device", "cpu", *words])
    assert found.exit_code == 2
    assert text in found.output + found.stderr


def test_a_launch_pushes_its_models(
    make_plan: MakePlan, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from suites.__main__ import start

    hub, plan = Hub(), make_plan()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    run(plan, runtime, tmp_path, model="merged")
    beside = Beside(tmp_path, model="merged", repository="me/mine")
    assert start([plan], replace(runtime, beside=beside), tmp_path) == 0
    assert [sent["repo_id"] for sent in hub.sent] == ["me/mine"]
