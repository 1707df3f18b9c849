"""What other libraries and compilers do to a model with these layers: done, or refused in words that say what to do."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from gnlorp import GradNormLoRPAdamW, NormLinear, NormLowRankLinear, attach, merge, param_groups

transformers = pytest.importorskip("transformers")


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=False
    )
    return transformers.LlamaForCausalLM(config)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = llama()


@pytest.mark.parametrize("outer", [False, True])
def test_a_model_whose_head_is_ours_is_not_resized_by_half(outer):
    whole = Wrapped() if outer else llama()
    model = whole.inner if outer else whole
    attach(whole, ["lm_head", "q_proj"], 4, 8)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(RuntimeError, match=r"head.*before attach, or merge the model first") as caught:
            each.resize_token_embeddings(48)
        assert "\n" not in str(caught.value)
        # transformers replaces the embedding before it looks at the head.
        assert each.get_input_embeddings().weight.shape == (40, 16)
    assert merge(whole) is whole
    assert model.resize_token_embeddings(48).weight.shape == (48, 16)
    assert model.lm_head.weight.shape == (48, 16)
    attach(whole, ["lm_head"], 4, 8)
    assert model(torch.tensor([[47, 3]])).logits.shape == (1, 2, 48)


def test_a_model_whose_head_is_not_ours_is_resized():
    model = llama()
    attach(model, ["q_proj"], 4, 8)
    assert model.resize_token_embeddings(48).weight.shape == (48, 16)
    assert isinstance(model.lm_head, nn.Linear)


@pytest.mark.parametrize("kind", [NormLowRankLinear, NormLinear])
def test_script_is_refused_and_takes_what_is_merged(kind):
    layer = kind(nn.Linear(8, 6), 2, 4) if kind is NormLowRankLinear else kind(nn.Linear(8, 6))
    model = nn.Sequential(layer, nn.Tanh()).eval()
    x = torch.randn(3, 8)
    wanted = model(x).detach()
    with pytest.raises(RuntimeError, match=rf"script of a {kind.__name__}.*merge the model first"):
        torch.jit.script(model)
    assert torch.allclose(torch.jit.trace(model, x)(x), wanted, atol=1e-6)
    model[0] = layer.merge()
    assert torch.allclose(torch.jit.script(model)(x), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", [NormLowRankLinear, NormLinear])
def test_a_second_derivative_is_refused_by_autograd_and_right_by_function_transforms(kind):
    torch.manual_seed(0)
    layer = kind(nn.Linear(8, 6), 2, 4) if kind is NormLowRankLinear else kind(nn.Linear(8, 6))
    model = nn.Sequential(layer, nn.Tanh()).double()
    with torch.no_grad():
        layer.magnitude.mul_(1.5)
    x = torch.randn(8, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="create_graph=True: .* not differentiable; use torch.func"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
    found = torch.func.hessian(lambda v: model(v).sum())(x)
    model[0] = layer.merge()
    wanted = torch.autograd.functional.hessian(lambda v: model(v).sum(), x)
    assert wanted.abs().max() > 1e-3
    assert torch.allclose(found, wanted, atol=1e-12)


def test_a_compiled_function_may_step():
    def trained(compiled):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
        attach(model, ["0", "2"], 2, 4)
        optimizer = GradNormLoRPAdamW(param_groups(model, 1, refresh_gap=2), lr=0.1)

        def step():
            optimizer.step()

        run = torch.compile(step, backend="aot_eager") if compiled else step
        for _ in range(4):
            model(torch.randn(3, 8)).square().sum().backward()
            run()
            optimizer.zero_grad()
        return [each.detach() for each in model.parameters()], optimizer

    (plain, _), (found, optimizer) = trained(False), trained(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert optimizer.skipped_steps == 0
    assert optimizer.last_gradient_norm > 0


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(("size", "skipped"), [(5.7e20, 0), (5.9e20, 1)])
def test_the_largest_gradient_that_is_used_is_the_one_that_is_said(rank, size, skipped):
    weight = nn.Parameter(torch.zeros(6, 5))
    optimizer = GradNormLoRPAdamW([weight], lr=0.01, eps=0.0, projection_rank=rank)
    # One entry: it is the largest one, and the norm.
    weight.grad = torch.zeros(6, 5)
    weight.grad[2, 3] = size
    optimizer.step()
    assert optimizer.skipped_steps == skipped
    assert bool(weight.any()) is not bool(skipped)
    assert optimizer.last_gradient_norm == pytest.approx(size)
