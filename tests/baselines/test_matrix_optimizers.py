"""8-bit AdamW, Muon and SCALE against slow float64 arithmetic over 30 steps on a tall and a wide matrix, and peers."""

from __future__ import annotations

import importlib.util
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.method import AdamSettings, Placement
from baselines.registry import get_method
from baselines.scale import BY_COLUMN, BY_ROW, root_mean_square
from baselines.shared.adamw import adamw
from suites.measure import live

STEPS = 30
RATE = 1e-2
TARGETS = ("tall", "wide")
# 24 x 192 and 192 x 24 are 4,608 values, more than bitsandbytes keeps at 32 bits.
TALL, WIDE = (192, 24), (24, 192)
Grads = dict[str, Tensor]


class Net(nn.Module):
    """Two targets, an embedding, a norm's vector and a head; never run: gradients are set by hand."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(11, 6)
        self.tall, self.wide = nn.Linear(TALL[1], TALL[0], bias=False), nn.Linear(WIDE[1], WIDE[0], bias=False)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight


@dataclass
class Made:
    model: Net
    optimizer: torch.optim.Optimizer
    start: dict[str, Tensor]

    def change(self, name: str) -> Tensor:
        return self.model.get_parameter(name).detach() - self.start[name]


def made(name: str, dtype: torch.dtype = torch.float64, bits: int = 32, tied: bool = False, **adam: Any) -> Made:
    model, method = Net(tied).to(dtype), get_method(name)
    placement = Placement(TARGETS, tuple(n for n, _ in model.named_parameters() if not n.startswith(TARGETS)))
    config = method.configure(4)
    method.attach(model, placement, config)
    optimizer = method.make_optimizer(model, placement, AdamSettings(RATE, state_bits=bits, **adam), config)
    return Made(model, optimizer, {n: p.detach().clone() for n, p in model.named_parameters()})


def grads_of(model: nn.Module, step: int) -> Grads:
    generator = torch.Generator().manual_seed(step)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) * (1 + step % 3)
        for name, p in model.named_parameters()
    }


def step(case: Made, index: int) -> None:
    for name, grad in grads_of(case.model, index).items():
        case.model.get_parameter(name).grad = grad
    case.optimizer.step()


def run(case: Made, steps: int = STEPS) -> None:
    for index in range(steps):
        step(case, index)


def apart(found: Tensor, expected: Tensor, start: Tensor) -> float:
    """Return how far two weights are apart, over the way that they went."""
    return float((found.double() - expected.double()).norm() / (expected.double() - start.double()).norm())


def adam_step(weight: Tensor, grad: Tensor, state: dict[str, Tensor], count: int) -> Tensor:
    state["m"] = 0.9 * state.get("m", torch.zeros_like(grad)) + 0.1 * grad
    state["v"] = 0.999 * state.get("v", torch.zeros_like(grad)) + 0.001 * grad * grad
    return weight - RATE * (state["m"] / (1 - 0.9**count)) / ((state["v"] / (1 - 0.999**count)).sqrt() + 1e-8)


def reference(case: Made, rule: Callable[[str, Tensor, dict[str, Tensor], int], Tensor | None]) -> dict[str, Tensor]:
    """Return every weight after 30 steps in float64: minus what `rule` says, or Adam's step where it says nothing."""
    held = {name: value.double() for name, value in case.start.items()}
    states: dict[str, dict[str, Tensor]] = {name: {} for name in held}
    for index in range(STEPS):
        for name, grad in grads_of(case.model, index).items():
            moved = rule(name, grad.double(), states[name], index + 1)
            if moved is None:
                held[name] = adam_step(held[name], grad.double(), states[name], index + 1)
            else:
                held[name] = held[name] - moved
    return held


def newton_schulz(matrix: Tensor) -> Tensor:
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def muon_rule(name: str, grad: Tensor, state: dict[str, Tensor], count: int) -> Tensor | None:
    if not name.startswith(TARGETS):
        return None
    state["m"] = 0.95 * state.get("m", torch.zeros_like(grad)) + 0.05 * grad
    ahead = 0.05 * grad + 0.95 * state["m"]
    short = newton_schulz(ahead.T).T if ahead.shape[0] > ahead.shape[1] else newton_schulz(ahead)
    return RATE * 0.2 * max(grad.shape) ** 0.5 * short


def test_muon_follows_its_formula() -> None:
    """Up to the bfloat16 in which torch multiplies; the rest by AdamW to float64's own precision."""
    case = made("muon")
    expected = reference(case, muon_rule)
    run(case)
    for name, start in case.start.items():
        limit = 0.02 if name.startswith(TARGETS) else 1e-12
        assert apart(case.model.get_parameter(name).detach(), expected[name], start) < limit, name


