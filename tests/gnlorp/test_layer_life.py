"""A layer's life: copies, casts, restarts, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gnlorp import NormLinear, NormLowRankLinear, dropout, krylov
from gnlorp.base_weight import row_square_norms
from gnlorp.weight_norm import waiting


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


@pytest.mark.parametrize("loads", [False, True])
def test_norms_renewed_in_inference_mode_can_be_trained_with(loads):
    layer, x = copy.deepcopy(moved()), torch.randn(3, 24)
    with torch.inference_mode():
        if loads:
            layer.load_state_dict(moved().state_dict())
        wanted = layer(x)
    found = layer(x)
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert layer.factor_out.grad.any()


def test_a_layer_made_in_inference_mode_sees_its_weight_written():
    with torch.inference_mode():
        layer, x, new = moved(), torch.randn(3, 24), torch.randn(17, 24)
        assert relative(layer(x), layer.merge()(x)) < 1e-6
        layer.base_weight.copy_(new)
        assert relative(layer(x), layer.merge()(x)) < 1e-5


@pytest.mark.parametrize("kind", [NormLowRankLinear, NormLinear])
def test_an_evaluation_in_inference_mode_under_autocast_leaves_training_as_it_was(kind):
    torch.manual_seed(0)
    base = nn.Linear(24, 17)
    layer = kind(base, 5, 10.0) if kind is NormLowRankLinear else kind(base)
    x = torch.randn(3, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.inference_mode():
            inside = x.clone()
            found = layer(x), layer(inside)
            inside.mul_(2)
            assert relative(layer(inside) - base.bias, 2 * (found[0] - base.bias)) < 2e-2
        y = layer(x)
        y.float().sum().backward()
    assert torch.equal(found[0], y)
    assert torch.equal(found[1], y)
    assert layer.magnitude.grad.any()


def test_forwards_without_a_backward_leave_one_note_whatever_their_number():
    layers = nn.Sequential(NormLowRankLinear(nn.Linear(6, 6), 2, 4.0), NormLowRankLinear(nn.Linear(6, 6), 2, 4.0))
    x = torch.randn(2, 6)
    layers(x)
    before = len(waiting)
    for _ in range(5):
        y = layers(x)
    assert len(waiting) == before
    kept = layers[0](x)
    layers[1](kept.square()).sum().backward()
    assert [layer._keeps_output for layer in layers] == [True, False]
    assert not waiting
    assert y.requires_grad


def test_another_default_device_changes_nothing():
    layer = moved()
    wanted = [torch.manual_seed(3), dropout.draw_seed()][1], layer.get_extra_state()
    block = krylov._start_block(None, 20, 4, torch.float32, torch.device("cpu"))
    older = {name: value for name, value in layer.state_dict().items() if not name.endswith("_extra_state")}
    torch.set_default_device("meta")
    try:
        torch.manual_seed(3)
        found = dropout.draw_seed(), layer.get_extra_state()
        again = krylov._start_block(None, 20, 4, torch.float32, torch.device("cpu"))
        layer.load_state_dict(older)
    finally:
        torch.set_default_device(None)
    assert found == wanted
    assert torch.equal(again, block)
