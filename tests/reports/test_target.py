"""Steps and seconds to full training's loss: interpolation by hand, what is not known, and the score table."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from reports.records.report_runs import Context
from reports.stats.target import NOT_REACHED, TOO_RARELY, steps_to
from reports.tables.scores import score_table
from reports.tables.target import reached
from results.schema import Evaluation, Record, TrainingPlan

Make = Callable[..., Record]
EVERY = (10, 20, 30, 40, 50, 60)


@pytest.mark.parametrize(
    ("points", "target", "want"),
    [
        ([(10, -5.0), (20, -3.0), (30, -2.0)], -4.0, 15.0),
        ([(10, -5.0), (20, -3.0), (30, -2.0)], -2.0, 30.0),
        ([(10, -5.0), (20, -2.0), (30, -4.0)], -2.5, 10 + 10 * 2.5 / 3),
        ([(10, -5.0), (20, -3.0)], -2.0, NOT_REACHED),
        ([(10, -1.0), (20, -0.5)], -2.0, TOO_RARELY),
        ([(10, -1.0)], -2.0, TOO_RARELY),
        ([(10, -5.0), (40, -1.0)], -2.0, TOO_RARELY),
        ([], -2.0, NOT_REACHED),
    ],
)
def test_the_first_place_where_it_is_reached(points: list[tuple[int, float]], target: float, want: Any) -> None:
    assert steps_to(points, target, 60) == (want if isinstance(want, str) else pytest.approx(want))


def test_evaluations_may_be_a_fifth_of_the_run_apart() -> None:
    points = [(20, -5.0), (40, -1.0)]
    assert steps_to(points, -3.0, 100) == pytest.approx(30.0)
    assert steps_to(points, -3.0, 99) == TOO_RARELY


@pytest.fixture
def run(make_record: Make) -> Callable[..., Record]:
    """(method, seed, losses at EVERY step, step seconds) -> a pre-training record."""

    def record(method: str, seed: int, losses: list[float], seconds: float = 0.1, **changes: Any) -> Record:
        steps = EVERY if len(losses) == len(EVERY) else (30, 60)
        evaluations = [
            Evaluation(step=step, epoch=None, rows={}, metrics={
                "validation/loss": loss, "validation/perplexity": math.exp(loss)
            })
            for step, loss in zip(steps, losses, strict=True)
        ]  # fmt: skip
        parts = {"evaluations": evaluations, "main_metric": "validation/perplexity"}
        made = make_record("c4", method, seed, score=0.5, parts=parts, suite="c4", curve=False, **changes)
        assert made.timing is not None
        timing = made.timing.model_copy(update={"timed_steps": 50, "train_s": 50 * seconds})
        return made.model_copy(update={"timing": timing})

    return record


FALLING = [6.0, 5.0, 4.0, 3.5, 3.2, 3.0]
FASTER = [5.0, 4.0, 3.0, 2.9, 2.8, 2.7]


def cells(context: Context, title: str) -> dict[str, str]:
    table = score_table(context)
    (row,) = [row for row in table.rows if row[0].text == title]
    return {head: entry.text for head, entry in zip(table.heads, row, strict=True)}


def test_against_full_training_of_the_same_seed(run: Callable[..., Record]) -> None:
    records = [run("full", seed, [loss + 0.1 * seed for loss in FALLING]) for seed in (0, 1)]
    records += [run("galore", 0, FASTER, 0.2), run("galore", 1, FASTER, 0.2), run("galore", 7, FASTER, 0.2)]
    context = Context(records, "micro", 8)
    found = reached(context)
    assert found["full"].steps == {0: 60.0, 1: 60.0}
    # Seed 0 has 3.0 to reach, seed 1 has 3.1: a tenth of the way before it. Seed 7 has no full training beside it.
    assert found["galore"].steps == pytest.approx({0: 30.0, 1: 29.0})
    assert found["galore"].seconds == pytest.approx({0: 6.0, 1: 5.8})
    assert found["galore"].seconds_ratio == pytest.approx({0: 1.0, 1: 5.8 / 6})
    shown = cells(context, "GaLore")
    assert shown["Steps to Full training's loss"] == "30 ± 1 (0.49 ± 0.01×, n=2)"
    assert shown["Seconds to it"].endswith("×, n=2)")
    assert cells(context, "Full training")["Steps to Full training's loss"] == "60 ± 0 (1.00 ± 0.00×, n=2)"
    data = score_table(context).data
    steps = data[(data["metric"] == "steps_to_target") & (data["method"] == "galore")]
    assert steps["mean"].item() == pytest.approx(29.5)


def test_what_is_not_reached_or_too_rarely_evaluated_is_said_and_not_averaged(run: Callable[..., Record]) -> None:
    records = [run("full", seed, FALLING) for seed in (0, 1)]
    records += [run("galore", 0, FASTER), run("galore", 1, [loss + 1 for loss in FALLING])]
    records += [run("lora", seed, [5.0, 2.0]) for seed in (0, 1)]
    context = Context(records, "micro", 8)
    head = "Steps to Full training's loss"
    assert cells(context, "GaLore")[head] == "not reached 1/2"
    assert cells(context, "LoRA")[head] == "evaluated too rarely 2/2"
    # Of the runs that the method has, not of the seeds that others have.
    more = Context([*records, run("full", 2, FALLING)], "micro", 8)
    assert cells(more, "GaLore")[head] == "not reached 1/2"
    assert reached(context)["lora"].steps == {}


@pytest.mark.parametrize("method", ["full", "galore"])
def test_a_broken_run_is_trouble_and_a_missing_seed_has_its_n(
    run: Callable[..., Record], make_record: Make, method: str
) -> None:
    records = [run(name, seed, losses) for name, losses in (("full", FALLING), ("galore", FASTER)) for seed in (0, 1)]
    parts = {"main_metric": "validation/perplexity"}
    broken_run = make_record("c4", method, 2, score=0.5, suite="c4", status="out_of_memory", parts=parts, curve=False)
    records.append(broken_run)
    context = Context(records, "micro", 8)
    heads = ("Steps to Full training's loss", "Seconds to it")
    shown = {name: [cells(context, name)[head] for head in heads] for name in ("Full training", "GaLore")}
    other, broken = sorted(shown.values(), key=lambda texts: "out of memory" in texts[0])
    assert broken == ["out of memory 1/3"] * 2
    assert all(text.endswith("×, n=2)") for text in other)


def test_a_yardstick_without_a_last_score_is_no_target(run: Callable[..., Record]) -> None:
    whole = run("full", 0, FALLING)
    cut = whole.evaluations[-1].model_copy(update={"metrics": {"validation/perplexity": 20.0}})
    lacking = whole.model_copy(update={"evaluations": [*whole.evaluations[:-1], cut]})
    assert reached(Context([lacking, run("galore", 0, FASTER)], "micro", 8)) == {}


def test_seconds_of_another_load_stand_beside_none(run: Callable[..., Record]) -> None:
    alone = run("galore", 0, FASTER)
    busy = alone.model_copy(update={"environment": alone.environment.model_copy(update={"workers": 7})})
    found = reached(Context([run("full", 0, FALLING), busy], "micro", 8))
    assert found["galore"].steps_ratio == {0: 0.5}
    assert found["galore"].steps
    assert found["galore"].seconds == found["galore"].seconds_ratio == {}


def test_no_mean_of_seconds_over_machines(run: Callable[..., Record]) -> None:
    records = [run(name, seed, losses) for name, losses in (("full", FALLING), ("galore", FASTER)) for seed in (0, 1)]
    assert cells(Context(records, "micro", 8), "GaLore")["Seconds to it"] == "3 ± 0 (0.50 ± 0.00×)"
    slower = records[0].environment.model_copy(update={"workers": 7})
    moved = [r.model_copy(update={"environment": slower}) if r.plan.seed == 1 else r for r in records]
    context = Context(moved, "micro", 8)
    shown = cells(context, "GaLore")
    assert [shown[head] for head in shown if " to " in head] == ["30 ± 0 (0.50 ± 0.00×)", "0.50 ± 0.00×"]
    assert reached(context)["galore"].seconds == {}
    assert any("× alone" in note for note in score_table(context).notes)


def test_a_longer_run_is_judged_by_its_own_length(run: Callable[..., Record]) -> None:
    made = run("galore", 0, FASTER)
    training = TrainingPlan(**{**made.plan.training.model_dump(), "steps": 40})
    short = made.model_copy(update={"plan": made.plan.model_copy(update={"training": training})})
    assert reached(Context([run("full", 0, FALLING), short], "micro", 8))["galore"].trouble == {0: TOO_RARELY}


def test_without_the_yardstick_and_over_tasks_there_is_no_target(run: Callable[..., Record], make_grid: Any) -> None:
    assert reached(Context([run("lora", 0, FASTER)], "micro", 8)) == {}
    assert reached(Context(make_grid(tasks=("rte", "cola")), "micro", 8)) == {}
    assert "Seconds to it" not in score_table(Context(make_grid(tasks=("rte", "cola")), "micro", 8)).heads