def test_muon_is_torchs_own_on_the_targets_and_torchs_adamw_on_the_rest() -> None:
    case = made("muon", torch.float32, weight_decay=0.1)
    ours = {name: nn.Parameter(value.clone()) for name, value in case.start.items()}
    matrices = [ours[f"{name}.weight"] for name in TARGETS]
    chosen = {id(p) for p in matrices}
    peers = (
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in ours.values() if id(p) not in chosen], lr=RATE, weight_decay=0.1, fused=True),
    )
    run(case)
    for index in range(STEPS):
        for name, grad in grads_of(case.model, index).items():
            ours[name].grad = grad
        for peer in peers:
            peer.step()
    for name, weight in ours.items():
        assert torch.equal(case.model.get_parameter(name), weight), name


@pytest.mark.skipif(
    importlib.util.find_spec("pytorch_optimizer") is None, reason="pip install --no-deps pytorch-optimizer"
)
def test_muon_goes_where_pytorch_optimizers_goes() -> None:
    """Its momentum is a sum, not an average, which orthogonalising cannot tell: only bfloat16's rounding is apart."""
    import pytorch_optimizer

    case = made("muon", torch.float32)
    weights = [nn.Parameter(case.start[f"{name}.weight"].clone()) for name in TARGETS]
    theirs = pytorch_optimizer.Muon(
        [{"params": weights, "use_muon": True}], lr=RATE, momentum=0.95, weight_decay=0.0, use_adjusted_lr=True
    )
    run(case)
    for index in range(STEPS):
        for name, weight in zip(TARGETS, weights, strict=True):
            weight.grad = grads_of(case.model, index)[f"{name}.weight"]
        theirs.step()
    for name, weight in zip(TARGETS, weights, strict=True):
        mine, start = case.change(f"{name}.weight"), case.start[f"{name}.weight"]
        other = weight.detach() - start
        assert float((mine * other).sum() / (mine.norm() * other.norm())) > 0.999


@pytest.mark.parametrize("name", TARGETS)
def test_the_singular_values_of_muons_step_lie_in_their_band(name: str) -> None:
    case = made("muon", torch.float32)
    for index in range(3):
        case.start = {key: p.detach().clone() for key, p in case.model.named_parameters()}
        step(case, index)
        change = case.change(f"{name}.weight")
        values = torch.linalg.svdvals(change / (RATE * 0.2 * max(change.shape) ** 0.5))
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.5
        # Every entry moves as far as one of AdamW's would, a fifth of the rate in the mean square.
        assert float(change.square().mean().sqrt()) == pytest.approx(0.2 * RATE, rel=0.2)


def test_muon_keeps_one_momentum_a_target_and_adams_two_of_the_rest() -> None:
    case = made("muon", torch.float32)
    run(case, 2)
    for name, parameter in case.model.named_parameters():
        keys = {key for key, value in case.optimizer.state[parameter].items() if isinstance(value, Tensor)}
        assert keys == ({"momentum_buffer"} if name.startswith(TARGETS) else {"exp_avg", "exp_avg_sq"})


def scale_rule(name: str, grad: Tensor, state: dict[str, Tensor], count: int) -> Tensor | None:
    """Algorithm 1 by loops over output units."""
    if grad.ndim != 2:
        return None
    if name == "head.weight":
        state["m"] = 0.9 * state.get("m", torch.zeros_like(grad)) + 0.1 * grad
        grad = state["m"]
    units = grad.T if name == "embed.weight" else grad
    rows = torch.stack([row / row.square().mean().sqrt() for row in units])
    return RATE * (rows.T if name == "embed.weight" else rows)


def test_scale_follows_its_algorithm() -> None:
    case = made("scale")
    expected = reference(case, scale_rule)
    run(case)
    for name, start in case.start.items():
        assert apart(case.model.get_parameter(name).detach(), expected[name], start) < 1e-12, name


def test_scale_keeps_nothing_for_a_matrix_but_the_heads_momentum() -> None:
    case = made("scale", torch.float32)
    run(case, 3)
    kept = {
        name: {key for key, value in case.optimizer.state[p].items() if isinstance(value, Tensor)}
        for name, p in case.model.named_parameters()
    }
    vectors = {name for name, p in case.model.named_parameters() if p.ndim == 1}
    assert kept["head.weight"] == {"momentum"}
    assert {name for name, keys in kept.items() if keys} == {"head.weight"} | vectors
    heads, small = case.model.head.weight.numel(), sum(case.model.get_parameter(name).numel() for name in vectors)
    assert live.state_bytes(case.optimizer, case.model) == 4 * heads + 8 * small


