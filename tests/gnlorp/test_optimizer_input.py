"""What the optimizer refuses, skips and forgets, and the independence of its groups."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from gnlorp import Diverged, GradNormLoRPAdamW, NormLowRankLinear, param_groups


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(bad):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(9, 5)), nn.Parameter(torch.randn(5))]
    optimizer = GradNormLoRPAdamW([{"params": weights[:1], "projection_rank": 2}, {"params": weights[1:]}], max_skips=3)
    for index in range(2):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        if index:
            weights[0].grad[3, 2] = bad
        before = copy.deepcopy((optimizer.state_dict()["state"], [weight.detach().clone() for weight in weights]))
        optimizer.step()
    after = (optimizer.state_dict()["state"], weights)
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    for number, state in before[0].items():
        for name, value in state.items():
            found = after[0][number][name]
            assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
    optimizer.step()
    with pytest.raises(Diverged, match="3 steps in a row"):
        optimizer.step()
    assert optimizer.skipped_steps == 3


def test_a_finite_step_between_ends_the_row_of_skips():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = GradNormLoRPAdamW([weight], max_skips=2)
    for value in (float("nan"), 1.0) * 4:
        weight.grad = torch.full((3,), value)
        optimizer.step()
    assert optimizer.skipped_steps == 4


def test_forgetting_starts_a_parameter_anew():
    torch.manual_seed(0)
    layer = NormLowRankLinear(nn.Linear(8, 8), 4, 8.0)
    optimizer = GradNormLoRPAdamW(param_groups(layer, 2))
    for _ in range(3):
        layer(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
    kept = optimizer.state[layer.magnitude]["step"]
    optimizer.forget(layer.restart())
    assert layer.factor_out not in optimizer.state
    assert optimizer.state[layer.magnitude]["step"] == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr -1.0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": -1e-8}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"projection_rank": 0}, "projection_rank 0"),
        ({"projection_rank": 2.5}, "projection_rank 2.5"),
        ({"projection_rank": 5}, "below the projected side of 5"),
        ({"projection_rank": 6}, "at most 5"),
        ({"refresh_gap": 0}, "refresh_gap 0"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"side": "smal"}, "nearest: 'small'"),
        ({"basis": "exakt"}, "nearest: 'exact'"),
        ({"moments": "rotated"}, "nearest: 'rotate'"),
        ({"state_bits": 16}, "8 or 32"),
        ({"noise_floor": 1.0}, "noise_floor"),
        ({"max_skips": 0}, "max_skips"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradNormLoRPAdamW([nn.Parameter(torch.zeros(8, 5))], **{"projection_rank": 2, **options})


def test_bad_parameters_and_gradients_are_refused():
    with pytest.raises(ValueError, match=r"shape \(5,\).*only 2-D"):
        GradNormLoRPAdamW([nn.Parameter(torch.zeros(5))], projection_rank=2)
    with pytest.raises(ValueError, match="complex"):
        GradNormLoRPAdamW([nn.Parameter(torch.zeros(5, 5, dtype=torch.complex64))])
    optimizer = GradNormLoRPAdamW([nn.Parameter(torch.zeros(8, 5))], projection_rank=2)
    with pytest.raises(ValueError, match="only 2-D"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(5))]})
    assert len(optimizer.param_groups) == 1
    embedding = nn.Embedding(9, 4, sparse=True)
    optimizer = GradNormLoRPAdamW(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()


def test_no_gradients_is_no_step():
    optimizer = GradNormLoRPAdamW([nn.Parameter(torch.zeros(8, 5))], projection_rank=2)
    optimizer.step()
    assert not optimizer.state
    assert not optimizer.last_refreshed


def test_options_of_groups_are_independent():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(10, 6)) for _ in range(4)]
    kinds = list(itertools.product(["small", "both"], [2, 3]))
    groups = [
        {"params": [weight], "side": side, "projection_rank": rank}
        for weight, (side, rank) in zip(weights, kinds, strict=True)
    ]
    optimizer = GradNormLoRPAdamW(groups)
    for weight in weights:
        weight.grad = torch.randn(10, 6)
    optimizer.step()
    for weight, (side, rank) in zip(weights, kinds, strict=True):
        assert ("basis_left" in optimizer.state[weight]) == (side == "both")
        assert optimizer.state[weight]["basis_right"].shape == (6, rank)
