"""The whole report and its command line: files, bytes, errors, no torch, speed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from reports.__main__ import app
from reports.records.frames import metrics_frame, runs_frame
from reports.write import suite_report, write_report
from results.catalogue import Catalogue, MethodEntry, MetricEntry, SuiteEntry, TaskEntry
from results.schema import Evaluation, Record
from results.store import write_record

Grid = Callable[..., list[Record]]
Make = Callable[..., Record]
ROOT = Path(__file__).resolve().parents[2]

BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "suites", "baselines", "gnlorp"):
            raise ImportError(name + " is blocked by the test")
sys.meta_path.insert(0, Refuse())
from reports.__main__ import app
app(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_grid: Grid) -> Path:
    """Return a folder with runs of two profiles; two tasks alone, so no average."""
    folder = tmp_path_factory.mktemp("runs")
    for record in [
        *make_grid(tasks=("cola", "rte"), seeds=(0, 1)),
        *make_grid(tasks=("rte",), seeds=(0,), profile="small"),
    ]:
        write_record(folder / record.plan.profile, record)
    return folder


def written(records: list[Record], out: Path) -> list[Path]:
    """Write the report of GLUE's micro runs at rank 8."""
    return write_report(suite_report(records, "glue", "micro", 8), out)


@pytest.mark.usefixtures("one_format")
def test_second_run_writes_the_same_bytes_in_any_order(tmp_path: Path, make_grid: Grid) -> None:
    records = make_grid(tasks=("rte", "cola"), seeds=(0, 1, 2))
    paths = written(records, tmp_path / "a")
    again = written(records[::-1], tmp_path / "b")
    assert [path.name for path in paths] == [path.name for path in again]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_report_has_every_form_and_the_page_names_them(tmp_path: Path, make_grid: Grid) -> None:
    paths = written(make_grid(), tmp_path)
    names = {path.name for path in paths}
    tables = ("scores", "findings", "differences", "status", "memory", "peaks", "process", "estimates", "time")
    assert {f"{table}.{form}" for table in tables for form in ("md", "csv", "table.json", "tex")} <= names
    assert {f"{plot}.{form}" for plot in ("front", "curves", "parts", "dots") for form in ("png", "svg")} <= names
    assert paths[-1].name == "report.md"
    page = paths[-1].read_text(encoding="utf-8")
    assert page.count("not the paper's numbers") == 13
    assert "](front.png)" in page
    runs = pd.read_csv(tmp_path / "glue-micro-r8" / "runs.csv")
    assert len(runs) == 135
    assert {path.suffix for path in paths} == {".md", ".csv", ".json", ".tex", ".png", ".svg", ".pdf"}


@pytest.mark.usefixtures("one_format")
def test_what_an_earlier_report_left_is_removed(tmp_path: Path, make_grid: Grid) -> None:
    written(make_grid(methods=("full", "lora")), tmp_path)
    folder = tmp_path / "glue-micro-r8"
    assert (folder / "front.png").is_file()
    (folder / "mine.txt").write_text("kept", encoding="utf-8")
    paths = written(make_grid(tasks=("rte",), seeds=(0,), measured=False), tmp_path)
    assert {path.name for path in folder.iterdir()} == {path.name for path in paths} | {"mine.txt"}
    assert not (folder / "front.png").exists()
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "the records hold no values for them: memory, peaks, process, estimates, front, parts." in text


def test_only_failed_runs_still_make_a_report(tmp_path: Path, make_grid: Grid) -> None:
    records = make_grid(methods=("lora",), tasks=("rte",), status="failed", curve=False)
    records = [r.model_copy(update={"data": None, "main_metric": None}) for r in records]
    report = suite_report(records, "glue", "micro", 8)
    write_report(report, tmp_path)
    scores = report.table("scores")
    assert scores is not None
    assert scores.rows[0][8].text == "failed 3/3"
    assert report.plots == ()


