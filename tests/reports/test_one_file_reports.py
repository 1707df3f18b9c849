"""Tables and figure of the bench, and the capability matrix, from records made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from typer.testing import CliRunner

from reports.__main__ import app
from reports.documents import filled
from reports.tables.bench import COLOURS, bench_plot, claims_table, measurements_table, targets_table
from reports.tables.capabilities import capabilities_table
from reports.tables.table import to_markdown
from results.bench import Bench, BenchCell, Candidate, Ratio
from results.capabilities import Answered, Capabilities, CapabilityMatrix
from results.catalogue import Catalogue, MethodEntry
from results.schema import Environment
from results.store import read_single, write_single

ROOT = Path(__file__).resolve().parents[2]
MACHINE = Environment(
    commit="c" * 40, dirty=False, python="3", platform="x", packages={"torch": "2", "peft": "1"}, device="cpu",
    device_name="box", device_memory_bytes=None, cpu_count=2, threads=2, workers=1, ram_bytes=1,
)  # fmt: skip


def claim(
    what: str, values: list[float], peer: str = "LoRA", rule: str | None = "at most", target: float = 1.15
) -> Ratio:
    return Ratio(
        what=what,
        ours="ours",
        peer=peer,
        values=values,
        rule=rule,
        target=target if rule else None,  # type: ignore[arg-type]
    )


def layer_cell(label: str, *ratios: float) -> BenchCell:
    return BenchCell(
        group="layer",
        label=label,
        settings={"rank": 8},
        candidates=[Candidate(name="a", title="A", seconds=[0.002, 0.004], peak_bytes=123456)],
        claims=[
            claim("time", list(ratios)),
            claim("peak bytes", [0.5], target=1.1),
            claim("time", [0.7], "DoRA", None),
        ],
        agreement={"a": 1e-7},
        agreement_limit=1e-3,
    )


def refresh_cell(values: list[float]) -> BenchCell:
    missing = None if values else "galore-torch is not installed"
    return BenchCell(
        group="refresh",
        label="64x64",
        settings={},
        candidates=[Candidate(name="svd", title="SVD", seconds=values, missing=missing)],
        claims=[claim("times faster", values, "SVD", "at least", 40.0)],
        agreement={},
        agreement_limit=1e-3,
    )


def bench(*cells: BenchCell) -> Bench:
    return Bench(
        started_at="", finished_at="", command="python -m suites bench", quick=False, environment=MACHINE,
        peers={"peft": "1", "galore-torch": None}, load_average=0.25, cells=list(cells),
    )  # fmt: skip


def test_one_row_a_kind_of_claim_with_range_worst_and_verdict() -> None:
    table = targets_table(bench(layer_cell("a", 1.0, 1.1, 1.2), layer_cell("b", 1.3, 1.4), refresh_cell([50.0])))
    rows = [[entry.text for entry in row] for row in table.rows]
    assert rows[0] == [
        "layer, rank 8: time", "ours", "LoRA", "2", "1.10 to 1.35", "1.35 (1.33 to 1.37) at b", "at most 1.15",
        "missed at 1 of 2",
    ]  # fmt: skip
    assert [row[-1] for row in rows] == ["missed at 1 of 2", "met", "—", "met"]
    assert table.data["met"].tolist()[0] is False
    assert "load average before the start 0.2 on 2 processors" in to_markdown(table)
    assert "galore-torch missing" in to_markdown(table)


def test_ratios_next_to_one_have_the_same_digits_at_both_ends_of_a_range() -> None:
    (row,) = targets_table(bench(layer_cell("a", 0.99998), layer_cell("b", 1.00002), layer_cell("c", 1.00004))).rows[:1]
    assert row[4].text == "1.0000"
    (row,) = targets_table(bench(layer_cell("a", 0.9994), layer_cell("b", 1.00004))).rows[:1]
    assert row[4].text == "0.9994 to 1.0000"


def test_what_is_missing_is_not_measured_and_no_number() -> None:
    found = bench(layer_cell("a", 1.0), refresh_cell([]))
    (row,) = [row for row in targets_table(found).rows if row[0].text.startswith("refresh")]
    assert [entry.text for entry in row][-4:] == ["—", "—", "at least 40", "not measured"]
    assert "galore-torch is not installed" in to_markdown(measurements_table(found))


@pytest.mark.parametrize(
    ("ratios", "word", "met"),
    [
        (([1.3], [1.0]), "missed at 1 of 2", False),
        (([1.3], []), "missed at 1 of 2, 1 not measured", False),
        (([1.0], []), "not measured at 1 of 2", None),
        (([], []), "not measured", None),
        (([1.3], [1.3]), "missed", False),
    ],
)
def test_a_miss_is_told_whatever_else_is_not_measured(
    ratios: tuple[list[float], list[float]], word: str, met: bool | None
) -> None:
    table = targets_table(bench(*(layer_cell(label, *of) for label, of in zip("ab", ratios, strict=True))))
    assert (table.rows[0][-1].text, table.rows[0][-1].bold) == (word, met is False)
    assert table.data["met"].tolist()[0] is met


def test_a_name_in_the_legend_stands_beside_its_own_mark() -> None:
    first, second = against("a", "0123456789abcdef"), against("b", "0123456789abcdef")
    first = first.model_copy(update={"claims": [one for one in first.claims if not one.ours.endswith("fast")]})
    drawn = bench_plot(bench(first, second, refresh_cell([50.0])))
    assert drawn is not None
    assert drawn.figure is not None
    legend = drawn.figure.legends[-1]
    names = [text.get_text() for text in legend.get_texts()]
    colours = [to_hex(mark.get_color()[0]).upper() for mark in legend.legend_handles[:-1]]  # type: ignore[union-attr]
    assert dict(zip(names, colours, strict=False)) == dict(zip(("least", "auto", "fast"), COLOURS, strict=True))


def test_every_claim_and_measurement_stands_in_the_long_tables() -> None:
    found = bench(layer_cell("a", 1.0, 1.1), refresh_cell([50.0, 60.0]))
    assert len(claims_table(found).rows) == 4
    assert measurements_table(found).data["peak_bytes"].tolist()[0] == 123456
    assert measurements_table(found).rows[0][2].text == "3"


def test_the_figure_needs_layer_and_refresh_and_repeats_to_the_byte() -> None:
    found = bench(layer_cell("a", 1.0, 1.1), refresh_cell([50.0, 60.0]))
    first, second = bench_plot(found), bench_plot(found)
    assert first is not None
    assert first == second
    assert first.png[:4] == b"\x89PNG"
    assert bench_plot(bench(layer_cell("a", 1.0))) is None


def against(label: str, commit: str) -> BenchCell:
    """Return a layer's cell with the layer of an earlier commit among its candidates."""
    peer = "gnlorp at v1, full rule"
    targets = {"fast": 1.0, "least": 1.3, "auto": 1.15}
    claims = [claim("time", [1.2], peer, target=limit) for limit in targets.values()]
    claims = [
        one.model_copy(update={"ours": f"gnlorp, full rule, {mode}"}) for one, mode in zip(claims, targets, strict=True)
    ]
    cell = layer_cell(label, 1.0)
    return cell.model_copy(
        update={
            "settings": {**cell.settings, "against": commit},
            "candidates": [*cell.candidates, Candidate(name="former full", title=peer, seconds=[0.1], peak_bytes=9)],
            "claims": [*cell.claims, *claims],
        }
    )


