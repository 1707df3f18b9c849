"""What every method must hold to, on a BERT, a RoBERTa and a LLaMA; walks the registry, so new ones are taken up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from baselines.method import (
    AdamSettings,
    Method,
    Part,
    Placement,
    Rates,
    Refreshing,
    Work,
    check_optimizer_covers,
    refreshed,
    set_refresh_gap,
    trainable,
)
from baselines.registry import methods
from baselines.shared.targets import place, shapes
from gnlorp import GradNormLoRPAdamW
from results.schema import DataPlan, ModelPlan, Plan, TrainingPlan
from suites.capabilities.checks import checks, run_check
from suites.capabilities.subject import is_adapter, method_subject, pack_config, pack_rate
from suites.measure import live
from suites.measure.formula import trains_everything
from suites.resolved import Resolved
from suites.run.build import Built, build
from suites.run.resume import digest
from suites.suite import Runtime

NETWORKS = ("bert", "roberta", "llama")
ALL_NETWORKS = (*NETWORKS, "llama-lm", "llama-tied")
METHODS = tuple(methods())
Make = Callable[[str], nn.Module]


def trains_layers(name: str) -> bool:
    """Whether the method trains the target layers at all: a control need not."""
    return methods()[name].trains_layers((64, 64), pack_config(methods()[name]))


MakeBatch = Callable[[str], dict[str, Tensor]]

every_method = pytest.mark.parametrize("method_name", METHODS)
every_training = pytest.mark.parametrize("method_name", [name for name in METHODS if trains_layers(name)])
every_network = pytest.mark.parametrize("network", NETWORKS)
every_network_and_heads = pytest.mark.parametrize("network", ALL_NETWORKS)
WIDTHS = [(name, bits) for name in METHODS for bits in methods()[name].widths]
each_width = pytest.mark.parametrize(("method_name", "bits"), WIDTHS)
# The capability pack's check of 8 bits trains every method in them too.
each_training_width = pytest.mark.parametrize(
    ("method_name", "bits"),
    [pytest.param(name, bits, marks=[pytest.mark.slow] * (bits == 8)) for name, bits in WIDTHS if trains_layers(name)],
)


def placed(model: nn.Module, method_name: str) -> Placement:
    """Return where the method works in fine-tuning; a control, which trains no layer, is one of pre-training."""
    return place(model, "attention+mlp", train_rest=not trains_layers(method_name))


def plan_of(method: Method[Any], bits: int) -> Plan:
    return Plan(
        suite="toy", task="toy", profile="toy", method=method.name, targets="attention+mlp", seed=0,
        method_config=pack_config(method).model_dump(mode="json"),
        model=ModelPlan(name="toy", source="config"), data=DataPlan(source="micro", name="toy", max_length=10),
        training=TrainingPlan(steps=1, batch_size=6, learning_rate=pack_rate(method), state_bits=bits),
    )  # fmt: skip


def built_on(model: nn.Module, method_name: str, bits: int = 32, only_targets: bool = False) -> Built:
    """Attach a method at a fixed seed; with `only_targets` a parameter-efficient method trains nothing but adapters."""
    placement = placed(model, method_name)
    if only_targets:
        placement = Placement(placement.targets, ())
    method = methods()[method_name]
    no_suite: Any = None
    runtime = Runtime(torch.device("cpu"))
    return build(model, placement, Resolved(plan_of(method, bits), runtime, no_suite, method, pack_config(method)))


def train(model: nn.Module, optimizer: Optimizer, batch: dict[str, Tensor], steps: range) -> None:
    """Train on one batch; the step's number seeds its dropout."""
    model.train()
    for step in steps:
        torch.manual_seed(100 + step)
        optimizer.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        optimizer.step()


