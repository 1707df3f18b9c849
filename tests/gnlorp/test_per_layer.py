"""Updates inside backward: the same step, one gradient alive at a time, never silently wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gnlorp import Diverged, GradNormLoRPAdamW, attach, param_groups


def build(side="small", state_bits=32):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(5)))
    attach(model, ["0", "1", "2"], 6, 12.0)
    options = {"lr": 0.01, "refresh_gap": 3, "side": side, "weight_decay": 0.1, "state_bits": state_bits}
    return model, GradNormLoRPAdamW(param_groups(model, 2, **options), max_skips=2)


def train(model, optimizer, steps):
    torch.manual_seed(1)
    found = []
    for _ in range(steps):
        x = torch.randn(8, 24)
        (model(x) - x.roll(1, 1)).square().mean().backward()
        optimizer.step()
        found.append((optimizer.last_refreshed, optimizer.last_gradient_norm))
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize("side", ["small", "large", "both"])
@pytest.mark.parametrize("state_bits", [32, 8])
def test_it_equals_the_ordinary_step_bit_for_bit(side, state_bits):
    if state_bits == 8:
        pytest.importorskip("bitsandbytes")
    model, optimizer = build(side, state_bits)
    other, inside = build(side, state_bits)
    inside.per_layer()
    seen, found = train(model, optimizer, 8), train(other, inside, 8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert [refreshed for refreshed, _ in seen] == [refreshed for refreshed, _ in found]
    assert [norm for _, norm in seen] == pytest.approx([norm for _, norm in found], rel=1e-6)


def test_each_gradient_is_freed_before_the_next_comes():
    model, optimizer = build()
    optimizer.per_layer()
    alive = []
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(other.grad is not None for other in trainable))
        )
    train(model, optimizer, 1)
    assert alive == [0] * len(trainable)


def test_a_second_backward_before_the_step_is_refused():
    model, optimizer = build()
    optimizer.per_layer()
    model(torch.randn(2, 24)).sum().backward()
    with pytest.raises(RuntimeError, match="accumulate"):
        model(torch.randn(2, 24)).sum().backward()


def test_it_can_be_switched_off():
    model, optimizer = build()
    optimizer.per_layer()
    optimizer.per_layer(False)
    for _ in range(2):
        model(torch.randn(2, 24)).sum().backward()
    assert model[0].factor_out.grad is not None
    assert not optimizer.state


def test_groups_added_later_are_updated_too():
    model, optimizer = build()
    optimizer.per_layer()
    extra = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra]})
    (model(torch.randn(2, 24)).sum() + extra.sum()).backward()
    optimizer.step()
    assert (extra < 1).all()
    assert extra.grad is None


def test_it_follows_a_loaded_state_and_a_schedule():
    model, optimizer = build()
    train(model, optimizer, 2)
    other, inside = build()
    inside.per_layer()
    other.load_state_dict(model.state_dict())
    inside.load_state_dict(optimizer.state_dict())
    for each in (optimizer, inside):
        for group in each.param_groups:
            group["lr"] = 0.002
    train(model, optimizer, 3)
    train(other, inside, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_is_skipped_counted_and_freed():
    model, optimizer = build()
    optimizer.per_layer()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.full((2, 24), float("nan"))).sum().backward()
    optimizer.step()
    assert optimizer.skipped_steps == 1
    # The gradient of a sum with respect to a bias is finite whatever the input is.
    for (name, after), old in zip(model.named_parameters(), before, strict=True):
        assert torch.equal(after, old) != name.endswith("bias"), name
    assert all(parameter.grad is None for parameter in model.parameters())
    model(torch.full((2, 24), float("nan"))).sum().backward()
    with pytest.raises(Diverged):
        optimizer.step()


def test_a_grad_scaler_is_refused_in_one_line_and_works_without_per_layer():
    model, optimizer = build()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.randn(2, 24)).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.state[model[0].factor_out]["step"] == 1
    optimizer.zero_grad()
    optimizer.per_layer()
    scaler.scale(model(torch.randn(2, 24)).square().mean()).backward()
    with pytest.raises(RuntimeError, match="GradScaler with per-layer updates"):
        scaler.step(optimizer)
