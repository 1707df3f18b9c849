"""Updates inside backward: the same step, one gradient alive at a time, never silently wrong."""

from __future__ import annotations

import gc
import weakref

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


class Bare(nn.Module):
    """Dense weights and biases that nothing replaces, so that every gradient can be summed by hand."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(24, 24) for _ in range(3)))

    def forward(self, x):
        return self.layers(x)


def dense(side="small", state_bits=32, gap=3):
    model = Bare()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "projection_rank": 4}, {"params": vectors}]
    options = {"lr": 0.01, "refresh_gap": gap, "side": side, "weight_decay": 0.1, "state_bits": state_bits}
    return model, GradNormLoRPAdamW(groups, **options)


def backwards(model, step, parts=3):
    x = torch.randn(12, 24, generator=torch.Generator().manual_seed(step))
    for chunk in x.chunk(parts):
        ((model(chunk) - chunk.roll(1, 1)).square().mean() / parts).backward()


@pytest.mark.parametrize("side", ["small", "large", "both"])
def test_accumulated_projected_gradients_are_the_ordinary_step_between_refreshes(side):
    model, optimizer = dense(side, gap=1000)
    backwards(model, 0)
    optimizer.step()
    optimizer.zero_grad()
    other, inside = dense(side, gap=1000)
    other.load_state_dict(model.state_dict())
    inside.load_state_dict(optimizer.state_dict())
    inside.per_layer(accumulation=3)
    for step in range(1, 5):
        for each, updates in ((model, optimizer), (other, inside)):
            backwards(each, step)
            updates.step()
            updates.zero_grad()
        assert inside.last_gradient_norm is None
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert [s["step"] for s in inside.state.values()] == [s["step"] for s in optimizer.state.values()]


def test_no_whole_gradient_outlives_its_micro_batch_and_plain_parameters_step_in_the_last():
    model, optimizer = dense()
    optimizer.per_layer(accumulation=3)
    before = [p.detach().clone() for p in model.parameters()]
    for part in range(3):
        backwards(model, part, parts=1)
        for p, old in zip(model.parameters(), before, strict=True):
            assert torch.equal(p, old) is (part < 2)
            assert (p.grad is None) is (p.ndim == 2 or part == 2)
    with pytest.raises(RuntimeError, match=r"gradient 4 before step\(\)"):
        backwards(model, 9, parts=1)
    optimizer.step()
    assert optimizer.skipped_steps == 0


def test_a_step_with_fewer_backward_passes_uses_what_came():
    model, optimizer = dense()
    optimizer.per_layer(accumulation=3)
    before = [p.detach().clone() for p in model.parameters()]
    backwards(model, 0, parts=2)
    optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    backwards(model, 1)
    optimizer.step()


def test_one_bad_micro_batch_skips_its_parameters_for_the_step_only():
    model, optimizer = dense()
    optimizer.per_layer(accumulation=2)
    spoil = model.layers[1].weight.register_hook(lambda grad: grad * float("nan"))
    backwards(model, 0, parts=1)
    spoil.remove()
    before = model.layers[1].weight.detach().clone()
    backwards(model, 1, parts=1)
    optimizer.step()
    assert torch.equal(model.layers[1].weight, before)
    assert optimizer.skipped_steps == 1
    backwards(model, 2, parts=2)
    optimizer.step()
    assert not torch.equal(model.layers[1].weight, before)
    assert optimizer.skipped_steps == 1


def halved(seen):
    def reduce(grad):
        seen.append(grad.shape)
        grad.mul_(0.5)

    return reduce


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("sums", [True, False])
def test_every_gradient_is_reduced_before_its_use_also_in_a_step_with_fewer_passes(parts, sums, monkeypatch):
    """Against the same step on gradients that are halved beforehand."""
    monkeypatch.setattr(GradNormLoRPAdamW, "sums_projected", sums)
    (model, inside), (other, wanted) = dense(), dense()
    seen = []
    inside.per_layer(accumulation=3, reduce=halved(seen))
    wanted.per_layer(accumulation=3)
    for p in other.parameters():
        p.register_hook(lambda grad: grad * 0.5)
    for step in range(4):
        for each, updates in ((model, inside), (other, wanted)):
            backwards(each, step, parts)
            updates.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert len(seen) == 4 * 3 * (parts + 1 if sums else 2)


@pytest.mark.parametrize("drop", ["zero_grad", "load_state_dict"])
@pytest.mark.parametrize("sums", [True, False])
def test_what_was_summed_is_dropped_with_the_gradients_and_at_a_loaded_state(drop, sums, monkeypatch):
    monkeypatch.setattr(GradNormLoRPAdamW, "sums_projected", sums)
    found = []
    for spoilt in (False, True):
        model, optimizer = dense(gap=1000)
        optimizer.per_layer(accumulation=2)
        for step in range(5):
            if spoilt:
                backwards(model, 100 + step, parts=1)
                optimizer.zero_grad() if drop == "zero_grad" else optimizer.load_state_dict(optimizer.state_dict())
            backwards(model, step, parts=2)
            optimizer.step()
            optimizer.zero_grad()
        assert optimizer.skipped_steps == 0
        found.append([p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_dropped_after_their_use_change_nothing(accumulation):
    (model, optimizer), (other, plain) = dense(), dense()
    for each in (optimizer, plain):
        each.per_layer(accumulation=accumulation)
    for step in range(3):
        for each, updates in ((model, optimizer), (other, plain)):
            backwards(each, step, parts=accumulation)
            if updates is optimizer:
                updates.zero_grad()
                with pytest.raises(RuntimeError, match=f"gradient {accumulation + 1} before"):
                    backwards(each, step, parts=1)
                updates.zero_grad()
            updates.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert optimizer.last_gradient_norm == plain.last_gradient_norm


def test_gradients_that_the_model_has_dropped_are_none_at_the_step():
    model, optimizer = dense()
    optimizer.per_layer(accumulation=3)
    before = [p.detach().clone() for p in model.parameters() if p.ndim == 1]
    backwards(model, 0, parts=2)
    model.zero_grad()
    optimizer.step()
    after = [p for p in model.parameters() if p.ndim == 1]
    assert all(torch.equal(p, old) for p, old in zip(after, before, strict=True))


def test_a_frozen_parameter_is_left_alone_and_followed_when_it_is_trained():
    model, optimizer = dense()
    frozen = model.layers[1].weight.requires_grad_(False)
    optimizer.per_layer()
    assert not frozen.requires_grad
    before = frozen.detach().clone()
    for trained in (False, True):
        frozen.requires_grad_(trained)
        backwards(model, 0, parts=1)
        optimizer.step()
        assert torch.equal(frozen, before) is not trained
        assert frozen.grad is None


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_dropped_optimizer_lets_its_model_go(accumulation):
    model, optimizer = dense()
    optimizer.per_layer(accumulation=accumulation)
    backwards(model, 0, parts=accumulation)
    optimizer.step()
    alive = [weakref.ref(p) for p in model.parameters()]
    del model, optimizer
    gc.collect()
    assert [ref for ref in alive if ref() is not None] == []