@torch.no_grad()
def outputs(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Return logits and loss with dropout off."""
    model.eval()
    result = model(**batch)
    return result.logits, float(result.loss)


@every_method
@every_network_and_heads
def test_trains_exactly_what_it_documents(method_name: str, network: str, make_network: Make) -> None:
    method, model = methods()[method_name], make_network(network)
    before = dict(model.named_parameters())
    placement = placed(model, method_name)
    dense = shapes(model, placement.targets)
    config = pack_config(method)
    method.attach(model, placement, config)
    now = trainable(model)
    kept = {name for name in now if name in before and any(now[name] is old for old in before.values())}
    everything = trains_everything(method, config, next(iter(dense.values())))
    targets = {f"{layer}.weight" for layer in dense}
    assert kept - targets == (set(before) - targets if everything else set(placement.trained))
    for layer, shape in dense.items():
        own = {name for name in now if name.startswith(f"{layer}.") and (name in targets or name not in before)}
        assert sum(now[name].numel() for name in own) == sum(
            part.values for part in method.layer_parts(shape, config) if part.trained
        )
        kept |= own
    assert kept == set(now)


@pytest.mark.parametrize(
    ("method_name", "values"),
    [("lora", 8 * (1024 + 64)), ("dora", 8 * (1024 + 64) + 1024), ("gradnormlorp", 8 * (1024 + 64) + 1024)],
)
def test_trained_values_of_one_layer(method_name: str, values: int, make_network: Make) -> None:
    model = make_network("bert")
    methods()[method_name].attach(model, place(model, "intermediate.dense", False), methods()[method_name].configure(8))
    name = "bert.encoder.layer.2.intermediate.dense."
    assert sum(p.numel() for key, p in trainable(model).items() if key.startswith(name)) == values


@each_width
@every_network_and_heads
def test_optimizer_covers_exactly_the_trainable(method_name: str, network: str, bits: int, make_network: Make) -> None:
    method, model = methods()[method_name], make_network(network)
    placement = placed(model, method_name)
    config = pack_config(method)
    method.attach(model, placement, config)
    optimizer = method.optimizer(model, placement, AdamSettings(1e-3, state_bits=bits), config)
    check_optimizer_covers(model, optimizer)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in trainable(model).values())


@every_method
def test_optimizer_check_sees_a_missing_a_double_and_a_frozen_parameter(method_name: str, make_network: Make) -> None:
    built = built_on(make_network("bert"), method_name)
    group = built.optimizer.param_groups[0]["params"]
    taken = group.pop()
    with pytest.raises(RuntimeError, match="does not hold 1 trainable"):
        check_optimizer_covers(built.model, built.optimizer)
    group += [taken, taken]
    with pytest.raises(RuntimeError, match="twice"):
        check_optimizer_covers(built.model, built.optimizer)
    group.pop()
    taken.requires_grad_(False)
    with pytest.raises(RuntimeError, match="not trainable"):
        check_optimizer_covers(built.model, built.optimizer)


@every_method
@every_network_and_heads
def test_starts_at_the_base_function(method_name: str, network: str, make_network: Make, make_batch: MakeBatch) -> None:
    model, batch = make_network(network), make_batch(network)
    base, _ = outputs(model, batch)
    built = built_on(model, method_name)
    assert same_start(method_name, outputs(built.model, batch)[0], base)


def same_start(name: str, found: Tensor, base: Tensor) -> bool:
    """Whether outputs are equal, up to rounding where the weight itself is split into factors and what is left."""
    return torch.allclose(found, base, atol=1e-5) if methods()[name].from_weight else torch.equal(found, base)


@each_training_width
@every_network
def test_a_few_steps_reduce_the_loss_without_the_head(
    method_name: str, network: str, bits: int, make_network: Make, make_batch: MakeBatch
) -> None:
    batch = make_batch(network)
    built = built_on(make_network(network), method_name, bits, only_targets=True)
    _, start = outputs(built.model, batch)
    train(built.model, built.optimizer, batch, range(12))
    _, end = outputs(built.model, batch)
    assert end < 0.9 * start


@every_method
@every_network
def test_every_target_layer_changes(method_name: str, network: str, make_network: Make, make_batch: MakeBatch) -> None:
    model = make_network(network)
    layers = placed(model, method_name).targets
    before = {name: model.get_submodule(name).weight.detach().clone() for name in layers}
    built = built_on(model, method_name)
    train(built.model, built.optimizer, make_batch(network), range(3))
    merged = methods()[method_name].merge(built.model)
    still = [name for name in layers if torch.equal(merged.get_submodule(name).weight, before[name])]
    assert not still if trains_layers(method_name) else still == list(layers)


@each_width
@every_network
def test_state_bytes_follow_the_formula(
    method_name: str, network: str, bits: int, make_network: Make, make_batch: MakeBatch
) -> None:
    """To the byte, but for what the formula leaves out: step counters and bitsandbytes' two shared code tables."""
    built = built_on(make_network(network), method_name, bits)
    train(built.model, built.optimizer, make_batch(network), range(3))
    left_out: dict[str, list[int]] = {}
    for key, tensor in live.held_tensors(built.optimizer, built.model):
        if key in ("step", "qmap1", "qmap2"):
            left_out.setdefault(key, []).append(tensor.untyped_storage().nbytes())
    assert set(left_out.get("step", [])) <= {4}
    assert len(left_out.get("step", [])) in (0, len(trainable(built.model)))
    assert set(left_out) <= {"step", "qmap1", "qmap2"}
    assert all(left_out.get(table, [1024]) == [1024] for table in ("qmap1", "qmap2"))
    walked = live.state_bytes(built.optimizer, built.model)
    assert walked - sum(map(sum, left_out.values())) == built.formula_state_bytes
    # A basis may be in few bits at any width of the moments.
    kinds = {shape.split()[-1] for shape in live.state_shapes(built.optimizer) if "basis" not in shape}
    assert ("uint8" in kinds) == (bits == 8 or has_its_own_width(method_name))


def has_its_own_width(name: str) -> bool:
    """Whether the moments are in 8 bits whatever a run asks for."""
    parts = methods()[name].layer_parts((1024, 64), pack_config(methods()[name]))
    return any(kept.moments and kept.bits == 8 for part in parts for kept in part.state)


@every_method
def test_a_width_that_it_does_not_have_is_refused(method_name: str, make_network: Make) -> None:
    method, model = methods()[method_name], make_network("bert")
    for bits in {32, 8, 16} - set(method.widths):
        with pytest.raises(ValueError, match=rf"state_bits {bits}: {method_name} has .*nearest allowed value: \d+"):
            method.make_optimizer(
                model, placed(model, method_name), AdamSettings(1e-3, state_bits=bits), pack_config(method)
            )
        if bits != 16:
            assert run_check(checks()["8-bit"], method_subject(method), ("bert",)).answer == "not applicable"


@pytest.mark.parametrize(
    ("method_name", "wide", "eight_bit"),
    [
        # An 1024 x 64 weight at rank 8, by hand from each file's formula; 8 bits: 2 bytes a value, 8 per block of 256.
        ("full", 8 * 65536, 2 * 65536 + 8 * 256),
        ("adamw8bit", 2 * 65536 + 8 * 256, 2 * 65536 + 8 * 256),
        ("muon", 4 * 65536, 4 * 65536),
        ("scale", 0, 0),
        ("lora_fa", 8 * 8192, 2 * 8192 + 8 * 32),
        ("pissa", 8 * (8192 + 512), 2 * 8192 + 8 * 32 + 8 * 512),
        ("lora", 8 * (8192 + 512), 2 * 8192 + 8 * 32 + 8 * 512),
        ("dora", 8 * (8192 + 512 + 1024), 2 * 8192 + 8 * 32 + 8 * 512 + 8 * 1024),
        ("galore", 4 * (2 * 1024 + 64) * 8, 2 * 8192 + 8 * 32 + 4 * 64 * 8),
        (
            "gradnormlorp",
            4 * (2 * 4 * (1024 + 64) + 2 * 8 * 4 + 2 * 1024),
            2 * 4096 + 8 * 16 + 8 * 256 + 2 * 4 * 8 * 4 + 8 * 1024,
        ),
    ],
)
def test_layer_bytes_by_hand(method_name: str, wide: int, eight_bit: int) -> None:
    method = methods()[method_name]
    assert method.layer_state_bytes((1024, 64), method.configure(8), 32) == wide
    assert method.layer_state_bytes((1024, 64), method.configure(8), 8) == eight_bit


@every_method
@every_network
def test_bases_and_factors_are_as_it_says(
    method_name: str, network: str, make_network: Make, make_batch: MakeBatch
) -> None:
    method, built = methods()[method_name], built_on(make_network(network), method_name)
    parts = method.layer_parts(built.layers[0].shape, pack_config(method))
    assert method.bases == any(part.basis_values for part in parts)
    assert method.factors == any(
        part.added and part.trained and min(part.shape) > 1 for part in parts if len(part.shape) == 2
    )
    ranked = method.configure(4) != method.configure(5)
    assert method.drawn == (ranked and not method.bases and not method.factors)
    settable = set_refresh_gap(built.optimizer, 2)
    assert method.bases or not settable
    if not method.bases:
        assert not refreshed(built.optimizer)
        return
    assert isinstance(built.optimizer, Refreshing)
    # A basis of every step has no gap to set.
    assert built.optimizer.refresh_gap == (2 if settable else None)
    fitted = []
    for step in range(4):
        train(built.model, built.optimizer, make_batch(network), range(step, step + 1))
        fitted.append(refreshed(built.optimizer))
    # A factor whose partner starts at zero has its first gradient, so its first basis, a step later: all steps fit one.
    assert fitted == ([True, False, True, False] if settable and not method.factors else [True, True, True, True])


@pytest.mark.parametrize("side", ["small", "large", "both"])
@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (8, 8)])
def test_numbers_of_a_part_are_those_of_its_state(shape: tuple[int, int], side: Any) -> None:
    part = Part("weight", shape, trained=True, projection_rank=3, side=side)
    weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    optimizer = GradNormLoRPAdamW([weight], projection_rank=3, side=side)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = {key: tensor.numel() for key, tensor in optimizer.state[weight].items() if isinstance(tensor, Tensor)}
    bases = sum(count for key, count in held.items() if "basis" in key)
    assert part.basis_values == bases
    assert part.moment_values == sum(held.values()) - bases
    assert part.state_bytes(32) == 4 * (part.moment_values + part.basis_values)
    frozen = replace(part, trained=False, projection_rank=None)
    assert (frozen.moment_values, frozen.basis_values, frozen.state_bytes(8)) == (0, 0, 0)


