"""Rules for weights in bf16: the fp32 step with what each keeps of it, the same for every optimizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.registry import get_method, methods
from gnlorp import GradNormLoRPAdamW
from suites.run.execute import execute
from suites.run.per_layer import PerLayer
from suites.run.preflight import predict
from suites.run.rounding import REST_BYTES, Rounding, Updates, stochastic_bf16, take_step
from suites.suite import Runtime

RULES: tuple[Updates, ...] = ("stochastic", "kahan", "master")
NAMES = tuple(methods())
USUAL = {("gradnormlorp", "kahan")}
"""What the default tests stop and resume; the slow ones have every pair."""
COUNTED = {("full", "nearest"), ("full", "stochastic"), ("gradnormlorp", "kahan"), ("gradnormlorp", "master")}
"""Of what the default tests count the bytes; the slow ones have every pair."""
FEW = {"batch_size": 4, "train_rows": 24, "eval_rows": 8}


def quiet(step: int, loss: float) -> None:
    pass


def adamw(parameters: list[nn.Parameter]) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.1, fused=True)


def projected(parameters: list[nn.Parameter]) -> Optimizer:
    return GradNormLoRPAdamW([{"params": parameters, "projection_rank": 2}], lr=1e-4, refresh_gap=3)


def eight_bit(parameters: list[nn.Parameter]) -> Optimizer:
    made: Optimizer = pytest.importorskip("bitsandbytes").optim.AdamW8bit(parameters, lr=1e-4)
    return made


def start(dtype: torch.dtype) -> nn.Parameter:
    values = torch.randn(64, 80, generator=torch.Generator().manual_seed(0)).bfloat16()
    return nn.Parameter(values.to(dtype))


def gradient(step: int) -> Tensor:
    return torch.randn(64, 80, generator=torch.Generator().manual_seed(100 + step)).bfloat16()


def trained(make: Any, dtype: torch.dtype, updates: Updates | None, steps: int) -> tuple[nn.Parameter, Optimizer]:
    weight = start(dtype)
    optimizer: Optimizer = make([weight])
    if updates is not None:
        Rounding(optimizer, updates, seed=5)
    for step in range(steps):
        weight.grad = gradient(step).to(dtype)
        take_step(optimizer)
        assert weight.dtype == dtype
        optimizer.zero_grad(set_to_none=True)
    return weight, optimizer


@pytest.mark.parametrize("make", [adamw, projected, eight_bit])
def test_master_weights_are_the_fp32_step_bit_for_bit(make: Any) -> None:
    single, _ = trained(make, torch.float32, None, 12)
    weight, optimizer = trained(make, torch.bfloat16, "master", 12)
    assert torch.equal(optimizer.rounding.rest[weight], single)  # type: ignore[attr-defined]
    assert torch.equal(weight, single.bfloat16())


@pytest.mark.parametrize("make", [adamw, projected])
def test_kahan_keeps_sixteen_bits_of_every_update(make: Any) -> None:
    single, _ = trained(make, torch.float32, None, 50)
    weight, optimizer = trained(make, torch.bfloat16, "kahan", 50)
    rest = optimizer.rounding.rest[weight]  # type: ignore[attr-defined]
    assert rest.dtype == torch.bfloat16
    single = single.detach()
    off = (weight.detach().float() + rest.float() - single).abs()
    # A pair of bf16 numbers holds a value to 2^-17 of it, fifty times rounded.
    assert float((off / single.abs().clamp_min(1e-3)).max()) < 50 * 2**-17
    moved = (single - start(torch.float32)).abs().mean()
    assert float(off.mean()) < 0.01 * float(moved)


def test_rounding_to_the_nearest_loses_what_the_rules_keep() -> None:
    begun = start(torch.float32)
    moves = {}
    for updates in (None, *RULES):
        weight = start(torch.bfloat16)
        optimizer = torch.optim.AdamW([weight], lr=2e-6, weight_decay=0.0)
        if updates is not None:
            Rounding(optimizer, updates, seed=1)
        for _ in range(200):
            weight.grad = torch.ones_like(weight)
            take_step(optimizer)
        value = weight.detach().float()
        if updates in ("kahan", "master"):
            rest = optimizer.rounding.rest[weight]  # type: ignore[attr-defined]
            value = rest if updates == "master" else value + rest
        moves[updates] = float((begun.detach() - value).mean())
    # Adam moves every weight by the learning rate a step.
    for updates in RULES:
        assert moves[updates] == pytest.approx(200 * 2e-6, rel=0.1), updates
    assert moves[None] < 0.5 * 200 * 2e-6


def test_stochastic_rounding_is_right_in_the_mean_and_only_goes_to_neighbours() -> None:
    value = torch.tensor(1.0 + 0.3 * 2**-7).expand(100_000)
    found = stochastic_bf16(value, torch.Generator().manual_seed(0)).float()
    assert set(found.unique().tolist()) == {1.0, 1.0 + 2**-7}
    # Five standard deviations of a mean of coin throws.
    assert float((found - 1).mean() * 2**7) == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 1e5) ** 0.5)
    assert torch.equal(stochastic_bf16(-value, torch.Generator().manual_seed(0)).float(), -found)
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, 1.5])
    kept = stochastic_bf16(odd, torch.Generator().manual_seed(0))
    assert torch.equal(kept[[0, 1, 3, 4]].float(), odd[[0, 1, 3, 4]])
    assert kept[2].isnan()


def test_stochastic_rounding_follows_from_seed_and_step() -> None:
    first, _ = trained(adamw, torch.bfloat16, "stochastic", 4)
    again, _ = trained(adamw, torch.bfloat16, "stochastic", 4)
    assert torch.equal(first, again)


@pytest.mark.parametrize("updates", RULES)
@pytest.mark.parametrize("make", [adamw, projected, eight_bit])
def test_inside_backward_it_is_the_same_step(make: Any, updates: Updates) -> None:
    ends = []
    for per_layer in (False, True):
        weights = [nn.Parameter(start(torch.bfloat16).detach().clone()) for _ in range(2)]
        optimizer: Optimizer = make(weights)
        Rounding(optimizer, updates, seed=5)
        switch = PerLayer(optimizer) if per_layer else None
        for step in range(3):
            loss = sum((weight * gradient(step)).sum() for weight in weights)
            assert isinstance(loss, Tensor)
            loss.backward()
            if switch is None:
                take_step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            else:
                switch.finish()
            fitted = make is projected and step == 0
            assert getattr(optimizer, "last_refreshed", fitted) is fitted
        ends.append(weights)
    if updates != "stochastic":
        assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    else:
        # The order of arrival decides which random numbers a weight gets: a neighbour up or down a step.
        for one, other in zip(*ends, strict=True):
            torch.testing.assert_close(one, other, rtol=2**-5, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        pytest.param(name, updates, marks=[pytest.mark.slow] * ((name, updates) not in COUNTED))
        for name in NAMES
        for updates in ("nearest", *RULES)
    ],
)
def test_a_run_under_a_rule_counts_what_it_keeps(name: str, updates: Updates, make_plan: Any, runtime: Runtime) -> None:
    plan = make_plan(method=name, precision="bf16", bf16_updates=updates, **FEW)
    said = predict([plan], runtime)[plan.hash()]
    record = execute(plan, runtime, said.peak.total_bytes, quiet)
    assert (record.status, record.error) == ("ok", None)
    memory, certificate = record.memory, record.engagement
    assert memory is not None
    assert memory.step_peak is not None
    assert memory.ledger is not None
    assert certificate is not None
    assert memory.step_peak.total_bytes == said.peak.total_bytes
    assert {gap.unexplained_bytes for gap in memory.ledger.gaps if "formula" in gap.name} == {0}
    moments = {what.split()[-1] for what in certificate.state_shapes if what.startswith("exp_avg")}
    if updates == "nearest":
        # Which are fp32 is the method's to say, and its formula, met to the byte above, says it.
        assert moments == {"bfloat16"} or not get_method(name).yardstick
        return
    assert "bfloat16" not in moments
    rests = sum(count for what, count in certificate.state_shapes.items() if what.startswith("rounding.rest"))
    assert (rests > 0) is (REST_BYTES[updates] > 0)


@pytest.mark.parametrize(
    ("name", "bits", "updates"),
    [
        pytest.param(name, bits, rule, marks=() if (name, rule) in USUAL else pytest.mark.slow)
        for name, bits in (("full", 32), ("full", 8), ("gradnormlorp", 32), ("galore", 8))
        for rule in RULES
    ],
)
def test_a_run_under_a_rule_resumes_bit_equal(
    name: str, bits: int, updates: Updates, make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    config = {"config": {"refresh_gap": 3, "merge_gap": 3} if name == "gradnormlorp" else {"refresh_gap": 3}}
    own = {} if name == "full" else config
    plan = make_plan(method=name, steps=5, precision="bf16", bf16_updates=updates, state_bits=bits, **FEW, **own)
    runtime = replace(runtime, checkpoint_steps=1)

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    whole = execute(plan, runtime, None, quiet)
    assert execute(plan, runtime, None, stop, tmp_path).status == "interrupted"
    resumed = execute(plan, runtime, None, quiet, tmp_path)
    assert (whole.status, resumed.status, resumed.resumed_at) == ("ok", "ok", [3]), (whole.error, resumed.error)
    assert (whole.final_digest, whole.curve) == (resumed.final_digest, resumed.curve)


def test_a_rule_without_weights_in_bf16_is_refused(make_plan: Any) -> None:
    with pytest.raises(ValueError, match=r"bf16_updates 'kahan' with precision 'fp32'.*nearest allowed value: nearest"):
        make_plan(bf16_updates="kahan")


def test_plans_without_a_rule_keep_their_hash(make_plan: Any) -> None:
    plan = make_plan(precision="bf16")
    text = plan.model_dump(mode="json", exclude_defaults=True)["training"]
    assert not {"bf16_updates", "clip_scope"} & set(text)
