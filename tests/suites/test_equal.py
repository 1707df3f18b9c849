"""Equal memory: the largest batch that the smallest method's step leaves room for, by prediction."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from results.schema import Plan
from suites import equal
from suites.plan import Request, make_plans
from suites.run.preflight import predict_peaks
from suites.suite import Runtime

CPU = Runtime(torch.device("cpu"), offline=True)
FEW = {"model": "0.1m", "steps": 3, "batch_size": 12, "train_rows": 40, "eval_tokens": 400, "evaluations": 1}


def plans(*methods: str, **more: Any) -> list[Plan]:
    asked = Request("c4", "micro", 8, (), methods, (0,), tuple({**FEW, **more}.items()))
    return make_plans(asked, CPU)


def peaks(found: list[Plan]) -> dict[str, int]:
    by_hash = predict_peaks(found, CPU)
    return {plan.method: by_hash[plan.hash()] or 0 for plan in found}


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_method_has_the_largest_batch_within_the_smallest_ones_peak(accumulation: int) -> None:
    names = ("full", "lora", "dora")
    before = plans(*names, accumulation=accumulation)
    found = plans(*names, accumulation=accumulation, equal="memory")
    room = min(peaks(before).values())
    assert all(peak <= room for peak in peaks(found).values())
    assert any(plan.training.batch_size == 12 for plan in found)
    assert any(plan.training.batch_size < 12 for plan in found)
    larger = [equal._of(plan, plan.training.batch_size + accumulation) for plan in found]
    assert all(peak > room for peak in peaks(larger).values())
    for plan, other in zip(found, before, strict=True):
        assert plan.training.batch_size % accumulation == 0
        assert (plan.training.steps, plan.variant) == (other.training.steps, "equal memory")
        assert plan.training.epochs == pytest.approx(
            (other.training.epochs or 0) * plan.training.batch_size / other.training.batch_size
        )


def test_equal_tokens_are_the_default_and_leave_no_trace_in_a_plan() -> None:
    assert [plan.hash() for plan in plans("full", "lora", equal="tokens")] == [p.hash() for p in plans("full", "lora")]


def test_a_method_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = plans("full")
    with pytest.raises(ValueError, match=r"equal = 'memory': full on c4 takes [\d,]+ bytes with the smallest batch, 1"):
        equal._largest(plan, 10, CPU)


def test_few_predictions_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = plans("full", batch_size=1000)
    asked: list[int] = []

    def predicted(given: list[Plan], runtime: Runtime) -> dict[str, int]:
        asked.extend(each.training.batch_size for each in given)
        return {each.hash(): 5_000 + 97 * each.training.batch_size for each in given}

    monkeypatch.setattr(equal, "predict_peaks", predicted)
    for room in (5_097, 5_100, 20_000, 101_902):
        asked.clear()
        size = equal._largest(plan, room, CPU).training.batch_size
        assert 5_000 + 97 * size <= room < 5_000 + 97 * (size + 1)
        assert len(asked) <= 6
