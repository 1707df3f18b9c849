"""A layer's life: copies, casts, restarts, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gnlorp import NormLowRankLinear
from gnlorp.base_weight import row_square_norms


def moved() -> NormLowRankLinear:
    torch.manual_seed(0)
    layer = NormLowRankLinear(nn.Linear(24, 17), 5, 10.0)
    with torch.no_grad():
        layer.factor_out.normal_(std=0.1)
        layer.magnitude.mul_(1 + 0.2 * torch.randn(17))
    return layer


def relative(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def test_copies_and_state_dicts_keep_the_function():
    layer = moved()
    x = torch.randn(3, 24)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    other = NormLowRankLinear(nn.Linear(24, 17), 5, 10.0)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    names = {"base_weight", "bias", "factor_out", "factor_in", "magnitude"}
    assert set(layer.state_dict()) == names | {"_extra_state"}
    other.load_state_dict({name: value for name, value in layer.state_dict().items() if name in names})


def test_a_cast_renews_the_cached_norms():
    layer = moved()
    halved = copy.deepcopy(layer).bfloat16()
    assert halved.base_square.dtype == torch.float32
    assert torch.equal(halved.base_square, row_square_norms(halved.base_weight))
    back = copy.deepcopy(layer).double()
    assert back.base_square.dtype == torch.float64


@pytest.mark.parametrize("owned", [True, False])
def test_restart_keeps_the_function_and_starts_the_factors_anew(owned):
    layer = moved()
    layer._owns_weight = owned
    x = torch.randn(9, 24)
    before, base = layer(x), layer.base_weight
    untouched = base.clone()
    factors = layer.restart(torch.Generator().manual_seed(1))
    assert relative(layer(x), before) < 1e-6
    assert factors[0] is layer.factor_out
    assert factors[1] is layer.factor_in
    assert layer.factor_out.abs().max() == 0
    assert (layer.base_weight is base) == owned
    assert torch.equal(base, untouched) != owned
    assert not layer.base_weight.requires_grad


def test_restarts_reach_full_rank():
    torch.manual_seed(0)
    layer = NormLowRankLinear(nn.Linear(16, 12, bias=False), 2, 4.0)
    start = layer.weight
    for _ in range(6):
        with torch.no_grad():
            layer.factor_out.normal_()
        layer.restart()
    assert torch.linalg.matrix_rank(layer.weight - start) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0"),
        ({"rank": 18}, "at most 17"),
        ({"alpha": 0.0}, "alpha 0.0"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"alpha": "8"}, "alpha '8': must be a number"),
        ({"norm_gradient": "ful"}, "nearest: .*full"),
        ({"activations": "fastest"}, "nearest: .*fast"),
        ({"base_bits": 5}, "nearest: 4"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NormLowRankLinear(nn.Linear(24, 17), **{"rank": 4, "alpha": 8.0, **options})


def test_other_layers_other_dtypes_and_a_trained_base_are_refused():
    with pytest.raises(TypeError, match="Conv1d"):
        NormLowRankLinear(nn.Conv1d(3, 3, 1), 1, 1.0)
    layer = moved()
    with pytest.raises(TypeError, match="float64"):
        layer(torch.randn(3, 24, dtype=torch.float64))
    layer.base_weight.requires_grad_()
    with pytest.raises(RuntimeError, match="base_weight"):
        layer(torch.randn(3, 24))
