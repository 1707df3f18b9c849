"""The released variants do what they are said to do."""

from __future__ import annotations

import torch
from torch import nn

from gnlorp import GradNormLoRPAdamW, attach, param_groups
from gnlorp.moments import optimizer_state_bytes
from gnlorp.released import GLUE_SCRIPT_LAYER, GLUE_SCRIPT_OPTIMIZER, ReleasedFullWeightAdamW


def test_the_glue_script_runs_and_saves_no_state():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 2))
    attach(model, ["0"], **GLUE_SCRIPT_LAYER)
    optimizer = GradNormLoRPAdamW(param_groups(model, **GLUE_SCRIPT_OPTIMIZER))
    for _ in range(3):
        model(torch.randn(4, 64)).square().sum().backward()
        optimizer.step()
    assert model[0].norm_gradient == "detached"
    for factor in (model[0].factor_out, model[0].factor_in):
        held = optimizer_state_bytes(factor.shape, 8)
        assert sum(v.nbytes for v in optimizer.state[factor].values() if isinstance(v, torch.Tensor)) == held
        assert held > 8 * factor.numel()


def full_weight(steps):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(256, 512))
    optimizer = ReleasedFullWeightAdamW([weight], projection_rank=4)
    for _ in range(steps):
        weight.grad = torch.randn(256, 512)
        optimizer.step()
    return weight, optimizer.state[weight]


def test_the_full_weight_optimizer_keeps_more_than_the_weight():
    weight, state = full_weight(2)
    held = sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    assert held == 547_840
    assert held > weight.nbytes
    ours = optimizer_state_bytes((256, 512), 4)
    assert ours == 4 * (2 * 4 * 512 + 256 * 4)
    assert held > 20 * ours


def test_the_full_weight_optimizer_overwrites_the_learned_magnitude():
    for steps in (1, 2, 5):
        weight, state = full_weight(steps)
        rows = state["direction"].norm(dim=1)
        assert (rows - state["magnitude"]).abs().max() > 1e-4
        assert torch.allclose(weight.norm(dim=1), state["magnitude"], atol=1e-4)
    direction = state["direction"].norm(dim=1).clone()
    learned = state["magnitude"].clone()
    weight.grad = torch.zeros_like(weight)
    weight.grad[0, 0] = 1e-12
    optimizer = ReleasedFullWeightAdamW([weight], lr=0.0, projection_rank=4)
    optimizer.state[weight] = state
    optimizer.step()
    assert torch.allclose(state["magnitude"], direction, atol=1e-5)
    assert not torch.allclose(state["magnitude"], learned, atol=1e-5)
