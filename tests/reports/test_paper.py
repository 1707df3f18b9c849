"""The papers' tables: which runs stand beside a published number, and what is said about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from reports.paper.agreement import ABSENT, ACCOUNTING, FAILS, HOLDS, PROTOCOL, UNDECIDED, UNPUBLISHED
from reports.paper.comparison import SHAPES, ComparedCell, PaperTable, elsewhere, paper_tables
from reports.paper.departures import suite_departures
from reports.paper.our_numbers import PaperRuns
from reports.paper.tables import conflict_table, elsewhere_table, long_form, to_table, verdict_table
from reports.records.reading import Found, Gathered, gather
from reports.tables.table import to_csv, to_latex, to_markdown
from results.published import Cell, published_cells
from results.schema import DataPlan, Evaluation, ModelPlan, Record
from results.store import write_record

Make = Callable[..., Record]
HUB = ModelPlan(name="FacebookAI/roberta-base", source="hub", revision="abc")
FULL = {"epochs": 30.0, "batch_size": 16, "steps": 4680, "learning_rate": 5e-4, "targets": "attention+mlp"}


def data_of(length: int, **changes: Any) -> DataPlan:
    """Return official data of a length."""
    return DataPlan(source="hub", name="data", max_length=length, **changes)


def gathered_of(records: Sequence[Record]) -> Gathered:
    """Return the records as if they had been read."""
    return Gathered(tuple(Found(record, f"runs/{record.plan.label}.json", Path("-")) for record in records))


def tables_of(records: Sequence[Record]) -> dict[str, PaperTable]:
    """Return the papers' tables by name."""
    return {table.name: table for table in paper_tables(published_cells(), PaperRuns(gathered_of(records)))}


def cell_of(table: PaperTable, method: str, column: str, source: str = "G") -> ComparedCell:
    """Return the one cell of a method and source."""
    (row,) = [row for row in table.rows if (row.method, row.source) == (method, source) and column in row.cells]
    return row.cells[column]


@pytest.fixture(scope="module")
def paper_run(make_record: Make) -> Make:
    """Return a builder of GLUE runs that follow the published protocol."""

    def make(task: str = "rte", method: str = "lora", seed: int = 0, score: float = 0.79, **changes: Any) -> Record:
        fields = {"model": HUB, "data": data_of(512), **FULL, **changes}
        return make_record(task, method, seed, "paper", score=score, curve=False, **fields)

    return make


@pytest.fixture(scope="module")
def c4_run(make_record: Make) -> Make:
    """Return a builder of C4 runs that follow the published protocol at 60M."""

    def make(method: str = "galore", seed: int = 0, perplexity: float = 34.9, **changes: Any) -> Record:
        steps = changes.pop("steps", 10_000)
        last = Evaluation(step=steps, epoch=None, rows={}, metrics={"validation/perplexity": perplexity})
        parts = {"evaluations": [last], "main_metric": "validation/perplexity"}
        config = {"projection_rank": 128, "scale": 0.25, "refresh_gap": 200} if method != "full" else {}
        fields = {
            "suite": "c4", "method_config": config, "model": ModelPlan(name="llama-60m", source="config"),
            "data": data_of(256), "steps": steps, "batch_size": 512, "warmup_steps": steps // 10, "schedule": "cosine",
            "final_fraction": 0.1, "precision": "bf16", "learning_rate": 0.01, "targets": "attention+mlp",
        }  # fmt: skip
        return make_record("c4", method, seed, "paper", score=0.5, curve=False, parts=parts, **{**fields, **changes})

    return make


def test_every_published_cell_stands_somewhere_once_a_table() -> None:
    cells = published_cells()
    tables = paper_tables(cells, PaperRuns(gathered_of([])))
    shown = [id(judged.cell) for table in tables for judged in table.cells]
    rest = [id(cell) for cell in elsewhere(cells)]
    assert set(shown) | set(rest) == {id(cell) for cell in cells}
    assert not set(shown) & set(rest)
    for shape, table in zip(SHAPES, tables, strict=True):
        assert len(table.cells) == sum(shape.takes(cell) for cell in cells)


