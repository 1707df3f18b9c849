"""The tables: right numbers, nothing averaged away, estimates apart from measurements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from reports.averages.convention import convention_of
from reports.records.report_runs import MICRO, Context
from reports.stats.over_seeds import summarise
from reports.tables.cost import estimate_table, memory_table, peak_by_task_table, process_table, time_table
from reports.tables.scores import difference_table, score_table, status_table
from reports.tables.table import Entry, Table, to_json
from reports.write import suite_report, write_report
from results.catalogue import committed
from results.choice import ChoiceError
from results.schema import DataFacts, Record
from results.store import read_records, write_record

Make = Callable[..., Record]
Grid = Callable[..., list[Record]]


def context_of(records: list[Record], **changes: Any) -> Context:
    """Return a context of the records' own profile."""
    return Context(records, records[0].plan.profile, 8, **changes)


def texts(table: Table | None, method: str) -> dict[str, str]:
    """Return head -> text of one row."""
    assert table is not None
    row = next(row for row in table.rows if row[0].text == method)
    return {head: entry.text for head, entry in zip(table.heads, row, strict=True)}


def test_scores_are_printed_in_percent_with_spread(make_record: Make) -> None:
    records = [make_record(seed=seed, score=score) for seed, score in enumerate((0.6, 0.65, 0.7))]
    table = score_table(context_of(records))
    assert texts(table, "LoRA")["RTE"] == "65.0 ± 5.0"
    assert texts(table, "LoRA")["CoLA"] == "—"
    data = table.data.set_index("task")
    assert data.loc["rte", "mean"] == pytest.approx(0.65)
    assert data.loc["rte", "scores"] == "0.6 0.65 0.7"


def test_constant_prediction_has_a_row_where_it_is_recorded(make_record: Make) -> None:
    record = make_record(seed=0, score=0.6)
    assert record.data is not None
    facts = record.data.model_copy(update={"constant_scores": {"validation/accuracy": 0.525}})
    table = score_table(context_of([record.model_copy(update={"data": facts})]))
    assert texts(table, "Constant prediction")["RTE"] == "52.5"
    assert texts(table, "Constant prediction")["CoLA"] == "—"
    assert "Constant prediction" not in {row[0].text for row in score_table(context_of([record])).rows}


def test_a_missing_seed_shows_its_n(make_grid: Grid) -> None:
    records = [r for r in make_grid() if not (r.plan.method == "dora" and r.plan.task == "cola" and r.plan.seed == 0)]
    table = score_table(context_of(records))
    assert texts(table, "DoRA")["CoLA"].endswith("(n=2)")
    assert texts(table, "DoRA")["Average"] == "—"
    assert any("DoRA: no average" in note and "CoLA seed 0 (not run)" in note for note in table.notes)
    assert "(n=" not in texts(table, "LoRA")["CoLA"]


@pytest.mark.parametrize("status", ["diverged", "out_of_memory", "failed", "interrupted"])
def test_a_broken_run_stands_in_the_cell_and_its_error_below(make_record: Make, status: str) -> None:
    records = [make_record(seed=seed, score=0.6) for seed in (0, 1)] + [make_record(seed=2, status=status)]
    context = context_of(records)
    table = score_table(context)
    assert texts(table, "LoRA")["RTE"] == f"{status.replace('_', ' ')} 1/3"
    assert any("LoRA, RTE: 60.0 ± 0.0 over the 2 that finished" in note for note in table.notes)
    counted = status_table(context)
    assert texts(counted, "LoRA")[status.replace("_", " ")] == "1"
    assert texts(counted, "LoRA")["not run"] == "21"
    assert any(f"{status}: told by the test" in note for note in counted.notes)
    row = table.data.set_index("task").loc["rte"]
    assert (row["n"], row[status], row["not_run"]) == (2, 1, 0)


def test_best_is_bold_only_where_the_interval_excludes_zero(make_record: Make) -> None:
    def bold(gap: float, noise: float) -> bool:
        records = [make_record(method="full", seed=s, score=0.6 + 0.01 * s) for s in range(3)]
        records += [make_record(seed=s, score=0.6 + 0.01 * s + gap + noise * (s - 1)) for s in range(3)]
        rows = score_table(context_of(records)).rows
        return bool(rows[1][8].bold)

    assert bold(gap=0.05, noise=0.001)
    assert not bold(gap=0.05, noise=0.03)


def test_a_method_with_a_broken_run_takes_no_part_in_the_bold(make_record: Make) -> None:
    records = [make_record(method="full", seed=s, score=0.65 + 0.01 * s) for s in range(3)]
    records += [make_record(method="dora", seed=s, score=0.6 + 0.01 * s) for s in range(3)]
    records += [make_record(seed=s, score=0.9) for s in range(2)] + [make_record(seed=2, status="diverged")]
    rows = score_table(context_of(records)).rows
    assert [row[8].bold for row in rows] == [True, False, False]