@every_method
def test_it_states_its_rates_for_both_kinds_of_work(method_name: str) -> None:
    rates = methods()[method_name].rates
    assert set(rates) == set(get_args(Work))
    for each in rates.values():
        assert each.source
        # As wide for every method, which is what a search's equal budget means.
        assert each.high / each.low == pytest.approx(100)


@pytest.mark.parametrize("numbers", [(1e-3, 2e-3, 4e-3), (1e-3, 1e-4, 5e-4), (1e-3, 0.0, 1e-2), (1.0, 3.0, 1.0)])
def test_rates_out_of_their_range_are_refused(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="must be 0 < low <= usual <= high"):
        Rates(*numbers, source="nowhere")


@every_method
def test_saves_state_as_it_says(method_name: str, make_network: Make, make_batch: MakeBatch) -> None:
    built = built_on(make_network("bert"), method_name)
    train(built.model, built.optimizer, make_batch("bert"), range(2))
    saves = live.state_bytes(built.optimizer, built.model) < built.dense_state_bytes
    assert saves == methods()[method_name].saves_state


@every_method
@every_network_and_heads
def test_merge_leaves_the_base_network_with_the_same_outputs(
    method_name: str, network: str, make_network: Make, make_batch: MakeBatch
) -> None:
    base, batch = make_network(network), make_batch(network)
    built = built_on(make_network(network), method_name)
    train(built.model, built.optimizer, batch, range(4))
    before, _ = outputs(built.model, batch)
    assert (before - outputs(base, batch)[0]).abs().max() > 1e-2
    merged = methods()[method_name].merge(built.model)
    torch.testing.assert_close(outputs(merged, batch)[0], before, rtol=1e-4, atol=1e-4)
    assert [(name, type(module)) for name, module in merged.named_modules()] == [
        (name, type(module)) for name, module in base.named_modules()
    ]
    assert [(name, p.shape, p.dtype) for name, p in merged.named_parameters()] == [
        (name, p.shape, p.dtype) for name, p in base.named_parameters()
    ]
    assert list(merged.state_dict()) == list(base.state_dict())
    assert set(vars(merged)) == set(vars(base))


