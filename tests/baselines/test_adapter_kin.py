"""LoRA's kin, each against slow float64 arithmetic over 30 steps on a tall and a wide layer, and against peft's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from peft.tuners.lora import layer as layer_of_peft
from torch import Tensor, nn

from baselines.lora_fa import corrected
from baselines.method import AdamSettings, MethodConfig, Placement, merges_after, rewarm_factor
from baselines.registry import get_method

STEPS = 30
RANK = 4
RATE = 1e-2
LAYERS = ("tall", "wide")
SHAPES = {"tall": (24, 10), "wide": (10, 24)}
Reference = dict[str, Tensor]


class Two(nn.Module):
    """A tall layer, a wide one and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.tall, self.wide = nn.Linear(10, 24, bias=False), nn.Linear(24, 10, bias=False)
        self.head = nn.Linear(10, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.wide(torch.tanh(self.tall(x)))))
        return found


PLACEMENT = Placement(LAYERS, ("head.weight",))


def data(step: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, y = (torch.randn(16, width, generator=generator, dtype=torch.float64) for width in (10, 3))
    return x.to(dtype), y.to(dtype)


def loss_of(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().mean()


def config_of(name: str, **changes: Any) -> MethodConfig:
    method = get_method(name)
    return method.config_type(**{**method.configure(RANK).model_dump(), "dropout": 0.0, **changes})


def attached(name: str, config: MethodConfig, dtype: torch.dtype = torch.float64, bits: int = 32) -> Any:
    """Return (model, optimizer, method) with a method on the two layers, the adapters drawn at a fixed seed."""
    method, model = get_method(name), Two().to(dtype)
    torch.manual_seed(2)
    method.attach(model, PLACEMENT, config)
    optimizer = method.make_optimizer(model, PLACEMENT, AdamSettings(RATE, state_bits=bits), config)
    return model, optimizer, method


def factors(model: nn.Module, layer: str) -> tuple[nn.Parameter, nn.Parameter]:
    """Return (A, B) of a layer as the method files call them: (O, R) and (R, I)."""
    module: Any = model.get_submodule(layer)
    return module.lora_B["default"].weight, module.lora_A["default"].weight


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range = range(STEPS)) -> None:
    for step in steps:
        x, y = data(step, next(model.parameters()).dtype)
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()


def adam(weight: Tensor, grad: Tensor, state: dict[str, Tensor], step: int, rate: float, eps: float = 1e-8) -> Tensor:
    """Return the weight after one step of Adam, Kingma and Ba's algorithm 1 as it stands."""
    state["m"] = 0.9 * state.get("m", torch.zeros_like(grad)) + 0.1 * grad
    state["v"] = 0.999 * state.get("v", torch.zeros_like(grad)) + 0.001 * grad * grad
    return weight - rate * (state["m"] / (1 - 0.9**step)) / ((state["v"] / (1 - 0.999**step)).sqrt() + eps)


def reference(
    model: nn.Module,
    scale: float,
    rate: Callable[[str], float] = lambda name: RATE,
    grad_of: Callable[[str, Tensor, Reference], Tensor] = lambda name, grad, held: grad,
    frozen: tuple[str, ...] = (),
    after: Callable[[int, Reference, dict[str, dict[str, Tensor]]], None] = lambda step, held, states: None,
    factor: Callable[[int], float] = lambda step: 1.0,
) -> Reference:
    """Return W0, A and B of each layer and the head after 30 steps in float64 from where the method starts."""
    held: Reference = {"head": model.get_parameter("head.weight").detach().double()}
    for layer in LAYERS:
        high, low = factors(model, layer)
        base: Any = model.get_submodule(layer)
        held |= {f"{layer}.A": high.detach().double(), f"{layer}.B": low.detach().double()}
        held[f"{layer}.W0"] = base.get_base_layer().weight.detach().double().clone()
    names = [name for name in held if not name.endswith("W0") and not name.endswith(frozen or "-")]
    states: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    counts = dict.fromkeys(names, 0)
    for step in range(1, STEPS + 1):
        x, y = data(step - 1)
        leaves = {name: held[name].clone().requires_grad_(True) for name in names}
        now = {**held, **leaves}
        for layer in LAYERS:
            x = torch.tanh(x @ (now[f"{layer}.W0"] + scale * now[f"{layer}.A"] @ now[f"{layer}.B"]).T)
        grads = torch.autograd.grad(loss_of(x @ now["head"].T, y), list(leaves.values()))
        for name, grad in zip(names, grads, strict=True):
            counts[name] = counts[name] + 1 if states[name] else 1
            speed = rate(name) * factor(step)
            held[name] = adam(held[name], grad_of(name, grad, held), states[name], counts[name], speed)
        after(step, held, states)
    for layer in LAYERS:
        held[layer] = held[f"{layer}.W0"] + scale * held[f"{layer}.A"] @ held[f"{layer}.B"]
    return held


def check(name: str, model: nn.Module, expected: Reference, tolerance: float = 1e-9) -> None:
    merged = get_method(name).merge(model)
    for layer in (*LAYERS, "head"):
        torch.testing.assert_close(
            merged.get_parameter(f"{layer}.weight").double(), expected[layer], rtol=tolerance, atol=tolerance
        )


def test_rslora_is_lora_divided_by_the_root_of_the_rank() -> None:
    config = config_of("rslora", alpha=6.0)
    model, optimizer, _ = attached("rslora", config)
    expected = reference(model, scale=6.0 / RANK**0.5)
    train(model, optimizer)
    check("rslora", model, expected)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_scale_of_rslora_falls_with_the_root_of_the_rank_as_pefts_does(rank: int) -> None:
    method, model = get_method("rslora"), Two()
    method.attach(model, PLACEMENT, method.configure(rank))
    theirs = peft.get_peft_model(
        Two(), peft.LoraConfig(r=rank, lora_alpha=16, target_modules=list(LAYERS), use_rslora=True)
    )
    for layer in LAYERS:
        ours: Any = model.get_submodule(layer)
        peer: Any = theirs.base_model.model.get_submodule(layer)
        assert ours.scaling["default"] == peer.scaling["default"] == pytest.approx(16 / rank**0.5)


def test_loraplus_has_two_rates() -> None:
    config = config_of("loraplus", ratio=5.0)
    model, optimizer, _ = attached("loraplus", config)
    expected = reference(model, scale=16 / RANK, rate=lambda name: 5 * RATE if name.endswith("A") else RATE)
    train(model, optimizer)
    check("loraplus", model, expected)


def test_the_factor_that_starts_at_zero_moves_as_many_times_as_far() -> None:
    model, optimizer, _ = attached("loraplus", config_of("loraplus", ratio=7.0))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    train(model, optimizer, range(1))
    for layer in LAYERS:
        high, low = factors(model, layer)
        assert rates[id(high)] == pytest.approx(7 * rates[id(low)])
        # Adam's first step has the size of the rate in every entry.
        assert float(high.detach().abs().median()) == pytest.approx(7 * RATE, rel=1e-3)
    # Schedules multiply every group's rate, so that the ratio stays.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    assert {group["lr"] for group in optimizer.param_groups} == {RATE / 4, 7 * RATE / 4}
    assert schedule.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


def test_loraplus_steps_as_pefts_optimizer_does() -> None:
    config = config_of("loraplus", ratio=5.0)
    (model, optimizer, method), (other, _, _) = (attached("loraplus", config, torch.float32) for _ in range(2))
    theirs = create_loraplus_optimizer(other, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=5.0, fused=True, eps=1e-8)
    train(model, optimizer)
    train(other, theirs)
    for mine, peer in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, peer)


