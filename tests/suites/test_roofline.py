"""GPU hours before anything runs: the FLOP of a step by hand, and a range that keeps its order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from results.devices import read_devices
from results.store import StoreError
from suites.console import hours_lines
from suites.measure.roofline import USED, hours, record_bytes, seconds_a_step, work_of
from suites.options import resolve_device
from suites.plan import Request, make_plans
from suites.resolved import resolved
from suites.suite import Runtime

DRY = Runtime(torch.device("cuda"), offline=True, dry=True)


def test_every_device_has_a_source_and_rates_in_order() -> None:
    for device in read_devices():
        assert device.source
        assert device.fp32 <= device.tf32 <= device.bf16


def test_a_device_without_a_source_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "devices.json"
    row = '{"name": "X", "memory_bytes": 1, "fp32": 1, "tf32": 1, "bf16": 1, "bandwidth": 1, "source": ""}'
    path.write_text('{"schema_version": 1, "note": "", "devices": [' + row + "]}")
    with pytest.raises(StoreError, match=r"devices\.0\.source"):
        read_devices(path)


def test_the_flop_of_a_step_are_those_counted_by_hand(make_plan: Any, runtime: Runtime) -> None:
    rows, length = 8, 48
    found = {name: work_of(make_plan(method=name), runtime) for name in ("full", "lora", "galore")}
    case = resolved(make_plan(), runtime)
    with torch.device("meta"):
        model = case.skeleton()
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    config: Any = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * length
    assert found["full"].flops_a_micro_batch == (6 * linear + attention) * rows * length
    assert found["galore"].flops_a_micro_batch == found["full"].flops_a_micro_batch
    # Frozen weights need no gradient of their own; factors of rank 8 cost little.
    assert 0.6 < found["lora"].flops_a_micro_batch / found["full"].flops_a_micro_batch < 0.95
    assert found["lora"].bytes_a_step < found["full"].bytes_a_step / 5


def test_accumulation_checkpointing_and_precision_move_the_time_as_they_must(make_plan: Any, runtime: Runtime) -> None:
    device = read_devices()[0]

    def seconds(**settings: Any) -> float:
        plan = make_plan(**settings)
        return seconds_a_step(work_of(plan, runtime), plan, device, "expected")

    assert seconds(checkpointing=True) >= seconds()
    assert seconds(accumulation=2) > seconds()
    assert (
        work_of(make_plan(checkpointing=True), runtime).flops_a_micro_batch
        > work_of(make_plan(), runtime).flops_a_micro_batch
    )
    wide = make_plan(batch_size=4096)
    low = make_plan(batch_size=4096, precision="bf16-autocast")
    tf32 = make_plan(batch_size=4096, tf32=True)
    work = work_of(wide, runtime)
    times = [seconds_a_step(work, plan, device, "expected") for plan in (wide, tf32, low)]
    assert times[0] > times[1] > times[2]


def test_the_papers_comparison_is_timed_without_a_download() -> None:
    request = Request("glue", "paper", 8, ("rte", "mnli"), ("full", "lora"), (0,))
    plans = make_plans(request, DRY)
    for device in read_devices():
        span = hours(plans, DRY, device)
        assert 0 < span["low"] < span["expected"] < span["high"]
        assert span["high"] / span["low"] == pytest.approx(USED["low"] / USED["high"], rel=0.5)
    lines = hours_lines(plans, DRY)
    assert len(lines) == 2 + len(read_devices())
    assert record_bytes(plans, 5000) < 2 * len(plans) * 1_000_000


def test_a_device_that_is_not_here_can_be_planned_for_and_not_run_on() -> None:
    assert resolve_device("cuda", dry=True).type == "cuda"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device is here"):
            resolve_device("cuda")
