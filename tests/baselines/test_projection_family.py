"""The projection family against slow references in float64, and each method's claim."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from projection_references import BETAS, EPS, FREE, GAP, GROWTH, RANK, REFERENCES, RHO, SCALE, TURN
from torch import Tensor, nn

from baselines import apollo, fira, frugal, ldadam, qgalore, subtrack
from baselines.apollo_mini import ApolloMiniAdamW
from baselines.registry import methods
from baselines.shared.rules import RuleAdamW, the_basis
from gnlorp import Diverged
from gnlorp.projection import fit

STEPS, RATE, DECAY = 30, 1e-2, 0.1
SHAPES = [(20, 8), (8, 20)]
RULES: dict[str, tuple[type[RuleAdamW], dict[str, Any]]] = {
    "fira": (fira.FiraAdamW, {"scale": SCALE, "growth": GROWTH}),
    "apollo": (apollo.ApolloAdamW, {"scale": SCALE, "growth": GROWTH, "seed": 5}),
    "apollo_mini": (ApolloMiniAdamW, {"scale": SCALE, "growth": GROWTH, "seed": 5}),
    "ldadam": (ldadam.LdadamAdamW, {"rho": RHO}),
    "frugal": (frugal.FrugalAdamW, {"free_scale": FREE, "seed": 5}),
    "subtrack": (subtrack.SubtrackAdamW, {"scale": SCALE, "growth": GROWTH, "basis_step": TURN}),
    "qgalore": (qgalore.QgaloreAdamW, {"scale": SCALE, "likeness": 0.4, "window": 1}),
}
every_rule = pytest.mark.parametrize("name", list(RULES))
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide"])


def gradients(shape: tuple[int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return gradients with a slowly moving low-rank part, noise, and now and then one several times as large."""
    generator = torch.Generator().manual_seed(1)
    left = torch.randn(shape[0], 4, generator=generator, dtype=torch.float64)
    right = torch.randn(4, shape[1], generator=generator, dtype=torch.float64)
    found = []
    for step in range(STEPS):
        left = left + 0.1 * torch.randn(left.shape, generator=generator, dtype=torch.float64)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        found.append(((left @ right + 0.5 * noise) * (4.0 if step % 9 == 5 else 1.0) * 0.1).to(dtype))
    return found


def make(name: str, shape: tuple[int, int], dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """Return (weight, optimizer) of one rule on one weight, always the same."""
    rule, own = RULES[name]
    start = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight = nn.Parameter(start.to(dtype))
    rank = 1 if name == "apollo_mini" else RANK
    options = {"lr": RATE, "betas": BETAS, "eps": EPS, "weight_decay": DECAY, "refresh_gap": GAP, **own, **changes}
    return weight, rule([{"params": [weight], "projection_rank": rank}], **options)


def run(name: str, shape: tuple[int, int], grads: list[Tensor], **changes: Any) -> Tensor:
    weight, optimizer = make(name, shape, grads[0].dtype, **changes)
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    return weight.detach()


@every_rule
@every_shape
def test_thirty_steps_are_those_of_a_slow_reference(name: str, shape: tuple[int, int]) -> None:
    tall = shape[0] > shape[1]
    weight = make(name, shape)[0].detach().clone()
    expected = weight.T if tall else weight
    reference: Any = REFERENCES[name](min(shape))
    next(reference)
    for grad in gradients(shape):
        move = reference.send(grad.T if tall else grad)
        expected = (1 - RATE * DECAY) * expected - RATE * move
    found = run(name, shape, gradients(shape))
    torch.testing.assert_close(found.T if tall else found, expected, rtol=1e-9, atol=1e-11)
    assert (expected - (weight.T if tall else weight)).abs().max() > 10 * RATE * SCALE * FREE


@every_rule
def test_the_transposed_weight_takes_the_transposed_steps(name: str) -> None:
    grads = gradients((20, 8))
    weight, optimizer = make(name, (20, 8))
    turned, other = make(name, (8, 20))
    with torch.no_grad():
        turned.copy_(weight.T)
    for grad in grads:
        weight.grad, turned.grad = grad.clone(), grad.T.clone()
        optimizer.step()
        other.step()
    torch.testing.assert_close(turned.T, weight, rtol=1e-9, atol=1e-11)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_the_reference(name: str, dtype: torch.dtype) -> None:
    # Steps and decays of a thousandth of a weight are lost in the rounding of bfloat16.
    exact, low = (
        run(name, (20, 8), gradients((20, 8), kind), lr=0.1, weight_decay=0.0).double()
        for kind in (torch.float64, dtype)
    )
    way = (exact - make(name, (20, 8))[0].detach()).norm()
    assert (low - exact).norm() < (1e-4 if dtype == torch.float32 else 0.5) * way


@every_rule
def test_a_resumed_run_ends_bit_for_bit_as_one_that_never_stopped(name: str) -> None:
    grads = gradients((20, 8), torch.float32)
    straight = run(name, (20, 8), grads)
    for stop in (1, GAP, GAP + 2):
        weight, optimizer = make(name, (20, 8), torch.float32)
        for grad in grads[:stop]:
            weight.grad = grad.clone()
            optimizer.step()
        file = io.BytesIO()
        torch.save((weight.detach(), optimizer.state_dict()), file)
        file.seek(0)
        saved, state = torch.load(file, weights_only=True)
        again, resumed = make(name, (20, 8), torch.float32)
        again.data.copy_(saved)
        resumed.load_state_dict(state)
        for grad in grads[stop:]:
            again.grad = grad.clone()
            resumed.step()
        assert torch.equal(again.detach(), straight)


@every_rule
def test_a_foreign_state_is_refused(name: str) -> None:
    states = {}
    for other in RULES:
        weight, optimizer = make(other, (20, 8))
        weight.grad = gradients((20, 8))[0]
        optimizer.step()
        states[other] = optimizer.state_dict()
    _, optimizer = make(name, (20, 8))
    optimizer.load_state_dict(states[name])
    relatives = {"apollo", "apollo_mini"}
    for other, state in states.items():
        if other != name and not {name, other} <= relatives:
            with pytest.raises(ValueError, match=r"another optimizer's|must hold|is no option"):
                make(name, (20, 8))[1].load_state_dict(state)


@every_rule
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e15])
def test_a_gradient_that_cannot_be_used_is_skipped_and_counted(name: str, value: float) -> None:
    grads = gradients((20, 8), torch.float32)
    weight, optimizer = make(name, (20, 8), torch.float32)
    for step, grad in enumerate(grads):
        if step % 10 == 4:
            before = weight.detach().clone()
            weight.grad = torch.full_like(weight, value)
            optimizer.step()
            assert torch.equal(weight.detach(), before)
        weight.grad = grad.clone()
        optimizer.step()
    assert optimizer.skipped_steps == 3
    assert torch.equal(weight.detach(), run(name, (20, 8), grads))
    weight.grad = torch.full_like(weight, value)
    for _ in range(9):
        optimizer.step()
    with pytest.raises(Diverged, match="10 steps in a row"):
        optimizer.step()


