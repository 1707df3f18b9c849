"""What is checked and predicted before the first run."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from suites.resolved import resolved
from suites.run import preflight
from suites.run.preflight import check, predict_peaks
from suites.suite import Runtime


def test_settings_that_fit_pass(make_plan: Any, runtime: Runtime) -> None:
    check([make_plan(), make_plan(method="galore"), make_plan(method="gradnormlorp", seed=1)], runtime)
    check([], runtime)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "lora", "config": {"rank": 97}}, r"rank 97.*96x96.*nearest allowed value: 96"),
        ({"method": "dora", "config": {"rank": 0}}, r"rank 0.*nearest allowed value: 1"),
        ({"method": "galore", "config": {"projection_rank": 0}}, r"projection_rank 0.*nearest allowed value: 1"),
        ({"method": "gradnormlorp", "config": {"projection_rank": 9}}, r"projection_rank 9"),
        ({"targets": "query,nothing"}, "'nothing' matches no linear layer"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_found_among_good_ones(
    settings: dict[str, Any], text: str, make_plan: Any, runtime: Runtime
) -> None:
    with pytest.raises(ValueError, match=text):
        check([make_plan(), make_plan(**settings)], runtime)


def test_each_different_case_is_checked_once(make_plan: Any, runtime: Runtime, monkeypatch: Any) -> None:
    seen: list[str] = []
    monkeypatch.setattr(preflight, "check_fit", lambda case: seen.append(case.plan.method))
    check([make_plan(method=name, seed=seed) for seed in range(3) for name in ("full", "lora")], runtime)
    assert sorted(seen) == ["full", "lora"]


@pytest.mark.parametrize(
    "settings",
    [
        {"state_bits": 8},
        {"recompute": ["mlp"]},
        {"per_layer": True, "clip_norm": 0},
        {"compile": True},
        {"precision": "bf16", "bf16_updates": "kahan"},
    ],
)
def test_what_a_check_looks_at_is_checked_in_every_case(
    settings: dict[str, Any], make_plan: Any, runtime: Runtime, monkeypatch: Any
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(preflight, "check_fit", lambda case: seen.append(case.plan))
    plans = [make_plan(**settings), make_plan()]
    check(plans, runtime)
    assert seen == plans


def test_every_plan_gets_its_peak_and_like_steps_share_a_trace(
    make_plan: Any, runtime: Runtime, monkeypatch: Any
) -> None:
    traces = 0
    real = preflight.predict_step_peak

    def counting(*arguments: Any) -> Any:
        nonlocal traces
        traces += 1
        return real(*arguments)

    monkeypatch.setattr(preflight, "predict_step_peak", counting)
    plans = [make_plan(), make_plan(seed=1), make_plan(learning_rate=1e-5), make_plan(accumulation=2)]
    peaks = predict_peaks(plans, runtime)
    assert peaks.keys() == {plan.hash() for plan in plans}
    assert traces == 2
    whole, halves = peaks[plans[0].hash()], peaks[plans[3].hash()]
    assert whole is not None
    assert halves is not None
    assert halves < whole


def test_a_longer_text_needs_more(make_plan: Any, runtime: Runtime) -> None:
    short, long = (make_plan(max_length=length) for length in (8, 48))
    peaks = predict_peaks([short, long], runtime)
    assert (peaks[short.hash()] or 0) < (peaks[long.hash()] or 0)


def test_a_batch_without_padding_is_another_trace(make_plan: Any, runtime: Runtime) -> None:
    plan = make_plan()
    case = resolved(plan, runtime)
    job = case.job()
    whole = torch.ones_like(job.largest["attention_mask"])
    padded = whole.clone()
    padded[0, -1] = 0
    keys = [
        preflight._shapes(dataclasses.replace(job, largest={**job.largest, "attention_mask": mask}), case)
        for mask in (whole, padded)
    ]
    assert keys[0] != keys[1]