def test_pefts_loraplus_has_the_vectors_of_the_rest_at_the_higher_rate_and_ours_does_not() -> None:
    model, method = Two(), get_method("loraplus")
    model.head = nn.Linear(10, 3)
    placement = Placement(LAYERS, ("head.weight", "head.bias"))
    config = config_of("loraplus", ratio=5.0)
    method.attach(model, placement, config)
    ours = method.optimizer(model, placement, AdamSettings(RATE), config)
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=5.0)
    bias = model.head.bias

    def rate(optimizer: torch.optim.Optimizer) -> float:
        return next(group["lr"] for group in optimizer.param_groups if any(p is bias for p in group["params"]))

    assert rate(ours) == RATE
    assert rate(theirs) == 5 * RATE


@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_pissa_starts_at_the_top_singular_vectors_and_leaves_the_function_as_it_was(alpha: float) -> None:
    scale, base = alpha / RANK, Two().double()
    model, _, _ = attached("pissa", config_of("pissa", alpha=alpha))
    for layer in LAYERS:
        weight = base.get_parameter(f"{layer}.weight").detach()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        high, low = factors(model, layer)
        module: Any = model.get_submodule(layer)
        residual = module.get_base_layer().weight
        torch.testing.assert_close(residual + scale * high @ low, weight, rtol=1e-12, atol=1e-12)
        top = (left[:, :RANK] * values[:RANK]) @ right[:RANK]
        torch.testing.assert_close(scale * high @ low, top, rtol=1e-5, atol=1e-5)
        # Both factors share the singular values out evenly, each column along its own singular vector.
        for factor, vectors in ((high.T, left.T), (low, right)):
            torch.testing.assert_close(scale * factor @ factor.T, torch.diag(values[:RANK]), rtol=1e-5, atol=1e-5)
            turned = (factor @ vectors[:RANK].T).abs().diag() / factor.norm(dim=1)
            torch.testing.assert_close(turned, torch.ones_like(turned), rtol=1e-5, atol=1e-5)
        assert torch.linalg.matrix_norm(residual, 2) == pytest.approx(float(values[RANK]), rel=1e-4)