def test_differences_are_paired_by_seed(make_record: Make) -> None:
    records = [make_record(method="full", seed=s, score=0.5 + 0.1 * s) for s in range(3)]
    records += [make_record(seed=s, score=0.5 + 0.1 * s - 0.02) for s in range(3)]
    assert texts(difference_table(context_of(records)), "LoRA")["RTE"] == "−2.0 [−2.0, −2.0]"
    assert difference_table(context_of(records[:3])) is None
    with pytest.raises(
        ChoiceError, match="unknown method to compare with 'lorra': known are full, lora; nearest: lora"
    ):
        difference_table(context_of(records), "lorra")


def test_a_broken_run_stands_in_the_differences_too(make_record: Make) -> None:
    records = [make_record(method="full", seed=s) for s in (0, 1)]
    records += [make_record(seed=0), make_record(seed=1, status="failed")]
    assert texts(difference_table(context_of(records)), "LoRA")["RTE"] == "failed 1/2"


def test_memory_is_exact_over_seeds_or_shows_both_ends(make_record: Make, make_grid: Grid) -> None:
    records = make_grid(tasks=("rte",))
    table = memory_table(context_of(records))
    assert texts(table, "Full fine-tuning")["Weights"] == "2.29"
    assert texts(table, "LoRA")["Peak, refresh step"] == "—"
    memory = make_record(seed=3).memory
    assert memory is not None
    records.append(make_record(seed=3, parts={"memory": memory.model_copy(update={"weight_bytes": 3 * 1024**2})}))
    moved = memory_table(context_of(records))
    assert texts(moved, "LoRA")["Weights"] == "2.40–3.00"
    assert moved is not None
    row = moved.data.set_index("method").query("task == 'rte'").loc["lora"]
    assert (row["weight_bytes_min"], row["weight_bytes_max"]) == (2_520_000, 3 * 1024**2)
    assert str(moved.data["weight_bytes_min"].dtype) == "Int64"


def test_what_a_broken_run_held_does_not_count(make_record: Make) -> None:
    full, lora = make_record(method="full"), make_record()
    broken = make_record(seed=1, status="diverged", parts={"memory": full.memory, "timing": full.timing})
    for maker in (memory_table, peak_by_task_table, time_table):
        assert texts(maker(context_of([full, lora, broken])), "LoRA") == texts(maker(context_of([full, lora])), "LoRA")


def test_estimates_and_measurements_share_no_column(make_grid: Grid) -> None:
    context = context_of(make_grid(tasks=("rte",)))
    estimates = estimate_table(context)
    assert texts(estimates, "LoRA")["State, gap"] == "+0.01 %"
    assert estimates is not None
    for table in (memory_table(context), peak_by_task_table(context), process_table(context)):
        assert table is not None
        assert not [name for name in table.data.columns if name.startswith(("formula", "predicted"))]
        assert not [head for head in table.heads if "estimate" in head]
    for head in estimates.heads[1:]:
        assert head.endswith(("estimate", "measured", "gap"))


def test_null_memory_is_shown_as_unknown(make_grid: Grid, make_record: Make) -> None:
    nothing = context_of(make_grid(tasks=("rte",), measured=False))
    makers = (memory_table, peak_by_task_table, process_table, estimate_table)
    assert [maker(nothing) for maker in makers] == [None] * 4
    mixed = context_of([make_record(method="full"), make_record(measured=False)])
    assert set(texts(memory_table(mixed), "LoRA").values()) == {"LoRA", "—"}


def test_time_is_a_ratio_to_full_fine_tuning(make_grid: Grid, make_record: Make) -> None:
    table = time_table(context_of(make_grid(tasks=("rte", "cola"))))
    assert texts(table, "Full fine-tuning")["Step ÷ full"] == "1.00"
    assert 1.2 < float(texts(table, "DoRA")["Step ÷ full"]) < 1.4
    assert texts(table, "GaLore")["Refresh step, ms"] == "40.0"
    first, *rest = make_grid(tasks=("rte", "cola"))
    busy = first.model_copy(update={"environment": first.environment.model_copy(update={"workers": 7})})
    mixed = time_table(context_of([busy, *rest]))
    assert mixed is not None
    assert "Refresh step, ms" not in mixed.heads
    assert any("No seconds of a refresh step" in note for note in mixed.notes)
    assert mixed.data["refresh_step_s"].isna().all()
    alone = time_table(context_of([make_record()]))
    assert texts(alone, "LoRA")["Step ÷ full"] == "—"
    assert texts(alone, "LoRA")["Forward"] == "30 %"


