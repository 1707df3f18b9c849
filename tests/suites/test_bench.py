"""The bench at tiny shapes: every cell is measured, all candidates compute the same, what is missing is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn
from transformers import BertConfig
from typer.testing import CliRunner

from baselines.registry import methods
from results.bench import Bench, BenchCell
from results.store import read_single
from suites.__main__ import app
from suites.bench import layer, model, refresh, step
from suites.bench.command import bench
from suites.bench.methods import methods_cell
from suites.bench.run import GROUPS, items
from suites.bench.timing import in_turns, ratio_claim


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, str]:
    """Return the record and the output of a quick run."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    result = CliRunner().invoke(app, ["bench", "--quick", "--out", str(path)])
    assert result.exit_code == 0, result.output
    return read_single(path, Bench), result.output


def test_a_quick_run_measures_every_group(quick: tuple[Bench, str]) -> None:
    found, output = quick
    assert {cell.group for cell in found.cells} == set(GROUPS)
    assert found.quick
    assert found.command == "python -m suites bench --quick"
    assert "expected time" in output
    for cell in found.cells:
        assert cell.agrees, cell.agreement
        assert cell.agreement
        for each in cell.candidates:
            assert (each.missing is None) == bool(each.seconds), each.title
            assert all(seconds > 0 for seconds in each.seconds)


def test_the_targets_are_those_of_the_whole_bench(quick: tuple[Bench, str]) -> None:
    found, _ = quick
    stated = {(cell.group, claim.what, claim.rule, claim.target) for cell in found.cells for claim in cell.claims}
    assert stated >= {
        ("layer", "time", "at most", 1.15),
        ("layer", "peak bytes", "at most", 1.1),
        ("refresh", "times faster", "at least", 40.0),
        ("refresh", "energy kept", "at least", 0.999),
        ("step", "step time", "at most", 0.6),
        ("step", "step time with a refresh every 200", "at most", 0.5),
        ("model", "step time", "at most", 1.1),
    }


def test_the_whole_bench_has_every_shape_and_stays_within_its_time() -> None:
    labels = [item.label for item in items(quick=False)]
    for shape in ("768x768", "768x3072", "2048x5461", "4096x11008"):
        longer = [f"layer {shape}, rank 8, 4096 tokens"]
        ranks = [f"layer {shape}, rank {rank}, 512 tokens" for rank in (8, 128)]
        assert [label for label in labels if label.startswith(f"layer {shape}")] == ranks + longer
        assert f"refresh {shape}" in labels
    assert {f"MiniLM, 8x{length} tokens" for length in (64, 512)} <= set(labels)
    # 340 s of it are the refresh of the largest shape, whose SVD takes most of a minute, 360 its layer on 4,096 tokens.
    assert sum(item.seconds + item.overhead_s for item in items(quick=False)) < 31 * 60


def test_every_method_that_trains_a_matrix_has_its_step_beside_the_yardsticks(quick: tuple[Bench, str]) -> None:
    found, _ = quick
    (cell,) = [cell for cell in found.cells if cell.group == "methods"]
    expected = {m.name for m in methods().values() if m.trains_layers((64, 64), m.configure(4))}
    assert {each.name for each in cell.candidates} == expected
    assert len(cell.claims) == len(expected) - 1
    (yardstick,) = [method for method in methods().values() if method.yardstick]
    for claim in cell.claims:
        assert claim.peer == yardstick.title
        assert claim.target is None
        (own,) = [each for each in cell.candidates if each.title == claim.ours]
        assert len(own.seconds) == len(claim.values) >= 3


def test_peak_bytes_are_exact_and_leave_out_what_was_there() -> None:
    first, second = (layer.layer_cell((48, 32), 4, 16, True, 0.01) for _ in range(2))
    bytes_of = [{each.name: each.peak_bytes for each in cell.candidates} for cell in (first, second)]
    assert bytes_of[0] == bytes_of[1]
    # At least the output, the input's gradient and the factors' gradients.
    assert all(size >= 4 * (16 * 48 + 16 * 32 + 4 * 80) for size in bytes_of[0].values() if size is not None)
    assert sum(size is None for size in bytes_of[0].values()) == len(layer.FORWARD)


def test_a_layer_that_computes_something_else_is_found() -> None:
    torch.manual_seed(0)
    base = nn.Linear(32, 48).requires_grad_(False)
    x, grad = torch.randn(16, 32, requires_grad=True), torch.randn(16, 48)
    layers = layer.make_layers(base, 4)
    assert max(layer.compared(layers, base, x, grad).values()) < 1e-5
    with torch.no_grad():
        layers["detached, least"].magnitude.mul_(1.01)  # type: ignore[operator, union-attr]
    found = layer.compared(layers, base, x, grad)
    assert [what for what, apart in found.items() if apart > 1e-5] == ["gnlorp, detached rule, least against DoRA"]
    assert max(found.values()) > layer.LIMIT


