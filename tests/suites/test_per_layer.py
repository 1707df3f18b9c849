"""Per-layer updates: the ordinary step bit for bit, with no gradient left, and refused where they cannot be."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gnlorp import GradNormLoRPAdamW
from suites.measure.tracker import track_step
from suites.run.clock import Clock
from suites.run.distributed import Group
from suites.run.loop import apply_gradients
from suites.run.per_layer import PerLayer

Make = Callable[[nn.Module], Optimizer]


def plain(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=True)


def two_groups(model: nn.Module) -> Optimizer:
    first, *rest = model.parameters()
    return torch.optim.AdamW([{"params": [first], "lr": 3e-2}, {"params": rest}], lr=1e-2)


def eight_bit(model: nn.Module) -> Optimizer:
    return pytest.importorskip("bitsandbytes").optim.AdamW8bit(model.parameters(), lr=1e-2)


def own_mode(model: nn.Module) -> Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "projection_rank": 4}, {"params": vectors, "projection_rank": None}]
    return GradNormLoRPAdamW(groups, lr=1e-2, refresh_gap=2)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 8))


def data(step: int) -> Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(step))


def ordinary(model: nn.Module, optimizer: Optimizer, step: int) -> float:
    model(data(step)).square().mean().backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


@pytest.mark.parametrize("make", [plain, two_groups, eight_bit, own_mode])
def test_it_is_the_ordinary_step_bit_for_bit(make: Make) -> None:
    one, other = network(), network()
    first, second = make(one), make(other)
    updates = PerLayer(second)
    for step in range(4):
        for optimizer in (first, second):
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        want = ordinary(one, first, step)
        other(data(step)).square().mean().backward()
        assert all(parameter.grad is None for parameter in other.parameters())
        norm, used = updates.finish()
        assert used
        assert norm == pytest.approx(want, rel=1e-5)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)
    assert len(first.state_dict()["state"]) == len(second.state_dict()["state"])


def test_few_gradients_are_alive_at_once() -> None:
    peaks = []
    for per_layer in (False, True):
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(12)))
        optimizer = plain(model)
        updates = PerLayer(optimizer) if per_layer else None

        def step(
            model: nn.Module = model, optimizer: Optimizer = optimizer, updates: PerLayer | None = updates
        ) -> None:
            model(data(0)).square().mean().backward()
            if updates is None:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            else:
                updates.finish()

        step()
        peaks.append(track_step(model, optimizer, step))
    whole = 4 * 12 * (64 * 64 + 64)
    assert peaks[0].gradient_bytes == whole
    assert peaks[1].gradient_bytes <= whole // 6
    assert peaks[1].total_bytes < peaks[0].total_bytes


def test_a_gradient_that_is_not_finite_is_skipped_alone() -> None:
    model = network()
    updates = PerLayer(plain(model))
    model[4].weight.register_hook(lambda grad: grad * float("nan"))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model(data(0)).square().mean().backward()
    assert updates.finish()[1] is False
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed == set(before) - {"4.weight"}
    model(data(1)).square().mean().backward()
    updates.finish()


def test_a_second_gradient_is_refused() -> None:
    model = network()
    updates = PerLayer(plain(model))
    model(data(0)).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"gradient 2 before finish\(\)"):
        model(data(1)).square().mean().backward()
    updates.remove()


def test_what_needs_all_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clip_norm 1\.0.*nearest allowed value: 0, or clip_scope = 'parameter'"):
        PerLayer(plain(network()), clip_norm=1.0)
    with pytest.raises(ValueError, match=r"clip_norm 1\.0 with accumulation 2.*nearest allowed value: 0"):
        PerLayer(plain(network()), accumulation=2, clip_norm=1.0, clip_scope="parameter")
    with pytest.raises(ValueError, match=r"2 processes.*nearest allowed value: 1 process"):
        PerLayer(plain(network()), group=Group(size=2))


@pytest.mark.parametrize("make", [plain, own_mode])
def test_removed_it_is_an_ordinary_optimizer_again(make: Make) -> None:
    one, other = network(), network()
    first, second = make(one), make(other)
    PerLayer(second).remove()
    for step in range(2):
        ordinary(one, first, step)
        ordinary(other, second, step)
    assert all(torch.equal(left, right) for left, right in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("make", [plain, two_groups, eight_bit])
def test_accumulated_it_is_the_ordinary_step_bit_for_bit(make: Make) -> None:
    one, other = network(), network()
    first, second = make(one), make(other)
    updates = PerLayer(second, accumulation=3)
    for step in range(3):
        for model in (one, other):
            for part in range(3):
                (model(data(3 * step + part)).square().mean() / 3).backward()
        want = nn.utils.get_total_norm([p.grad for p in one.parameters() if p.grad is not None])
        first.step()
        first.zero_grad(set_to_none=True)
        assert all(parameter.grad is None for parameter in other.parameters())
        assert updates.finish() == (pytest.approx(float(want), rel=1e-5), True)
    assert all(torch.equal(left, right) for left, right in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("make", [plain, own_mode])
def test_each_gradient_clipped_by_its_own_norm_is_the_ordinary_step_with_that_rule(make: Make) -> None:
    one, other = network(), network()
    first, second = make(one), make(other)
    updates = PerLayer(second, clip_norm=1e-3, clip_scope="parameter")
    for step in range(3):
        one(data(step)).square().mean().backward()
        norm, applied = apply_gradients(first, 1e-3, clip_scope="parameter")
        other(data(step)).square().mean().backward()
        assert updates.finish() == (pytest.approx(norm, rel=1e-5), applied)
        assert norm is not None
        assert norm > 1e-3
    assert all(torch.equal(left, right) for left, right in zip(one.parameters(), other.parameters(), strict=True))


class Slow(torch.optim.SGD):
    """Takes its time for each parameter."""

    def step(self, closure: object = None) -> None:
        time.sleep(0.01 * sum(len(group["params"]) for group in self.param_groups))
        super().step()


class SlowInBackward(Slow):
    """The same with a mode of its own."""

    skipped_steps = 0
    last_gradient_norm = 1.0
    supports_per_layer = True

    def per_layer(self, enable: bool = True, *, accumulation: int = 1) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.register_post_accumulate_grad_hook(lambda grown: time.sleep(0.01))

    def step(self, closure: object = None) -> None:
        self.zero_grad()


@pytest.mark.parametrize("kind", [Slow, SlowInBackward])
def test_what_is_done_inside_backward_is_timed_as_the_optimizers(kind: type[Slow]) -> None:
    model = network()
    optimizer, clock = kind(model.parameters(), lr=0.0), Clock(torch.device("cpu"))
    updates = PerLayer(optimizer)
    updates.clock = clock
    with clock.phase("backward"):
        model(data(0)).square().mean().backward()
    with clock.phase("optimizer"):
        updates.finish()
    assert clock.seconds["optimizer"] >= 0.06
    assert clock.seconds["backward"] < 0.05


@pytest.mark.parametrize("make", [plain, own_mode])
def test_a_dropped_switch_lets_the_model_go(make: Make) -> None:
    model = network()
    alive = [weakref.ref(parameter) for parameter in model.parameters()]
    optimizer = make(model)
    updates = PerLayer(optimizer)
    model(data(0)).square().mean().backward()
    updates.finish()
    del model, optimizer, updates
    gc.collect()
    assert [ref for ref in alive if ref() is not None] == []
