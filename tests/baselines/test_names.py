"""Layers that a model holds under several names, and hooks on layers: no method loses them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from baselines.method import AdamSettings, Placement
from baselines.registry import methods
from suites.capabilities.subject import pack_config

every_method = pytest.mark.parametrize("name", list(methods()))


class Twice(nn.Module):
    """A layer under three names, gone through twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(64, 64)
        self.again = self.body
        self.inner = nn.ModuleDict({"deep": self.body})
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.again(torch.tanh(self.body(x))))
        return found


@every_method
def test_a_layer_under_several_names_stays_one_layer(name: str) -> None:
    model, x = Twice(), torch.randn(5, 64)
    calls: list[str] = []
    model.body.register_forward_hook(lambda *_: calls.append("after"))
    model.body.register_forward_pre_hook(lambda *_: calls.append("before"))
    method, placement = methods()[name], Placement(("body",), ("head.weight", "head.bias"))
    base = model(x)
    seen = list(calls)
    method.attach(model, placement, pack_config(method))
    optimizer = method.make_optimizer(model, placement, AdamSettings(1e-2), pack_config(method))
    model.eval()
    torch.testing.assert_close(model(x), base, rtol=1e-5, atol=1e-5)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.body is model.again is model.inner["deep"]
    trained = model(x)
    calls.clear()
    merged = method.merge(model)
    torch.testing.assert_close(merged(x), trained, rtol=1e-4, atol=1e-4)
    assert calls == seen
    assert type(merged.body) is nn.Linear
    assert merged.body is merged.again is merged.inner["deep"]
    assert list(merged.state_dict()) == list(Twice().state_dict())


@every_method
def test_hooks_of_a_layer_act_while_a_method_is_attached(name: str) -> None:
    model, method = Twice(), methods()[name]
    calls: list[int] = []
    model.body.register_forward_hook(lambda *_: calls.append(1))
    method.attach(model, Placement(("body",), ("head.weight", "head.bias")), pack_config(method))
    model(torch.randn(5, 64))
    assert len(calls) == 2