def test_pissa_trains_as_its_formula_says() -> None:
    model, optimizer, _ = attached("pissa", config_of("pissa"))
    expected = reference(model, scale=1.0)
    kept = {layer: model.get_submodule(layer).get_base_layer().weight.detach().clone() for layer in LAYERS}  # type: ignore[operator]
    train(model, optimizer)
    for layer in LAYERS:
        assert torch.equal(model.get_submodule(layer).get_base_layer().weight, kept[layer])  # type: ignore[operator]
    check("pissa", model, expected)


def test_the_scale_of_pissa_is_one_unless_told_otherwise() -> None:
    config: Any = get_method("pissa").configure(RANK)
    assert config.alpha / config.rank == 1
    assert config.dropout == 0


def test_the_fast_decomposition_is_near_the_exact_one() -> None:
    """On weights whose singular values fall: where they are alike, no iteration tells their vectors apart."""
    method = get_method("pissa")
    found = []
    for iterations in (0, 4):
        model = Two()
        for layer in LAYERS:
            weight = model.get_parameter(f"{layer}.weight")
            left, values, right = torch.linalg.svd(weight.detach(), full_matrices=False)
            weight.data = (left * 0.4 ** torch.arange(len(values))) @ right
        torch.manual_seed(0)
        method.attach(model, PLACEMENT, config_of("pissa", iterations=iterations))
        found.append([high @ low for high, low in (factors(model, layer) for layer in LAYERS)])
    for exact, fast in zip(*found, strict=True):
        torch.testing.assert_close(exact, fast, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("iterations", [0, 4])
def test_pissa_begins_anew_as_it_began(dtype: torch.dtype, iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the decomposition of its settings, in the precision of the model, drawn from the generator alone."""
    calls: list[int] = []
    lowrank = layer_of_peft.svd_lowrank

    def counted(*given: Any, niter: int) -> Any:
        calls.append(niter)
        return lowrank(*given, niter=niter)

    monkeypatch.setattr(layer_of_peft, "svd_lowrank", counted)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    found = []
    for drawn in (1, 2):
        model, optimizer, method = attached("pissa", config_of("pissa", iterations=iterations, alpha=10.0), dtype)
        train(model, optimizer, range(3))
        x, _ = data(0, dtype)
        before = model(x).detach()
        torch.manual_seed(drawn)
        state = torch.get_rng_state()
        method.restart(model, optimizer, torch.Generator().manual_seed(7))
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(model(x).detach(), before, rtol=tolerance, atol=tolerance)
        held = [factor for layer in LAYERS for factor in factors(model, layer)]
        assert {factor.dtype for factor in held} == {dtype}
        assert not any(optimizer.state[factor] for factor in held)
        found.append([factor.detach() for factor in held])
    assert calls == [iterations] * (8 if iterations else 0)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_rank_that_pissa_refuses_leaves_a_model_in_double_precision() -> None:
    model, method = Two().double(), get_method("pissa")
    with pytest.raises(ValueError, match="rank 99"):
        method.attach(model, PLACEMENT, config_of("pissa", rank=99))
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def inverse_corrected(name: str, grad: Tensor, held: Reference) -> Tensor:
    if not name.endswith(".A"):
        return grad
    low = held[name.removesuffix("A") + "B"]
    return grad @ torch.linalg.inv(low @ low.T) / (16 / RANK) ** 2


@pytest.mark.parametrize("correct", [True, False])
def test_lora_fa_trains_one_factor(correct: bool) -> None:
    model, optimizer, _ = attached("lora_fa", config_of("lora_fa", corrected=correct))
    change = {"grad_of": inverse_corrected} if correct else {}
    expected = reference(model, scale=16 / RANK, frozen=(".B",), **change)  # type: ignore[arg-type]
    drawn = {layer: factors(model, layer)[1].detach().clone() for layer in LAYERS}
    train(model, optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for layer in LAYERS:
        low = factors(model, layer)[1]
        assert torch.equal(low, drawn[layer])
        assert id(low) not in held
        assert low not in optimizer.state
        assert low.grad is None
    check("lora_fa", model, expected, 1e-8)


def test_the_corrected_gradient_is_the_nearest_to_the_whole_weights() -> None:
    generator = torch.Generator().manual_seed(3)
    for outputs, inputs in SHAPES.values():
        whole, low = (torch.randn(n, inputs, generator=generator, dtype=torch.float64) for n in (outputs, RANK))
        scale = 2.5
        found = corrected(scale * whole @ low.T, low, scale)
        best = torch.linalg.lstsq(scale * low.T, whole.T).solution.T
        torch.testing.assert_close(found, best)


def test_a_step_of_lora_fa_leaves_the_gradient_as_it_was() -> None:
    model, optimizer, _ = attached("lora_fa", config_of("lora_fa"))
    x, y = data(0)
    loss_of(model(x), y).backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    assert len(before) == 3
    for name, grad in before.items():
        kept = model.get_parameter(name).grad
        assert kept is not None
        assert torch.equal(kept, grad)


@pytest.mark.parametrize(("halved", "limit"), [(False, 1e-3), (True, 0.05)])
def test_lora_fa_steps_as_pefts_optimizer_does(halved: bool, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the bfloat16 in which it multiplies unless told not to; eps, which it adds elsewhere, is as good as 0."""
    monkeypatch.setattr("peft.optimizers.lorafa.is_bf16_available", lambda: halved)
    wrapped = peft.get_peft_model(
        Two(), peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=list(LAYERS), modules_to_save=None)
    )
    other: Any = wrapped.base_model.model
    other.head.weight.requires_grad_(False)
    model, _, method = attached("lora_fa", config_of("lora_fa"), torch.float32)
    model.head.weight.requires_grad_(False)
    optimizer = method.make_optimizer(model, Placement(LAYERS, ()), AdamSettings(RATE, eps=1e-12), config_of("lora_fa"))
    for layer in LAYERS:
        for mine, peer in zip(factors(model, layer), factors(other, layer), strict=True):
            peer.data.copy_(mine)
    start = {layer: factors(model, layer)[0].detach().clone() for layer in LAYERS}
    theirs = create_lorafa_optimizer(wrapped, r=RANK, lora_alpha=16, lr=RATE)
    theirs.param_groups[0]["eps"] = 1e-12
    train(model, optimizer)
    train(other, theirs)
    for layer in LAYERS:
        mine, peer = factors(model, layer)[0], factors(other, layer)[0]
        assert float((mine - peer).detach().norm() / (mine - start[layer]).detach().norm()) < limit


def test_relora_merges_and_begins_anew_as_its_formula_says() -> None:
    config = config_of("relora", merge_gap=7, rewarm_steps=2)
    model, optimizer, method = attached("relora", config)
    scale = 16 / RANK

    def after(step: int, held: Reference, states: dict[str, dict[str, Tensor]]) -> None:
        if step % 7:
            return
        generator = torch.Generator().manual_seed(step)
        for layer in LAYERS:
            held[f"{layer}.W0"] += scale * held[f"{layer}.A"] @ held[f"{layer}.B"]
            held[f"{layer}.A"] = torch.zeros_like(held[f"{layer}.A"])
            bound = SHAPES[layer][1] ** -0.5
            low = torch.empty_like(held[f"{layer}.B"])
            held[f"{layer}.B"] = low.uniform_(-bound, bound, generator=generator)
            states[f"{layer}.A"], states[f"{layer}.B"] = {}, {}

    def factor(step: int) -> float:
        since = (step - 1) % 7 + 1
        return min(1.0, since / 3) if step > 7 else 1.0

    expected = reference(model, scale=scale, after=after, factor=factor)
    base = {layer: model.get_submodule(layer).get_base_layer().weight.detach().clone() for layer in LAYERS}
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * rewarm_factor(config, step)
        train(model, optimizer, range(step - 1, step))
        if merges_after(config, step):
            method.restart(model, optimizer, torch.Generator().manual_seed(step))
            assert all(not optimizer.state[factor] for layer in LAYERS for factor in factors(model, layer))
    merged = method.merge(model)
    for layer in LAYERS:
        # The whole change has a higher rank than any of its parts.
        change = merged.get_parameter(f"{layer}.weight").detach() - base[layer]
        values = torch.linalg.svdvals(change)
        assert int((values > 1e-3 * values[0]).sum()) > RANK
    check("relora", merged, expected, 1e-8)


def test_relora_is_lora_where_nothing_is_merged() -> None:
    config, plain = config_of("relora", merge_gap=0), config_of("lora")
    (model, optimizer, _), (other, theirs, _) = attached("relora", config), attached("lora", plain)
    train(model, optimizer)
    train(other, theirs)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert get_method("relora").configure(RANK).settings()["merge_gap"] == 5000
