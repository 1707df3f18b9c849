"""The pre-training report: lower is better, the floor and the unigram stand beside, broken runs are named."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reports.__main__ import app
from reports.documents import filled
from reports.figures.validation import validation_plot, validation_points
from reports.records.frames import ROW, runs_frame
from reports.records.report_runs import Context
from reports.records.selection import ReportError
from reports.write import Report, suite_report
from results.schema import DataFacts, DataPlan, Evaluation, ModelPlan, Record
from results.store import write_record

FLOOR, TOKENS, BYTES = 1.6, 1000, 5000
LOSS = {"full": 1.70, "lora": 1.80, "galore": 1.72, "gradnormlorp": 1.75}
Make = Callable[..., Record]


def metrics(loss: float) -> dict[str, float | None]:
    values = {
        "loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss * TOKENS / math.log(2) / BYTES,
        "excess": loss - FLOOR, "perplexity_ratio": math.exp(loss - FLOOR),
    }  # fmt: skip
    return {f"validation/{name}": value for name, value in values.items()}


@pytest.fixture(scope="module")
def make(make_record: Make) -> Make:
    """(method, seed, status, floor, **changes) -> a pre-training record."""

    def record(method: str, seed: int, status: str = "ok", floor: bool = True, **changes: Any) -> Record:
        loss = LOSS[method] + 0.001 * seed
        known = (
            metrics(loss) if floor else {k: v for k, v in metrics(loss).items() if not k.endswith(("excess", "ratio"))}
        )
        early = {key: value if value is None else 2 * value for key, value in known.items()}
        made = [(30, early), (60, known)] if status == "ok" else []
        parts = {
            "evaluations": [Evaluation(step=s, epoch=None, rows={"validation": 20}, metrics=m) for s, m in made],
            "main_metric": "validation/perplexity",
            "data": DataFacts(
                train_rows=500, eval_rows={"validation": 20}, official=False, notes=["a note"],
                eval_tokens={"validation": TOKENS}, eval_bytes={"validation": BYTES},
                floor_nats={"validation": FLOOR} if floor else {},
                constant_scores={"validation/loss": 4.0, "validation/perplexity": math.exp(4.0)},
            ),
        }  # fmt: skip
        plan = {
            "suite": "c4", "targets": "attention+mlp", "model": ModelPlan(name="0.4m", source="config", vocabulary=188),
            "data": DataPlan(source="micro" if floor else "directory", name="text", max_length=64, layout="padded"),
        }  # fmt: skip
        made_of = make_record("rte", method, seed, status=status, parts=parts, **{**plan, **changes})
        renamed = made_of.plan.model_copy(update={"task": "c4"})
        return made_of.model_copy(update={"plan": renamed, "plan_hash": renamed.hash()})

    return record


@pytest.fixture(scope="module")
def grid(make: Make) -> list[Record]:
    return [make(method, seed) for method in LOSS for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def report(grid: list[Record]) -> Report:
    return suite_report(grid, "c4")


def cells(report: Any, name: str, row: str) -> dict[str, str]:
    table = report.table(name)
    (found,) = [entries for entries in table.rows if entries[0].text == row]
    return {head: entry.text for head, entry in zip(table.heads, found, strict=True)}


def test_scores_are_means_over_seeds_beside_floor_and_unigram(report: Report) -> None:
    full = cells(report, "scores", "Full training")
    assert full["Loss, nats"] == "1.7010 ± 0.0010"
    assert full["Over the floor, nats"] == "0.1010 ± 0.0010"
    assert full["Perplexity"].startswith("5.479 ± ")
    assert cells(report, "scores", "Floor of the source")["Perplexity"] == f"{math.exp(FLOOR):.3f}"
    assert cells(report, "scores", "Floor of the source")["Bits per byte"] == f"{FLOOR * 0.2 / math.log(2):.4f}"
    assert cells(report, "scores", "Unigram")["Loss, nats"] == "4.0000"
    assert "1,000 predicted tokens of validation" in report.table("scores").caption


def test_speeds_stand_side_by_side_only_where_one_machine_made_them(grid: list[Record], report: Report) -> None:
    assert cells(report, "scores", "GaLore")["Tokens/s"] != "—"
    other = grid[-1].environment.model_copy(update={"device_name": "another machine"})
    table = suite_report([*grid[:-1], grid[-1].model_copy(update={"environment": other})], "c4").table("scores")
    assert table is not None
    assert not any(head.startswith("Tokens/s") for head in table.heads)
    assert "Tokens/s stand in no column: the runs are of more than one machine or load" in table.notes


def test_the_lowest_is_the_best(grid: list[Record], report: Report) -> None:
    table = report.table("scores")
    assert table is not None
    bold = {row[0].text for row in table.rows for entry in row if entry.bold}
    assert bold == {"Full training"}
    frame = runs_frame(grid[:1])
    assert frame["best_score"][0] == frame["last_score"][0]


@pytest.mark.usefixtures("unsaved")
def test_differences_are_paired(grid: list[Record], report: Report) -> None:
    assert cells(report, "differences", "LoRA")["Loss difference"] == "+0.1000 [+0.1000, +0.1000]"
    other = suite_report(grid, "c4", against="galore")
    assert cells(other, "differences", "Full training")["Loss difference"].startswith("−0.0200")


@pytest.mark.usefixtures("unsaved")
def test_a_broken_run_is_named_not_averaged_away(grid: list[Record], make: Make) -> None:
    broken = [*grid[:-1], make("gradnormlorp", 2, status="diverged")]
    report = suite_report(broken, "c4")
    assert cells(report, "scores", "GradNormLoRP")["Perplexity"] == "diverged 1/3"
    assert cells(report, "status", "GradNormLoRP")["diverged"] == "1"
    assert cells(report, "differences", "GradNormLoRP")["Loss difference"] == "diverged 1/3"


@pytest.mark.usefixtures("unsaved")
def test_without_a_floor_its_columns_are_left_out(make: Make) -> None:
    report = suite_report([make(method, 0, floor=False) for method in LOSS], "c4")
    heads = report.table("scores").heads
    assert "Bits per byte" in heads
    assert not any("floor" in head for head in heads)
    assert {row[0].text for row in report.table("scores").rows} >= {"Unigram"}


def test_validation_points_are_over_seeds(grid: list[Record]) -> None:
    context = Context(grid, "micro", 8)
    points = validation_points(context, context.compared[0])
    assert list(points["full"]) == [30, 60]
    assert points["full"][60].n == 3
    assert points["full"][60].mean == pytest.approx(1.701)


@pytest.mark.usefixtures("unsaved")
def test_runs_without_a_score_are_named_below_the_validation_figure(grid: list[Record], make: Make) -> None:
    whole = [record for record in grid if record.plan.method not in ("lora", "galore")]
    broken = [make("lora", seed, status="diverged") for seed in (0, 1, 2)]
    records = [*whole, *broken, make("galore", 0), make("galore", 1), make("galore", 2, status="failed")]
    plot = validation_plot(Context(records, "micro", 8))
    assert plot is not None
    assert plot.figure is not None
    words = " ".join(text.get_text() for text in plot.figure.texts).replace("\n", " ")
    assert "Not shown, runs without a score: LoRA (diverged 3/3), GaLore (failed 1/3)." in words
    complete = validation_plot(Context(grid, "micro", 8))
    assert complete is not None
    assert complete.figure is not None
    assert not any("Not shown" in text.get_text() for text in complete.figure.texts)


@pytest.mark.usefixtures("unsaved")
def test_ranks_that_mix_are_refused_and_models_that_mix_are_rows(grid: list[Record], make: Make) -> None:
    other = make("lora", 0, method_config={"rank": 4})
    with pytest.raises(ReportError, match="several ranks, choose one with --rank: 4, 8"):
        suite_report([*grid, other], "c4")
    bigger = make("lora", 0, model=ModelPlan(name="9m", source="config", vocabulary=188))
    methods = suite_report([*grid, bigger], "c4", None, 8).context.methods
    assert sum(name.partition(ROW)[0] == "lora" for name in methods) == 2
    assert suite_report([*grid, bigger], "c4", None, 8, where=["model.name=9m"]).context.methods == ["lora"]


def test_command_writes_the_folder_the_readme_takes_its_table_from(grid: list[Record], tmp_path: Path) -> None:
    for record in grid:
        write_record(tmp_path / "records", record)
    for out in ("one", "two"):
        done = CliRunner().invoke(app, ["c4", "--records", str(tmp_path / "records"), "--out", str(tmp_path / out)])
        assert done.exit_code == 0, done.output
    folder = tmp_path / "one" / "c4-micro-r8"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"scores.md", "scores.csv", "scores.tex", "validation.png", "curves.svg", "report.md", "memory.md"}
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "c4-micro-r8" / path.name).read_bytes()
    text = filled("<!-- table: c4-micro-r8/scores.md -->\n<!-- end -->", tmp_path / "one")
    assert "| Full training |" in text
    assert "GLUE" not in (folder / "report.md").read_text()


def test_records_of_another_suite_are_refused(make_record: Make, tmp_path: Path) -> None:
    write_record(tmp_path, make_record())
    done = CliRunner().invoke(app, ["c4", "--records", str(tmp_path)])
    assert done.exit_code == 2
    assert "unknown suite (of the records) 'c4'" in done.stderr
