"""The gate's verdict as text, Markdown, JUnit and annotations, its commands and exit codes, the pytest plugin."""

from __future__ import annotations

import copy
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reports.__main__ import app
from reports.gate.texts import grouped, summary, to_annotations, to_junit, to_markdown, to_text
from results.gate import Finding, Tolerances, Verdict, compare, derive, read_tolerances, write_tolerances
from results.gate.tolerances import Replicate
from results.schema import Plan, Record
from results.store import write_record

STEPS = 20
runner = CliRunner()


def record(method: str, seed: int = 0, shift: float = 0.0, state: int = 100, **environment: Any) -> Record:
    plan = Plan.model_validate({
        "suite": "glue", "task": "rte", "profile": "micro", "method": method,
        "method_config": {"rank": 8} if method != "full" else {}, "targets": "attention", "seed": seed,
        "model": {"name": "micro", "source": "micro", "digest": "d"}, "data": {"source": "micro", "name": "RTE",
        "digest": "e", "max_length": 48}, "training": {"steps": STEPS, "batch_size": 16, "learning_rate": 1e-3},
        "purpose": "gate",
    })  # fmt: skip
    curve = [
        {"step": n, "loss": 1.0 / n * (1 + shift), "learning_rate": 1e-3, "gradient_norm": 0.5}
        for n in range(1, STEPS + 1)
    ]
    return Record.model_validate({
        "plan": plan.model_dump(), "plan_hash": plan.hash(), "status": "ok",
        "started_at": "2026-01-02T03:04:05+00:00", "finished_at": "2026-01-02T03:05:05+00:00",
        "environment": {
            "commit": "a" * 40, "dirty": False, "python": "3.11.7", "platform": "Linux-6-x86_64", "packages":
            {"torch": "2.13.0"}, "device": "cpu", "device_name": "cpu", "device_memory_bytes": None, "cpu_count": 2,
            "threads": 1, "workers": 2, "ram_bytes": 2**33, **environment,
        },
        "engagement": {
            "layers": [], "trainable_parameters": 10, "total_parameters": 20, "state_shapes": {}, "state_bytes": state,
            "dense_state_bytes": 2000, "basis_bytes": 0,
        },
        "evaluations": [{"step": STEPS, "epoch": None, "rows": {"validation": 400}, "metrics": {"validation/f1": 0.8}}],
        "curve": curve, "main_metric": "validation/f1",
    })  # fmt: skip


METHODS = ("full", "lora", "galore")


def write_all(folder: Path, records: list[Record]) -> Path:
    for each in records:
        write_record(folder, each)
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """Return a reference of three methods with bands from four replicates."""
    plain = [record(method) for method in METHODS]
    folder = write_all(tmp_path / "reference", plain)
    sides = []
    for number, by in enumerate((1e-7, 2e-7, 3e-7, 2e-7)):
        about = Replicate(name=f"r{number}", runs=3, threads=2, variables={}, device_name="cpu", commit=None)
        sides.append((about, [record(method, shift=by) for method in METHODS]))
    write_tolerances(folder / "tolerances.json", derive(plain, sides, 0.01))
    return folder


@pytest.fixture
def tolerances(reference: Path) -> Tolerances:
    return read_tolerances(reference / "tolerances.json")


@pytest.fixture
def verdict(tolerances: Tolerances) -> Verdict:
    """Return a verdict with a run that keeps more state, and one that learns otherwise."""
    changed = [record("full"), record("lora", state=150, commit="b" * 40), record("galore", shift=0.1, commit="b" * 40)]
    return compare([record(method) for method in METHODS], changed, tolerances)


def test_the_text_names_cell_values_band_cause_and_bisect(verdict: Verdict, tolerances: Tolerances) -> None:
    text = to_text(verdict, tolerances)
    assert text.startswith("gate FAILED: ")
    assert "REGRESSION  glue/rte/lora  seed 0: state_bytes" in text
    assert "100 B -> 150 B  +50.00%; band exact" in text
    assert "likely code: counts or bytes changed" in text
    assert "git bisect start HEAD aaaaaaaaaaaa && git bisect run" in text
    assert "--only glue-micro-rte-lora-r8-s0" in text
    assert "python -m nox -s regression -- --update" in text
    assert "one false alarm in 100 passes" in text
    assert len(to_text(verdict, tolerances, everything=True)) > len(text)


