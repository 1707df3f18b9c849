"""The numbers that the page ships are those of the Python tables: averages, fronts, curves, parts, refreshes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from reports.page.costs import curves, parts, refreshes
from reports.page.data import page_data
from reports.page.views import group_view, ordered, run_scores, scaled, standings
from reports.records.groups import Group, groups
from reports.records.reading import Found, Gathered, Trace
from results.catalogue import MetricEntry
from results.schema import Record

Make = Callable[..., Record]
PERCENT = MetricEntry(name="accuracy", title="accuracy", better="higher", unit="%", format=".1f", scale=100)
LOSS = MetricEntry(name="perplexity", title="perplexity", better="lower", format=".2f")


@pytest.fixture(scope="module")
def glue(make_grid: Callable[..., list[Record]]) -> Group:
    """Return the group of a full micro grid."""
    (group,) = groups(make_grid(curve=False))
    return group


def found(record: Record, losses: tuple[float | None, ...] = (2.0, 1.0)) -> Found:
    """Return a record as it is read, with a curve."""
    return Found(record, "x.json", None, Trace((10, 20), losses))  # type: ignore[arg-type]


def found_here(record: Record) -> Found:
    """Return a record as it is read from a file that does not exist."""
    return Found(record, "x.json", Path("x.json"), Trace())


@pytest.mark.parametrize("value", [0.0044999, 0.00449999999, 0.9, 0.12345678, 1 / 3])
def test_a_shortened_number_prints_as_the_whole_one(value: float) -> None:
    short = scaled(PERCENT, value)
    assert f"{short:.1f}" == f"{100 * value:.1f}"
    assert len(str(short)) <= 12
    assert scaled(PERCENT, None) is None


def test_a_front_names_who_is_over_and_who_is_alike() -> None:
    scores = {"a": {0: 20.0, 1: 20.2, 2: 20.1}, "b": {0: 20.1, 1: 20.1, 2: 20.0}, "c": {0: 30.0, 1: 30.1, 2: 30.2}}
    rows = standings(["none", "c", "b", "a"], scores, {"a": 5, "b": 9, "c": 7}, LOSS)
    assert rows[0] is None
    assert rows[1] == [30.1, 0.1, 3, 0, [3], []]
    assert rows[3] == [20.1, 0.1, 3, 100, [], [2]]
    mean, _, seeds, chance, over, alike = rows[2]
    assert (mean, seeds, over, alike) == (20.0667, 3, [], [3])
    assert 0 < chance < 100


def test_a_chance_of_nearly_all_draws_stays_apart_from_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.page.views.front_probability", lambda costs, scores: {"a": 0.9995, "b": 1.0})
    scores = {"a": {0: 20.0, 1: 20.2}, "b": {0: 20.1, 1: 20.1}}
    assert [row[3] for row in standings(["a", "b"], scores, {"a": 5, "b": 9}, LOSS)] == [99.95, 100]


def test_a_method_is_drawn_on_the_page_as_in_the_figures(make_grid: Callable[..., list[Record]]) -> None:
    records = make_grid(methods=("apollo", "muon"), tasks=("rte",), curve=False)
    records += make_grid(methods=("muon", "scale"), tasks=("rte",), profile="small", state_bits=8, curve=False)
    records += make_grid(methods=("muon",), tasks=("rte",), profile="small", curve=False)
    made = groups(records)
    page = page_data(Gathered(tuple(map(found_here, records))), [], [], made, [], None)
    for group, view in zip(ordered(made), page["groups"], strict=True):
        assert view["looks"] == {method: vars(look) for method, look in group.context.looks.items()}
    whole = {look["method"]: look["colour"] for look in page["looks"]}
    assert all(whole[m] == made[0].context.looks[m].colour for m in made[0].context.methods)


def test_a_group_says_what_its_report_says(glue: Group) -> None:
    context = glue.context
    assert context is not None
    gathered = Gathered(tuple(map(found, glue.records)))
    numbers = {record.plan_hash: at for at, record in enumerate(glue.records)}
    view = group_view(glue, gathered, numbers)
    board = context.switchboard
    assert board is not None
    assert len(view["average"]["rows"]) == len(board.conventions)
    for row, method in zip(view["average"]["rows"][board.default], context.methods, strict=True):
        want = context.averages[method].summary
        assert row[:3] == [scaled(context.averaged_metric, want.mean), scaled(context.averaged_metric, want.sd), want.n]
    for column, shown in zip(context.columns, view["columns"], strict=True):
        reading = context.convention.reading(column.task)
        cells = shown["cells"]["last" if reading is None else f"last/{reading}"]
        means = [scaled(column.metric, column.place(method).summary.mean) for method in context.methods]
        assert [cell[0] for cell in cells] == means
    scores = run_scores(context)
    assert {record.plan_hash for record in glue.records} == set(scores)


def test_what_went_wrong_is_told_and_has_no_mean(make_grid: Callable[..., list[Record]], make_record: Make) -> None:
    records = [r for r in make_grid(tasks=("rte", "cola")) if (r.plan.method, r.plan.seed) != ("lora", 2)]
    records.append(make_record("rte", "lora", 2, status="diverged"))
    (group,) = groups(records)
    numbers = {record.plan_hash: at for at, record in enumerate(records)}
    view = group_view(group, Gathered(tuple(map(found, records))), numbers)
    at = view["methods"].index("lora")
    rte = next(column for column in view["columns"] if column["task"] == "rte")
    assert rte["cells"]["last"][at] == "diverged 1/3"
    assert rte["front"]["last"][at] is None
    assert all(row is None for row in view["average"]["rows"][0])
    assert group.context is not None
    assert run_scores(group.context)[records[-1].plan_hash] == {"last": "diverged", "best": "diverged"}


def test_curves_are_means_over_the_runs_that_finished(make_record: Make) -> None:
    records = [make_record("rte", "lora", seed) for seed in (0, 1)] + [make_record("rte", "lora", 2, status="diverged")]
    (group,) = groups(records)
    assert group.context is not None
    traces = [(2.0, 1.0), (4.0, None), (9.0, 9.0)]
    gathered = Gathered(tuple(found(record, losses) for record, losses in zip(records, traces, strict=True)))
    (line,) = curves(group.context, records, gathered)
    assert line == {"steps": [10, 20], "mean": [3.0, 1.0], "sd": [1.414, None], "n": 2}
    uneven = Gathered((*gathered.found[:1], replace(gathered.found[1], trace=Trace()), gathered.found[2]))
    assert curves(group.context, records, uneven)[0]["n"] == 1


def test_parts_add_up_and_refreshes_are_averaged_over_steps(make_record: Make) -> None:
    records = [make_record("rte", "galore", seed) for seed in (0, 1)]
    (group,) = groups(records)
    assert group.context is not None
    ((at, amounts),) = parts(group.context, records, {r.plan_hash: i for i, r in enumerate(records)})["step"]
    memory = records[at].memory
    assert memory is not None
    assert memory.step_peak is not None
    assert sum(amounts) == memory.step_peak.total_bytes
    (row,) = refreshes(group.context, records)
    timings = [record.timing for record in records if record.timing is not None]
    assert row["step"] == pytest.approx(sum(t.train_s for t in timings) / sum(t.timed_steps for t in timings), rel=1e-3)
    spent, count = sum(t.refresh_s or 0 for t in timings), sum(t.refresh_steps for t in timings)
    assert row["refresh"] == pytest.approx(spent / count, rel=1e-3)
    assert row["ratio"] == pytest.approx(row["refresh"] / row["plain"], rel=1e-2)
    assert row["times"] is None  # nothing to divide by


def test_no_mean_of_seconds_over_loads(make_record: Make) -> None:
    records = [make_record("rte", method, seed) for method in ("full", "galore") for seed in (0, 1)]
    (group,) = groups(records)
    one = refreshes(group.context, records)
    busy = records[0].environment.model_copy(update={"workers": 7})
    moved = [r.model_copy(update={"environment": busy}) if r.plan.seed == 1 else r for r in records]
    (group,) = groups(moved)
    several = refreshes(group.context, moved)
    # Ratios within a machine and load, and shares of a run, stay what they were.
    for before, after in zip(one, several, strict=True):
        assert before["step"] is not None
        assert after == {**before, "step": None, "plain": None, "refresh": None}
        assert after["times"] is not None
    assert several[1]["ratio"] is not None
    assert refreshes(group.context, [r for r in moved if r.plan.seed == 1])[0]["step"] is not None


def test_groups_whose_seeds_allow_conclusions_stand_first(make_grid: Callable[..., list[Record]]) -> None:
    records = make_grid(seeds=(0,), profile="paper") + make_grid()
    assert [group.profile for group in ordered(groups(records))] == ["micro", "paper"]