def test_without_records_every_cell_says_so() -> None:
    for table in tables_of([]).values():
        assert table.cells
        for judged in table.cells:
            want = UNPUBLISHED if judged.cell.value is None else ABSENT
            assert (judged.verdict.word, judged.ours) == (want, None)


def test_runs_of_the_published_protocol_are_judged(paper_run: Make) -> None:
    records = [paper_run(seed=seed, score=0.79 + 0.002 * seed) for seed in range(3)]
    judged = cell_of(tables_of(records)["glue-rank8"], "lora", "rte")
    # Three seeds within half a point of each other, one published: an interval of a point around a difference of 0.14.
    assert judged.verdict.word == UNDECIDED
    assert any("learning rate 0.0005: not stated by GaLore" in reason for reason in judged.verdict.reasons)
    assert judged.ours is not None
    assert judged.ours.summary.mean == pytest.approx(79.2)
    assert judged.verdict.difference == pytest.approx(79.2 - 79.06)
    assert len(judged.ours.records) == 3
    far = [paper_run(seed=seed, score=0.70 + 0.002 * seed) for seed in range(3)]
    assert cell_of(tables_of(far)["glue-rank8"], "lora", "rte").verdict.word == FAILS


def test_rank_four_is_not_answered_by_rank_eight(paper_run: Make) -> None:
    tables = tables_of([paper_run(seed=seed) for seed in range(3)])
    assert cell_of(tables["glue-rank4"], "lora", "rte").verdict.word == ABSENT
    full = tables_of([paper_run(method="full", seed=seed) for seed in range(3)])
    assert cell_of(full["glue-rank4"], "full", "rte").ours is not None


def test_two_seeds_decide_nothing(paper_run: Make) -> None:
    records = [paper_run(seed=seed) for seed in range(2)]
    assert cell_of(tables_of(records)["glue-rank8"], "lora", "rte").verdict.word == UNDECIDED


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 3.0}, "epochs 3 (published: 30)"),
        ({"batch_size": 8}, "batch size 8 (published: 16)"),
        ({"data": data_of(64)}, "length 64 (published: 512)"),
        ({"data": data_of(512, held_out=True)}, "held-out"),
        ({"data": data_of(512, train_rows=100)}, "train rows capped at 100"),
        ({"model": ModelPlan(name="minilm", source="package")}, "model minilm (published: roberta-base)"),
        ({"precision": "bf16-autocast"}, "precision bf16-autocast (published: fp32)"),
        ({"schedule": "cosine"}, "schedule cosine (published: linear)"),
        ({"warmup_steps": 280}, "warmup fraction 0.0598291 (published: 0)"),
        ({"rest_learning_rate": 1e-3}, "rest learning rate 0.001 (published: one for all)"),
        ({"targets": "attention"}, "targets attention (published: attention+mlp)"),
        ({"clip_norm": 1.0}, "clipping 1 (published: 0)"),
        ({"data": data_of(512, eval_rows=1000)}, "eval rows capped at 1000"),
    ],
)
def test_a_departure_from_the_protocol_is_named(paper_run: Make, changes: dict[str, Any], text: str) -> None:
    judged = cell_of(tables_of([paper_run(seed=s, **changes) for s in range(3)])["glue-rank8"], "lora", "rte")
    assert judged.verdict.word == PROTOCOL
    assert any(text in reason for reason in judged.verdict.reasons)
    assert judged.verdict.difference is not None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"learning_rate": 2e-4}, "learning rate 0.0002 (published: 2e-05)"),
        ({"method_config": {"projection_rank": 8, "scale": 1.0}}, "scale 1 (published: 2)"),
        ({"method_config": {"projection_rank": 16, "scale": 2.0}}, "rank 16 (published: 4, 8)"),
    ],
)
def test_a_projected_run_is_held_to_the_rates_of_its_rank_and_task(
    paper_run: Make, changes: dict[str, Any], text: str
) -> None:
    kept = {"method_config": {"projection_rank": 8, "scale": 2.0}, "learning_rate": 2e-5}
    assert suite_departures(paper_run(method="galore", **kept)) == []
    assert text in suite_departures(paper_run(method="galore", **{**kept, **changes}))


