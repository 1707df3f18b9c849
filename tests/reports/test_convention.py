"""The GLUE average under explicit conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from reports.averages.convention import Convention, convention_of
from reports.records.frames import metrics_frame, runs_frame
from reports.records.report_runs import Context
from reports.stats.outcomes import Outcomes, scores_frame
from results.catalogue import committed
from results.choice import ChoiceError
from results.schema import Evaluation, Record

GLUE = committed().suite("glue")
Make = Callable[..., Record]
Grid = Callable[..., list[Record]]


def glue(**choices: Any) -> Convention:
    """Return a convention of GLUE."""
    return convention_of(GLUE, **choices)


def with_metrics(make_record: Make, task: str, *points: Mapping[str, float | None]) -> Record:
    """Return a record of `task` with these metrics, one evaluation after the other."""
    evaluations = [
        Evaluation(step=10 * (index + 1), epoch=None, rows={}, metrics=dict(metrics))
        for index, metrics in enumerate(points)
    ]
    return make_record(task, parts={"evaluations": evaluations})


def score_of(record: Record, convention: Convention) -> tuple[float | None, str]:
    """Return score and outcome of one record."""
    row = scores_frame(runs_frame([record]), metrics_frame([record]), convention).iloc[0]
    return (None if row["outcome"] != "ok" else float(row["score"])), str(row["outcome"])


@pytest.mark.parametrize(("rule", "expected"), [("matched", 0.80), ("mismatched", 0.70), ("mean", 0.75)])
def test_mnli_rules(make_record: Make, rule: str, expected: float) -> None:
    record = with_metrics(
        make_record, "mnli", {"validation_matched/accuracy": 0.8, "validation_mismatched/accuracy": 0.7}
    )
    assert score_of(record, glue(mnli=rule))[0] == pytest.approx(expected)


@pytest.mark.parametrize(("rule", "expected"), [("f1", 0.9), ("accuracy", 0.8), ("mean", 0.85)])
@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_f1_and_accuracy_rules(make_record: Make, task: str, rule: str, expected: float) -> None:
    record = with_metrics(make_record, task, {"validation/accuracy": 0.8, "validation/f1": 0.9})
    assert score_of(record, glue(**{task: rule}))[0] == pytest.approx(expected)


def held_out(make_record: Make, task: str, main: str, scores: Mapping[str, float | None]) -> Record:
    """Return a record of `task` on held-out rows, all its metrics in one evaluation."""
    found = with_metrics(make_record, task, scores)
    data = found.plan.data.model_copy(update={"held_out": True})
    plan = found.plan.model_copy(update={"data": data})
    return found.model_copy(update={"plan": plan, "plan_hash": plan.hash(), "main_metric": f"held_out/{main}"})


@pytest.mark.parametrize("rule", ["matched", "mismatched", "mean"])
def test_held_out_rows_are_one_split_whatever_the_reading(make_record: Make, rule: str) -> None:
    found = held_out(make_record, "mnli", "accuracy", {"held_out/accuracy": 0.6})
    assert score_of(found, glue(mnli=rule)) == (0.6, "ok")
    validation = held_out(make_record, "mnli", "accuracy", {"validation_matched/accuracy": 0.6})
    assert score_of(validation, glue(mnli=rule)) == (None, "not recorded")


@pytest.mark.parametrize(("rule", "expected"), [("f1", 0.9), ("accuracy", 0.8), ("mean", 0.85)])
def test_readings_of_held_out_rows(make_record: Make, rule: str, expected: float) -> None:
    found = held_out(make_record, "mrpc", "f1", {"held_out/accuracy": 0.8, "held_out/f1": 0.9})
    assert score_of(found, glue(mrpc=rule))[0] == pytest.approx(expected)


def test_last_or_best_evaluation(make_record: Make) -> None:
    points = [{"validation/accuracy": value} for value in (0.5, 0.7, 0.6)]
    record = with_metrics(make_record, "rte", *points)
    assert score_of(record, glue(epoch="last"))[0] == 0.6
    assert score_of(record, glue(epoch="best"))[0] == 0.7


def test_mean_of_two_metrics_is_taken_at_one_evaluation(make_record: Make) -> None:
    points = [
        {"validation/pearson": 0.9, "validation/spearman": 0.1},
        {"validation/pearson": 0.4, "validation/spearman": 0.8},
    ]
    record = with_metrics(make_record, "stsb", *points)
    assert score_of(record, glue(stsb="mean", epoch="best"))[0] == pytest.approx(0.6)


def test_undefined_and_missing_metrics_are_no_scores(make_record: Make) -> None:
    undefined = with_metrics(make_record, "stsb", {"validation/pearson": None, "validation/spearman": 0.5})
    assert score_of(undefined, glue()) == (None, "undefined")
    assert score_of(undefined, glue(stsb="mean")) == (None, "undefined")
    assert score_of(undefined, glue(stsb="spearman")) == (0.5, "ok")
    assert score_of(with_metrics(make_record, "stsb", {"validation/r2": 0.5}), glue()) == (None, "not recorded")
    assert score_of(make_record("stsb", status="diverged"), glue()) == (None, "diverged")


@pytest.mark.parametrize("last", [{"validation/pearson": 0.9}, {"validation/r2": 0.9}])
def test_an_earlier_evaluation_is_not_the_last_one(make_record: Make, last: dict[str, float | None]) -> None:
    whole = {"validation/pearson": 0.5, "validation/spearman": 0.7}
    record = with_metrics(make_record, "stsb", whole, last)
    assert score_of(record, glue(stsb="mean")) == (None, "not recorded")
    assert score_of(record, glue(stsb="mean", epoch="best"))[0] == pytest.approx(0.6)


def test_average_is_the_plain_mean_over_all_tasks_but_wnli(make_grid: Grid) -> None:
    records = make_grid(methods=("full",))
    context = Context(records, "micro", 8)
    found = context.averages["full"]
    by_hand = {
        r.plan.task: r.evaluations[-1].metrics[r.main_metric]
        for r in records
        if r.plan.seed == 1 and r.main_metric is not None
    }
    assert len(by_hand) == 9
    wnli = by_hand.pop("wnli")
    assert found.scores[1] == pytest.approx(sum(value for value in by_hand.values() if value is not None) / 8)
    assert context.grid["full", "wnli"].scores[1] == wnli
    nine = Context(records, "micro", 8, glue(tasks=9)).averages["full"]
    assert 9 * nine.scores[1] == pytest.approx(8 * found.scores[1] + (wnli or 0))


def test_one_missing_seed_leaves_no_average_and_is_named(make_grid: Grid) -> None:
    records = [r for r in make_grid(methods=("lora",)) if not (r.plan.task == "rte" and r.plan.seed == 2)]
    found = Context(records, "micro", 8).averages["lora"]
    assert found.scores == {}
    assert found.missing == ("RTE seed 2 (not run)",)
    shared = Context(records, "micro", 8, glue(seeds="shared")).averages["lora"]
    assert sorted(shared.scores) == [0, 1]


def test_a_broken_run_leaves_no_average_under_any_rule(make_record: Make, make_grid: Grid) -> None:
    records = [r for r in make_grid(methods=("lora",)) if not (r.plan.task == "rte" and r.plan.seed == 2)]
    records.append(make_record("rte", "lora", 2, status="diverged"))
    for seeds in ("same", "shared"):
        found = Context(records, "micro", 8, glue(seeds=seeds)).averages["lora"]
        assert found.scores == {}
        assert found.missing == ("RTE seed 2 (diverged)",)


def test_words_name_every_choice() -> None:
    words = glue(epoch="best", tasks=8, mnli="mean", mrpc="mean", stsb="spearman").words()
    for part in (
        "eight tasks",
        "optimistic",
        "MRPC mean of F1 and accuracy",
        "QQP accuracy",
        "STS-B Spearman",
        "MNLI mean",
    ):
        assert part in words


def test_unknown_choices_name_the_nearest() -> None:
    with pytest.raises(
        ChoiceError, match=r"unknown stsb 'pearsn': known are pearson, spearman, mean; nearest: pearson"
    ):
        glue(stsb="pearsn")
    with pytest.raises(ChoiceError, match="unknown tasks 7: known are 8, 9"):
        glue(tasks=7)
    with pytest.raises(ChoiceError, match="unknown task with several readings in GLUE 'mlni'.*nearest: mnli"):
        glue(mlni="matched")


def test_every_task_has_keys_and_trouble_counts_over_all_seeds() -> None:
    assert all(glue().keys(task.name) for task in GLUE.tasks)
    cell = Outcomes({0: "ok", 1: "out_of_memory"}, {0: 0.5})
    assert cell.trouble([0, 1, 2]) == "not run 1/3, out of memory 1/3"
