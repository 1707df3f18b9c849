"""The capability pack on optimizers from outside: it passes a sound one and names what is wrong with a broken one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from results.capabilities import Capabilities, CapabilityMatrix
from results.store import read_single
from suites.__main__ import app
from suites.capabilities import check_optimizer, command, pack
from suites.capabilities.checks import checks, run_check
from suites.capabilities.subject import optimizer_subject


def answers(make: Any, names: Sequence[str], eight_bit: Any = None) -> dict[str, str]:
    """Return check -> answer for a few checks only."""
    subject = optimizer_subject(make, 2e-3, eight_bit, "x")
    return {name: run_check(checks()[name], subject, ("llama-lm",)).answer for name in names}


class Forgetful(torch.optim.AdamW):
    """Keeps its step count and moments where state_dict does not look."""

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "state": {}}


class Deaf(torch.optim.AdamW):
    """Uses the rate it was made with, whatever a scheduler says."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = self.defaults["lr"]
        return super().step(closure)


class Eager(torch.optim.SGD):
    """Takes every gradient as it comes, as a hook: so it neither accumulates nor sees clipping."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        for parameter in self.param_groups[0]["params"]:
            parameter.register_post_accumulate_grad_hook(self._take)

    @torch.no_grad()
    def _take(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.sub_(parameter.grad.sign(), alpha=self.param_groups[0]["lr"])
        parameter.grad = None

    def step(self, closure: Any = None) -> Any:
        return None


class Picky(torch.optim.AdamW):
    """Refuses bfloat16 when it is made."""

    def __init__(self, params: Any, lr: float) -> None:
        chosen = list(params)
        if any(parameter.dtype == torch.bfloat16 for parameter in chosen):
            raise ValueError("parameters in bfloat16: must be float32")
        super().__init__(chosen, lr=lr)


def adamw(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate)


def test_adamw_passes_every_row() -> None:
    report = check_optimizer(adamw, name="AdamW", backend="eager")
    assert report.passed, str(report)
    assert [cell.check for cell in report.cells] == list(checks())
    found = {cell.check: cell.answer for cell in report.cells}
    absent = {"8-bit", "merge"}
    assert {name for name, answer in found.items() if answer == "not applicable"} == absent
    assert {answer for name, answer in found.items() if name not in absent} == {"yes"}
    assert "not applicable: no 8-bit variant was given" in str(report)


def test_state_that_is_not_saved_is_found() -> None:
    names = ("accumulation", "learning rate", "resume")
    assert answers(lambda p, lr: Forgetful(p, lr=lr), names) == {
        "accumulation": "yes",
        "learning rate": "yes",
        "resume": "no",
    }


def test_a_rate_that_is_not_followed_is_found() -> None:
    assert answers(lambda p, lr: Deaf(p, lr=lr), ("learning rate", "clipping")) == {
        "learning rate": "no",
        "clipping": "yes",
    }


def test_updates_that_neither_accumulate_nor_clip_are_found() -> None:
    assert answers(Eager, ("accumulation", "clipping")) == {"accumulation": "no", "clipping": "no"}


def test_eight_bits_that_are_not_kept_are_found() -> None:
    assert answers(adamw, ("8-bit",), eight_bit=adamw) == {"8-bit": "no"}


def test_eight_bits_that_are_kept_are_seen() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    narrow = answers(adamw, ("8-bit", "resume"), lambda p, lr: bitsandbytes.optim.AdamW8bit(p, lr=lr))
    assert narrow == {"8-bit": "yes", "resume": "yes"}


def test_an_error_when_asked_is_a_refusal_and_a_crash_is_not() -> None:
    assert answers(Picky, ("bf16", "learning rate")) == {"bf16": "refused", "learning rate": "yes"}

    def crash(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        raise KeyError("oops")

    assert answers(crash, ("bf16",)) == {"bf16": "no"}


def test_an_optimizer_that_does_nothing_fails() -> None:
    class Still(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return None

    found = answers(lambda p, lr: Still(p, lr=lr), ("accumulation", "clipping"))
    assert set(found.values()) == {"no"}


def test_galore_torch_trains_but_does_not_load_safely() -> None:
    galore = pytest.importorskip("galore_torch")

    def make(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        matrices = [p for p in parameters if p.ndim == 2]
        rest = [p for p in parameters if p.ndim != 2]
        low = {"params": matrices, "rank": 8, "update_proj_gap": 3, "scale": 1.0, "proj_type": "std"}
        return galore.GaLoreAdamW([low, {"params": rest}], lr=rate, no_deprecation_warning=True)

    found = answers(make, ("accumulation", "learning rate", "resume"))
    # Its bases live in an object of its own inside the state, which `weights_only=True` rightly refuses.
    assert found == {"accumulation": "yes", "learning rate": "yes", "resume": "no"}


def test_one_that_refuses_everything_does_not_pass() -> None:
    report = check_optimizer(lambda p, lr: torch.optim.AdamW(p, lr=-lr), name="wrong sign")
    assert {cell.answer for cell in report.cells} <= {"refused", "not applicable"}
    assert not report.passed


@pytest.mark.slow
def test_one_that_fails_for_its_rate_alone_is_told_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: checks()[name] for name in ("bf16", "learning rate")}
    monkeypatch.setattr(pack, "checks", lambda backend: few)
    report = check_optimizer(lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), learning_rate=1e-3)
    assert not report.passed
    assert report.cell("bf16").reason.endswith("at a rate of 0.001; learns with learning_rate=0.01")
    assert check_optimizer(lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9), learning_rate=1e-2).passed


def test_what_makes_no_optimizer_is_named() -> None:
    with pytest.raises(TypeError, match="make_optimizer: must be called"):
        check_optimizer(torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learning_rate -1: must be a number above 0"):
        check_optimizer(adamw, learning_rate=-1)
    subject = optimizer_subject(lambda p, lr: None, 2e-3, None, "x")  # type: ignore[arg-type, return-value]
    assert "make_optimizer returned NoneType" in run_check(checks()["bf16"], subject, ("llama-lm",)).reason


def test_a_row_names_its_checks() -> None:
    row = Capabilities(name="x", title="x", cells=[])
    with pytest.raises(KeyError, match="'resume'"):
        row.cell("resume")


def test_the_command_prints_the_matrix_and_writes_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: check for name, check in checks().items() if name in ("per-layer", "learning rate")}
    for module in (pack, command):
        monkeypatch.setattr(module, "checks", lambda backend="aot_eager": few)
    path = tmp_path / "capabilities.json"
    result = CliRunner().invoke(app, ["capabilities", "--method", "lora", "--backend", "eager", "--out", str(path)])
    assert result.exit_code == 0, result.output
    assert (
        "LoRA, per-layer: yes: bit-equal to the ordinary step; gradients freed; accumulation refused" in result.output
    )
    found = read_single(path, CapabilityMatrix)
    assert [row.name for row in found.rows] == ["lora"]
    assert [cell.check for cell in found.rows[0].cells] == list(few)
    assert found.compile_backend == "eager"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "lorra"], "nearest: lora"),
        (["--backend", "inductr"], "nearest: inductor"),
        (["--learning-rate", "0"], "learning_rate 0: must be a number above 0"),
    ],
)
def test_bad_input_to_the_command_is_one_line(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["capabilities", *arguments])
    assert result.exit_code == 2
    assert says in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_the_former_name_still_imports_and_says_the_new_one() -> None:
    sys.modules.pop("suites.contract", None)
    with pytest.warns(DeprecationWarning, match=r"suites\.capabilities"):
        former = importlib.import_module("suites.contract")
    assert former.check_optimizer is check_optimizer
