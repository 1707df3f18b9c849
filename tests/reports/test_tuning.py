"""What tuning did: trials from records, default and tuned, expected best, figures' data, the row's trial, the page."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.figures import front_and_curves as plots
from reports.figures.tuning import budget_curves, budget_plot, looks_of, scale_of, sensitivity_plot, shades
from reports.page.tuning import tuning_view
from reports.records.groups import groups
from reports.records.reading import gather
from reports.records.report_runs import Context
from reports.records.tuning import Tuning, tuning_of
from reports.stats.budget import expected_best
from reports.tables.scores import score_table
from reports.tables.tuning import trials_table, tuned_table
from reports.write import suite_report
from results.catalogue import Catalogue, MethodEntry
from results.schema import DataPlan, Evaluation, Record
from results.search import AtLength, Choice, Range, Search, Space, joined, write_search
from results.search import Trial as Searched
from results.store import write_record

Make = Callable[..., Record]
RATES = (1e-3, 1e-2)
LOSSES = {"full": (5.0, 4.0, 4.5, None), "galore": (4.2, 4.1, 3.9, 4.6)}
POINTS = tuple(itertools.product(RATES, RATES))


@pytest.fixture
def trial(make_record: Make) -> Callable[..., Record]:
    """(method, rate, rest, loss, **changes) -> a record of a search on C4; a loss of None is a diverged run."""

    def record(method: str, rate: float, rest: float | None, loss: float | None, **changes: Any) -> Record:
        metrics = {"held_out/loss": loss, "held_out/perplexity": None if loss is None else 2.7**loss}
        parts: dict[str, Any] = {"main_metric": "held_out/perplexity"}
        if loss is not None:
            parts["evaluations"] = [Evaluation(step=60, epoch=None, rows={}, metrics=metrics)]
        data = DataPlan(source="directory", name="c4", max_length=64, held_out=True)
        usual = {"suite": "c4", "profile": "small", "purpose": "tuning", "curve": False, "parts": parts, "data": data}
        status = "diverged" if loss is None else "ok"
        rates = {"learning_rate": rate, "rest_learning_rate": rest}
        return make_record("c4", method, score=0.5, status=status, **{"seed": 0, **usual, **rates, **changes})

    return record


@pytest.fixture
def result(make_record: Make) -> Callable[..., Record]:
    """(method, seed, rate, rest) -> a result run of those settings."""

    def record(method: str, seed: int, rate: float, rest: float | None, loss: float = 3.5) -> Record:
        last = Evaluation(
            step=60, epoch=None, rows={}, metrics={"validation/loss": loss, "validation/perplexity": 2.7**loss}
        )
        parts = {"evaluations": [last], "main_metric": "validation/perplexity"}
        usual = {"suite": "c4", "profile": "small", "curve": False, "parts": parts}
        return make_record("c4", method, seed, score=0.5, learning_rate=rate, rest_learning_rate=rest, **usual)

    return record


@pytest.fixture
def trials(trial: Callable[..., Record]) -> list[Record]:
    return [
        trial(method, rate, rest, loss)
        for method, losses in LOSSES.items()
        for (rate, rest), loss in zip(POINTS, losses, strict=True)
    ]


@pytest.fixture
def results(result: Callable[..., Record]) -> list[Record]:
    return [result("full", s, 1e-3, 1e-2) for s in (0, 1)] + [result("galore", s, 1e-3, 1e-3) for s in (0, 1)]


def search_of(trials: list[Record]) -> Search:
    """Return the record of a search whose first ranges have their middle near (1e-2, 1e-3)."""
    found = Range(low=1e-3, high=1e-1, source="told by the test")
    rest = Range(low=1e-4, high=1e-2, source="told by the test")
    names = list(LOSSES)
    return Search(
        suite="c4", profile="small", rank=8, tasks=["c4"], seed=0, sampler="told by the test", trials=4,
        metrics={"c4": "perplexity"}, better="lower",
        spaces=[Space(method=name, round=0, learning_rate=found, rest_learning_rate=rest) for name in names],
        results=[
            Searched(method=r.plan.method, round=0, number=at % 4, point=(0.5, 0.5),
                     learning_rate=r.plan.training.learning_rate,
                     rest_learning_rate=r.plan.training.rest_learning_rate or 0.0, plans={"c4": r.plan_hash},
                     status=r.status, score=None, wall_s=1.0)
            for at, r in enumerate(trials)
        ],
        choices=[Choice(method="full", round=0, number=1, learning_rate=1e-3, rest_learning_rate=1e-2, score=4.0,
                        edges=["rest_learning_rate high"])],
    )  # fmt: skip


def tuning(trials: list[Record], results: list[Record], *searches: Search) -> Tuning:
    found = tuning_of([*trials, *results], searches, results)
    assert found is not None
    return found


def context(trials: list[Record], results: list[Record], *searches: Search) -> Context:
    return Context(results, "small", 8, tuning=tuning(trials, results, *searches))


def test_trials_are_points_with_their_held_out_score(trials: list[Record], results: list[Record]) -> None:
    found = tuning(trials, results)
    assert list(found.trials) == ["full", "galore"]
    assert [(t.learning_rate, t.rest_learning_rate, t.score) for t in found.trials["full"]] == [
        (rate, rest, loss) for (rate, rest), loss in zip(POINTS, LOSSES["full"], strict=True)
    ]
    assert found.trials["full"][3].status == "diverged"
    best = found.best("galore")
    assert best is not None
    assert (best.learning_rate, best.rest_learning_rate) == (1e-2, 1e-3)
    assert found.metric is not None
    assert found.metric.name == "loss"


def test_only_trials_of_the_same_comparison_count(
    trials: list[Record], results: list[Record], trial: Callable[..., Record]
) -> None:
    foreign = [
        trial("full", 5e-3, 5e-3, 1.0, profile="micro"),
        trial("lora", 5e-3, 5e-3, 1.0, method_config={"rank": 4}),
    ]
    assert tuning([*trials, *foreign], results).trials == tuning(trials, results).trials
    assert tuning_of(results, [], results) is None


def test_methods_that_were_searched_in_folders_of_their_own_are_one_search(
    trials: list[Record], results: list[Record]
) -> None:
    whole = search_of(trials)
    parts = [
        whole.model_copy(
            update={
                name: [each for each in getattr(whole, name) if each.method == method]
                for name in ("spaces", "results", "choices")
            }
        )
        for method in LOSSES
    ]
    found = tuning(trials, results, *parts)
    assert found.trials == tuning(trials, results, whole).trials
    assert found.search is not None
    assert found.edges("full") == ["rest_learning_rate high"]
    assert found.origin("galore", results)["trials of the search"] == "4"
    assert joined(reversed(parts))[0].choices == whole.choices
    # Another budget is another search, and so is the same method's again.
    assert len(joined([parts[0], parts[1].model_copy(update={"trials": 9})])) == 2
    assert joined([whole, parts[0]]) == [whole, parts[0]]


def test_a_diverged_trial_counts_as_the_worst_of_any(trials: list[Record], results: list[Record]) -> None:
    found = tuning(trials, results)
    want = expected_best([-5.0, -4.0, -4.5, -5.0])
    assert found.expected("full") == want
    assert budget_curves(found)["full"][-1].mean == pytest.approx(want[-1].mean)


def test_the_row_names_its_trial(trials: list[Record], results: list[Record]) -> None:
    found = tuning(trials, results)
    chosen = found.trial_of("full", results)
    assert chosen is not None
    assert chosen.hashes == (trials[1].plan_hash,)
    moved = [r.model_copy(update={"plan": r.plan.model_copy(update={"training": r.plan.training.model_copy(
        update={"rest_learning_rate": 0.5})})}) for r in results]  # fmt: skip
    assert found.trial_of("full", moved) is None
    notes = " ".join(score_table(context(trials, results)).notes)
    assert f"Full training trial {trials[1].plan_hash} of 4" in notes
    assert "(of the matrices / of the rest): Full training 0.001 / 0.01" in notes


def test_one_rate_is_a_point_on_the_diagonal(trial: Callable[..., Record], result: Callable[..., Record]) -> None:
    made = [trial("full", rate, None, loss) for rate, loss in ((1e-3, 5.0), (1e-2, 4.0), (1e-1, 4.5))]
    found = tuning(made, [result("full", 0, 1e-2, None)])
    assert [(t.learning_rate, t.rest_learning_rate) for t in found.trials["full"]] == [
        (r, r) for r in (1e-3, 1e-2, 1e-1)
    ]
    assert found.edges("full") == []
    assert tuning(made[:2], [result("full", 0, 1e-2, None)]).edges("full") == ["learning_rate high"]


def test_another_setting_makes_another_trial(trial: Callable[..., Record], result: Callable[..., Record]) -> None:
    made = [
        trial("galore", 1e-3, None, loss, method_config={"projection_rank": 8, "scale": scale})
        for scale, loss in ((0.25, 4.0), (2.0, 5.0))
    ]
    found = tuning(made, [result("galore", 0, 1e-3, None)])
    assert [t.words for t in found.trials["galore"]] == ["0.001 / 0.001, scale 0.25", "0.001 / 0.001, scale 2.0"]
    row = found.trial_of("galore", [result("galore", 0, 1e-3, None)])
    assert row is not None
    assert row.score == 5.0


def test_a_control_has_no_rate_of_matrices(trial: Callable[..., Record], result: Callable[..., Record]) -> None:
    entry = Catalogue(methods=[MethodEntry(name="still", title="Frozen", control=True)])
    made = [trial("still", rate, rate, 5.0, method_config={}).model_copy(update={"catalogue": entry}) for rate in RATES]
    found = tuning([*made, trial("full", 1e-3, 1e-2, 4.0)], [result("full", 0, 1e-3, 1e-2)])
    assert [t.learning_rate for t in found.trials["still"]] == [None, None]
    assert list(found.trials) == ["full", "still"]
    assert sensitivity_plot(context([*found.records], [result("full", 0, 1e-3, 1e-2)])) is not None


def test_over_tasks_a_trial_needs_all_of_them(make_record: Make) -> None:
    def run(task: str, rate: float, score: float, **changes: Any) -> Record:
        return make_record(task, "lora", purpose="tuning", profile="small", learning_rate=rate, score=score, **changes)

    made = [run("rte", 1e-3, 0.6), run("sst2", 1e-3, 0.8), run("rte", 2e-3, 0.9)]
    (first, second) = tuning(made, [make_record("rte", "lora", profile="small")]).trials["lora"]
    assert first.score == pytest.approx(0.7)
    assert (second.score, second.status) == (None, "no score")


def test_a_trial_with_a_broken_seed_has_no_score_and_its_worst_status(make_record: Make) -> None:
    def run(seed: int, rate: float, status: str = "ok") -> Record:
        changes = {"purpose": "tuning", "profile": "small", "learning_rate": rate, "status": status}
        return make_record("rte", "lora", seed, score=0.8, **changes)

    made = [run(0, 1e-3), run(1, 1e-3, "diverged"), run(2, 1e-3, "failed"), run(0, 2e-3), run(1, 2e-3)]
    (first, second) = tuning(made, [make_record("rte", "lora", profile="small")]).trials["lora"]
    assert (first.score, first.status) == (None, "failed")
    assert (second.score, second.status) == (pytest.approx(0.8), "ok")
    unscored = run(1, 2e-3).model_copy(update={"evaluations": []})
    (_, third) = tuning([*made[:4], unscored], [make_record("rte", "lora", profile="small")]).trials["lora"]
    assert (third.score, third.status) == (None, "no score")


def test_searched_methods_look_as_in_the_other_figures(
    trial: Callable[..., Record], result: Callable[..., Record]
) -> None:
    made = [trial(method, 1e-3, 1e-2, 4.0) for method in ("full", "muon", "odd")]
    shown = context(made, [result(method, 0, 1e-3, 1e-2) for method in ("full", "apollo", "even", "muon", "odd")])
    assert shown.tuning is not None
    found = looks_of(shown, shown.tuning)
    assert list(found) == ["full", "muon", "odd"]
    assert found == {method: shown.looks[method] for method in found}


@pytest.mark.usefixtures("unsaved")
def test_a_method_without_a_scored_trial_is_named_below_the_budget(
    trials: list[Record], results: list[Record], trial: Callable[..., Record]
) -> None:
    plot = budget_plot(context([*trials, trial("lora", 1e-3, 1e-2, None)], results))
    assert plot is not None
    assert plot.figure is not None
    words = " ".join(text.get_text() for text in plot.figure.texts).replace("\n", " ")
    assert "Not shown, no trial with a score: LoRA." in words


def test_usual_rates_are_those_nearest_to_the_middle_of_the_first_ranges(
    trials: list[Record], results: list[Record]
) -> None:
    alone, told = context(trials, results), context(trials, results, search_of(trials))
    assert alone.tuning is not None
    assert alone.tuning.usual("full") is None
    table = tuned_table(told)
    assert table is not None
    row = table.data.set_index("method").loc["galore"]
    assert (row["usual_learning_rate"], row["usual_rest_learning_rate"]) == (1e-2, 1e-3)
    assert row["gained"] == pytest.approx(0.0)
    full = table.data.set_index("method").loc["full"]
    assert full["gained"] == pytest.approx(0.5)
    assert full["edges"] == "rest_learning_rate high"
    assert full["row_trial"] == trials[1].plan_hash
    assert (full["trials"], full["without_a_score"]) == (4, 1)


def test_a_trial_of_another_search_is_not_mixed_in(trials: list[Record], results: list[Record]) -> None:
    other = search_of(trials)
    strange = other.model_copy(
        update={"results": [t.model_copy(update={"plans": {"c4": "0" * 12}}) for t in other.results]}
    )
    assert tuning(trials, results, strange).search is None


def test_a_grid_from_before_the_search_stays_apart(
    trials: list[Record], results: list[Record], trial: Callable[..., Record]
) -> None:
    search = search_of(trials)
    before = trial("full", 3e-2, None, 3.0)
    assert before.plan_hash not in {record.plan_hash for record in trials}
    assert tuning([*trials, before], results, search).records == tuple(trials)
    assert before in tuning([*trials, before], results).records


@pytest.mark.usefixtures("unsaved")
def test_unequal_budgets_are_said(trials: list[Record], results: list[Record]) -> None:
    table = tuned_table(context(trials[:-1], results))
    assert table is not None
    assert "not the same number for every method" in table.caption
    report = suite_report([*trials[:-1], *results], "c4", "small", 8)
    findings = report.table("findings")
    assert findings is not None
    assert "trials of the search 4 and 3" in " ".join(findings.data["what_else_differs"])
    assert findings.notes[-1].endswith("and the learning rates, which a search chose for each")


def confirmed(search: Search, longer: list[Record], chosen: int | None) -> Search:
    """Return a search that asked for full's best trials at length, `longer`, and chose that of a number, or nothing."""
    ends = {(r.plan.training.learning_rate, r.plan.training.rest_learning_rate): r for r in longer}
    found = [
        trial.model_copy(
            update={
                "at_length": AtLength(
                    plans={"c4": r.plan_hash, "cola": "0"},
                    status=r.status,
                    score=None,
                    wall_s=1,
                    fallen=[] if r.evaluations else ["cola"],
                )
            }
        )
        if trial.method == "full" and (r := ends.get((trial.learning_rate, trial.rest_learning_rate)))
        else trial
        for trial in search.results
    ]
    choices = [] if chosen is None else [search.choices[0].model_copy(update={"number": chosen, "edges": []})]
    return search.model_copy(update={"results": found, "confirm": 2, "confirm_tasks": ["cola"], "choices": choices})