def test_lora_of_pretraining_is_held_to_its_alpha_and_dropout(c4_run: Make) -> None:
    config = {"rank": 128, "alpha": 16.0, "dropout": 0.0}
    found = suite_departures(c4_run("lora", method_config=config, learning_rate=1e-3))
    assert found == ["alpha 16 (published: 32)", "dropout 0 (published: 0.05)"]


def test_runs_of_other_profiles_never_stand_beside_a_paper(make_grid: Callable[..., list[Record]]) -> None:
    tables = tables_of(make_grid(curve=False))
    assert {judged.verdict.word for table in tables.values() for judged in table.cells} == {ABSENT, UNPUBLISHED}


def test_averages_take_eight_tasks_or_all_nine(paper_run: Make) -> None:
    tasks, batches = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"), {"cola": 32}
    records = [
        paper_run(task, seed=s, score=0.5 if task == "wnli" else 0.85 + 0.001 * s, batch_size=batches.get(task, 16))
        for task in tasks for s in range(3)
    ]  # fmt: skip
    table = tables_of(records)["glue-rank8"]
    eight, nine = cell_of(table, "lora", "average"), cell_of(table, "lora", "average", "N")
    assert eight.ours is not None
    assert nine.ours is not None
    assert eight.ours.summary.mean == pytest.approx(85.1)
    assert nine.ours.summary.mean == pytest.approx((8 * 85.1 + 50) / 9)
    assert eight.verdict.word == UNDECIDED
    # The abstract states no protocol, so its average is never judged as if it did.
    assert nine.verdict.word == PROTOCOL


def test_a_run_without_a_score_is_not_averaged_away(paper_run: Make) -> None:
    broken = paper_run(seed=2, status="diverged")
    judged = cell_of(tables_of([paper_run(seed=0), paper_run(seed=1), broken])["glue-rank8"], "lora", "rte")
    assert judged.verdict.word == PROTOCOL
    assert "diverged 1/3" in judged.verdict.reasons[0]


def test_runs_that_all_broke_are_said_to_be_there(paper_run: Make, c4_run: Make) -> None:
    glue = [paper_run(seed=seed, status="diverged") for seed in range(3)]
    c4 = [c4_run(seed=seed, status="diverged") for seed in range(3)]
    failed = [paper_run(method="full", status="failed"), c4_run("gradnormlorp", state_bits=8, status="failed")]
    tables = tables_of([*glue, *c4, *failed])
    found = [cell_of(tables["glue-rank8"], "lora", column) for column in ("rte", "average")]
    found += [cell_of(tables["c4-perplexity"], "galore", "60m"), cell_of(tables["c4-memory"], "galore", "60m", "V")]
    found += [cell_of(tables["glue-memory"], "full", "model"), tables["optimizer-memory"].cells[0]]
    for judged in found:
        assert judged.ours is not None, judged.cell
        assert (dict(judged.ours.values), judged.verdict.word, judged.verdict.difference) == ({}, PROTOCOL, None)
        assert judged.ours.records
    assert found[0].verdict.reasons == ("runs without a score: diverged 3/3",)
    assert found[2].verdict.reasons == tuple(f"seed {seed} without a value (diverged)" for seed in range(3))
    assert found[-1].verdict.reasons == ("seed 0 without a value (failed)",)
    # What has a run of ours is what is not called absent.
    for judged in (judged for table in tables.values() for judged in table.cells):
        assert (judged.ours is None) == (judged.verdict.word == ABSENT) or judged.verdict.word == UNPUBLISHED
    assert "| · ours | — |" in to_markdown(to_table(tables["c4-perplexity"]))


def test_of_several_settings_the_nearest_to_the_protocol_answers(paper_run: Make) -> None:
    near, far = paper_run(score=0.7), paper_run(score=0.9, epochs=3.0)
    found = cell_of(tables_of([far, near])["glue-rank8"], "lora", "rte")
    assert found.ours is not None
    assert list(found.ours.values.values()) == [70.0]
    assert found.verdict == cell_of(tables_of([near])["glue-rank8"], "lora", "rte").verdict


