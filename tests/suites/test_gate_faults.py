"""The seeded faults fit the code as it stands: their texts are there, once, and name runs that the gate makes."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import get_args

import pytest

from results.gate.quantities import Kind, cell_of
from results.schema import Plan
from suites.gate.faults import BOTH, FAULTS, MEMORY_ONLY, NO_OPS, NUMBERS_ONLY, UNSEEN, Fault
from suites.gate.runs import CODE, gate_plans, gate_runtime
from suites.gate.trial import apply
from suites.measure.environment import ROOT

ALL = (*FAULTS, *NO_OPS)
each_fault = pytest.mark.parametrize("fault", ALL, ids=lambda fault: fault.name)


@pytest.fixture(scope="module")
def plans() -> list[Plan]:
    return gate_plans(gate_runtime())


def test_there_are_enough_faults_of_every_sort() -> None:
    assert len(FAULTS) == len(MEMORY_ONLY) + len(NUMBERS_ONLY) + len(BOTH) + len(UNSEEN)
    assert len(FAULTS) >= 25
    assert min(len(MEMORY_ONLY), len(NUMBERS_ONLY)) >= 6
    assert len(NO_OPS) == 3
    assert {fault.expected for fault in FAULTS} == {*get_args(Kind), "none"}
    assert {fault.expected for fault in MEMORY_ONLY} <= {"exact", "peak"}
    assert {fault.expected for fault in NUMBERS_ONLY} <= {"loss", "gradient", "score"}
    assert {fault for fault in FAULTS if fault.expected == "none"} == set(UNSEEN)


def test_names_are_told_apart() -> None:
    assert len({fault.name for fault in ALL}) == len(ALL)
    assert len({fault.edits for fault in ALL}) == len(ALL)
    assert all(fault.name == fault.name.lower() and " " not in fault.name for fault in ALL)


@each_fault
def test_a_fault_finds_its_text_once_and_leaves_code_that_parses(fault: Fault, tmp_path: Path) -> None:
    files = {edit.file for edit in fault.edits}
    for name in files:
        assert name.split("/")[0] in CODE
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    apply(fault, tmp_path)
    for name in files:
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
    assert bool(fault.cells) == (fault not in NO_OPS)