def test_a_step_is_held_against_what_its_arithmetic_allows(quick: tuple[Bench, str]) -> None:
    (cell,) = [cell for cell in quick[0].cells if cell.group == "step"]
    bounds = {each.name: each.seconds[0] for each in cell.candidates if each.name.endswith("bound")}
    assert set(bounds) == {"ours bound", "fused bound"}
    claims = {(claim.ours, claim.peer): claim for claim in cell.claims if "bound" in claim.peer}
    assert len(claims) == 3
    between = claims[step.TITLES["ours"] + step.BOUND, step.TITLES["fused"] + step.BOUND]
    assert between.median == pytest.approx(bounds["ours bound"] / bounds["fused bound"])
    assert "G operations" in str(cell.note)


def test_the_bounds_of_one_weight_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_rates", lambda: (1e3, 1e3))
    bounds, _ = step._bounds([torch.zeros(10, 4), torch.zeros(6)], 1, 2)
    assert bounds["ours"] == max(2 * 2 * 40 * 2, 4 * (3 * 40 + 4 * 20 + 8 + 7 * 6)) / 1e3
    assert bounds["fused"] == 4 * 7 * 46 / 1e3


def test_forward_alone_is_measured_with_and_without_pefts_cache() -> None:
    cell = layer.layer_cell((48, 32), 4, 16, True, 0.01)
    claims = [claim for claim in cell.claims if claim.what == "forward time"]
    peers = [claim.peer.removesuffix(layer.ALONE) for claim in claims]
    assert peers == ["LoRA (peft)", "DoRA (peft)", "DoRA (peft), cached"]
    assert all(claim.values for claim in claims)


@pytest.mark.parametrize("module", [refresh, step])
def test_a_missing_peer_is_said_and_measures_nothing(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "galore_torch", lambda: None)
    group = {refresh: "refresh", step: "step"}[module]  # type: ignore[index]
    (item,) = [item for item in items(quick=True) if item.group == group]
    cell = item.measure(0.01)
    missing = [each for each in cell.candidates if each.missing]
    assert [each.seconds for each in missing] == [[]]
    assert "not installed" in str(missing[0].missing)
    against = [claim for claim in cell.claims if "galore-torch" in claim.peer and claim.what != "energy kept"]
    assert against
    assert all(claim.median is None and claim.met is None for claim in against)


def test_without_its_package_the_model_comes_from_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    small = BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=70)
    monkeypatch.setattr(model, "find_spec", lambda name: None)
    monkeypatch.setattr(model, "find_network", lambda name: SimpleNamespace(config=small))
    cell = model.model_cell("MiniLM", None, 2, 8, 0.01)
    assert cell.note is not None
    assert cell.note.startswith("random weights")


def test_candidates_take_turns_and_every_round_has_all_of_them() -> None:
    called: list[str] = []
    work = {name: (lambda name=name: called.append(name)) for name in ("a", "b")}
    seconds = in_turns(work, 0.0, least=4)
    assert [len(values) for values in seconds.values()] == [4, 4]
    rounds = "".join(called)
    # The order turns around: no candidate is always the first.
    assert "ab" in rounds
    assert "ba" in rounds


def test_ratios_are_taken_round_by_round() -> None:
    claim = ratio_claim("time", [2.0, 3.0, 8.0], [1.0, 2.0, 2.0], ("x", "y"), "at most", 2.0)
    assert claim.values == [2.0, 1.5, 4.0]
    assert (claim.median, claim.met) == (2.0, True)
    assert ratio_claim("time", [1.0], [], ("x", "y"), "at most", 2.0).met is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "layers"], "unknown group 'layers'"),
        (["--time", "0"], "time 0: must be above 0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments, "--out", str(tmp_path / "bench.json")])
    assert result.exit_code == 2
    assert says in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_what_was_measured_is_kept_when_the_rest_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(seconds: float) -> BenchCell:
        raise KeyboardInterrupt

    first = next(item for item in items(quick=True) if item.group == "refresh")
    cut = [first, replace(first, label="cut off", measure=broken)]
    monkeypatch.setattr("suites.bench.command.items", lambda *chosen: cut)
    path = tmp_path / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        bench(Console(quiet=True), (), True, 1.0, path)
    assert [cell.label for cell in read_single(path, Bench).cells] == ["64x160"]


@pytest.mark.parametrize("factor", [30.0, 1.0])
def test_a_step_with_products_of_bf16_is_timed_by_way_of_fp32_where_units_lack(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suites.bench.methods.bf16_slowdown", lambda device: factor)
    monkeypatch.setattr(
        "suites.bench.methods.methods", lambda: {name: methods()[name] for name in ("full", "galore", "muon")}
    )
    cell = methods_cell("tiny", (32, 64, 1, 2), 64, 4, 16, 0.05)
    said = "products of bf16 matrices in fp32, rounded once, as here no unit does them: Muon"
    assert (said in cell.note) == (factor > 1.5)
    assert "GaLore" not in cell.note