@pytest.mark.parametrize(
    ("method_name", "bits", "train_rest"),
    # The first width in fine-tuning and the last in pre-training; the other two are slow.
    [
        pytest.param(name, bits, rest, marks=[pytest.mark.slow] * (bits != methods()[name].widths[-int(rest)]))
        for name, bits in WIDTHS
        for rest in (False, True)
    ],
)
def test_the_rest_has_a_learning_rate_of_its_own(
    method_name: str, bits: int, train_rest: bool, make_network: Make, make_batch: MakeBatch
) -> None:
    method, model = methods()[method_name], make_network("llama")
    config, placement = pack_config(method), place(model, "attention+mlp", train_rest=train_rest)
    method.attach(model, placement, config)
    together = method.optimizer(model, placement, AdamSettings(1e-3, state_bits=bits), config)
    optimizer = method.make_optimizer(
        model, placement, AdamSettings(1e-3, state_bits=bits, rest_learning_rate=3e-2), config
    )
    names = {id(parameter): name for name, parameter in trainable(model).items()}

    def options(found: Optimizer) -> dict[str, dict[str, Any]]:
        return {
            names[id(p)]: {key: value for key, value in group.items() if key != "params"}
            for group in found.param_groups
            for p in group["params"]
        }

    before, now = options(together), options(optimizer)
    assert all(before[name]["lr"] == 1e-3 for name in placement.trained)
    assert now == {name: each | ({"lr": 3e-2} if name in placement.trained else {}) for name, each in before.items()}
    # A rate of zero for everything else: the rest alone moves, at its rate.
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["lr"] != 3e-2 else group["lr"]
    start = {name: parameter.detach().clone() for name, parameter in trainable(model).items()}
    train(model, optimizer, make_batch("llama"), range(2))
    moved = {name for name, parameter in trainable(model).items() if not torch.equal(parameter, start[name])}
    assert moved == set(placement.trained)


