"""The whole command: files, bytes, errors, no torch, bad stores each shown as what they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from reports.__main__ import app
from reports.paper.write import link_from, may_be_ours, paper, trouble_lines, write_paper, write_reports
from reports.records.reading import Gathered, gather
from reports.tables.table import FORMS
from results.published import published_cells
from results.schema import EQUAL_MEMORY, Record
from results.store import as_text, write_record

Make = Callable[..., Record]
Grid = Callable[..., list[Record]]
ROOT = Path(__file__).resolve().parents[2]

BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "datasets", "peft", "suites", "baselines", "gnlorp"):
            raise ImportError(name + " is blocked by the test")
sys.meta_path.insert(0, Refuse())
from reports.__main__ import app
app(sys.argv[1:])
"""


def run(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def build(store: Path, out: Path) -> dict[str, bytes]:
    """Build without figures and return relative path -> content."""
    write_paper(paper(gather([store]), published_cells()), out)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_grid: Grid) -> Path:
    """Return a folder with a micro grid of three seeds."""
    folder = tmp_path_factory.mktemp("store")
    for record in make_grid(methods=("full", "lora", "gradnormlorp")):
        write_record(folder, record)
    return folder


def test_every_form_is_written_and_the_document_names_all(store: Path, tmp_path: Path) -> None:
    files = build(store, tmp_path)
    stems = {name.removesuffix(".md") for name in files if name.endswith(".md")} - {"paper/paper"}
    assert {f"paper/{name}" for name in ("verdicts", "glue-rank8", "glue-rank4", "c4-perplexity", "c4-memory",
            "llama-7b-memory", "optimizer-memory", "conflicts", "elsewhere", "switchboard-glue-micro-r8",
            "standing-glue-micro-r8", "state-reduction")} <= stems  # fmt: skip
    assert all(f"{stem}.{ending}" in files for stem in stems for ending in ("csv", "tex"))
    document = files["paper/paper.md"].decode()
    assert all(files[f"{stem}.md"].decode() in document for stem in stems)
    latex = files["paper/paper.tex"].decode()
    assert all(f"\\input{{{stem.removeprefix('paper/')}.tex}}" in latex for stem in stems)
    cells = pd.read_csv(tmp_path / "paper" / "cells.csv")
    assert set(cells["verdict"]) == {"not run here", "not published"}
    assert {"published", "ours", "sd", "n", "difference", "bound", "verdict", "records", "source"} <= set(cells.columns)


def test_equal_memory_has_a_report_and_no_front_of_score_against_memory(
    store: Path, tmp_path: Path, make_record: Make
) -> None:
    write_record(tmp_path / "equal", make_record(variant=EQUAL_MEMORY))
    made = paper(gather([store, tmp_path / "equal"]), published_cells())
    assert [group.name for group in made.groups] == ["glue-micro-r8", "glue-micro-r8-equal-memory"]
    assert [table.name for table in made.own] == [
        "standing-glue-micro-r8",
        "switchboard-glue-micro-r8",
        "state-reduction",
    ]
    assert set(made.own[-1].data["method"]) == {"full", "lora", "gradnormlorp"}
    assert len(made.own[-1].data) == 3


def test_the_same_records_give_the_same_bytes(store: Path, tmp_path: Path) -> None:
    assert build(store, tmp_path / "a") == build(store, tmp_path / "b")


def test_what_an_earlier_run_left_is_removed(store: Path, tmp_path: Path) -> None:
    (tmp_path / "paper").mkdir()
    old = [f"standing-c4-small-r32.{ending}" for ending in FORMS] + ["switchboard-glue-paper-r4.tex", "foreign.csv"]
    mine = ["notes.md", "values.csv", "draft.tex", "talk.html", "mine.txt", "standing.md", "standing-notes.md"]
    for name in (*old, *mine):
        (tmp_path / "paper" / name).write_text(name)
    files = build(store, tmp_path)
    assert not {f"paper/{name}" for name in old} & set(files)
    assert {f"paper/{name}" for name in mine} <= set(files)


def test_every_table_that_not_all_stores_have_is_known_by_its_name(store: Path) -> None:
    made, empty = (paper(found, published_cells()) for found in (gather([store]), Gathered(())))
    always = {table.name for table in empty.tables}
    some = [table.name for table in made.tables if table.name not in always]
    assert len(some) == 3
    assert all(may_be_ours(f"{name}.{ending}", {"glue"}) for name in some for ending in FORMS)


def test_an_empty_store_is_shown_as_such(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    code, out, _ = run("paper", "--records", tmp_path / "none", "--out", tmp_path / "out")
    assert code == 0
    assert "note: no records: every cell that needs one says so" in out
    text = (tmp_path / "out" / "paper" / "paper.md").read_text()
    assert "no records" in text
    assert "not run here" in text


def test_duplicates_and_other_files_are_told(tmp_path: Path, make_record: Make) -> None:
    write_record(tmp_path / "a", make_record(score=0.5))
    write_record(tmp_path / "b", make_record(score=0.6))
    (tmp_path / "b" / "other.json").write_text("{}")
    lines = trouble_lines(paper(gather([tmp_path]), published_cells()))
    assert any("same plan as" in line and "differ in how they ended" in line for line in lines)
    assert any("other.json: not a record of a run, left out" in line for line in lines)


def test_a_newer_record_is_refused_in_one_line(tmp_path: Path, make_record: Make) -> None:
    (tmp_path / "new.json").write_text(json.dumps({**json.loads(as_text(make_record())), "schema_version": 7}))
    code, _, err = run("paper", "--records", tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert "schema version 7 is newer than" in err
    assert len(err.strip().splitlines()) == 1


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    code, _, err = run("paper", "--records", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert code == 2
    assert "nowhere does not exist" in err


@pytest.mark.usefixtures("one_format")
def test_every_group_has_a_report_whose_curves_come_from_the_files(tmp_path: Path, make_grid: Grid) -> None:
    for record in make_grid(methods=("full", "lora"), tasks=("rte",), seeds=(0,)):
        write_record(tmp_path / "runs", record)
    paths = write_reports(paper(gather([tmp_path / "runs"]), published_cells()), [tmp_path / "runs"], tmp_path / "out")
    assert tmp_path / "out" / "glue-micro-r8" / "curves.png" in paths


def test_a_link_leaves_the_page_only_inside_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert link_from(tmp_path / "reports" / "build" / "paper") == "../../../"
    assert link_from(tmp_path.parent) is None


def test_everything_works_without_torch(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, "paper", "--records", str(store), "--out", str(tmp_path)]
    result = subprocess.run([*command, "--no-figures"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1].endswith("index.html")


def test_help_teaches() -> None:
    code, out, _ = run("paper", "--help")
    assert code == 0
    assert "--foreign" in out
    assert "Example" in out


@pytest.mark.slow
def test_the_committed_records_give_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    snapshot = ROOT / "reports" / "snapshot" / "paper"
    files = build(Path("results/reference"), tmp_path)
    kept = {path.name: path.read_bytes() for path in snapshot.glob("*.md")}
    assert {f"paper/{name}": content for name, content in kept.items()} == {
        name: content for name, content in files.items() if name.endswith(".md")
    }


@pytest.mark.slow
def test_one_command_rebuilds_everything_that_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, ["paper", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    snapshot = ROOT / "reports" / "snapshot"
    kept = [path.relative_to(snapshot) for path in snapshot.rglob("*") if path.suffix in (".md", ".png")]
    kept = [path for path in kept if path.parent.name]
    assert len(kept) > 60
    assert [str(name) for name in kept if (tmp_path / name).read_bytes() != (snapshot / name).read_bytes()] == []
