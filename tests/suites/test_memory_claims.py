"""Published claims: the arithmetic by hand, the verdicts, and what the committed file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from baselines.registry import default_methods
from results.lab import (
    Claim,
    MemoryCells,
    read_cell_file,
    read_cells,
    read_claims,
    read_verdicts,
    write_cells,
    write_verdicts,
)
from results.store import StoreError
from suites.lab.claims import UNIT, _rules, lines_of, prints_as, recompute
from suites.lab.conventions import Convention, conventions, shapes_of, values_of

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference" / "memory"


def claim(**changes: object) -> Claim:
    fields = {"id": "x", "source": "s", "method": "full", "model": "60m", "ranks": [128], "quantity": "weights"}
    return Claim.model_validate({**fields, "value": 0.12, "unit": "G", "digits": 2, **changes})


def test_values_are_those_counted_by_hand() -> None:
    every, shapes = shapes_of("60m")
    assert every == 58_073_600
    assert sum(rows * columns for rows, columns in shapes) == 25_296_896
    assert values_of("lora", "60m", 128).added == 128 * sum(rows + columns for rows, columns in shapes)
    galore = values_of("galore", "60m", 128)
    assert galore.moments == 8 * 2 * 128 * (4 * 512 + 3 * 1376)
    assert galore.bases == 8 * 128 * 7 * 512


def test_a_convention_counts_as_it_says() -> None:
    values = values_of("lora", "60m", 128)
    plain = Convention(2, 2, 2, False, "trained", False)
    twice = Convention(2, 2, 2, False, "trained, counted twice", False)
    # The printed 0.20 G: the embeddings, head and norms counted with the model and again with the adapters.
    assert round(twice.weights(values) / 1e9, 2) == 0.20
    assert twice.weights(values) - plain.weights(values) == 2 * values.rest
    assert plain.state(values) == 2 * (values.moments + 2 * values.rest)
    assert Convention(2, 1, 2, False, "frozen", False, maxima=True).state(values) == values.moments * (1 + 4 / 256)
    assert (
        Convention(2, 4, 2, False, "frozen", False, added_bytes=4).weights(values)
        == 2 * values.dense + 4 * values.added
    )


def test_conventions_are_distinct() -> None:
    for state_bits, bases, adapters in ((None, True, True), (8, True, False), (None, False, False)):
        words = [each.words() for each in conventions(state_bits, bases, adapters)]
        assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("value", "holds"), [(0.1161, True), (0.1249, True), (0.1289, True), (0.1149, False), (0.13, False)]
)
def test_a_number_prints_rounded_or_cut_off(value: float, holds: bool) -> None:
    assert prints_as(value, claim()) is holds


def test_every_claim_gets_a_verdict_without_traces() -> None:
    found = recompute(traces=False)
    assert len(found.verdicts) >= 60
    by_id = {verdict.claim.id: verdict for verdict in found.verdicts}
    # Cells that the arithmetic beside the published table reproduces, and one that it cannot.
    assert by_id["galore-table6-60m-full-weights"].holding > 0
    assert by_id["galore-table2-350m-full"].holding > 0
    assert by_id["galore-table4-r8-full"].holding > 0
    assert by_id["galore-table6-1b-full-weights"].holding == 0
    assert all(rule.holding < rule.cells for rule in found.rules)
    assert len(list(lines_of(found))) == len(found.verdicts) + len(found.rules)
    for verdict in found.verdicts:
        assert verdict.attempts
        assert (verdict.holding > 0) == verdict.attempts[0].holds or verdict.claim.quantity == "order by estimate"


def test_the_best_convention_of_a_table_is_a_single_one() -> None:
    values = {method: values_of(method, "60m", 128) for method in ("galore", "lora", "full")}
    counted, left_out = (Convention(2, 4, basis, bases, "trained", False) for basis, bases in ((4, True), (2, False)))
    narrow, wide = (Convention(2, 4, 2, False, "trained", False, added_bytes=added) for added in (None, 4))

    def printed(name: str, method: str, convention: Convention, **changes: object) -> Claim:
        size = convention.weights(values[method]) + convention.state(values[method])
        fields = {"quantity": "weights+state", "digits": 6, "value": round(size / UNIT["G"][False], 6), **changes}
        return claim(id=f"a-table-{name}", method=method, **fields)

    bases = [printed("counted", "galore", counted), printed("left-out", "galore", left_out)]
    adapters = [printed("narrow", "lora", narrow), printed("wide", "lora", wide)]
    full = printed("full", "full", left_out)
    (rule,) = _rules([*bases, *adapters, full])
    # One of each pair, and the method that has neither bases nor adapters.
    assert (rule.cells, rule.holding) == (5, 3)
    assert "rank" not in rule.convention
    either = [each.model_copy(update={"ranks": [64, 128]}) for each in (bases[0], full)]
    other = values_of("galore", "60m", 64)
    size = (counted.weights(other) + counted.state(other)) / UNIT["G"][False]
    (rule,) = _rules([*either, bases[0].model_copy(update={"ranks": [64, 128], "value": round(size, 6)})])
    assert rule.holding == 2
    assert rule.convention.endswith("fp32 bases counted, rest trained, GB, rank 64 on 60m")


def test_the_committed_verdicts_are_those_of_the_code() -> None:
    kept = {verdict.claim.id: verdict for verdict in read_verdicts(REFERENCE / "claims.json").verdicts}
    assert kept.keys() == {each.id for each in read_claims()}
    for verdict in recompute(traces=False).verdicts:
        assert kept[verdict.claim.id] == verdict


def test_the_committed_cells_can_be_read_and_written(tmp_path: Path) -> None:
    path = REFERENCE / "7b.json"
    file = read_cell_file(path)
    assert len({cell.setting for cell in file.cells}) == len(file.cells)
    assert {cell.setting.method for cell in file.cells} >= set(default_methods())
    assert write_cells(tmp_path / "again.json", file.cells, file.catalogue).read_bytes() == path.read_bytes()
    found = read_verdicts(REFERENCE / "claims.json")
    assert read_verdicts(write_verdicts(tmp_path / "claims.json", found)) == found


def test_every_committed_cell_counts_what_the_formula_says_but_for_what_is_named() -> None:
    cells = [cell for path in REFERENCE.glob("*.json") if path.stem != "claims" for cell in read_cell_file(path).cells]
    assert {cell.setting.method for cell in cells} >= set(default_methods())
    for cell in cells:
        formula, count = cell.formula.model_dump(), cell.count.model_dump()
        apart = {name: count[name] - formula[name] for name in formula if count[name] != formula[name]}
        assert apart.pop("state_bytes", 0) == sum(cell.state_outside.values()), cell.setting
        assert apart.pop("buffer_bytes", 0) == cell.own_buffer_bytes, cell.setting
        assert not apart, (cell.setting, apart)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"cells": [{"setting": 3}]}')
    with pytest.raises(StoreError, match="not a file of memory cells"):
        read_cells(path)
    with pytest.raises(StoreError, match="not a file of recomputed claims"):
        read_verdicts(path)
    assert read_cells(tmp_path / "none.json") == []
    assert MemoryCells(cells=[]).schema_version == 1
