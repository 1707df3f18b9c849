"""What the optimizer refuses, skips and forgets, and the independence of its groups."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from gnlorp import Diverged, GradNormLoRPAdamW, NormLowRankLinear, param_groups
from gnlorp.checks import OPTIONS


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
        ({"lr": math.inf}, "lr inf: must be a finite number"),
        ({"lr": None}, "lr None"),
        ({"lr": torch.tensor(math.nan)}, "lr tensor"),
        ({"lr": "1e-3"}, "lr '1e-3'.*it is text"),
        ({"eps": "1e-8"}, "eps '1e-8': must be a finite number of at least 0; it is text.*1.0e-8"),
        ({"eps": math.inf}, "eps inf"),
        ({"weight_decay": "0.01"}, "weight_decay '0.01'"),
        ({"weight_decay": True}, "weight_decay True"),
        ({"scale": "1"}, "scale '1'"),
        ({"betas": 0.9}, "betas 0.9"),
        ({"betas": ("0.9", 0.99)}, "betas '0.9'"),
        ({"noise_floor": None}, "noise_floor None"),
        ({"projection_rank": True}, "projection_rank True"),
        ({"projection_rank": "2"}, "projection_rank '2'"),
        ({"refresh_gap": True}, "refresh_gap True"),
        ({"allow_full_rank": "no"}, "allow_full_rank 'no'"),
        ({"state_bits": "8"}, "state_bits '8'"),
        ({"max_skips": None}, "max_skips None"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradNormLoRPAdamW([nn.Parameter(torch.zeros(8, 5))], **{"projection_rank": 2, **options})


def test_numbers_of_numpy_become_python_s():
    options = {
        "lr": np.float32(0.5), "betas": [np.float64(0.5), np.float32(0.25)], "projection_rank": np.int64(2),
        "refresh_gap": np.int32(3), "scale": np.float32(2.0), "state_bits": np.int64(32), "max_skips": np.int8(4),
        "allow_full_rank": np.bool_(False),
    }  # fmt: skip
    weight = nn.Parameter(torch.zeros(8, 5))
    optimizer = GradNormLoRPAdamW([weight], **options)
    group = optimizer.param_groups[0]
    assert {type(value) for value in group.values()} <= {list, tuple, int, float, str, bool}
    assert (group["lr"], group["betas"], group["projection_rank"]) == (0.5, (0.5, 0.25), 2)
    weight.grad = torch.randn(8, 5)
    optimizer.step()
    assert weight.any()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("refresh_gp", "refresh_gap"),
        ("wieght_decay", "weight_decay"),
        ("rank", "projection_rank"),
        ("update_proj_gap", "refresh_gap"),
        ("proj_type", "side"),
        ("learning_rate", "lr"),
        ("amsgrad", ""),
    ],
)
def test_unknown_keys_of_a_group_are_refused_by_name(name, nearest):
    model = nn.Sequential(NormLowRankLinear(nn.Linear(8, 8), 4, 8.0))
    optimizer = GradNormLoRPAdamW(param_groups(model, 2))
    message = f"'{name}' is no option of a parameter group; nearest: '{nearest}"
    for wrong in (
        lambda: param_groups(model, 2, **{name: 5}),
        lambda: GradNormLoRPAdamW([{"params": [nn.Parameter(torch.zeros(8, 5))], name: 5}]),
        lambda: optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(8, 5))], name: 5}),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    assert len(optimizer.param_groups) == 2


def test_the_known_options_are_the_constructor_s_and_torch_s_own_keys_pass():
    parameters = inspect.signature(GradNormLoRPAdamW).parameters
    assert set(OPTIONS) == parameters.keys() - {"params", "max_skips"}
    weight = nn.Parameter(torch.zeros(8, 5))
    optimizer = GradNormLoRPAdamW([{"params": [("weight", weight)], "initial_lr": 0.1, "name": "head"}])
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9, last_epoch=-1)
    GradNormLoRPAdamW([nn.Parameter(torch.zeros(8, 5))]).load_state_dict(optimizer.state_dict())


def test_a_state_dict_of_another_kind_is_refused_in_one_line_and_changes_nothing():
    weights = [nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(5))]
    optimizer = GradNormLoRPAdamW([{"params": weights[:1], "projection_rank": 2}, {"params": weights[1:]}])
    foreign = torch.optim.AdamW([{"params": weights[:1]}, {"params": weights[1:]}])
    for each in (optimizer, foreign):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        each.step()
    good = optimizer.state_dict()
    wrong = {
        "state dict is NoneType": None,
        r"state dict is \['param_groups'\]: must be a dict with 'state'": {"param_groups": []},
        r"parameter groups of \[\] parameters: must have groups of \[1, 1\]": {"state": {}, "param_groups": []},
        "another optimizer's: it has no projection_rank.*but amsgrad": foreign.state_dict(),
        "parameter 1 of shape .5,. holds": {**good, "state": {**good["state"], 1: {"step": 1}}},
        "parameter 0 has step None": {
            **good,
            "state": {0: {k: v for k, v in good["state"][0].items() if k != "step"}},
        },
        "bfloat16": {
            **good,
            "state": {1: {k: v.bfloat16() if k != "step" else v for k, v in good["state"][1].items()}},
        },
        "eps '1e-8'": {**good, "param_groups": [{**group, "eps": "1e-8"} for group in good["param_groups"]]},
    }
    before = copy.deepcopy(good)
    for message, given in wrong.items():
        with pytest.raises(ValueError, match=message) as caught:
            optimizer.load_state_dict(given)
        assert "\n" not in str(caught.value)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert torch.equal(after["state"][0]["exp_avg"], before["state"][0]["exp_avg"])


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("size", [1e19, 1e-19])
def test_gradients_whose_squares_leave_the_range_are_stepped_on(rank, size):
    torch.manual_seed(0)
    weight, grad = nn.Parameter(torch.zeros(16, 8)), torch.randn(16, 8)
    optimizer = GradNormLoRPAdamW([weight], lr=0.01, eps=0.0, projection_rank=rank)
    weight.grad = grad * size
    optimizer.step()
    assert optimizer.skipped_steps == 0
    assert optimizer.last_gradient_norm == pytest.approx(float(grad.norm()) * size, rel=1e-5)
    if rank:
        kept = (grad @ optimizer.state[weight]["basis_right"]).square().sum()
        assert kept > 0.9999 * torch.linalg.svdvals(grad)[:2].square().sum()
    if size > 1:
        assert 0.009 < weight.abs().max() < 0.03


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("per_layer", [False, True])
def test_a_gradient_that_its_second_moment_cannot_hold_is_skipped(rank, per_layer):
    weight = nn.Parameter(torch.randn(16, 8))
    optimizer = GradNormLoRPAdamW([weight], projection_rank=rank)
    optimizer.per_layer(per_layer)
    for size in (1e22, 1.0):
        (weight * torch.randn(16, 8) * size).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert optimizer.skipped_steps == 1
    assert optimizer.state[weight]["step"] == 1
    assert weight.isfinite().all()


def test_the_norm_of_large_entries_in_double_precision():
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = GradNormLoRPAdamW([weight])
    weight.grad = torch.full((4,), 1e30, dtype=torch.float64)
    optimizer.step()
    assert optimizer.skipped_steps == 0


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


def test_a_group_that_is_refused_is_not_added_whatever_the_reason(monkeypatch):
    optimizer = GradNormLoRPAdamW([nn.Parameter(torch.zeros(8, 5))])
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(RuntimeError, match="needs bitsandbytes"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(5))], "state_bits": 8})
    assert len(optimizer.param_groups) == 1


def test_a_copy_takes_groups_and_a_state_with_them_as_the_original_does():
    optimizer = copy.deepcopy(GradNormLoRPAdamW([nn.Parameter(torch.zeros(8, 5))]))
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(5))]})
    other = GradNormLoRPAdamW([nn.Parameter(torch.zeros(8, 5))])
    other.add_param_group({**optimizer.param_groups[1], "params": [nn.Parameter(torch.zeros(5))]})
    other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(("size", "skipped"), [(8e3, 0), (8.2e3, 1)])
def test_a_plain_float16_parameter_is_skipped_where_its_second_moment_would_overflow(size, skipped):
    weights = [nn.Parameter(torch.zeros(shape, dtype=torch.float16)) for shape in ((6,), (6, 5))]
    optimizer = GradNormLoRPAdamW([{"params": weights[:1]}, {"params": weights[1:], "projection_rank": 2}])
    weights[0].grad = torch.zeros_like(weights[0])
    weights[0].grad[2] = size
    # What is projected has its moments in float32.
    weights[1].grad = torch.full_like(weights[1], 2e4)
    optimizer.step()
    assert optimizer.skipped_steps == skipped
    assert not any(value.isinf().any() for value in optimizer.state[weights[0]].values() if torch.is_tensor(value))


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
