"""The LLaMA sizes: shapes, initial weights, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from baselines.shared import targets
from results.schema import ModelPlan
from suites.c4 import llama
from suites.c4.sizes import ALL as SIZES


def parameters(model: ModelPlan) -> int:
    """Embedding and head, four attention and three MLP matrices and two norms a layer, a last norm."""
    size = SIZES[model.name]
    layer = 4 * size.hidden**2 + 3 * size.hidden * size.intermediate + 2 * size.hidden
    assert model.vocabulary is not None
    return 2 * model.vocabulary * size.hidden + size.layers * layer + size.hidden


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_the_parameters_of_its_shape(name: str) -> None:
    plan = llama.plan(name, 32_000, 256)
    with torch.device("meta"):
        model = llama.network(plan)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(plan)
    assert len(targets.match_layers(model, "attention+mlp")) == 7 * SIZES[name].layers


def test_the_protocols_sizes_are_what_their_names_say() -> None:
    counts = {name: parameters(llama.plan(name, 32_000, 256)) for name in SIZES}
    for name, least, most in (("9m", 8e6, 1e7), ("60m", 5.5e7, 6.5e7), ("130m", 1.3e8, 1.4e8), ("7b", 6.5e9, 7e9)):
        assert least < counts[name] < most, (name, counts[name])


def test_initial_weights_depend_on_the_seed_alone_and_have_the_stated_spread() -> None:
    plan = llama.plan("0.4m", 400, 64)
    first, again, other = (llama.network(plan, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    for name, value in first.items():
        if value.dim() == 2:
            assert float(value.std()) == pytest.approx(0.02, rel=0.05), name
    assert all(value.dtype == torch.float32 for value in first.values())


def test_the_head_is_untied_and_nothing_has_a_bias() -> None:
    model = llama.network(llama.plan("0.1m", 50, 64), 0)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not any(isinstance(m, nn.Linear) and m.bias is not None for m in model.modules())


def test_the_digest_names_what_defines_the_network() -> None:
    assert llama.plan("9m", 50, 64).digest == llama.plan("9m", 50, 32).digest
    assert llama.plan("9m", 50, 64).digest != llama.plan("9m", 51, 64).digest
    assert llama.plan("9m", 50, 64).digest != llama.plan("20m", 50, 64).digest


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown model size '61m': known are .*; nearest: 60m"):
        llama.plan("61m", 50, 64)
    with pytest.raises(ValueError, match="max_length 1025: model 60m has 1024 positions"):
        llama.plan("60m", 50, 1025)
    assert llama.plan("7b", 50, 2048).name == "7b"