@every_rule
@pytest.mark.parametrize("size", [1e-12, 1e10, 9e14])
def test_gradients_of_any_size_that_is_used_leave_everything_finite(name: str, size: float) -> None:
    weight, optimizer = make(name, (20, 8), torch.float32, weight_decay=0.0, eps=1e-20)
    start = weight.detach().clone()
    for grad in gradients((20, 8), torch.float32):
        weight.grad = grad * (size / float(grad.norm()))
        optimizer.step()
    assert optimizer.skipped_steps == 0
    assert torch.isfinite(weight).all()
    assert all(torch.isfinite(each).all() for each in optimizer.state[weight].values() if isinstance(each, Tensor))
    assert not torch.equal(weight.detach(), start)


@pytest.mark.parametrize("size", [1e-22, 1.0, 1e10])
def test_the_first_basis_of_ldadam_is_as_good_whatever_the_size_of_the_gradient(size: float) -> None:
    weight, optimizer = make("ldadam", (20, 8), torch.float32)
    grad = gradients((20, 8), torch.float32)[0]
    weight.grad = grad * size
    optimizer.step()
    kept = (grad @ optimizer.state[weight]["basis_right"]).square().sum()
    assert kept > 0.999 * torch.linalg.svdvals(grad)[:RANK].square().sum()


@pytest.mark.parametrize("size", [1.0, 1e5, 1e10, 1e14])
@every_shape
def test_a_step_along_the_geodesic_is_the_same_for_any_size_of_the_slope(shape: tuple[int, int], size: float) -> None:
    """The slope grows with the gradient's square: at a step that falls as fast the basis turns by the same angle."""
    first, second = gradients(shape, torch.float32)[:2]
    (old,) = fit([first], [None], RANK, "small", "exact")
    wanted, found = (the_basis(subtrack.geodesic_step(second * scale, old, 0.1 / scale**2)) for scale in (1.0, size))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, the_basis(old), atol=1e-2)


@every_rule
def test_a_prepared_state_is_what_a_first_step_finds(name: str) -> None:
    grads = gradients((20, 8), torch.float32)
    weight, optimizer = make(name, (20, 8), torch.float32)
    optimizer.prepare()
    assert optimizer.state[weight]["step"] == 0
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    assert torch.equal(weight.detach(), run(name, (20, 8), grads))


@every_rule
@pytest.mark.parametrize("copied", [False, True])
def test_a_group_that_is_added_later_has_the_options_of_the_rule(name: str, copied: bool) -> None:
    _, optimizer = make(name, (20, 8))
    if copied:
        optimizer = copy.deepcopy(optimizer)
    weight, rank = make(name, (8, 20))[0], optimizer.param_groups[0]["projection_rank"]
    optimizer.add_param_group({"params": [weight], "projection_rank": rank})
    first, second = ({**group, "params": None, "differentiable": None} for group in optimizer.param_groups)
    assert first == second
    weight.grad = gradients((8, 20))[0]
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


@every_rule
def test_gradients_of_zero_leave_everything_finite(name: str) -> None:
    weight, optimizer = make(name, (20, 8), weight_decay=0.0)
    start = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.equal(weight.detach(), start)
    for grad in gradients((20, 8)):
        for each in (grad, torch.zeros_like(grad)):
            each[0] = 0.0
            weight.grad = each
            optimizer.step()
    assert torch.isfinite(weight).all()
    assert not torch.equal(weight.detach(), start)


@every_rule
@pytest.mark.parametrize("bits", [32, 8])
def test_state_bytes_of_a_weight_are_those_of_the_docstring(name: str, bits: int) -> None:
    rows, columns, rank = 1024, 64, 1 if name == "apollo_mini" else 8
    moments = 8 * rows * rank
    if bits == 8 and rows * rank >= 4096:
        moments = 2 * rows * rank + 2 * 4 * rows * rank // 256
    own = {
        "fira": 4 * columns * rank + 4,
        "apollo": 4,
        "apollo_mini": 4,
        "ldadam": 4 * columns * rank + 4 * rows * columns,
        "frugal": 0,
        "subtrack": 4 * columns * rank + 4,
        "qgalore": columns * rank // 2 + 8 * columns * rank // 256,
    }
    method = methods()[name]
    for shape in ((rows, columns), (columns, rows)):
        assert method.layer_state_bytes(shape, method.configure(8), bits) == moments + own[name]
