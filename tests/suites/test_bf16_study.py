"""The bf16 study: the same plans in every arm, and losses beside fp32's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from suites.__main__ import app
from suites.bf16_study import ARMS, BASELINE, arm_plans, interval, study_table
from suites.plan import Request
from suites.suite import Runtime

TINY = ["--profile", "micro", "--method", "full", "--steps", "3", "--workers", "1", "--device", "cpu", "--offline"]
SETS = ["--set", "batch_size=4", "--set", "train_rows=200", "--set", "eval_tokens=500", "--set", "evaluations=1"]


def test_arms_differ_in_nothing_but_the_weights() -> None:
    request = Request("c4", "micro", 24, (), ("full", "galore"), (0, 1))
    plans = arm_plans(request, Runtime(torch.device("cpu")))
    assert len(plans) == len({plan.hash() for plan in plans}) == len(ARMS) * 2 * 2
    kept = {
        plan.model_copy(
            update={
                "variant": "",
                "training": plan.training.model_copy(update={"precision": "fp32", "bf16_updates": "nearest"}),
            }
        ).hash()
        for plan in plans
    }
    assert len(kept) == 2 * 2
    wide = arm_plans(replace(request, overrides=(("bf16_products", "fp32"),)), Runtime(torch.device("cpu")))
    assert {plan.training.precision: plan.training.bf16_products for plan in wide} == {"fp32": "native", "bf16": "fp32"}
    assert [plan.seed for plan in plans[: len(ARMS) * 2]] == [0] * (len(ARMS) * 2)


def test_the_table_says_the_paired_difference() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-5)
    losses: dict[tuple[str, str], list[float | None]] = {
        ("full", BASELINE): [3.0, 3.2, 3.1], ("full", "bf16, nearest"): [3.5, 3.7, 3.6],
        ("full", "bf16, kahan"): [3.01, 3.21, None],
    }  # fmt: skip
    columns = {str(column.header): list(column.cells) for column in study_table(losses).columns}
    assert columns["loss - fp32"] == ["-", "+0.5000", "+0.0100"]
    assert columns["in fp32's noise"] == ["-", "no", "yes"]
    assert columns["seeds"] == ["3", "3", "2"]


@pytest.mark.slow
def test_the_command_runs_every_arm(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bf16-study", *TINY, *SETS, "--seeds", "0", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert all(arm in result.stdout for arm in ARMS)
    assert len(list(tmp_path.glob("*.json"))) == len(ARMS)


@pytest.mark.parametrize("given", ["precision=bf16", "method.full.precision=bf16", "task.c4.bf16_updates=kahan"])
def test_what_the_study_sets_itself_is_refused(given: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bf16-study", *TINY, "--set", given, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "the study sets it in every arm" in result.stderr


def test_a_sweep_is_not_offered_since_its_values_would_pass_for_seeds(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["bf16-study", *TINY, "--sweep", "learning_rate=1e-3,1e-4", "--out", str(tmp_path)]
    )
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []
