"""What methods refuse: names, ranks and settings, each with the value, the rule and what would be allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from baselines.method import AdamSettings, Method, freeze_except, trainable
from baselines.registry import get_method, methods
from baselines.shared.adamw import adamw
from baselines.shared.targets import place

Make = Callable[[str], nn.Module]
RANKED = tuple(name for name, method in methods().items() if method.configure(4) != method.configure(5))
PROJECTING = tuple(
    name for name in RANKED if methods()[name].ranks((9, 9), methods()[name].configure(4)).projection_rank is not None
)


def attach_at(method: Method[Any], model: nn.Module, at: int, **changes: Any) -> None:
    """Attach a method as a comparison at rank `at` would, with `changes` to its settings."""
    config = method.configure(at).model_copy(update=changes)
    method.attach(model, place(model, "attention+mlp", False), config)


def test_some_methods_have_ranks() -> None:
    assert set(RANKED) >= {"lora", "dora", "galore", "gradnormlorp"}
    assert set(PROJECTING) >= {"galore", "gradnormlorp"}


@pytest.mark.parametrize("method_name", RANKED)
@pytest.mark.parametrize("rank", [0, -1, -8])
def test_a_rank_below_one(method_name: str, rank: int, make_network: Make) -> None:
    with pytest.raises(ValueError, match=rf"rank {rank}: .*at least [12].*\(nearest allowed value: [12]\)$"):
        attach_at(get_method(method_name), make_network("bert"), rank)


@pytest.mark.parametrize("method_name", RANKED)
@pytest.mark.parametrize("rank", [65, 1000])
def test_a_rank_above_the_smaller_side(method_name: str, rank: int, make_network: Make) -> None:
    model = make_network("bert")
    before = list(model.named_parameters())
    # Shapes are 64 x 64 and 64 x 1024; what a basis spans must be more than the rank.
    with pytest.raises(ValueError, match=rf"rank {rank}: larger than .*bert\.\S+ of shape \d+x\d+ allows") as raised:
        attach_at(get_method(method_name), model, rank)
    whole = get_method(method_name).ranks((64, 64), get_method(method_name).configure(4)).rank is None
    assert str(raised.value).endswith(f"(nearest allowed value: {63 if whole else 64})")
    assert [(name, id(p)) for name, p in before] == [(name, id(p)) for name, p in model.named_parameters()]


@pytest.mark.parametrize("method_name", RANKED)
def test_the_nearest_allowed_value_is_allowed(method_name: str, make_network: Make) -> None:
    model, method = make_network("bert"), get_method(method_name)
    with pytest.raises(ValueError, match="nearest") as raised:
        attach_at(method, model, 65)
    nearest = int(str(raised.value).rpartition(": ")[2].rstrip(")"))
    config = method.configure(nearest)
    placement = place(model, "attention+mlp", False)
    method.attach(model, placement, config)
    assert method.optimizer(model, placement, AdamSettings(1e-3), config).param_groups


def test_gradnormlorp_at_rank_one() -> None:
    with pytest.raises(ValueError, match=r"rank 1: gradnormlorp needs at least 2.*nearest allowed value: 2"):
        get_method("gradnormlorp").configure(1)


def test_gradnormlorp_at_rank_one_by_its_settings(make_network: Make) -> None:
    with pytest.raises(ValueError, match=r"rank 1: .*allow_full_rank \(nearest allowed value: 2\)"):
        attach_at(get_method("gradnormlorp"), make_network("bert"), 2, rank=1, projection_rank=1)


@pytest.mark.parametrize("projection_rank", [8, 9, 64])
def test_gradnormlorp_projection_rank_not_below_rank(projection_rank: int, make_network: Make) -> None:
    model = make_network("bert")
    with pytest.raises(ValueError, match=rf"projection_rank {projection_rank}: .*\(nearest allowed value: 7\)"):
        attach_at(get_method("gradnormlorp"), model, 8, projection_rank=projection_rank)
    assert not [name for name, _ in model.named_parameters() if "factor" in name]


def test_gradnormlorp_full_rank_when_allowed(make_network: Make) -> None:
    method, model = get_method("gradnormlorp"), make_network("bert")
    placement = place(model, "attention+mlp", False)
    config = method.configure(8).model_copy(update={"projection_rank": 8, "allow_full_rank": True})
    method.attach(model, placement, config)
    groups = method.optimizer(model, placement, AdamSettings(1e-3), config).param_groups
    assert groups[0]["projection_rank"] == 8
    with pytest.raises(ValueError, match=r"projection_rank 9: .*nearest allowed value: 8"):
        attach_at(method, make_network("bert"), 8, projection_rank=9, allow_full_rank=True)


@pytest.mark.parametrize(("side", "largest"), [("small", 63), ("large", 63), ("both", 63)])
def test_galore_projects_below_what_its_basis_spans(side: str, largest: int, make_network: Make) -> None:
    """On a 64 x 64 weight every side is 64."""
    with pytest.raises(ValueError, match=rf"projection_rank 64: .*side '{side}' \(nearest allowed value: {largest}\)"):
        attach_at(get_method("galore"), make_network("bert"), 64, side=side)


def test_galore_on_the_large_side_may_take_the_whole_smaller_side(make_network: Make) -> None:
    model, method = make_network("bert"), get_method("galore")
    config = method.configure(64).model_copy(update={"side": "large"})
    placement = place(model, "intermediate.dense", False)
    method.attach(model, placement, config)
    assert method.optimizer(model, placement, AdamSettings(1e-3), config).param_groups[0]["projection_rank"] == 64


@pytest.mark.parametrize("method_name", PROJECTING)
@pytest.mark.parametrize("projection_rank", [0, -2])
def test_a_projection_rank_below_one(method_name: str, projection_rank: int, make_network: Make) -> None:
    with pytest.raises(ValueError, match=rf"projection_rank {projection_rank}: must be at least 1 \(nearest"):
        attach_at(get_method(method_name), make_network("bert"), 8, projection_rank=projection_rank)


@pytest.mark.parametrize("method_name", tuple(methods()))
def test_settings_are_frozen_and_strict(method_name: str) -> None:
    config = get_method(method_name).configure(8)
    with pytest.raises(ValidationError):
        type(config)(**{**config.model_dump(), "nosuch": 1})
    for name in config.model_fields_set:
        with pytest.raises(ValidationError):
            setattr(config, name, 3)


@pytest.mark.parametrize(
    ("typed", "nearest"),
    [("gradnormlop", "gradnormlorp"), ("Lora", "lora"), ("GALORE", "galore"), ("ful", "full")],
)
def test_an_unknown_method_names_the_known_and_the_nearest(typed: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown method '{typed}': known are .*; nearest: {nearest}$") as raised:
        get_method(typed)
    assert all(name in str(raised.value) for name in methods())


@pytest.mark.parametrize(("bits", "nearest"), [(16, 8), (0, 8), (64, 32)])
def test_state_bits_other_than_8_and_32(bits: int, nearest: int) -> None:
    settings = AdamSettings(1e-3, state_bits=bits)
    with pytest.raises(ValueError, match=rf"state_bits {bits}: must be 32 or 8 \(nearest allowed value: {nearest}\)"):
        adamw([nn.Parameter(torch.zeros(2))], settings)


def test_freeze_except_refuses_an_unknown_name_and_changes_nothing(make_network: Make) -> None:
    model = make_network("bert")
    with pytest.raises(ValueError, match="'classifier.wait'"):
        freeze_except(model, ["classifier.bias", "classifier.wait"])
    assert len(trainable(model)) == len(list(model.parameters()))
    freeze_except(model, ["classifier.bias"])
    assert list(trainable(model)) == ["classifier.bias"]