def test_a_head_that_is_the_embedding_is_the_head() -> None:
    case = made("scale", torch.float32, tied=True)
    run(case, 2)
    assert set(case.optimizer.state[case.model.embed.weight]) == {"momentum"}
    (group,) = [g for g in case.optimizer.param_groups if any(p is case.model.embed.weight for p in g["params"])]
    assert (group["momentum"], group["over"]) == (0.9, BY_ROW)


@pytest.mark.parametrize(
    ("name", "over"), [("tall.weight", BY_ROW), ("wide.weight", BY_ROW), ("embed.weight", BY_COLUMN)]
)
def test_every_output_unit_moves_equally_far(name: str, over: int) -> None:
    case = made("scale", torch.float32)
    step(case, 0)
    sizes = case.change(name).square().mean(dim=over).sqrt()
    torch.testing.assert_close(sizes, torch.full_like(sizes, RATE), rtol=1e-4, atol=1e-7)


def test_a_unit_without_a_gradient_stays_where_it_is() -> None:
    assert torch.equal(root_mean_square(torch.zeros(3, 5), BY_ROW), torch.full((3, 1), 1e-8))
    case = made("scale", torch.float32)
    for parameter in case.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    case.optimizer.step()
    assert all(torch.equal(p, case.start[name]) for name, p in case.model.named_parameters())


def nearest(values: Tensor, codes: Tensor) -> Tensor:
    return codes[(values[..., None] - codes).abs().argmin(dim=-1)]


def blockwise(values: Tensor, codes: Tensor) -> Tensor:
    """Return what is left of a tensor once it is kept as codes of its share of the largest value in 256."""
    blocks = values.reshape(-1, 256)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    return (nearest(blocks / largest, codes) * largest).reshape(values.shape)


def test_8bit_adamw_keeps_blockwise_codes_of_its_moments() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    tables = [functional.create_dynamic_map(signed=signed).double() for signed in (True, False)]

    def rule(name: str, grad: Tensor, state: dict[str, Tensor], count: int) -> Tensor | None:
        if not name.startswith(TARGETS):
            return None
        before = torch.zeros_like(grad)
        moved = -adam_step(before, grad, state, count)
        state["m"], state["v"] = (blockwise(state[key], codes) for key, codes in zip("mv", tables, strict=True))
        return moved

    case = made("adamw8bit", torch.float32)
    expected = reference(case, rule)
    run(case)
    for name, start in case.start.items():
        # A value between two codes may fall to either side in float32: a few entries take another code.
        limit = 0.01 if name.startswith(TARGETS) else 1e-5
        assert apart(case.model.get_parameter(name).detach(), expected[name], start) < limit, name
    exact = reference(case, lambda *_: None)
    name = "tall.weight"
    assert 0.001 < apart(case.model.get_parameter(name).detach(), exact[name], case.start[name]) < 0.2


@pytest.mark.parametrize("bits", [32, 8])
def test_8bit_adamw_is_bitsandbytes_whatever_width_is_asked_for(bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    case = made("adamw8bit", torch.float32, bits)
    weights = {name: nn.Parameter(value.clone()) for name, value in case.start.items()}
    theirs = adamw(weights.values(), AdamSettings(RATE, state_bits=8))
    run(case)
    for index in range(STEPS):
        for name, grad in grads_of(case.model, index).items():
            weights[name].grad = grad
        theirs.step()
    assert all(torch.equal(case.model.get_parameter(name), weight) for name, weight in weights.items())


@pytest.mark.parametrize(("method", "bits"), [("adamw8bit", 32), ("muon", 8), ("full", 8)])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    method: str, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"bitsandbytes.*pip install 'gnlorp\[eight-bit\]'"):
        made(method, torch.float32, bits)


@pytest.mark.parametrize(("method", "bits"), [("muon", 32), ("muon", 8), ("scale", 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_goes_on_bit_for_bit(method: str, bits: int, dtype: torch.dtype) -> None:
    if bits == 8:
        pytest.importorskip("bitsandbytes")
    case, other = made(method, dtype, bits), made(method, dtype, bits)
    run(case, 4)
    other.model.load_state_dict(case.model.state_dict())
    other.optimizer.load_state_dict(case.optimizer.state_dict())
    for index in (4, 5):
        step(case, index)
        step(other, index)
    assert all(torch.equal(a, b) for a, b in zip(case.model.parameters(), other.model.parameters(), strict=True))
    assert live.state_shapes(case.optimizer) == live.state_shapes(other.optimizer)
    # Loaded as a copy: going on with one leaves the other alone.
    step(case, 6)
    assert not torch.equal(case.model.tall.weight, other.model.tall.weight)


def test_the_suites_need_a_torch_that_has_muon() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    assert "torch>=2.9" in project["optional-dependencies"]["suites"]
