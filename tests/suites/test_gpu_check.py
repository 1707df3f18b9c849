"""The device check, rehearsed on a processor: its questions work, and its record says that it was a rehearsal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from results.gpu import GpuReport
from results.store import read_single, record_paths
from suites.__main__ import app
from suites.capabilities.networks import make_batch, make_network, on_device
from suites.gpu import correct, measured
from suites.gpu.command import OUT, ask, questions
from suites.gpu.where import Where

QUICK = "fast against slow,8-bit,refresh,layer"


def where() -> Where:
    return Where(torch.device("cpu"))


def test_without_a_device_it_says_so_in_one_line_and_exits_with_2(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    result = CliRunner().invoke(app, ["gpu-check", "--out", str(tmp_path)])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert "no CUDA device is here" in line
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_answers_and_says_what_it_is(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["gpu-check", "--device", "cpu", "--only", QUICK, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("rehearsal-*.json")
    found = read_single(path, GpuReport)
    assert found.rehearsal
    assert found.failed == 0
    assert list(found.seconds) == QUICK.split(",")
    assert {verdict.answer for verdict in found.verdicts} <= {"holds", "stated", "skipped"}
    assert {"optimizer, side both", "layer, gradient rule full"} <= {verdict.what for verdict in found.verdicts}


def test_a_wrong_answer_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correct, "LAYER_LIMIT", 0.0)
    arguments = ["gpu-check", "--device", "cpu", "--only", "fast against slow", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "2 of 5 answers are no" in result.stdout


def test_a_question_that_breaks_is_answered_no_and_the_next_is_asked() -> None:
    def broken(where: Where) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")

    found = ask(where(), {"broken": broken, "8-bit": correct.eight_bit}, 60.0)
    assert found.failed == 1
    assert found.verdicts[0].words == "RuntimeError: CUDA error: an illegal memory access was encountered more of it"
    assert {verdict.check for verdict in found.verdicts} == {"broken", "8-bit"}


def test_what_comes_after_the_budget_is_skipped_by_name() -> None:
    found = ask(where(), {"8-bit": correct.eight_bit, "layer": measured.layers}, 0.0)
    assert [(verdict.check, verdict.answer) for verdict in found.verdicts] == [
        ("8-bit", "skipped"),
        ("layer", "skipped"),
    ]
    assert found.seconds == {}


def test_a_decay_that_comes_last_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def last(weights: list[nn.Parameter], adam: object) -> torch.optim.Optimizer:
        class Late(torch.optim.SGD):
            def step(self, closure: object = None) -> None:  # type: ignore[override]
                super().step()
                with torch.no_grad():
                    weights[0].mul_(0.75)

        return Late(weights, lr=0.5)

    monkeypatch.setattr(correct, "adamw", last)
    found = ask(where(), {"8-bit": correct.eight_bit}, 60.0)
    wrong = [verdict.what for verdict in found.verdicts if verdict.answer == "fails"]
    assert wrong == [f"bitsandbytes, {values} values: decay order" for values in (64, 8192)]


def test_every_point_of_the_list_is_asked() -> None:
    assert set(questions()) == {
        "contract pack", "fast against slow", "tracked against allocated", "8-bit", "per-layer", "resume", "layer",
        "refresh", "step", "tokens a second", "one real run",
    }  # fmt: skip
    assert OUT == Path("results/reference/gpu")


def test_its_files_are_no_records_of_runs(tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "check.json").write_text(json.dumps({}))
    (tmp_path / "run.json").write_text("{}")
    assert [path.name for path in record_paths([tmp_path])] == ["run.json"]


def test_the_pack_can_be_made_on_another_device() -> None:
    with on_device(torch.device("meta")):
        assert make_batch("bert")["input_ids"].device.type == "meta"
        assert {parameter.device.type for parameter in make_network("bert").parameters()} == {"meta"}
    assert make_batch("bert")["input_ids"].device.type == "cpu"


@pytest.mark.slow
def test_every_question_is_answered_in_a_rehearsal() -> None:
    found = ask(where(), questions(), 600.0)
    assert [verdict for verdict in found.verdicts if verdict.answer == "fails"] == []
    assert set(found.seconds) == set(questions())