def test_micro_says_so_in_every_caption_and_paper_does_not(make_grid: Grid) -> None:
    for profile, expected in (("micro", True), ("paper", False)):
        context = context_of(make_grid(tasks=("rte",), profile=profile))
        tables = [score_table(context), difference_table(context), status_table(context), time_table(context)]
        tables += [memory_table(context), peak_by_task_table(context), process_table(context), estimate_table(context)]
        for table in tables:
            assert table is not None
            assert (MICRO in table.caption) is expected
            assert profile in table.caption
            assert "validation" in table.caption
            assert ("not official" in table.caption) is expected


def test_unofficial_tasks_are_named(make_record: Make) -> None:
    part = DataFacts(train_rows=5, eval_rows={}, official=False, notes=["train: 5 of 9 official rows"])
    records = [make_record(profile="small"), make_record("qqp", profile="small", parts={"data": part})]
    table = score_table(context_of(records))
    assert "not official for QQP" in table.caption
    assert "Data, QQP: train: 5 of 9 official rows" in table.notes


def test_convention_changes_the_average_and_the_caption(make_grid: Grid) -> None:
    records = make_grid()
    plain = score_table(context_of(records))
    other = score_table(context_of(records, chosen=convention_of(committed().suite("glue"), mrpc="accuracy")))
    assert plain.rows[0][-1] != other.rows[0][-1]
    assert "MRPC F1" in plain.caption
    assert "MRPC accuracy" in other.caption


def test_uneven_settings_stand_below_the_scores(make_record: Make) -> None:
    notes = score_table(context_of([make_record(method="full", steps=30), make_record()])).notes
    assert "Settings that differ within a task: rte: steps 30, 60" in notes


def test_settings_are_said_once_where_tasks_agree_and_by_task_where_they_do_not(make_record: Make) -> None:
    alike = score_table(context_of([make_record(), make_record("cola")])).notes
    assert sum(note.startswith("Settings: steps 60, batch size") for note in alike) == 1
    notes = score_table(context_of([make_record(), make_record("sst2"), make_record("cola", steps=30)])).notes
    assert [note.split(", batch size")[0] for note in notes if note.startswith("Settings")] == [
        "Settings, CoLA: steps 30",
        "Settings, SST-2, RTE: steps 60",
    ]


def test_numbers_are_printed_with_care() -> None:
    metric = committed().suite("glue").metric("validation/accuracy")
    assert summarise([-0.012]).text(metric) == "−1.2"
    assert [metric.text(v, "+") for v in (0.0004, -0.0004, -0.012, 0.012)] == ["0.0", "0.0", "−1.2", "+1.2"]


def test_status_counts_add_up_to_the_grid(make_grid: Grid) -> None:
    table = status_table(context_of(make_grid()))
    numbers = table.data.drop(columns=["method", "title"])
    assert (numbers.sum(axis=1) == 27).all()
    assert isinstance(table.data, pd.DataFrame)


def test_the_values_behind_a_table_read_back_from_json() -> None:
    data = pd.DataFrame({"method": ["lora", "full"], "score": [0.1 + 0.2, float("nan")], "bytes": [1 << 40, 2]})
    data["worst"], data["seeds"] = [float("inf"), 1.0], [(0, 1), ()]
    read = json.loads(to_json(Table("t", "Caption", ("Method",), ((Entry("LoRA"),),), ("a note",), data)))
    assert (read["name"], read["caption"], read["notes"]) == ("t", "Caption", ["a note"])
    assert read["rows"] == [
        {"method": "lora", "score": 0.1 + 0.2, "bytes": 1 << 40, "worst": "inf", "seeds": [0, 1]},
        {"method": "full", "score": None, "bytes": 2, "worst": 1.0, "seeds": []},
    ]


def test_tables_beside_records_are_no_records(tmp_path: Path, make_grid: Grid) -> None:
    records = make_grid(tasks=("rte",), seeds=(0,))
    for record in records:
        write_record(tmp_path, record)
    write_report(suite_report(records, "glue", "micro", 8), tmp_path)
    assert len(read_records([tmp_path])) == len(records)


def test_a_caption_says_the_variant_that_all_runs_share(make_record: Make) -> None:
    def caption(*variants: str) -> str:
        return score_table(context_of([make_record(method=f"m{n}", variant=v) for n, v in enumerate(variants)])).caption

    assert caption("equal memory", "equal memory").startswith("GLUE, profile micro, rank 8, equal memory: ")
    assert caption("equal memory", "").startswith("GLUE, profile micro, rank 8: ")
