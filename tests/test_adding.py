"""What docs/adding.md promises: a method, a GLUE task and a suite need the files that it names, and no other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reports.__main__ import app as reports_app

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "tests" / "adding"
PACKAGES = ("gnlorp", "baselines", "suites", "results", "reports")
TASK_ROW = """
    GlueTask(
        name="moods",
        title="Throwaway task",
        folder="Moods",
        text_columns=("sentence",),
        labels=("negative", "positive"),
        metrics=("accuracy",),
        main_metric="validation/accuracy",
        official_rows={"train": 600, "validation": 400},
        layout=Layout(("sentence",), "label", _BINARY),
    ),
"""
DATA_ROW = """
    Task(
        "moods", ("sentence",), ("negative", "positive"), _HALF, 0.0, 600,
        lambda y, g, d: (sentences.review(y == 1, d),),
    ),
"""
METHOD, TASK, SUITE = "Throwaway method", "Throwaway task", "Counting in circles"
RUN = """
from suites.__main__ import app
common = ["--method", "throwaway", "--seeds", "0", "--steps", "3", "--workers", "1", "--device", "cpu"]
if __name__ == "__main__":
    for words in (["glue", "--task", "moods"], ["cycle"]):
        try:
            app(["run", *words, *common], standalone_mode=False)
        except SystemExit as end:
            assert not end.code, end.code
"""
REPORT = """
from reports.__main__ import app
records = ["--records", "results/runs"]
for words in (["glue"], ["cycle"], ["paper", "--no-figures"]):
    app([*words, *records], standalone_mode=False)
"""
TESTS = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
MADE = ("results/runs", "reports/build")
PROFILE = '\n[cycle]\nmodel = "0.4m"\nsource = "micro"\nmax_length = 32\nsteps = 3\n'


def named_files(what: str, name: str) -> set[str]:
    """Return the files that the page's table names for `what`."""
    row = re.search(rf"^\| {what} \|(.*)\|$", (ROOT / "docs" / "adding.md").read_text(), re.MULTILINE)
    assert row is not None, what
    return {file.replace("NAME", name) for file in re.findall(r"`([^`]+)`", row[1])}


def add_row(path: Path, row: str) -> None:
    """Put a row at the end of a module's table of rows."""
    text = path.read_text()
    end = re.search(r"\n\)(  # fmt: skip)?\n", text[text.index("_ROWS = (") :])
    assert end is not None
    at = text.index("_ROWS = (") + end.start()
    path.write_text(text[:at] + row.rstrip("\n") + text[at:])


def tree_copy(folder: Path) -> Path:
    """Return a copy of the tree in `folder`, without what is generated or ignored."""
    ignored = shutil.ignore_patterns("__pycache__", "runs", "build", "dist", ".*cache*", "snapshot")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return what stands in the copy, by path."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def run(folder: Path, code: str, *words: str) -> str:
    """Run Python code in the copy, which must end well, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


FILES = named_files("a method", "throwaway") | named_files("a GLUE task", "moods") | named_files("a suite", "cycle")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with a method, a task and a suite more."""
    folder = tree_copy(tmp_path_factory.mktemp("adding"))
    shutil.copy(HERE / "method.py", folder / "baselines" / "throwaway.py")
    add_row(folder / "suites" / "glue" / "tasks.py", TASK_ROW)
    add_row(folder / "suites" / "generated" / "tasks.py", DATA_ROW)
    (folder / "suites" / "cycle").mkdir()
    shutil.copy(HERE / "suite.py", folder / "suites" / "cycle" / "__init__.py")
    with (folder / "suites" / "profiles" / "micro.toml").open("a") as profile:
        profile.write(PROFILE)
    return folder


def test_nothing_but_the_named_files_is_touched(extended: Path, tmp_path: Path) -> None:
    before, after = contents(tree_copy(tmp_path)), contents(extended)
    touched = {
        path
        for path in after
        if before.get(path) != after[path] and not path.startswith(("results/runs", "reports/build"))
    }
    named = named_files("a method", "throwaway")
    assert len(named) == 1
    assert touched == named | named_files("a GLUE task", "moods") | named_files("a suite", "cycle")


@pytest.mark.slow
def test_they_run_and_stand_in_tables_and_page_by_their_titles(extended: Path, tmp_path: Path) -> None:
    run(extended, RUN)
    scores = run(extended, REPORT)
    assert all(title in scores for title in (METHOD, TASK, SUITE))
    page = (extended / "reports" / "build" / "paper" / "index.html").read_text()
    assert all(title in page for title in (METHOD, TASK, SUITE))
    # This tree has neither method, task nor suite; the records bring their titles along.
    for suite, title in (("glue", TASK), ("cycle", SUITE)):
        options = [suite, "--records", str(extended / "results" / "runs"), "--out", str(tmp_path)]
        found = CliRunner().invoke(reports_app, options)
        assert found.exit_code == 0, found.output
        text = (tmp_path / f"{suite}-micro-r8" / "report.md").read_text()
        assert METHOD in text
        assert title in text


@pytest.mark.slow
def test_the_default_tests_pass_with_them(extended: Path, tmp_path: Path) -> None:
    whole = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".git", ".nox", ".*cache*", "__pycache__", "runs", "build", "dist")
    shutil.copytree(ROOT, whole, ignore=ignored)
    for file in FILES:
        (whole / file).parent.mkdir(exist_ok=True)
        shutil.copy(extended / file, whole / file)
    run(whole, TESTS, "-q", "-n", "auto", "-p", "no:cacheprovider", "--ignore", "tests/test_adding.py")
