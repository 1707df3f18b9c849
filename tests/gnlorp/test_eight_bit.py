"""8-bit moments through bitsandbytes."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from gnlorp import GradNormLoRPAdamW

bitsandbytes = pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (70, 130), (63, 64), (5,)])
def test_a_plain_group_equals_bitsandbytes_bit_for_bit(shape, dtype):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape).to(dtype))
    theirs = copy.deepcopy(ours)
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-7, "weight_decay": 0.1}
    first = GradNormLoRPAdamW([ours], state_bits=8, **options)
    second = bitsandbytes.optim.AdamW8bit([theirs], **options)
    for _ in range(15):
        ours.grad = torch.randn(shape).to(dtype)
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    assert torch.equal(ours, theirs)
    packed = first.state[ours]["exp_avg"]
    assert packed.dtype == second.state[theirs]["state1"].dtype
    assert torch.equal(packed, second.state[theirs]["state1"])


@pytest.mark.parametrize("shape", [(700, 20), (20, 700), (90, 90)])
@pytest.mark.parametrize("side", ["small", "large"])
def test_projected_moments_equal_bitsandbytes_on_the_projected_gradient(shape, side):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape))
    start = weight.detach().clone()
    optimizer = GradNormLoRPAdamW([weight], lr=0.01, projection_rank=8, side=side, state_bits=8, scale=0.5)
    low, theirs = None, None
    for _ in range(12):
        weight.grad = torch.randn(shape)
        optimizer.step()
        state = optimizer.state[weight]
        left, right = state.get("basis_left"), state.get("basis_right")
        projected = weight.grad @ right if left is None else left.T @ weight.grad
        if low is None:
            low = nn.Parameter(torch.zeros_like(projected))
            theirs = bitsandbytes.optim.AdamW8bit([low], lr=0.01, weight_decay=0.0)
        low.grad = projected.contiguous()
        theirs.step()
    update = low @ right.T if left is None else left @ low
    assert torch.allclose(weight, start + 0.5 * update, atol=1e-5)
    assert (state["exp_avg"].dtype == torch.uint8) == (low.numel() >= 4096)


def test_rotated_moments_survive_packing():
    torch.manual_seed(0)
    found = []
    grads = [torch.randn(700, 12) for _ in range(6)]
    for bits in (8, 32):
        weight = nn.Parameter(torch.zeros(700, 12))
        optimizer = GradNormLoRPAdamW([weight], projection_rank=8, refresh_gap=2, moments="rotate", state_bits=bits)
        for grad in grads:
            weight.grad = grad.clone()
            optimizer.step()
        found.append(weight.detach())
    assert optimizer.state[weight]["exp_avg_sq"].min() >= 0
    assert 0 < (found[0] - found[1]).norm() / found[1].norm() < 0.1


def test_resetting_packed_moments_sets_them_to_zero():
    weight = nn.Parameter(torch.zeros(700, 12))
    optimizer = GradNormLoRPAdamW([weight], projection_rank=8, refresh_gap=1, moments="reset", state_bits=8)
    fresh = nn.Parameter(torch.zeros(700, 12))
    once = GradNormLoRPAdamW([fresh], projection_rank=8, state_bits=8)
    torch.manual_seed(0)
    for _ in range(3):
        grad = torch.randn(700, 12)
        weight.grad = grad.clone()
        weight.data.zero_()
        optimizer.step()
    fresh.grad = grad.clone()
    once.step()
    assert torch.allclose(weight, fresh, atol=1e-7)


def test_a_missing_bitsandbytes_is_a_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(RuntimeError, match="eight-bit"):
        GradNormLoRPAdamW([nn.Parameter(torch.zeros(8, 5))], state_bits=8)