def test_the_best_of_a_search_that_confirms_is_its_choice(
    trials: list[Record], results: list[Record], trial: Callable[..., Record]
) -> None:
    """Full's best trial, 4.0 at (1e-3, 1e-2), diverges at length; the next one, 4.5, comes to 4.2."""
    longer = [trial("full", 1e-3, 1e-2, None, steps=600), trial("full", 1e-2, 1e-3, 4.2, steps=600)]
    told = context([*trials, *longer], results, confirmed(search_of(trials), longer, 2))
    assert told.tuning is not None
    best = told.tuning.best("full")
    assert best is not None
    assert (best.learning_rate, best.score, best.at_length) == (1e-2, 4.5, 4.2)
    # What is drawn of all trials is of one length.
    assert told.tuning.expected("full") == tuning(trials, results).expected("full")
    assert told.tuning.records == tuple(trials)
    assert told.tuning.longer == tuple(longer)
    table = trials_table(told)
    assert table is not None
    rule = "first of a method's best 2 that is no worse at full length and has not fallen to the constant prediction"
    assert f"chosen is the {rule}, on cola too" in table.caption
    assert [row[5].text for row in table.rows if row[5].text != "—"] == ["no score, fallen: cola", "4.2000"]
    assert set(table.data["fallen"]) == {"", "cola"}
    tuned = tuned_table(told)
    assert tuned is not None
    assert tuned.data.set_index("method").loc["full", "best_at_length"] == pytest.approx(4.2)
    assert "4.5000 (at length 4.2000)" in tuned.rows[0][3].text
    view = tuning_view(told, {})
    assert view is not None
    assert [t["atLength"] for t in view["methods"][0]["trials"] if t["atLength"] is not None] == [pytest.approx(4.2)]
    assert {t["fallen"] for of in view["methods"] for t in of["trials"]} == {"", ", fallen: cola"}