def test_findings_are_grouped_by_cell_and_the_exact_ones_come_first(verdict: Verdict) -> None:
    groups = grouped(verdict.findings)
    assert [group.first.cell for group in groups] == ["glue/rte/lora", "glue/rte/galore"]
    assert groups[1].first.quantity == "training loss, step 1"
    assert sum(group.others + 1 for group in groups) == len(verdict.findings)


def test_a_verdict_without_findings_says_so_everywhere(tolerances: Tolerances) -> None:
    passed = compare([record("full")], [record("full")], tolerances)
    assert summary(passed).startswith("gate passed: 1 runs, ")
    assert to_annotations(passed).startswith("::notice title=gnlorp gate::gate passed")
    assert "bisect" not in to_text(passed, tolerances)
    assert "✅" in to_markdown(passed, tolerances)


def test_the_markdown_is_one_table(verdict: Verdict, tolerances: Tolerances) -> None:
    text = to_markdown(verdict, tolerances)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2
    assert len({row.count("|") for row in rows}) == 1
    assert "| glue/rte/lora | 0 | regression: state_bytes" in text


def test_junit_has_a_case_a_cell(verdict: Verdict) -> None:
    suite = ET.fromstring(to_junit(verdict, ["glue/rte/full", "glue/rte/lora", "glue/rte/galore"]))
    assert (suite.get("tests"), suite.get("failures")) == ("3", "2")
    assert [case.get("name") for case in suite if case.find("failure") is not None] == [
        "glue/rte/lora",
        "glue/rte/galore",
    ]


def test_annotations_are_one_line_each(verdict: Verdict) -> None:
    lines = to_annotations(verdict).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("::error title=gnlorp gate%2C") for line in lines)


def test_a_structure_shows_what_differs_alone() -> None:
    before = {f"exp_avg {n}": 1 for n in range(100)}
    after = {**before, "exp_avg 7": 2}
    finding = Finding(
        "change", "glue/rte/lora", 0, "state_shapes", "exact", before, after, None, None, "code", "w", "r"
    )
    assert "{'exp_avg 7': 1} -> {'exp_avg 7': 2}" in to_text(Verdict([finding], 1), _bands())


def _bands() -> Tolerances:
    return Tolerances(comparisons=1, replicates=[], bands=[])


def invoke(*words: object) -> tuple[int, str]:
    done = runner.invoke(app, [str(word) for word in words])
    return done.exit_code, done.output


def test_exit_codes_tell_a_regression_from_bad_input(reference: Path, tmp_path: Path) -> None:
    same = write_all(tmp_path / "same", [record(method) for method in METHODS])
    worse = write_all(tmp_path / "worse", [record("full"), record("lora", state=150), record("galore")])
    stack = write_all(tmp_path / "stack", [record(method, packages={"torch": "2.14.0"}) for method in METHODS])
    assert invoke("gate", "--records", same, "--reference", reference)[0] == 0
    code, text = invoke("gate", "--records", worse, "--reference", reference)
    assert code == 1
    assert "glue/rte/lora" in text
    code, text = invoke("gate", "--records", stack, "--reference", reference)
    assert code == 2
    assert "environment.packages.torch is 2.13.0 in the reference and 2.14.0 now" in text
    assert "python -m nox -s regression -- --update" in text
    assert text.count("\n") == 1
    assert invoke("gate", "--records", stack, "--reference", reference, "--bisect")[0] == 125


def test_a_folder_that_is_not_the_gates_is_said_so(reference: Path, tmp_path: Path) -> None:
    def other(**changes: object) -> list[Record]:
        made = [record(method) for method in METHODS]
        plans = [each.plan.model_copy(update=changes) for each in made]
        return [
            each.model_copy(update={"plan": plan, "plan_hash": plan.hash()})
            for each, plan in zip(made, plans, strict=True)
        ]

    for changes, words in (({"purpose": "tuning"}, "runs of purpose tuning"), ({"task": "cola"}, "are of glue/cola")):
        folder = write_all(tmp_path / words.replace("/", "-"), other(**changes))
        code, text = invoke("gate", "--records", folder, "--reference", reference)
        assert (code, text.count("\n")) == (2, 1), text
        assert words in text
        assert "python -m suites gate run" in text


