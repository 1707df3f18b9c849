"""Findings: sentences and table from the arithmetic, what else differs, what an average that orders nothing hides."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from reports.figures.front_and_curves import front_plot
from reports.page.conclusions import conclusions
from reports.records.beside import settings_beside
from reports.records.report_runs import Context
from reports.tables.ablation import ablation_table
from reports.tables.findings import Findings, findings_of, findings_table, lines, sentence, unordered
from reports.tables.scores import score_table
from reports.tables.table import Table, to_markdown
from reports.write import report_of
from results.catalogue import Catalogue, MethodEntry
from results.schema import DataFacts, DataPlan, Evaluation, Record

Make = Callable[..., Record]
SEEDS = (0, 1, 2)
JITTER = {0: 0.0, 1: 0.001, 2: -0.001}


@pytest.fixture
def run(make_record: Make) -> Callable[..., Record]:
    """(task, method, seed, score) -> a small record whose score is exactly that."""

    def record(task: str, method: str, seed: int, score: float, **changes: Any) -> Record:
        return make_record(task, method, seed, profile="small", score=score, curve=False, **changes)

    return record


def grid(
    run: Callable[..., Record], levels: dict[str, float], tasks: tuple[str, ...] = ("rte", "sst2")
) -> list[Record]:
    """Return three seeds of each method on each task; the noise of methods differs, so that intervals have a width."""
    return [
        run(task, method, seed, level + (at + 1) * JITTER[seed] * (-1) ** t)
        for at, (method, level) in enumerate(levels.items())
        for t, task in enumerate(tasks)
        for seed in SEEDS
    ]


def found_of(records: list[Record]) -> Findings:
    found = findings_of(Context(records, "small", 8))
    assert found is not None
    return found


def c4(make_record: Make, method: str, seed: int, loss: float) -> Record:
    """Return a pre-training run."""
    metrics = {"validation/loss": loss, "validation/perplexity": 2.7**loss}
    last = Evaluation(step=60, epoch=None, rows={}, metrics=metrics)
    parts = {"evaluations": [last], "main_metric": "validation/perplexity"}
    return make_record("c4", method, seed, score=0.5, parts=parts, suite="c4", profile="small", curve=False)


def table_of(records: list[Record]) -> Table:
    table = findings_table(Context(records, "small", 8))
    assert table is not None
    return table


def told(records: list[Record]) -> str:
    return " ".join(text for _, text in lines(found_of(records)))


def test_a_difference_is_told_with_its_interval(run: Callable[..., Record]) -> None:
    records = grid(run, {"full": 0.70, "lora": 0.80})
    found = found_of(records)
    (pair,) = found.pairs
    assert pair.decided
    assert pair.low is not None
    assert pair.high is not None
    ends = f"{100 * pair.low:.1f} to {100 * pair.high:.1f}"
    want = f"LoRA is better than Full fine-tuning by 10.0 points ({ends}), "
    assert sentence(found, pair).startswith(want)
    assert "times the seed noise" in sentence(found, pair)
    assert "LoRA has the best average over 2 tasks, 80.0, told apart from every other method." in told(records)


def test_no_difference_is_a_finding_with_its_size(run: Callable[..., Record]) -> None:
    records = grid(run, {"full": 0.70, "lora": 0.70, "dora": 0.70})
    found = found_of(records)
    most = max(pair.bound or 0.0 for pair in found.pairs)
    assert f"No difference larger than {100 * most:.1f} points was found between any two of 3 methods" in told(records)
    assert "No method is best" in told(records)
    assert not found.order


def test_a_mixed_outcome_names_both_kinds(run: Callable[..., Record]) -> None:
    text = told(grid(run, {"full": 0.70, "lora": 0.80, "dora": 0.80}))
    assert "LoRA is better than Full fine-tuning by" in text
    assert "DoRA is better than Full fine-tuning by" in text
    assert "No difference was found, none larger than: LoRA and DoRA (" in text


def test_one_seed_concludes_nothing(run: Callable[..., Record]) -> None:
    records = [run("rte", method, 0, score) for method, score in (("full", 0.5), ("lora", 0.9))]
    found = found_of(records)
    assert "one seed behind the score on RTE: no order of the methods may be concluded" in told(records)
    assert "nothing may be said of LoRA and Full fine-tuning: one shared seed" in sentence(found, found.pairs[0])
    row = table_of(records).data.iloc[0]
    assert row["difference"] == pytest.approx(0.4)
    assert row[["low", "high", "p_holm", "seed_noise"]].isna().all()


def test_a_run_without_a_score_leaves_no_difference(run: Callable[..., Record], make_record: Make) -> None:
    records = [
        r
        for r in grid(run, {"full": 0.7, "lora": 0.8})
        if (r.plan.method, r.plan.task, r.plan.seed) != ("lora", "rte", 2)
    ]
    records.append(make_record("rte", "lora", 2, profile="small", status="diverged"))
    found = found_of(records)
    (pair,) = found.pairs
    assert pair.difference.mean is None
    assert "no score of LoRA on RTE" in sentence(found, pair)
    assert not found.order


def test_tasks_with_one_seed_are_left_out_and_named(run: Callable[..., Record]) -> None:
    records = grid(run, {"full": 0.7, "lora": 0.8}) + [run("qnli", m, 0, 0.5) for m in ("full", "lora")]
    found = found_of(records)
    assert [column.name for column in found.columns] == ["sst2", "rte"]
    assert "QNLI" in found.left_out
    assert "too few seeds or not run: " in told(records)
    assert found.pairs[0].decided
    assert not found.order  # the average is over more than that
    why = unordered(found)
    assert why.startswith("for CoLA, ")
    assert why.endswith(" there are too few seeds or no runs")
    assert "QNLI" in why
    context = Context(records, "small", 8)
    assert f"Score against memory: no front, since {why}." in [text for _, text in conclusions(context)]
    assert not any("no two methods are told apart" in text for _, text in conclusions(context))


def test_why_nothing_is_ordered_is_said_as_it_is(run: Callable[..., Record]) -> None:
    tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    assert unordered(found_of(grid(run, {"full": 0.7, "lora": 0.8}, tasks))) == ""
    alike = found_of(grid(run, {"full": 0.7, "lora": 0.7}, tasks))
    assert unordered(alike) == "no two methods are told apart by the score"
    one = found_of([run(task, method, 0, 0.5) for task in tasks for method in ("full", "lora")])
    assert unordered(one) == "fewer than 3 seeds are shared"
    assert unordered(None) == "there is no difference to take"


@pytest.mark.parametrize("task", ["rte", "wnli"])
def test_runs_that_brought_nothing_to_compare_have_no_findings(make_record: Make, task: str) -> None:
    status = "failed" if task == "rte" else "ok"
    context = Context([make_record(task, method, status=status) for method in ("full", "lora")], "micro", 8)
    assert findings_of(context) is None
    assert findings_table(context) is None
    assert any("no score at all: there is no difference to take" in text for _, text in conclusions(context))


def test_a_place_on_the_front_is_sure_only_where_pairs_are_decided(make_record: Make) -> None:
    losses = {"lora": (4.0, 4.001, 3.999), "dora": (3.99, 3.98, 3.9), "galore": (5.0, 5.002, 4.999), "full": (3.0,) * 3}
    records = [c4(make_record, method, seed, of[seed]) for method, of in losses.items() for seed in SEEDS]
    context = Context(records, "small", 8)
    found = findings_of(context)
    assert found is not None
    # Every seed says that DoRA is better than LoRA, which needs less memory; the findings do not.
    assert [pair.decided for pair in found.pairs if {pair.first, pair.second} == {"lora", "dora"}] == [False]
    front = [line for line in conclusions(context) if "front" in line[1]]
    assert [(kind, text.partition(": ")[2]) for kind, text in front] == [
        ("holds", "Full training, LoRA."),
        ("open", "DoRA."),
    ]


def test_comparisons_are_counted_where_something_is_decided(run: Callable[..., Record]) -> None:
    records = grid(run, {"full": 0.7, "lora": 0.8, "dora": 0.75})
    records = [r for r in records if (r.plan.method, r.plan.seed) != ("dora", 2)]
    assert sum(pair.low is not None for pair in found_of(records).pairs) == 3
    assert any("by Holm's method for 1 comparisons; " in note for note in table_of(records).notes)
    (said,) = [text for _, text in conclusions(Context(records, "small", 8)) if text.startswith("Differences:")]
    assert "decided by Holm's method for 1 comparisons; 95 % intervals that hold all at once (Bonferroni)" in said


def with_constant(record: Record, value: float, key: str = "validation/accuracy") -> Record:
    assert record.data is not None
    facts = DataFacts(**{**record.data.model_dump(), "constant_scores": {key: value}})
    return record.model_copy(update={"data": facts})


def test_a_column_at_the_constant_prediction_orders_nothing(run: Callable[..., Record]) -> None:
    records = grid(run, {"full": 0.53, "lora": 0.54})

    def with_rte_at(value: float) -> str:
        return told([with_constant(r, value if r.plan.task == "rte" else 0.4) for r in records])

    text = with_rte_at(0.53)
    assert "is not shown to leave the constant prediction on RTE (53.0 ± 0.1 against 53.0): no order there." in text
    assert "SST-2 (" not in text
    # Every seed is above it, and all of them are evaluated on the same 400 rows: sqrt(0.5 * 0.5 / 400) is 2.5 points.
    said = "RTE (53.0 ± 0.1 against 50.0, less than 2 standard errors of its 400 rows, 2.5 each): no order there."
    assert said in with_rte_at(0.5)
    assert "constant prediction" not in with_rte_at(0.4)


def test_a_run_far_from_its_others_is_named(run: Callable[..., Record], make_record: Make) -> None:
    records = grid(run, {"full": 0.7, "lora": 0.8, "dora": 0.75})
    assert "far apart" not in told(records)
    task = records[0].plan.task
    fallen = [r for r in records if (r.plan.task, r.plan.method, r.plan.seed) != (task, "dora", 2)]
    fallen.append(run(task, "dora", 2, 0.06))
    said = "75.0, 75.3, 6.0 (seeds 0, 1, 2)"
    assert f"DoRA's runs on RTE end far apart, {said}: their mean describes none of them" in told(fallen)
    assert f"DoRA, RTE: runs far apart, {said}" in score_table(Context(fallen, "small", 8)).notes
    # One task's loss: no task is named.
    losses = {"full": (4.0, 4.01, 4.02), "lora": (4.0, 4.03, 4.01), "galore": (4.0, 9.0, 4.0)}
    text = told([c4(make_record, method, seed, of[seed]) for method, of in losses.items() for seed in SEEDS])
    assert "GaLore's runs end far apart, 4.0000, 9.0000, 4.0000 (seeds 0, 1, 2)" in text
    # What is said of the others is not as wide as the pairs with it.
    (most,) = re.findall(r"No difference larger than (\S+) nats was found between the two others", text)
    assert float(most) < 0.1


def test_a_best_average_over_unequal_seeds_says_so(run: Callable[..., Record]) -> None:
    records = grid(run, {"full": 0.7, "lora": 0.8})
    assert "its own seeds" not in told(records)
    more = [run("rte", method, 3, 0.71) for method in ("full", "lora")]
    # The table of scores averages over the seeds that all tasks have, which is another number.
    assert "with each task over all its own seeds" in told(records + more)


def test_a_run_that_learnt_nothing_is_named(run: Callable[..., Record]) -> None:
    records = grid(run, {"full": 0.7, "lora": 0.8, "dora": 0.75})
    assert "no better than the constant" not in told([with_constant(r, 0.4) for r in records])

    def with_dora_at(scores: Mapping[int, float]) -> list[Record]:
        dora = [run("rte", "dora", seed, value) for seed, value in scores.items()]
        kept = [r for r in records if (r.plan.task, r.plan.method) != ("rte", "dora")]
        return [with_constant(r, 0.53) for r in [*kept, *dora]]

    # At the constant prediction, below it, above it: two fell, and the spread of three runs hides which.
    some = with_dora_at({0: 0.53, 1: 0.52, 2: 0.56})
    said = "DoRA on RTE: no better than the constant prediction (53.0) with seeds 0, 1, 56.0 otherwise: its mean is of "
    assert said in told(some)
    assert (
        "No better than the constant prediction: DoRA, RTE, seeds 0, 1" in score_table(Context(some, "small", 8)).notes
    )
    low = [with_constant(r, 0.9) for r in records]
    assert (
        "No better than the constant prediction: every run of SST-2; every run of RTE"
        in score_table(Context(low, "small", 8)).notes
    )
    every = "DoRA on RTE: no better than the constant prediction (53.0) with seeds 0, 1, 2: none of its runs learnt "
    assert every in told(with_dora_at({0: 0.53, 1: 0.52, 2: 0.5}))
    # Where full fine-tuning learns nothing either, the column is said to order nothing, once for all methods.
    idle = told([with_constant(r, 0.8) for r in some])
    assert "no order there." in idle
    assert "DoRA on RTE:" not in idle


def test_a_pre_training_run_above_the_unigram_is_named(make_record: Make) -> None:
    losses = {"full": (4.0, 4.01, 4.02), "galore": (4.0, 7.1, 4.2)}
    records = [c4(make_record, method, seed, of[seed]) for method, of in losses.items() for seed in SEEDS]
    text = told([with_constant(record, 7.0, "validation/loss") for record in records])
    assert "GaLore: no better than the unigram (7.0000) with seed 1, 4.0000 to 4.2000 otherwise: its mean" in text
    assert "no better" not in told([with_constant(record, 7.2, "validation/loss") for record in records])


def test_a_lower_loss_is_better_and_in_its_own_unit(make_record: Make) -> None:
    records = [c4(make_record, "full", s, 5.0 + JITTER[s]) for s in SEEDS]
    text = told(records + [c4(make_record, "galore", s, 4.0 - JITTER[s]) for s in SEEDS])
    assert "GaLore is better than Full training by 1.0000 nats (0.99" in text
    assert "nats" in text
    assert "GaLore has the best mean loss, 4.0000" in text


def test_what_else_differs_stands_beside_the_difference(run: Callable[..., Record]) -> None:
    records = [run("rte", "full", s, 0.7 + JITTER[s]) for s in SEEDS]
    records += [
        run("rte", "lora", s, 0.8 - JITTER[s], steps=90, precision="bf16", rest_learning_rate=1e-2) for s in SEEDS
    ]
    row = table_of(records).data.iloc[0]
    assert row["what_else_differs"].removeprefix("learning rate 0.001 and 0.0003; ") == (
        "precision bf16 and fp32; learning rate of the rest 0.01 and one rate; steps 90 and 60"
    )


def test_searched_rates_are_no_difference_of_the_rule_and_others_are_said(run: Callable[..., Record]) -> None:
    records = [run("rte", "full", s, 0.7, learning_rate=1e-3, rest_learning_rate=1e-2) for s in SEEDS]
    records += [run("rte", "lora", s, 0.8, learning_rate=2e-3, rest_learning_rate=3e-2) for s in SEEDS]
    table = table_of(records)
    assert (
        table.data.iloc[0]["what_else_differs"]
        == "learning rate 0.002 and 0.001; learning rate of the rest 0.03 and 0.01"
    )
    assert table.notes[-1] == "What else differs: beside the methods' own settings"
    assert any("No search stands behind the learning rates" in note for note in table.notes)
    full, lora = (settings_beside(record.plan, searched=True) for record in (records[0], records[-1]))
    assert full == lora


def test_epochs_that_follow_from_the_batch_are_no_other_difference(run: Callable[..., Record]) -> None:
    records = [run("rte", "full", s, 0.7, batch_size=8, epochs=0.5) for s in SEEDS]
    records += [run("rte", "lora", s, 0.8, batch_size=13, epochs=0.8125) for s in SEEDS]
    told = table_of(records).data.iloc[0]["what_else_differs"].split("; ")
    assert "batch size 13 and 8" in told
    assert not any(text.startswith("epochs") for text in told)


@pytest.mark.usefixtures("unsaved")
def test_an_average_that_orders_nothing_is_not_drawn(make_grid: Callable[..., list[Record]], run: Any) -> None:
    apart, alike = {"full": 0.7, "lora": 0.8}, {"full": 0.7, "lora": 0.7}
    tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
    drawn, hidden = (Context(grid(run, levels, tasks), "small", 8) for levels in (apart, alike))
    assert front_plot(drawn) is not None
    assert front_plot(hidden) is None
    report = report_of(hidden)
    assert "no two methods are told apart by the score" in report.undrawn
    assert "front" not in report.absent
    assert report_of(drawn).undrawn == ""
    kinds = dict((text, kind) for kind, text in conclusions(hidden))
    assert any("no two methods are told apart by the score" in text for text in kinds)


def test_the_page_says_what_the_table_says(run: Callable[..., Record]) -> None:
    records = grid(run, {"full": 0.70, "lora": 0.80})
    context = Context(records, "small", 8)
    said = [text for _, text in conclusions(context)]
    notes = table_of(records).notes
    assert [text for _, text in lines(found_of(records))] == [text for text in said if text in notes]


def test_variants_are_compared_with_their_base_and_not_with_everybody(run: Callable[..., Record]) -> None:
    base = {"rank": 8, "projection_rank": 4, "scale": 1.0}
    kinds = [("full", 0.80), ("detached", 0.70)]
    records = [run("rte", "lora", s, 0.75 + JITTER[s]) for s in SEEDS]
    for norm, level in kinds:
        config = {**base, "norm_gradient": norm, "side": "small"}
        records += [run("rte", "gradnormlorp", s, level + 2 * JITTER[s], method_config=config) for s in SEEDS]
    both = {**base, "norm_gradient": "full", "side": "both"}
    records += [run("rte", "gradnormlorp", s, 0.80 - JITTER[s], method_config=both) for s in SEEDS]
    context = Context(records, "small", 8)
    found = findings_of(context)
    assert found is not None
    assert len(found.scores) == 2
    table = ablation_table(context)
    assert table is not None
    data = table.data.set_index("changed")
    assert set(data.index) == {"", "norm_gradient=detached", "side=both"}
    worse = data.loc["norm_gradient=detached"]
    assert worse["better_by"] == pytest.approx(-0.1)
    assert worse["low"] < -0.09 < 0 > worse["high"]
    assert bool(worse["decided"])
    assert data.loc["side=both", "better_by"] == pytest.approx(0.0, abs=1e-9)
    assert not data.loc["side=both", "decided"]
    assert "| −10.0 |" in to_markdown(table).replace("**", "")
    # A fourth seed of the base alone: the variants' means are marked as of fewer, their differences stay.
    config = {**base, "norm_gradient": "full", "side": "small"}
    table = ablation_table(Context([*records, run("rte", "gradnormlorp", 3, 0.9, method_config=config)], "small", 8))
    assert table is not None
    assert [str(row[2]).count("n=3") for row in table.rows] == [0, 1, 1]
    assert table.data.set_index("changed").loc["norm_gradient=detached", "better_by"] == pytest.approx(-0.1)


def test_no_variants_no_ablation(run: Callable[..., Record]) -> None:
    assert ablation_table(Context(grid(run, {"full": 0.7, "lora": 0.8}), "small", 8)) is None


def test_a_control_is_said_to_be_one_stands_last_and_is_never_best(run: Callable[..., Record]) -> None:
    entry = Catalogue(methods=[MethodEntry(name="still", title="Frozen", order=0, control=True)])
    records = grid(run, {"full": 0.70, "lora": 0.72, "still": 0.90})
    records = [r.model_copy(update={"catalogue": entry}) if r.plan.method == "still" else r for r in records]
    context = Context(records, "small", 8)
    assert context.methods[-1] == "still"
    assert context.title("still") == "Frozen (control)"
    text = told(records)
    assert "LoRA has the best average over 2 tasks" in text
    assert "told apart from every other contender; not shown to be better than Frozen (control)." in text
    assert "Frozen (control) is better than" in text


def test_a_lone_method_has_no_findings(run: Callable[..., Record]) -> None:
    context = Context(grid(run, {"full": 0.7}), "small", 8)
    assert findings_of(context) is None
    assert findings_table(context) is None
    assert any("one method alone" in text for _, text in conclusions(context))


@pytest.mark.parametrize(
    ("task", "rows", "cap", "want"),
    [
        ("mnli", {"validation_matched": 1000, "validation_mismatched": 1000}, 1000,
         "capped: MNLI 1,000 of 9,815 rows of validation-matched; MNLI 1,000 of 9,832 rows of validation-mismatched"),
        ("rte", {"validation": 277}, 1000, "the validation split"),
        ("rte", {"held_out": 249}, None, "the validation split"),
        ("unheard", {"validation": 500}, 500, "capped: unheard at 500 rows of validation"),
    ],
)  # fmt: skip
def test_captions_say_what_was_evaluated(
    make_record: Make, task: str, rows: dict[str, int], cap: int, want: str
) -> None:
    facts = DataFacts(train_rows=10, eval_rows=rows, official=True)
    data = DataPlan(source="directory", name=task, max_length=64, eval_rows=cap)
    record = make_record(task, "lora", profile="small", score=0.5, parts={"data": facts}, data=data)
    context = Context([record], "small", 8)
    assert (
        f"Evaluated on {want if want.startswith('the') else f'the validation split, {want}'}; seed 0"
        in context.caption("x")
    )


def test_a_generated_split_is_whole(make_record: Make) -> None:
    assert "capped" not in Context([make_record("cola", "lora")], "micro", 8).caption("x")