@pytest.mark.usefixtures("unsaved")
def test_a_task_that_no_catalogue_has_stands_under_its_own_name(make_record: Make) -> None:
    odd = make_record(score=0.5)
    renamed = odd.plan.model_copy(update={"task": "snli"})
    report = suite_report([odd.model_copy(update={"plan": renamed, "plan_hash": renamed.hash()})], "glue", "micro", 8)
    scores = report.table("scores")
    assert scores is not None
    assert dict(zip(scores.heads, (entry.text for entry in scores.rows[0]), strict=True))["snli"] == "50.0"
    assert scores.heads[-1] == "Average"


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the command line in this process and return exit code, stdout and stderr."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_command_prints_tables_first_and_paths_last_and_needs_no_torch(store: Path, tmp_path: Path) -> None:
    words = ("glue", "--records", str(store), "--profile", "micro", "--out", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    lines = out.strip().splitlines()
    assert lines[-1] == str(tmp_path / "glue-micro-r8" / "report.md")
    assert "GradNormLoRP" in out
    assert "measured memory in MiB" in out
    assert all(Path(line).is_file() for line in lines if line.startswith(str(tmp_path)))
    assert sum(line.startswith(str(tmp_path)) for line in lines) == 13


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--profile", "mirco"), "unknown profile (of the records) 'mirco': known are micro, small; nearest: micro"),
        ((), "several profiles, choose one with --profile: micro, small"),
        (("--profile", "micro", "--rank", "0"), "no run of rank 0: known are 8; nearest: 8"),
        (("--profile", "micro", "--epoch", "lst"), "unknown epoch 'lst': known are last, best; nearest: last"),
        (("--profile", "micro", "--against", "loha"), "unknown method to compare with 'loha'"),
    ],
)
def test_bad_requests_are_one_line_and_exit_2(
    store: Path, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    code, out, err = run("glue", "--records", store, "--out", tmp_path / "new", *arguments)
    assert code == 2
    assert out == ""
    assert text in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_no_records_foreign_records_and_no_folder(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = run("glue", "--records", tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: no records: run the suite first")
    code, _, err = run("glue", "--records", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert code == 2
    assert "nowhere does not exist" in err
    (tmp_path / "empty" / "bad.json").write_text('{"schema_version": 1', encoding="utf-8")
    code, _, err = run("glue", "--records", tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 2
    assert "bad.json: not a record of schema version 1" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.usefixtures("unsaved")
def test_output_folder_that_is_a_file(store: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way", encoding="utf-8")
    code, _, err = run("glue", "--records", store, "--profile", "micro", "--out", tmp_path / "out")
    assert code == 2
    assert "cannot be written" in err
    assert len(err.strip().splitlines()) == 1


def test_help_teaches() -> None:
    code, out, _ = run("glue", "--help")
    assert code == 0
    assert "--mrpc" in out
    assert "Example" in out


@pytest.mark.usefixtures("unsaved")
def test_a_thousand_records_in_seconds(make_grid: Grid) -> None:
    records = make_grid(seeds=range(23))
    assert len(records) > 1000
    start = time.process_time()
    runs_frame(records)
    metrics_frame(records)
    report = suite_report(records, "glue", "micro", 8)
    assert time.process_time() - start < 15
    assert len(report.tables) == 9


@pytest.mark.usefixtures("unsaved")
def test_any_suite_that_describes_itself_has_a_report(tmp_path: Path, make_record: Make) -> None:
    for name, score in (("full", 3.0), ("rslora", 2.0)):
        write_record(tmp_path / "runs", toy_record(make_record, name, score))
    code, out, err = run("toy", "--records", tmp_path / "runs", "--out", tmp_path / "out")
    assert code == 0, err
    page = (tmp_path / "out" / "toy-micro-r8" / "report.md").read_text(encoding="utf-8")
    assert page.startswith("# Toy suite, profile micro, rank 8\n")
    assert "| rank-stabilised LoRA | 2.00 |" in page
    assert "| Full fine-tuning | 3.00 |" in page
    assert "lower is better" in page
    assert "No average: Toy suite names the average 'median', known here: glue" in page
    assert "--mrpc" not in run("toy", "--help")[1]


def test_a_word_that_is_no_suite_of_the_records_is_bad_input(tmp_path: Path, make_record: Make) -> None:
    write_record(tmp_path / "runs", toy_record(make_record, "full", 1.0))
    code, _, err = run("tyo", "--records", tmp_path / "runs", "--out", tmp_path / "out")
    assert code == 2
    assert "unknown suite (of the records) 'tyo': known are toy; nearest: toy" in err


def test_a_metric_that_nobody_describes_is_bad_input(tmp_path: Path, make_record: Make) -> None:
    record = toy_record(make_record, "full", 1.0)
    assert record.catalogue is not None
    nobody = record.catalogue.model_copy(update={"suites": []})
    write_record(tmp_path / "runs", record.model_copy(update={"catalogue": nobody}))
    code, _, err = run("toy", "--records", tmp_path / "runs", "--out", tmp_path / "out")
    assert code == 2
    assert "metric 'error' of suite 'toy' is in no catalogue" in err


def toy_record(make_record: Make, method: str, score: float) -> Record:
    """Return a record of a suite and of a method that are described by the record alone."""
    error = MetricEntry(name="error", title="error", better="lower", format=".2f")
    task = TaskEntry(name="one", title="Task one", main_metric="validation/error", metrics=["error"])
    said = Catalogue(
        methods=[MethodEntry(name="rslora", title="rank-stabilised LoRA", factors=True)],
        suites=[SuiteEntry(name="toy", title="Toy suite", average="median", metrics=[error], tasks=[task])],
    )
    at = [Evaluation(step=60, epoch=None, rows={}, metrics={"validation/error": score})]
    parts = {"evaluations": at, "main_metric": "validation/error", "catalogue": said}
    return make_record("one", method, 0, score=0.5, parts=parts, suite="toy")