def test_settings_that_the_protocol_does_not_tell_apart_are_a_departure(paper_run: Make) -> None:
    runs = [paper_run(seed=seed, learning_rate=rate, score=0.6 + rate) for seed in (0, 1) for rate in (1e-5, 2e-5)]
    found = cell_of(tables_of([*runs, paper_run(seed=2, learning_rate=1e-5)])["glue-rank8"], "lora", "rte")
    assert found.ours is not None
    assert set(found.ours.values) == {0, 1, 2}
    assert "learning_rate=1e-05: one of 2 settings that the protocol does not tell apart" in found.verdict.reasons


def test_perplexity_is_judged_at_the_size_of_the_model(c4_run: Make) -> None:
    table = tables_of([c4_run(seed=s, perplexity=34.87 + 0.01 * s) for s in range(3)])["c4-perplexity"]
    assert cell_of(table, "galore", "60m").verdict.word == HOLDS
    assert cell_of(table, "galore", "130m").verdict.word == ABSENT
    off = tables_of([c4_run(seed=s, steps=100) for s in range(3)])["c4-perplexity"]
    assert cell_of(off, "galore", "60m").verdict.reasons == ("steps 100 (published: 10000)",)
    half = {"projection_rank": 64, "scale": 0.25, "refresh_gap": 200}
    other = tables_of([c4_run(seed=s, method_config=half) for s in range(3)])["c4-perplexity"]
    assert cell_of(other, "galore", "60m").verdict.reasons == ("rank 64 (published: 128)",)


def test_seven_billion_is_read_at_the_printed_step(c4_run: Make) -> None:
    steps = [Evaluation(step=s, epoch=None, rows={}, metrics={"validation/perplexity": p})
             for s, p in ((40_000, 17.9), (150_000, 14.6))]  # fmt: skip
    record = c4_run(
        model=ModelPlan(name="llama-7b", source="config"), steps=150_000, state_bits=8,
        method_config={"projection_rank": 1024},
    )  # fmt: skip
    table = tables_of([record.model_copy(update={"evaluations": steps})])["llama-7b-perplexity"]
    assert cell_of(table, "galore", "40k").ours is not None
    assert cell_of(table, "galore", "40k").ours.values == {0: 17.9}  # type: ignore[union-attr]
    assert cell_of(table, "galore", "80k").verdict.word == ABSENT


def test_memory_says_that_the_accounting_differs(c4_run: Make) -> None:
    table = tables_of([c4_run()])["c4-memory"]
    found = [row.cells["60m"] for row in table.rows if row.method == "galore" and row.source == "G"]
    assert {judged.verdict.word for judged in found} == {ACCOUNTING}
    assert "counted from live tensors" in found[0].verdict.reasons[0]
    measured = [row.cells["60m"] for row in table.rows if row.method == "galore" and row.source == "V"]
    # A device measurement is answered by one alone, and these runs have none.
    assert [judged.verdict.word for judged in measured] == [ABSENT]


def test_memory_that_was_not_measured_is_no_answer(c4_run: Make) -> None:
    table = tables_of([c4_run(measured=False)])["c4-memory"]
    assert {row.cells["60m"].verdict.word for row in table.rows if row.method == "galore" and "60m" in row.cells} == {
        ABSENT
    }


def on_device(record: Record, reserved: int) -> Record:
    """Return the record as if a device had reserved so many bytes at most."""
    assert record.memory is not None
    memory = record.memory.model_copy(update={"cuda_reserved_bytes": {"train": reserved}})
    return record.model_copy(update={"memory": memory})


@pytest.mark.parametrize(
    ("taken", "word"),
    [
        # 1.27 GB is published.
        ((1_270, 1_270, 1_270), HOLDS),
        ((1_300, 1_300), FAILS),
        ((1_270,), UNDECIDED),
        ((1_270, 1_272, 1_268), UNDECIDED),
        ((1_370, 1_372, 1_368), FAILS),
    ],
)
def test_what_a_device_took_is_exact_where_no_seed_moves_it(c4_run: Make, taken: tuple[int, ...], word: str) -> None:
    records = [on_device(c4_run(seed=seed), size * 10**6) for seed, size in enumerate(taken)]
    judged = cell_of(tables_of(records)["c4-memory"], "galore", "60m", "V")
    assert judged.ours is not None
    assert judged.ours.summary.n == len(taken)
    assert judged.verdict.word == word


