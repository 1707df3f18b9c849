"""The seeded faults fit the code as it stands: every patch applies cleanly, and names runs that the gate makes."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from trial import TREE, Fault, Kind, apply, faults, read_fault

from results.gate.quantities import Kind as Shown
from results.gate.quantities import cell_of
from results.schema import Plan
from suites.gate.runs import gate_plans, gate_runtime
from suites.measure.environment import ROOT

ALL = tuple(faults().values())
each_fault = pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return gate_plans(gate_runtime())


def test_there_are_enough_faults_of_every_kind() -> None:
    found = Counter(fault.kind for fault in ALL)
    assert set(found) == set(get_args(Kind))
    assert found.total() - found["nothing"] >= 25
    assert min(found["bytes"], found["numbers"]) >= 6
    assert found["nothing"] == 3
    expected = {kind: {fault.expected for fault in ALL if fault.kind == kind} for kind in found}
    assert set().union(*expected.values()) == {*get_args(Shown), "none"}
    assert expected["bytes"] <= {"exact", "peak"}
    assert expected["numbers"] <= {"loss", "gradient", "score"}
    assert expected["unseen"] == expected["nothing"] == {"none"}
    assert "none" not in expected["bytes"] | expected["numbers"] | expected["both"]


def test_names_are_told_apart() -> None:
    assert len({fault.name for fault in ALL}) == len(list(ALL[0].path.parents[1].rglob("*.patch")))
    assert all(fault.name == fault.name.lower() and " " not in fault.name for fault in ALL)


def test_a_patch_that_does_not_fit_and_one_without_a_header_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"fault {ALL[0].name}: its patch does not fit"):
        apply(ALL[0], tmp_path)
    bare = tmp_path / "bare.patch"
    bare.write_text("What: x\n\ndiff --git a/x b/x\n")
    with pytest.raises(ValueError, match="has no line 'Expected'"):
        read_fault(bare)


def test_an_unknown_fault_is_refused_by_name() -> None:
    command = [sys.executable, str(Path(__file__).with_name("trial.py")), "--fault", "decay-droped"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nearest: decay-dropped" in done.stderr


@each_fault
def test_a_patch_applies_cleanly_and_leaves_code_that_parses(fault: Fault, tmp_path: Path) -> None:
    for name in fault.files:
        assert name.split("/")[0] in TREE
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    apply(fault, tmp_path)
    for name in fault.files:
        before, after = ast.parse((ROOT / name).read_text()), ast.parse((tmp_path / name).read_text())
        assert (tmp_path / name).read_text() != (ROOT / name).read_text()
        if fault.name != "comment-added":
            assert ast.dump(before) != ast.dump(after)


@each_fault
def test_a_fault_names_runs_of_the_gate_and_cells_among_them(fault: Fault, plans: list[Plan]) -> None:
    runs = {part: [plan for plan in plans if part in plan.label or part in cell_of(plan)] for part in fault.only}
    assert runs
    assert all(runs.values())
    named = {plan.hash(): cell_of(plan) for found in runs.values() for plan in found}
    assert len(named) <= 4
    assert all(any(part in cell for cell in named.values()) for part in fault.cells)
    assert bool(fault.cells) == (fault.kind != "nothing")
