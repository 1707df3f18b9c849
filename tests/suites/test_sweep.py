"""Sweeps: how they are typed, which runs they are, and the table that comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from suites.__main__ import app
from suites.plan import Request, make_plans
from suites.suite import Runtime
from suites.sweep import merged, nested, parse_sweeps, variants

RUNTIME = Runtime(torch.device("cpu"), offline=True)
ALPHA = ("method.lora.config.alpha", (8, 16, 32))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method.lora.config.alpha=8,16,32", ALPHA),
        ("learning_rate = 1e-4, 3e-4", ("learning_rate", (1e-4, 3e-4))),
        ("schedule=linear,cosine", ("schedule", ("linear", "cosine"))),
        ("per_layer=true,false", ("per_layer", (True, False))),
        ("targets=['query,value', 'attention']", ("targets", ("query,value", "attention"))),
        ("rank=4", ("rank", (4,))),
    ],
)
def test_values_are_toml_or_bare_words(text: str, expected: Any) -> None:
    assert parse_sweeps([text]) == (expected,)


@pytest.mark.parametrize(
    ("texts", "part"),
    [
        (["alpha"], "must be name=value,value"),
        (["alpha="], "must be name=value,value"),
        (["=3"], "must be name=value,value"),
        (["a=1,2", "a=3"], "given twice"),
        (["a=1,1"], "stands there twice"),
    ],
)
def test_what_is_no_sweep_is_refused(texts: list[str], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        parse_sweeps(texts)


def request(**changes: Any) -> Request:
    few = {"suite": "glue", "profile": "micro", "rank": 8, "tasks": ("rte",), "seeds": (0,)}
    return Request(**{**few, "methods": ("full", "lora"), **changes})


def test_a_swept_setting_makes_a_run_a_value_and_leaves_the_others_alone() -> None:
    plans = make_plans(request(sweep=(ALPHA,)), RUNTIME)
    assert [(plan.method, plan.method_config.get("alpha")) for plan in plans] == [
        ("full", None), ("lora", 8.0), ("lora", 16.0), ("lora", 32.0),
    ]  # fmt: skip
    plain = {plan.hash() for plan in make_plans(request(), RUNTIME)}
    assert plain <= {plan.hash() for plan in plans}


def test_several_sweeps_are_their_product_and_beat_what_is_set() -> None:
    both = request(sweep=(ALPHA, ("state_bits", (8, 32))), overrides=(("method", {"lora": {"config": {"alpha": 4}}}),))
    plans = make_plans(both, RUNTIME)
    found = [(plan.method_config["alpha"], plan.training.state_bits) for plan in plans if plan.method == "lora"]
    assert found == [(8.0, 8), (8.0, 32), (16.0, 8), (16.0, 32), (32.0, 8), (32.0, 32)]
    assert [plan.training.state_bits for plan in plans if plan.method == "full"] == [8, 32]


def test_ranks_are_swept_as_whole_comparisons() -> None:
    plans = make_plans(request(sweep=(("rank", (4, 8)),)), RUNTIME)
    assert [plan.method_config.get("rank") for plan in plans] == [None, 4, 8]
    with pytest.raises(ValueError, match="'x' must be a whole number"):
        list(variants(request(sweep=(("rank", ("x",)),))))


def test_a_sweep_that_changes_no_run_is_refused() -> None:
    with pytest.raises(ValueError, match="both make the same runs"):
        make_plans(request(methods=("full",), sweep=(ALPHA,)), RUNTIME)


def test_tables_are_merged_deeply() -> None:
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, nested("a.b", 5)) == {"a": {"b": 5, "c": 2}, "d": 3}
    assert merged({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}


def test_a_sweep_is_a_plan_runs_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("glue", "--seeds", "0", "--task", "rte", "--method", "lora", "--steps", "2", "--set", "train_rows=32",
           "--set", "eval_rows=32", "--sweep", "method.lora.config.alpha=8,16")  # fmt: skip
    plan = CliRunner().invoke(app, ["plan", *few])
    assert plan.exit_code == 0, plan.output
    assert "2 runs (1 task), 2 missing" in plan.stdout
    assert "alpha=8.0" in plan.stdout
    assert "alpha=16.0" in plan.stdout
    wrong = CliRunner().invoke(app, ["plan", *few, "--sweep", "method.lora.config.alpa=1,2"])
    assert (wrong.exit_code, len(wrong.stderr.splitlines())) == (2, 1)
    assert "unknown lora setting 'alpa'" in wrong.stderr
    assert "nearest: alpha" in wrong.stderr