def test_the_layer_of_an_earlier_commit_has_its_rows_and_its_panel() -> None:
    commit = "0123456789abcdef"
    found = bench(against("a", commit), against("b", commit), refresh_cell([50.0]))
    rows = {row[1].text: row[-1].text for row in targets_table(found).rows if "at v1" in row[2].text}
    assert rows == {f"gnlorp, full rule, {mode}": met for mode, met in
                    (("fast", "missed"), ("least", "met"), ("auto", "missed"))}  # fmt: skip
    assert f"held against that of {commit[:12]}" in to_markdown(targets_table(found))
    drawn, before = bench_plot(found), bench_plot(bench(layer_cell("a", 1.0), refresh_cell([50.0])))
    assert drawn is not None
    assert before is not None
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in drawn.figure.axes]
    assert titles[-1] == "Layer, time / gnlorp at v1, full\nrule"
    assert len(titles) == len(before.figure.axes) + 1
    # Beside LoRA stands what is held against LoRA alone.
    assert [len(axes.containers) for axes in drawn.figure.axes[:2]] == [
        len(axes.containers) * 2 for axes in before.figure.axes[:2]
    ]


def matrix(answer: str = "yes") -> CapabilityMatrix:
    cells = [
        Answered(check="resume", answer=answer, reason="because"),
        Answered(check="per-layer", answer="not applicable", reason="r"),
    ]  # type: ignore[arg-type]
    rows = [Capabilities(name="lora", title="LoRA", cells=cells), Capabilities(name="dora", title="DoRA", cells=cells)]
    return CapabilityMatrix(
        started_at="", finished_at="", environment=MACHINE, networks=["bert"], compile_backend="x", rows=rows
    )


def test_the_matrix_shows_each_answer_and_its_reason_once() -> None:
    text = to_markdown(capabilities_table(matrix()))
    assert "| LoRA | yes | n/a |" in text
    assert text.count("because") == 1
    assert "| DoRA | **NO** | n/a |" in to_markdown(capabilities_table(matrix("no")))


def test_a_method_or_an_answer_that_the_record_lacks_reads_not_recorded_yet() -> None:
    found = matrix()
    older = Capabilities(name="full", title="Full", cells=found.rows[0].cells[:1])
    newer = found.model_copy(update={"rows": [older, *found.rows]})
    known = Catalogue(methods=[MethodEntry(name="lora", title="LoRA"), MethodEntry(name="vera", title="VeRA")])
    text = to_markdown(capabilities_table(newer, known))
    assert "| VeRA | not recorded yet | not recorded yet |" in text
    assert "| Full | yes | not recorded yet |" in text
    assert text.count("| LoRA |") == 1


def test_the_snapshot_of_the_matrix_is_what_the_committed_record_gives() -> None:
    record = read_single(ROOT / "results" / "reference" / "capabilities.json", CapabilityMatrix)
    snapshot = ROOT / "reports" / "snapshot" / "capabilities" / "capabilities.md"
    assert snapshot.read_text() == to_markdown(capabilities_table(record))
    assert all(row.passed for row in record.rows)


def test_the_snapshot_of_the_bench_is_what_the_committed_record_gives() -> None:
    record = read_single(ROOT / "results" / "reference" / "bench.json", Bench)
    snapshot = ROOT / "reports" / "snapshot" / "bench" / "bench.md"
    assert snapshot.read_text() == to_markdown(targets_table(record))
    assert all(cell.agrees for cell in record.cells)
    assert not record.quick


def test_commands_write_what_the_readme_takes(tmp_path: Path) -> None:
    write_single(tmp_path / "b.json", bench(layer_cell("a", 1.0, 1.1), refresh_cell([50.0])))
    write_single(tmp_path / "c.json", matrix())
    for name in ("bench", "capabilities"):
        record = str(tmp_path / f"{name[0]}.json")
        result = CliRunner().invoke(app, [name, "--record", record, "--out", str(tmp_path)])
        assert result.exit_code == 0, result.output
        text = filled(f"<!-- table: {name} -->\n<!-- end -->", tmp_path)
        assert text == filled(f"<!-- table: {name}/{name}.md -->\n<!-- end -->", tmp_path).replace(
            f"/{name}.md -->", " -->"
        )
        assert "| ---" in text
    assert (tmp_path / "bench" / "bench.svg").is_file()


@pytest.mark.parametrize("name", ["bench", "capabilities"])
def test_a_missing_record_is_one_line(name: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [name, "--record", str(tmp_path / "x.json"), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "cannot be read" in result.output