@every_method
def test_an_equal_rate_of_the_rest_changes_no_bit(method_name: str, make_network: Make, make_batch: MakeBatch) -> None:
    method, found = methods()[method_name], []
    for adam in (AdamSettings(2e-3), AdamSettings(2e-3, rest_learning_rate=2e-3)):
        model, config = make_network("llama"), pack_config(method)
        placement = place(model, "attention+mlp", train_rest=True)
        torch.manual_seed(0)
        method.attach(model, placement, config)
        make = method.optimizer if adam.rest_learning_rate is None else method.make_optimizer
        optimizer = make(model, placement, adam, config)
        train(model, optimizer, make_batch("llama"), range(3))
        found.append((digest(model, optimizer), len(optimizer.param_groups)))
    assert found[0] == found[1]


@every_method
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_merged_network_takes_a_method_again(method_name: str, make_network: Make, make_batch: MakeBatch) -> None:
    batch = make_batch("bert")
    merged = methods()[method_name].merge(built_on(make_network("bert"), method_name).model)
    before, _ = outputs(merged, batch)
    assert same_start(method_name, outputs(built_on(merged, method_name).model, batch)[0], before)


@every_method
@every_network
def test_same_seed_gives_the_same_adapters(method_name: str, network: str, make_network: Make) -> None:
    def attached(seed: int) -> dict[str, Tensor]:
        model = make_network(network)
        torch.manual_seed(seed)
        method = methods()[method_name]
        method.attach(model, placed(model, method_name), pack_config(method))
        return dict(model.named_parameters())

    first, same, other = attached(3), attached(3), attached(4)
    assert first.keys() == same.keys()
    assert all(torch.equal(first[name], same[name]) for name in first)
    drawn = is_adapter(methods()[method_name]) and not methods()[method_name].from_weight
    assert any(not torch.equal(first[name], other[name]) for name in first) == drawn


@every_method
def test_tied_weights_stay_tied_and_are_trained_once(
    method_name: str, make_network: Make, make_batch: MakeBatch
) -> None:
    model = make_network("llama-tied")
    start = model.lm_head.weight.detach().clone()
    built = built_on(model, method_name)
    train(built.model, built.optimizer, make_batch("llama-tied"), range(3))
    merged = methods()[method_name].merge(built.model)
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    # Fine-tuning keeps the backbone's embeddings frozen, and with them the head that they are, unless all is trained.
    everything = trains_everything(methods()[method_name], pack_config(methods()[method_name]), (64, 64))
    pretraining = not trains_layers(method_name)
    assert torch.equal(merged.lm_head.weight, start) == (not everything and not pretraining)


@every_method
def test_pretraining_placement_trains_embeddings_and_norms_too(
    method_name: str, make_network: Make, make_batch: MakeBatch
) -> None:
    model = make_network("llama-tied")
    method, placement = methods()[method_name], place(model, "attention+mlp", train_rest=True)
    config = pack_config(method)
    outside = {name: model.get_parameter(name).detach().clone() for name in placement.trained}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= set(outside)
    method.attach(model, placement, config)
    optimizer = method.optimizer(model, placement, AdamSettings(1e-3), config)
    check_optimizer_covers(model, optimizer)
    train(model, optimizer, make_batch("llama-tied"), range(2))
    assert [name for name, old in outside.items() if torch.equal(model.get_parameter(name), old)] == []