def test_bad_references_end_with_code_2_and_one_line(reference: Path, tmp_path: Path) -> None:
    same = write_all(tmp_path / "same", [record(method) for method in METHODS])
    (tmp_path / "empty").mkdir()
    for folder, word in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "holds no record")):
        code, text = invoke("gate", "--records", same, "--reference", folder)
        assert (code, text.count("\n")) == (2, 1)
        assert word in text
    path = next(reference.glob("*-lora-*.json"))
    whole = path.read_bytes()
    (reference / "copy.json").write_bytes(whole)
    assert "same plan" in invoke("gate", "--records", same, "--reference", reference)[1]
    (reference / "copy.json").unlink()
    path.write_bytes(whole[:300])
    code, text = invoke("gate", "--records", same, "--reference", reference)
    assert (code, path.name in text) == (2, True)
    path.write_bytes(whole)
    (reference / "tolerances.json").unlink()
    code, text = invoke("gate", "--records", same, "--reference", reference)
    assert (code, "gate-tolerances" in text) == (2, True)


def test_only_judges_a_part(reference: Path, tmp_path: Path) -> None:
    part = write_all(tmp_path / "part", [record("lora")])
    assert invoke("gate", "--records", part, "--reference", reference)[0] == 1
    assert invoke("gate", "--records", part, "--reference", reference, "--only", "rte/lora")[0] == 0
    assert invoke("gate", "--records", part, "--reference", reference, "--only", "nothing")[0] == 2


def test_files_for_ci_are_written(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"commit": "b" * 40}
    changed = [record("full", **now), record("lora", state=150, **now), record("galore", **now)]
    worse = write_all(tmp_path / "worse", changed)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    code, text = invoke("gate", "--records", worse, "--reference", reference, "--out", tmp_path / "out", "--github")
    assert code == 1
    assert "::error title=" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gate.txt", "gate.md", "gate.xml"}
    assert (tmp_path / "summary.md").read_text() == (tmp_path / "out" / "gate.md").read_text()


def test_update_prints_the_difference_and_makes_the_records_pass(reference: Path, tmp_path: Path) -> None:
    worse = write_all(tmp_path / "worse", [record("full"), record("lora", state=150), record("galore")])
    log = tmp_path / "CHANGELOG.md"
    log.write_text("# Changelog\n\n## Unreleased\n")
    words = ("gate", "--records", worse, "--reference", reference, "--update", "--changelog", log)
    code, text = invoke(*words)
    assert code == 0
    assert "glue/rte/lora" in text
    assert "Gate reference renewed (code at aaaaaaaaaaaa): 1 numbers in glue/rte/lora; first" in log.read_text()
    assert invoke("gate", "--records", worse, "--reference", reference)[0] == 0
    assert invoke(*words, "--only", "lora")[0] == 2


def test_an_update_without_a_place_in_the_changelog_replaces_nothing(reference: Path, tmp_path: Path) -> None:
    worse = write_all(tmp_path / "worse", [record("full"), record("lora", state=150), record("galore")])
    before = {path.name: path.read_bytes() for path in reference.iterdir()}
    log = tmp_path / "CHANGELOG.md"
    for text in ("# Changelog\n\n## 1.0\n", None):
        log.unlink(missing_ok=True) if text is None else log.write_text(text)
        code, said = invoke("gate", "--records", worse, "--reference", reference, "--update", "--changelog", log)
        assert code == 2, said
        assert {path.name: path.read_bytes() for path in reference.iterdir()} == before


def test_replicates_that_cannot_be_compared_leave_the_bands(reference: Path, tmp_path: Path) -> None:
    before = (reference / "tolerances.json").read_bytes()
    same = write_all(tmp_path / "same", [record(method) for method in METHODS])
    stack = write_all(tmp_path / "stack", [record(method, packages={"torch": "2.14.0"}) for method in METHODS])
    words = ("gate-tolerances", "--replicates", same, "--replicates", stack, "--reference", reference)
    code, said = invoke(*words)
    assert code == 2, said
    assert (reference / "tolerances.json").read_bytes() == before