def test_a_search_that_has_not_confirmed_yet_has_no_best(
    trials: list[Record], results: list[Record], trial: Callable[..., Record]
) -> None:
    longer = [trial("full", 1e-3, 1e-2, 4.1, steps=600)]
    told = context([*trials, *longer], results, confirmed(search_of(trials), longer, None))
    assert told.tuning is not None
    assert told.tuning.best("full") is None


def test_every_trial_stands_in_the_table(trials: list[Record], results: list[Record]) -> None:
    table = trials_table(context(trials, results))
    assert table is not None
    assert len(table.rows) == 8
    assert table.data["best"].sum() == 2
    assert table.data.loc[table.data["status"] == "diverged", "score"].isna().all()


def test_one_colour_scale_for_all_and_no_colour_without_a_score(trials: list[Record], results: list[Record]) -> None:
    found = tuning(trials, results)
    low, high = scale_of(found)
    assert high == -3.9
    assert low == sorted([-5.0, -4.0, -4.5, -4.2, -4.1, -3.9, -4.6])[1]
    marks = {mark.trial.score: mark for of in shades(found).values() for mark in of}
    assert marks[3.9].shade == 1.0
    assert marks[5.0].shade == 0.0
    assert marks[4.1].shade == pytest.approx((-4.1 - low) / (high - low))
    assert marks[None].shade is None
    assert [mark.best for mark in shades(found)["galore"]] == [False, False, False, True]


