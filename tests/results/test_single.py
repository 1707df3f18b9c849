"""Records that are one file: written and read whole, refused when wrong, out of the way of the records of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from results.bench import Bench, BenchCell, Ratio
from results.capabilities import Answered, Capabilities, CapabilityMatrix
from results.schema import Environment
from results.store import SINGLE, StoreError, read_records, read_single, write_single

MACHINE = Environment(
    commit=None, dirty=None, python="3", platform="x", packages={}, device="cpu", device_name="x",
    device_memory_bytes=None, cpu_count=2, threads=2, workers=1, ram_bytes=1,
)  # fmt: skip
ROWS = [Capabilities(name="a", title="A", cells=[Answered(check="resume", answer="yes", reason="bit-equal")])]
MATRIX = CapabilityMatrix(
    started_at="", finished_at="", environment=MACHINE, networks=["bert"], compile_backend="eager", rows=ROWS
)


def test_round_trip_with_a_line_a_row(tmp_path: Path) -> None:
    path = write_single(tmp_path / "capabilities.json", MATRIX)
    assert read_single(path, CapabilityMatrix) == MATRIX
    assert sum('"title"' in line for line in path.read_text().splitlines()) == 1


def test_another_kind_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = write_single(tmp_path / "capabilities.json", MATRIX)
    with pytest.raises(StoreError, match="not a bench record"):
        read_single(path, Bench)
    with pytest.raises(StoreError, match="cannot be read"):
        read_single(tmp_path / "none.json", CapabilityMatrix)


@pytest.mark.parametrize("name", sorted(SINGLE))
def test_they_are_no_records_of_runs(name: str, tmp_path: Path) -> None:
    write_single(tmp_path / name, MATRIX)
    assert read_records([tmp_path]) == []


def test_a_row_fails_with_one_failed_check() -> None:
    failed = Capabilities(name="a", title="A", cells=[*ROWS[0].cells, Answered(check="merge", answer="no", reason="x")])
    assert (ROWS[0].passed, failed.passed) == (True, False)
    assert "merge   no: x" in str(failed)
    refusing = [Answered(check=name, answer="refused", reason="x") for name in ("resume", "merge")]
    assert not Capabilities(name="a", title="A", cells=refusing).passed


@pytest.mark.parametrize(
    ("rule", "values", "met"),
    [
        ("at most", [1.0, 1.2, 1.1], True),
        ("at most", [1.3, 1.2], False),
        ("at least", [1.3], True),
        ("at least", [1.0], False),
        ("at least", [], None),
    ],
)
def test_a_claim_is_met_by_its_median(rule: str, values: list[float], met: bool | None) -> None:
    claim = Ratio(what="time", ours="a", peer="b", values=values, rule=rule, target=1.15)  # type: ignore[arg-type]
    assert claim.met is met
    assert (claim.spread is None) == (len(values) < 2)


def test_a_cell_agrees_within_its_limit() -> None:
    cell = BenchCell(
        group="layer", label="x", settings={}, candidates=[], claims=[], agreement={"a": 1e-4}, agreement_limit=1e-3
    )
    assert cell.agrees
    assert not cell.model_copy(update={"agreement": {"a": 1e-4, "b": 2e-3}}).agrees