def test_the_memory_of_a_broken_run_is_no_answer(c4_run: Make) -> None:
    good, broken = (on_device(c4_run(seed=seed), size * 10**6) for seed, size in ((0, 1_270), (1, 9_000)))
    broken = broken.model_copy(update={"status": "diverged"})
    judged = cell_of(tables_of([good, broken])["c4-memory"], "galore", "60m", "V")
    assert judged.ours is not None
    assert judged.ours.values == {0: 1.27}
    assert judged.verdict.reasons == ("seed 1 without a value (diverged)",)


def test_the_highest_memory_is_over_the_tasks_that_every_seed_has(paper_run: Make) -> None:
    runs = [on_device(paper_run(task, "full", seed), size * 10**9)
            for task, seed, size in (("rte", 0, 2), ("rte", 1, 2), ("mnli", 0, 3))]  # fmt: skip
    judged = cell_of(tables_of(runs)["glue-memory"], "full", "model", "V")
    assert judged.ours is not None
    assert judged.ours.values == {0: 2.0, 1: 2.0}
    apart = cell_of(tables_of(runs[1:])["glue-memory"], "full", "model", "V")
    assert (apart.verdict.word, apart.verdict.reasons) == (PROTOCOL, ("no task that every seed has",))


def test_the_reduction_of_state_takes_the_best_eight_bit_run(c4_run: Make) -> None:
    cell = tables_of([c4_run("gradnormlorp", state_bits=8)])["optimizer-memory"].cells[0]
    assert cell.ours is not None
    assert cell.ours.values == {0: pytest.approx(100 * (1 - 8000 / 4_800_000))}
    assert cell.verdict.word == ACCOUNTING
    assert tables_of([c4_run("gradnormlorp")])["optimizer-memory"].cells[0].verdict.word == ABSENT


def test_the_printed_table_shows_ours_below_the_published_row(paper_run: Make) -> None:
    table = to_table(tables_of([paper_run(seed=s, score=0.79 + 0.002 * s) for s in range(3)])["glue-rank8"])
    text = to_markdown(table)
    assert "| LoRA [G] | 61.83 |" in text
    assert "79.20 ± 0.20 (n=3)" in text
    assert "+0.14 ± 1.00 (margin 1.00)" in text
    assert "| by cell |" in text
    assert r"\toprule" in to_latex(table)
    frame = table.data.set_index(["method", "source", "column"])
    row = frame.loc[("lora", "G", "rte")].iloc[0] if frame.index.has_duplicates else frame.loc[("lora", "G", "rte")]
    assert (row["verdict"], row["n"], row["published"]) == (UNDECIDED, 3, 79.06)
    assert row["records"].count(".json") == 3


def test_the_long_form_has_every_cell_and_no_made_up_number() -> None:
    cells = published_cells()
    tables = paper_tables(cells, PaperRuns(gathered_of([])))
    frame = long_form(tables)
    assert len(frame) == sum(len(table.cells) for table in tables)
    assert frame["ours"].isna().all()
    assert frame.loc[frame["printed"].isna(), "remark"].notna().all()
    counts = verdict_table(tables).data
    assert counts[[ABSENT, UNPUBLISHED]].to_numpy().sum() == len(frame)


def test_conflicts_and_the_rest_are_tables_too() -> None:
    cells: list[Cell] = published_cells()
    text = to_markdown(conflict_table(cells))
    assert r"38.91 [R] (head not trained by Adam)" in text
    assert "1.27 GB [V] (measured)" in text
    assert len(elsewhere_table(elsewhere(cells)).rows) == len(elsewhere(cells))
    assert "Llama2-7B" in to_csv(elsewhere_table(elsewhere(cells)))


def test_records_read_from_files_give_the_same_table(tmp_path: Path, paper_run: Make) -> None:
    records = [paper_run(seed=s) for s in range(3)]
    for record in records:
        write_record(tmp_path, record)
    found = {t.name: t for t in paper_tables(published_cells(), PaperRuns(gather([tmp_path])))}
    mine = cell_of(found["glue-rank8"], "lora", "rte")
    assert mine.ours is not None
    assert all(os.sep + "tmp" not in path for path in mine.ours.records)
    assert mine.verdict == cell_of(tables_of(records)["glue-rank8"], "lora", "rte").verdict