def test_the_figure_marks_the_best_and_what_diverged(
    trials: list[Record], results: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    from reports.figures import tuning as module

    drawn = []
    monkeypatch.setattr(module, "draw", lambda name, title, caption, build: drawn.append(build()))
    sensitivity_plot(context(trials, results))
    first, second = drawn[0].axes[:2]
    assert [axes.get_title(loc="left") or axes.get_title() for axes in (first, second)] == ["Full training", "GaLore"]
    crosses = [line.get_xydata().tolist() for line in first.lines if line.get_marker() == "x"]
    assert crosses == [[[1e-2, 1e-2]]]
    rings = [line.get_xydata().tolist() for line in first.lines if line.get_markerfacecolor() == "none"]
    assert rings == [[[1e-3, 1e-2]]]
    assert first.get_xlabel() == second.get_xlabel() == "Learning rate of the matrices"
    assert first.get_ylabel() == "Learning rate of the rest"
    assert first.get_xlim() == second.get_xlim()
    assert drawn[0].axes[-1].get_ylabel() == "Loss, nats"
    # The runs beside it may be longer than the trials.
    steps = trials[0].plan.training.steps
    assert any(f"trials of {steps} steps, seed 0" in text.get_text() for text in drawn[0].texts)


def test_figures_are_the_same_bytes_and_absent_without_trials(trials: list[Record], results: list[Record]) -> None:
    for make in (sensitivity_plot, budget_plot):
        first, second = make(context(trials, results)), make(context(trials[::-1], results))
        assert first is not None
        assert second is not None
        assert first.files == second.files
        assert "never on validation" in first.caption
        assert make(Context(results, "small", 8)) is None
    assert plots.STYLE["svg.hashsalt"]


@pytest.mark.usefixtures("unsaved")
def test_the_report_has_them_where_trials_are_at_hand(trials: list[Record], results: list[Record]) -> None:
    whole, bare = suite_report([*trials, *results], "c4", "small", 8), suite_report(results, "c4", "small", 8)
    assert {"tuned", "trials"} <= {table.name for table in whole.tables}
    assert {"sensitivity", "budget"} <= {plot.name for plot in whole.plots}
    assert not {"tuned", "sensitivity"} & {*(t.name for t in bare.tables), *(p.name for p in bare.plots), *bare.absent}


def test_the_page_ships_what_the_table_says(trials: list[Record], results: list[Record]) -> None:
    (group,) = groups([*trials, *results], [search_of(trials)])
    numbers = {record.plan_hash: at for at, record in enumerate([*trials, *results])}
    view = tuning_view(group.context, numbers)
    assert view is not None
    full = view["methods"][0]
    assert full["trials"][full["best"]]["score"] == 4.0
    assert full["trials"][full["best"]]["runs"] == [1]
    assert full["gained"] == pytest.approx(0.5)
    assert [row[1] for row in full["rows"]] == [full["best"]]
    assert [trial["colour"] for trial in full["trials"] if trial["score"] is None] == [None]
    assert len(full["expected"]) == 4
    assert tuning_view(Context(results, "small", 8), numbers) is None


def test_a_search_is_found_beside_its_records(trials: list[Record], results: list[Record], tmp_path: Path) -> None:
    for record in [*trials, *results]:
        write_record(tmp_path / record.plan.purpose, record)
    write_search(tmp_path / "tuning", search_of(trials))
    gathered = gather([tmp_path])
    assert len(gathered.searches) == 1
    assert len(gathered.found) == len(trials) + len(results)
    (group,) = groups(gathered.records, gathered.searches)
    assert group.tuning is not None
    assert group.tuning.search == search_of(trials)
