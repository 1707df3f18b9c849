"""Against the libraries that the method is compared with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gnlorp import GradNormLoRPAdamW, attach


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [1, 8])
def test_the_detached_rule_equals_dora_in_peft(bias, rank):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(48, 64, bias=bias), nn.GELU(), nn.Linear(64, 16, bias=bias))
    theirs = nn.Sequential(nn.Linear(48, 64, bias=bias), nn.GELU(), nn.Linear(64, 16, bias=bias))
    theirs.load_state_dict(ours.state_dict())
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, use_dora=True, target_modules=["0", "2"])
    wrapped = peft.get_peft_model(theirs, config)
    attach(ours, ["0", "2"], rank, 2.0 * rank, norm_gradient="detached")
    layers = [(ours[index], wrapped.base_model.model[index]) for index in (0, 2)]
    with torch.no_grad():
        for mine, other in layers:
            mine.factor_out.normal_(std=0.1)
            mine.magnitude.mul_(1 + 0.1 * torch.randn(mine.out_features))
            other.lora_A["default"].weight.copy_(mine.factor_in)
            other.lora_B["default"].weight.copy_(mine.factor_out)
            other.lora_magnitude_vector["default"].weight.copy_(mine.magnitude)
    x, grad = torch.randn(3, 20, 48, requires_grad=True), torch.randn(3, 20, 16)
    y = ours(x)
    y.backward(grad)
    x_grad, x.grad = x.grad, None
    z = wrapped(x)
    z.backward(grad)
    pairs = [(y, z), (x_grad, x.grad)]
    for mine, other in layers:
        pairs += [
            (mine.factor_in.grad, other.lora_A["default"].weight.grad),
            (mine.factor_out.grad, other.lora_B["default"].weight.grad),
            (mine.magnitude.grad, other.lora_magnitude_vector["default"].weight.grad),
        ]
    for mine, other in pairs:
        assert (mine - other).norm() / other.norm() < 1e-5
    for mine, other in layers:
        merged = other.get_base_layer()
        other.merge()
        assert torch.allclose(mine.weight, merged.weight, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (32, 32)])
@pytest.mark.parametrize(("side", "kind"), [("small", "std"), ("large", "reverse_std"), ("both", "full")])
def test_on_dense_weights_it_follows_galore_torch(shape, side, kind):
    galore = pytest.importorskip("galore_torch")
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    first = GradNormLoRPAdamW([ours], lr=0.01, eps=1e-12, projection_rank=6, refresh_gap=200, scale=0.25, side=side)
    group = {"params": [theirs], "rank": 6, "update_proj_gap": 200, "scale": 0.25, "proj_type": kind}
    second = galore.GaLoreAdamW([group], lr=0.01, eps=1e-12, no_deprecation_warning=True)
    base = torch.randn(shape)
    for step in range(30):
        ours.grad = base + 0.5 * torch.randn(shape)
        if side == "both" and step == 0:
            # Its off-diagonal noise is scaled up to full steps, ours is damped: start from the same first step.
            ours.grad.zero_()
            theirs.grad = ours.grad.clone()
            continue
        theirs.grad = ours.grad.clone()
        first.step()
        second.step()
    difference = (ours - theirs).norm() / (theirs - start).norm()
    if side == "both":
        assert difference < 0.2
    else:
        assert difference < 1e-4


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_after_a_refresh_it_follows_galore_torch_up_to_the_signs_of_its_basis(shape):
    galore = pytest.importorskip("galore_torch")
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    first = GradNormLoRPAdamW([ours], lr=0.01, eps=1e-12, projection_rank=4, refresh_gap=7)
    group = {"params": [theirs], "rank": 4, "update_proj_gap": 7, "scale": 1.0, "proj_type": "std"}
    second = galore.GaLoreAdamW([group], lr=0.01, eps=1e-12, no_deprecation_warning=True)
    base = torch.randn(shape)
    right = shape[0] >= shape[1]
    name = "basis_right" if right else "basis_left"
    for step in range(25):
        grad = base + 0.5 * torch.randn(shape)
        # The signs of singular vectors are free, and kept moments depend on them: ours are turned to its choice.
        if step and step % 7 == 0:
            chosen = second.state[theirs]["projector"].get_orthogonal_matrix(grad, 4, "right" if right else "left")
            first.state[ours][name] = (chosen.T if right else chosen).clone()
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        first.step()
        second.step()
        assert first.last_refreshed == (step % 7 == 0)
        if step == 0:
            state, chosen = first.state[ours], second.state[theirs]["projector"].ortho_matrix
            signs = (state[name] * (chosen.T if right else chosen)).sum(0).sign()
            state[name] *= signs
            state["exp_avg"] *= signs if right else signs[:, None]
    assert (ours - theirs).norm() / (theirs - start).norm() < 1e-3
