"""Different settings are different rows, named by what differs, in tables, figures and on the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reports.page.html import page_html
from reports.records.groups import groups
from reports.records.reading import gather
from reports.records.report_runs import Context
from reports.records.rows import row_named, told_apart
from reports.tables.scores import difference_table, score_table
from reports.write import suite_report
from results.catalogue import committed
from results.choice import ChoiceError
from results.schema import Record
from results.store import write_record

Make = Callable[..., Record]
Grid = Callable[..., list[Record]]
EIGHT = {"rank": 8, "projection_rank": 2, "scale": 4.0}


def titles(records: list[Record]) -> list[str]:
    context = Context(records, "micro", 8)
    return [context.title(method) for method in context.methods]


@pytest.mark.usefixtures("unsaved")
def test_the_two_rows_of_the_readme_stand_in_one_table(make_grid: Grid) -> None:
    records = make_grid(tasks=("rte", "cola"))
    records += make_grid(methods=("gradnormlorp",), tasks=("rte",), state_bits=8, method_config=EIGHT)
    report = suite_report(records, "glue")
    rows = {row[0].text: row for row in report.tables[0].rows}
    names = ["GradNormLoRP, projection rank 2, 8 bit", "GradNormLoRP, projection rank 8, 32 bit"]
    assert [name for name in rows if name.startswith("Grad")] == names
    assert {"Full fine-tuning", "LoRA", "DoRA", "GaLore"} < set(rows)
    assert rows[names[0]][1].text == "—"
    assert {plot.name for plot in report.plots} == {"dots", "parts", "curves"}
    bits = report.context.runs.groupby("method")["state_bits"].unique().map(list).to_dict()
    assert bits["gradnormlorp:projection_rank=2,state_bits=8"] == [8]
    assert bits["gradnormlorp:projection_rank=8,state_bits=32"] == [32]


@pytest.mark.usefixtures("unsaved")
def test_a_study_of_one_setting_at_a_time_names_what_each_changes(make_grid: Grid) -> None:
    base = {"rank": 8, "projection_rank": 4, "side": "small", "basis": "exact"}
    records = make_grid(methods=("full",), tasks=("rte",))
    for change in ({}, {"side": "both"}, {"basis": "warm"}, {"projection_rank": 8, "allow_full_rank": True}):
        records += make_grid(methods=("gradnormlorp",), tasks=("rte",), method_config={**base, **change})
    assert sorted(titles(records)[1:]) == [
        "GradNormLoRP",
        "GradNormLoRP, basis warm",
        "GradNormLoRP, projection rank 8, allow full rank",
        "GradNormLoRP, side both",
    ]
    assert {plot.name for plot in suite_report(records, "glue").plots} >= {"parts"}


@pytest.mark.usefixtures("unsaved")
def test_rows_that_differ_in_much_have_figures(make_grid: Grid) -> None:
    first = {"projection_rank": 2, "scale": 2.0, "alpha": 8.0, "dropout": 0.25, "refresh_gap": 123, "side": "both"}
    other = {"projection_rank": 4, "scale": 4.0, "alpha": 4.0, "dropout": 0.5, "refresh_gap": 321, "side": "large"}
    first |= {"basis": "exact", "moments": "keep", "norm_gradient": "full"}
    other |= {"basis": "warm", "moments": "rotate", "norm_gradient": "detached"}
    records = make_grid(methods=("gradnormlorp",), tasks=("rte", "cola"), method_config={"rank": 8, **first})
    records += make_grid(methods=("gradnormlorp",), tasks=("rte", "cola"), method_config={"rank": 8, **other})
    assert min(map(len, titles(records))) > 120
    assert {plot.name for plot in suite_report(records, "glue").plots} >= {"parts", "dots"}


def test_a_sweep_has_a_row_a_value_in_order_of_size_and_one_keeps_the_colour(make_grid: Grid) -> None:
    records = make_grid(methods=("full",), tasks=("rte",))
    for alpha in (32.0, 8.0, 16.0):
        records += make_grid(methods=("lora",), tasks=("rte",), method_config={"rank": 8, "alpha": alpha})
    context = Context(records, "micro", 8)
    assert titles(records)[1:] == ["LoRA, alpha 8", "LoRA, alpha 16", "LoRA, alpha 32"]
    looks = [context.looks[f"lora:alpha={alpha}"] for alpha in (8, 16, 32)]
    assert len({(look.colour, look.marker) for look in looks}) == 3
    slot = committed().method("lora").slot
    owners = [e.name for e in context.catalogue.methods if e.slot == slot and e.name.startswith("lora:")]
    assert len(owners) == 1


def test_runs_of_one_setting_are_not_renamed(make_grid: Grid) -> None:
    records = make_grid(tasks=("rte", "cola"))
    assert told_apart(records) == records
    # Learning rates, lengths and steps that a profile gives task by task are one setting.
    by_task = [*make_grid(tasks=("rte",), steps=30, epochs=1.0), *make_grid(tasks=("cola",), steps=90, epochs=1.0)]
    assert told_apart(by_task) == by_task


def test_telling_apart_twice_changes_nothing(make_record: Make) -> None:
    once = told_apart([make_record(), make_record(state_bits=8)])
    assert {record.plan.method for record in once} == {"lora:state_bits=32", "lora:state_bits=8"}
    assert told_apart(once) == once


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 32, "steps": 30, "warmup_steps": 3}, ("batch size 16", "batch size 32")),
        ({"steps": 120, "epochs": 2.0, "warmup_steps": 12}, ("steps 60", "steps 120")),
        ({"learning_rate": 3e-4}, ("learning rate 0.0003", "learning rate 0.001")),
        ({"per_layer": True}, ("", "per-layer updates")),
        ({"precision": "bf16"}, ("bf16", "fp32")),
        ({"targets": "attention"}, ("on attention", "on encoder")),
        ({"clip_norm": 1.0}, ("", "clip norm 1")),
        ({"method_config": {"rank": 8}}, ("", "alpha 16")),
        ({"variant": "equal memory", "batch_size": 32}, ("", "equal memory")),
    ],
)
def test_a_row_is_named_by_what_differs(changes: dict[str, object], words: tuple[str, str], make_record: Make) -> None:
    found = titles([make_record(), make_record(**changes)])
    assert sorted(found) == sorted(", ".join(filter(None, ("LoRA", word))) for word in words)


def test_a_rows_name_holds_nothing_that_reads_as_something_else(make_record: Make) -> None:
    changes = [{}, {"recompute": ("norms", "mlp")}, {"recompute": ("loss",)}]
    rows = {record.plan.method for record in told_apart([make_record(**change) for change in changes])}
    assert rows == {"lora:recompute=none", "lora:recompute=norms+mlp", "lora:recompute=loss"}
    named = told_apart([make_record(variant='a, "b" c'), make_record()])
    assert {record.plan.method for record in named} == {"lora:variant=a_b_c", "lora:variant="}
    assert set(Context(named, "micro", 8).variants) == {"lora"}


def test_the_row_that_keeps_its_methods_slot_looks_as_the_method(make_record: Make) -> None:
    context = Context([make_record(), make_record(seed=1), make_record(state_bits=8)], "micro", 8)
    look, other = context.looks["lora:state_bits=32"], context.looks["lora:state_bits=8"]
    usual = Context([make_record()], "micro", 8).looks["lora"]
    assert (look.colour, look.marker, look.dashed) == (usual.colour, usual.marker, usual.dashed)
    assert (other.colour, other.marker) != (look.colour, look.marker)


def test_a_variants_name_that_does_not_tell_all_apart_is_one_word_of_several(make_record: Make) -> None:
    found = titles([make_record(), make_record(variant="study"), make_record(variant="study", state_bits=8)])
    assert sorted(found) == ["LoRA, 32 bit", "LoRA, 32 bit, study", "LoRA, 8 bit, study"]


def test_of_named_variants_the_one_nearest_to_the_defaults_keeps_the_role(make_record: Make) -> None:
    rows = [make_record(variant="a", precision="bf16"), make_record(variant="b"), make_record(variant="c", tf32=True)]
    looks = {entry.title: entry.slot for record in told_apart(rows) for entry in record.catalogue.methods[-1:]}
    assert [title for title, slot in looks.items() if slot is not None] == ["LoRA, b"]


def test_epochs_name_a_row_where_every_task_has_its_own_number_of_steps(make_record: Make) -> None:
    records = [
        make_record(task, steps=steps * epochs, epochs=float(epochs))
        for task, steps in (("rte", 30), ("cola", 90))
        for epochs in (1, 2)
    ]
    assert titles(records) == ["LoRA, epochs 1", "LoRA, epochs 2"]


def test_values_that_tasks_have_of_their_own_are_one_row_beside_an_overridden_one(make_record: Make) -> None:
    own = [make_record("rte", learning_rate=1e-4), make_record("cola", learning_rate=2e-4)]
    given = [make_record(task, learning_rate=5e-3) for task in ("rte", "cola")]
    assert titles([*own, *given]) == ["LoRA, learning rate 0.005", "LoRA, learning rate by task"]


def test_seeds_of_two_settings_are_two_rows(make_record: Make) -> None:
    assert len(titles([make_record(seed=0), make_record(seed=1, state_bits=8)])) == 2


def test_the_usual_row_of_the_yardstick_stays_it(make_grid: Grid) -> None:
    records = make_grid(methods=("full", "lora"), tasks=("rte",))
    records += make_grid(methods=("full",), tasks=("rte",), state_bits=8, seeds=(0,))
    context = Context(records, "micro", 8)
    assert context.yardstick == "full:state_bits=32"
    assert context.title("full:state_bits=8") == "Full fine-tuning, 8 bit"
    lora = context.runs[context.runs["method"] == "lora"]
    assert lora["step_ratio"].notna().all()


def test_the_yardsticks_row_of_another_precision_is_the_clock_of_its_own(make_grid: Grid) -> None:
    records = make_grid(methods=("full", "lora"), tasks=("rte",))
    records += make_grid(methods=("full", "lora"), tasks=("rte",), precision="bf16")
    runs = Context(records, "micro", 8).runs
    assert runs["step_ratio"].notna().all()
    assert (runs.loc[runs["method"].str.startswith("full"), "step_ratio"] == 1).all()


def test_differences_are_taken_to_a_row_by_name_title_or_method(make_grid: Grid) -> None:
    records = make_grid(methods=("full", "lora"), tasks=("rte",))
    records += make_grid(methods=("lora",), tasks=("rte",), state_bits=8)
    context = Context(records, "micro", 8)
    for against in ("lora:state_bits=8", "LoRA, 8 bit"):
        table = difference_table(context, against)
        assert table is not None
        assert "difference to LoRA, 8 bit in points" in table.caption
        assert [row[0].text for row in table.rows] == ["Full fine-tuning", "LoRA, 32 bit"]
    with pytest.raises(ChoiceError, match="'lora' was run under several settings: name one of lora:state_bits=8, lora"):
        difference_table(context, "lora")
    with pytest.raises(ChoiceError, match="unknown method to compare with 'lorra'.*nearest: lora"):
        difference_table(context, "lorra")
    assert row_named("full", {"full:steps=60": "Full"}) == "full:steps=60"


@pytest.mark.usefixtures("unsaved")
def test_every_rank_is_a_row_on_request(make_grid: Grid) -> None:
    records = make_grid(methods=("full", "lora"), tasks=("rte",))
    records += make_grid(methods=("lora",), tasks=("rte",), method_config={"rank": 4, "alpha": 16.0})
    report = suite_report(records, "glue", rank="all")
    assert [row[0].text for row in report.tables[0].rows] == ["Full fine-tuning", "LoRA, rank 4", "LoRA, rank 8"]
    assert report.folder == "glue-micro"


def test_the_page_and_the_papers_tables_hold_every_row(make_grid: Grid, tmp_path: Path) -> None:
    records = make_grid(tasks=("rte", "cola"))
    records += make_grid(methods=("gradnormlorp",), tasks=("rte",), state_bits=8)
    for record in records:
        write_record(tmp_path, record)
    gathered = gather([tmp_path])
    page = page_html(gathered, [], [], groups(gathered.records))
    assert '"gradnormlorp:state_bits=8":"GradNormLoRP, 8 bit"' in page
    (group,) = groups(gathered.records)
    assert {record.plan.method for record in group.context.records} >= {"gradnormlorp:state_bits=8", "full"}
    kept = gathered.where(["training.state_bits=32"])
    assert [len(found.records) for found in (gathered, kept)] == [33, 30]
    assert score_table(Context(kept.results, "micro", 8)).rows[-1][0].text == "GradNormLoRP"
