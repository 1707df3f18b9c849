"""Merging the factors and beginning them anew: the same function, a weight that moved, moments that are gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from baselines.method import AdamSettings, Method, RestartConfig, merges_after, rewarm_factor
from baselines.registry import methods
from baselines.shared.targets import place

Make = Callable[[str], nn.Module]
MakeBatch = Callable[[str], dict[str, Tensor]]
RESTARTING = [name for name, method in methods().items() if method.restart is not None]


def settings(method: Method, **values: object) -> RestartConfig:
    shared = {"alpha": 16.0, "dropout": 0.0}
    own = {"projection_rank": 2, "refresh_gap": 3} if "projection_rank" in method.config_type.model_fields else {}
    made = method.config_type(rank=4, **shared, **own, **values)
    assert isinstance(made, RestartConfig)
    return made


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch).logits
    return found


def train(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], steps: int) -> None:
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_methods_with_factors_restart_and_the_others_do_not() -> None:
    assert RESTARTING == [name for name, method in methods().items() if method.factors]
    for name, method in methods().items():
        assert issubclass(method.config_type, RestartConfig) == (name in RESTARTING)


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", RESTARTING)
def test_a_restart_keeps_the_function_and_drops_the_moments(
    name: str, bits: int, make_network: Make, make_batch: MakeBatch
) -> None:
    if bits == 8:
        pytest.importorskip("bitsandbytes")
    model, batch = make_network("llama-lm").eval(), make_batch("llama-lm")
    method, placement = methods()[name], place(make_network("llama-lm"), "attention+mlp", train_rest=True)
    config = settings(method)
    assert method.restart is not None
    method.attach(model, placement, config)
    optimizer = method.optimizer(model, placement, AdamSettings(1e-2, state_bits=bits), config)
    train(model, optimizer, batch, 4)
    before = logits(model, batch)
    kept = {id(p): key for key, p in model.named_parameters()}
    # A frozen factor is drawn anew as well; what must move is every weight that one was merged into.
    frozen = {
        key: p.detach().clone() for key, p in model.named_parameters() if not (p.requires_grad or ".lora_" in key)
    }
    method.restart(model, optimizer, torch.Generator().manual_seed(3))
    assert torch.allclose(logits(model, batch), before, atol=2e-5)
    moved = [key for key, old in frozen.items() if not torch.equal(model.get_parameter(key), old)]
    assert len(moved) == len(placement.targets)
    # The optimizer must go on with the very parameters of the model, and have forgotten exactly the factors.
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for p in held} <= kept.keys()
    forgotten = {kept[id(p)] for p in held if not optimizer.state.get(p)}
    inside = {key for key, p in model.named_parameters() if p.requires_grad and key not in placement.trained}
    assert forgotten == inside
    train(model, optimizer, batch, 3)
    assert not torch.allclose(logits(model, batch), before, atol=1e-3)


@pytest.mark.parametrize("name", RESTARTING)
def test_restarts_add_up_to_more_than_the_factors_rank(name: str, make_network: Make, make_batch: MakeBatch) -> None:
    base, batch = make_network("llama-lm"), make_batch("llama-lm")
    method, placement = methods()[name], place(base, "attention+mlp", train_rest=True)
    model = make_network("llama-lm").eval()
    config = settings(method)
    assert method.restart is not None
    method.attach(model, placement, config)
    optimizer = method.optimizer(model, placement, AdamSettings(1e-2), config)
    for seed in range(3):
        train(model, optimizer, batch, 4)
        method.restart(model, optimizer, torch.Generator().manual_seed(seed))
    merged = method.merge(model)
    key = "model.layers.0.self_attn.q_proj.weight"
    change = merged.get_parameter(key).double() - base.get_parameter(key).double()
    if any(part.name == "magnitude" for part in method.layer_parts((64, 64), config)):
        # Rows were rescaled too: what the factors added shows after dividing the norms out.
        old, new = base.get_parameter(key).double(), merged.get_parameter(key).double()
        change = new * (old.norm(dim=1) / new.norm(dim=1))[:, None] - old
    values = torch.linalg.svdvals(change)
    assert int((values > 1e-3 * values[0]).sum()) > 4


def test_merges_and_warm_up_come_at_the_stated_steps() -> None:
    config = settings(methods()["lora"], merge_gap=5, rewarm_steps=3)
    assert [step for step in range(1, 16) if merges_after(config, step)] == [5, 10, 15]
    assert [rewarm_factor(config, step) for step in range(4, 11)] == [1.0, 1.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    never = settings(methods()["lora"])
    assert not merges_after(never, 5)
    assert rewarm_factor(never, 6) == 1.0


def test_settings_at_their_default_leave_older_plans_as_they_were() -> None:
    for name in RESTARTING:
        assert not settings(methods()[name]).later & settings(methods()[name]).settings().keys()
        assert settings(methods()[name], merge_gap=7).settings()["merge_gap"] == 7