def test_tolerances_are_derived_by_command(reference: Path, tmp_path: Path) -> None:
    moved = write_all(tmp_path / "moved", [record(method, shift=1e-6) for method in METHODS])
    before = copy.copy((reference / "tolerances.json").read_bytes())
    code, text = invoke("gate-tolerances", "--replicates", moved, "--reference", reference)
    assert code == 0, text
    found = read_tolerances(reference / "tolerances.json")
    assert [each.name for each in found.replicates] == ["moved"]
    assert before != (reference / "tolerances.json").read_bytes()
    far = write_all(
        tmp_path / "far", [record(method, shift=by) for method, by in zip(METHODS, (0, 0.1, 0), strict=True)]
    )
    both = invoke("gate-tolerances", "--replicates", moved, "--replicates", far, "--reference", reference)[1]
    assert "moved: 3 runs, 0 with the very curve of the reference; by the bands of the others: 12 findings" in both
    assert "far: 3 runs, 2 with the very curve of the reference; by the bands of the others: " in both
    assert "findings, the farthest 0.1 off" in both
    assert invoke("gate-tolerances", "--replicates", moved, "--reference", reference, "--false-alarm", "2")[0] == 2


def test_bands_of_another_processor_are_added(reference: Path, tmp_path: Path) -> None:
    near, far = (
        write_all(tmp_path / name, [record(each, shift=by) for each in METHODS])
        for name, by in (("near", 1e-7), ("far", 1e-3))
    )

    def bounds(*words: object) -> dict[tuple[object, ...], float]:
        code, text = invoke("gate-tolerances", "--reference", reference, *words)
        assert code == 0, text
        found = read_tolerances(reference / "tolerances.json").bands
        return {(each.kind, each.item, each.method): each.bound for each in found}

    alone, other = bounds("--replicates", near), bounds("--replicates", far)
    assert any(other[key] > alone[key] for key in alone)
    both = bounds("--replicates", near, "--add")
    assert both == {key: max(alone[key], other[key]) for key in alone}
    kept = read_tolerances(reference / "tolerances.json").replicates
    assert [each.name for each in kept] == ["far", "near"]
    assert bounds("--replicates", near, "--add") == both
    assert len(read_tolerances(reference / "tolerances.json").replicates) == 2


PLUGIN = """
def run(replicate):
    return {"state_bytes": STATE, "loss": [1.0 / step * (1 + 1e-7 * replicate) for step in range(1, 9)]}

def test_mine(gnlorp_gate):
    gnlorp_gate("mine", run)
"""


def pytest_in(folder: Path, *words: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, cwd=folder)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_plugin_gates_another_projects_function(tmp_path: Path) -> None:
    file = tmp_path / "test_mine.py"
    file.write_text(PLUGIN.replace("STATE", "100"))
    assert "1 skipped" in pytest_in(tmp_path)[1]
    folder = ("--gnlorp-reference", tmp_path / "gate")
    code, text = pytest_in(tmp_path, *folder)
    assert code == 1
    assert "make it with --gnlorp-update" in text
    assert pytest_in(tmp_path, *folder, "--gnlorp-update")[0] == 0
    assert pytest_in(tmp_path, *folder)[0] == 0
    file.write_text(PLUGIN.replace("STATE", "101"))
    code, text = pytest_in(tmp_path, *folder)
    assert code == 1
    assert "state_bytes: 100 -> 101 (exact)" in text
    assert pytest_in(tmp_path, "--gnlorp-update")[0] == 4


def test_the_plugin_makes_a_test_of_each_cell(reference: Path, tmp_path: Path) -> None:
    worse = write_all(tmp_path / "worse", [record("full"), record("lora", state=150), record("galore")])
    empty = tmp_path / "tests"
    empty.mkdir()
    code, text = pytest_in(empty, "--gnlorp-reference", reference, "--gnlorp-records", worse)
    assert code == 1
    assert "1 failed, 2 passed" in text
    assert "regression: state_bytes 100 -> 150" in text
    code, text = pytest_in(empty, "--gnlorp-reference", tmp_path / "none", "--gnlorp-records", worse)
    assert code == 4
    assert "does not exist" in text
