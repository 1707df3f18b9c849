"""The weight-normalised layer whose whole weight is trained: its gradients, what it keeps, and merging."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from gnlorp import NormLinear, base_weight


def pair(bias: bool, dtype: torch.dtype) -> tuple[NormLinear, nn.Linear]:
    """Return our layer and torch's parametrization of the same, away from the start."""
    torch.manual_seed(0)
    base = nn.Linear(24, 17, bias=bias, dtype=dtype)
    theirs = parametrizations.weight_norm(copy.deepcopy(base), dim=0)
    ours = NormLinear(base)
    with torch.no_grad():
        factor = 1 + 0.2 * torch.randn(17)
        ours.magnitude.mul_(factor)
        theirs.parametrizations.weight.original0.mul_(factor[:, None].to(dtype))
    return ours, theirs


def relative(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [1 << 22, 64])
def test_output_and_gradients_are_those_of_torchs_parametrization(bias, chunk, monkeypatch):
    monkeypatch.setattr(base_weight, "CHUNK_ELEMENTS", chunk)
    ours, theirs = pair(bias, torch.float64)
    x, grad = torch.randn(3, 11, 24, dtype=torch.float64), torch.randn(3, 11, 17, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(leaf) for layer, leaf in zip((ours, theirs), leaves, strict=True)]
    for output in outputs:
        output.backward(grad)
    assert relative(outputs[0], outputs[1]) < 1e-14
    assert relative(leaves[0].grad, leaves[1].grad) < 1e-13
    original = theirs.parametrizations.weight
    assert relative(ours.direction.grad, original.original1.grad) < 1e-12
    assert relative(ours.magnitude.grad, original.original0.grad.flatten()) < 1e-12
    assert relative(ours.weight, theirs.weight) < 1e-14
    if bias:
        assert relative(ours.bias.grad, theirs.bias.grad) < 1e-13


def test_the_start_is_bit_equal_and_merging_gives_it_back():
    base = nn.Linear(24, 17)
    layer, x = NormLinear(copy.deepcopy(base)), torch.randn(5, 24)
    assert torch.equal(layer(x), base(x))
    assert relative(layer.merge().weight, base.weight) < 1e-6
    assert torch.equal(torch.func.vmap(layer)(x), layer(x)) or relative(torch.func.vmap(layer)(x), layer(x)) < 1e-6


def test_only_the_input_is_kept_for_backward():
    layer, _ = pair(True, torch.float32)
    x = torch.randn(5, 24, requires_grad=True)
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        layer(x)
    known = {p.data_ptr() for p in layer.parameters()} | {x.data_ptr()}
    assert sum(t.numel() for pointer, t in kept.items() if pointer not in known) == 0


def test_autocast_and_low_precision():
    layer, theirs = pair(True, torch.float32)
    x = torch.randn(9, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert relative(y, theirs(x)) < 1e-2
    y.float().sum().backward()
    assert layer.direction.grad.dtype == torch.float32
    assert NormLinear(nn.Linear(8, 8, dtype=torch.bfloat16)).magnitude.dtype == torch.float32
    with pytest.raises(TypeError, match="float64"):
        layer(x.double())


def test_hooks_stay_at_a_merge():
    calls = []
    layer = NormLinear(nn.Linear(8, 6))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.merge()(torch.randn(2, 8))
    assert calls == ["after"]
