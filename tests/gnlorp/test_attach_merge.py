"""Putting layers into a model, and folding them out again."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from gnlorp import GradNormLoRPAdamW, NormLowRankLinear, attach, merge, param_groups


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"query": nn.Linear(8, 8), "output": nn.ModuleDict({"dense": nn.Linear(8, 8)})})
        self.output = nn.ModuleDict({"dense": nn.Linear(8, 6, bias=False)})

    def forward(self, x):
        return self.output["dense"](self.attention["output"]["dense"](self.attention["query"](x).tanh()).tanh())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.body = nn.Linear(8, 8)
        self.again = self.body
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.again(self.body(self.embed(tokens)).tanh()))


def stir(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NormLowRankLinear):
                module.factor_out.normal_(std=0.2)
                module.magnitude.mul_(1.3)
    return model


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["attention.query"], ["attention.query"]),
        (["query"], ["attention.query"]),
        (["output.dense"], ["attention.output.dense", "output.dense"]),
        (["attention.output.dense"], ["attention.output.dense"]),
        (["attention.*"], ["attention.query", "attention.output.dense"]),
        ("dense", ["attention.output.dense", "output.dense"]),
        (["q*y", "output.dense"], ["attention.query", "attention.output.dense", "output.dense"]),
    ],
)
def test_targets_name_layers(targets, names):
    model = Block()
    assert attach(model, targets, 2, 4.0) == names
    found = [name for name, module in model.named_modules() if isinstance(module, NormLowRankLinear)]
    assert sorted(found) == sorted(names)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["quary"], "nearest: .*query"),
        (["query", "uery"], "'uery'"),
        (["attention"], "ModuleDict"),
        ([], "empty"),
    ],
)
def test_a_target_that_matches_nothing_is_refused_and_nothing_changes(targets, message):
    model = Block()
    with pytest.raises(ValueError, match=message):
        attach(model, targets, 2, 4.0)
    assert not any(isinstance(module, NormLowRankLinear) for module in model.modules())


def test_a_rank_above_a_layer_names_it_and_changes_nothing():
    model = Block()
    with pytest.raises(ValueError, match=r"rank 7 for layer 'output.dense'.*at most 6"):
        attach(model, ["query", "output.dense"], 7, 4.0)
    assert not any(isinstance(module, NormLowRankLinear) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_attaching_twice_is_refused():
    model = Block()
    attach(model, ["query"], 2, 4.0)
    with pytest.raises(ValueError, match="already"):
        attach(model, ["query"], 2, 4.0)


def test_only_the_base_weights_are_frozen():
    model = Block()
    attach(model, ["query"], 2, 4.0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"attention.query.base_weight"}


def test_merge_restores_the_module_tree_and_the_outputs():
    torch.manual_seed(0)
    model = Block()
    plain = copy.deepcopy(model)
    attach(model, ["query", "dense"], 3, 6.0)
    x = torch.randn(5, 8)
    before = stir(model)(x)
    bias = model.attention["query"].bias
    assert merge(model) is model
    assert torch.allclose(model(x), before, atol=1e-6)
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    shapes = {name: p.shape for name, p in plain.named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.attention["query"].bias is bias
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_merging_a_lone_layer():
    layer = NormLowRankLinear(nn.Linear(4, 4), 2, 4.0)
    assert type(merge(layer)) is nn.Linear


def test_a_layer_under_two_names_stays_one_layer():
    model = Tied()
    tokens = torch.arange(11)
    before = model(tokens)
    assert attach(model, ["body", "again"], 2, 4.0) == ["body", "again"]
    assert model.body is model.again
    assert torch.equal(model(tokens), before)
    merge(model)
    assert model.body is model.again


@pytest.mark.parametrize("named", ["body", "again"])
def test_a_layer_named_once_is_replaced_under_all_its_names(named):
    model = Tied()
    model.inner = nn.ModuleDict({"deep": model.body})
    tokens = torch.arange(11)
    assert attach(model, [named], 2, 4.0) == ["body", "again", "inner.deep"]
    assert model.body is model.again is model.inner["deep"]
    assert isinstance(model.body, NormLowRankLinear)
    trained = stir(model)(tokens)
    merge(model)
    assert type(model.body) is nn.Linear
    assert model.body is model.again is model.inner["deep"]
    assert torch.allclose(model(tokens), trained, atol=1e-5)


def test_a_weight_shared_by_two_linear_layers_is_frozen_for_both_and_untied_by_merging():
    model = Tied()
    model.other = nn.Linear(8, 11, bias=False)
    model.other.weight = model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    tokens = torch.arange(11)
    before = model(tokens)
    attach(model, ["head"], 2, 4.0)
    assert torch.equal(model(tokens), before)
    assert model.head.base_weight is model.other.weight
    assert not model.other.weight.requires_grad
    shared = model.other.weight.clone()
    trained = stir(model)(tokens)
    model.head.restart()
    assert torch.equal(model.other.weight, shared)
    assert torch.allclose(model(tokens), trained, atol=1e-5)
    merge(model)
    assert torch.allclose(model(tokens), trained, atol=1e-5)
    assert model.head.weight is not model.other.weight


def test_a_tied_embedding_is_refused_and_nothing_is_frozen():
    model = Tied()
    with pytest.raises(ValueError, match="'head' shares its weight with a Embedding"):
        attach(model, ["body", "head"], 2, 4.0)
    assert model.embed.weight.requires_grad
    assert type(model.body) is nn.Linear


def test_hooks_of_a_layer_act_after_attach_and_after_merge():
    model, calls = Tied(), []
    model.body.register_forward_hook(lambda *_: calls.append("after"))
    model.body.register_forward_pre_hook(lambda *_: calls.append("before"))
    attach(model, ["body"], 2, 4.0)
    model(torch.arange(3))
    merge(model)
    model(torch.arange(3))
    assert calls == 2 * calls[: len(calls) // 2]
    assert {"before", "after"} == set(calls)


def test_an_offloaded_layer_is_refused():
    model = nn.Sequential(nn.Linear(4, 4, device="meta"))
    attach(copy.deepcopy(model), ["0"], 2, 4.0)  # made without weights, loaded later
    model[0]._hf_hook = object()
    with pytest.raises(ValueError, match="attach before"):
        attach(model, ["0"], 2, 4.0)


def test_groups_hold_every_trainable_parameter_once():
    model = Block()
    attach(model, ["query", "dense"], 4, 8.0)
    groups = param_groups(model, 2, lr=3e-4, refresh_gap=7, weight_decay=0.1)
    assert [group["projection_rank"] for group in groups] == [2, None]
    assert groups[0]["refresh_gap"] == 7
    assert "refresh_gap" not in groups[1]
    assert groups[1]["lr"] == 3e-4
    factors = {id(p) for n, p in model.named_parameters() if "factor" in n}
    assert {id(p) for p in groups[0]["params"]} == factors
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    GradNormLoRPAdamW(groups)


def test_groups_without_factors_are_refused():
    with pytest.raises(ValueError, match="attach first"):
        param_groups(Block(), 2)


def test_importing_needs_torch_alone():
    code = "import sys, gnlorp; print([n for n in ('transformers', 'peft', 'bitsandbytes') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_weight_that_is_made_from_other_tensors_is_refused_in_words() -> None:
    from torch.nn.utils import prune

    pruned = nn.Sequential(nn.Linear(8, 8))
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    normed = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(8, 8)))
    for model in (pruned, normed):
        with pytest.raises(ValueError, match="layer '0' has no weight of its own"):
            attach(model, ["0"], 2, 4)
    prune.remove(pruned[0], "weight")
    assert attach(pruned, ["0"], 2, 4) == ["0"]


def test_no_targets_at_all_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="targets None"):
        attach(nn.Sequential(nn.Linear(8, 8)), None, 2, 4)  # type: ignore[arg-type]
