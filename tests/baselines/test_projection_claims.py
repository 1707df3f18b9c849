"""What each method of the projection family claims of its step, and the same step by other people's packages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines import apollo, frugal, qgalore, subtrack
from baselines.apollo_mini import ApolloMiniAdamW
from baselines.fira import FiraAdamW
from baselines.frugal import FrugalAdamW
from baselines.ldadam import LdadamAdamW
from baselines.shared.rules import limited
from gnlorp import GradNormLoRPAdamW
from gnlorp.projection import Bases
from gnlorp.update import bases_of

RANK = 3


def grad_of(seed: int, shape: tuple[int, int] = (20, 8)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(rule: Any, rank: int = RANK, shape: tuple[int, int] = (20, 8), **options: Any) -> tuple[nn.Parameter, Any]:
    weight = nn.Parameter(grad_of(99, shape))
    return weight, rule([{"params": [weight], "projection_rank": rank}], **{"lr": 1e-2, **options})


def step(weight: nn.Parameter, optimizer: Any, grad: Tensor) -> Tensor:
    """Do one step and return by how much the weight moved."""
    before = weight.detach().clone()
    weight.grad = grad.clone()
    optimizer.step()
    return weight.detach() - before


def rank_of(move: Tensor) -> int:
    values = torch.linalg.svdvals(move)
    return int((values > 1e-8 * values[0]).sum())


def test_fira_moves_in_full_rank_where_galore_does_not() -> None:
    fira, galore = made(FiraAdamW), made(GradNormLoRPAdamW)
    assert rank_of(step(*galore, grad_of(1))) == RANK
    assert rank_of(step(*fira, grad_of(1))) == 8


def test_fira_within_its_basis_is_galore() -> None:
    fira, galore = made(FiraAdamW, scale=0.7), made(GradNormLoRPAdamW, scale=0.7)
    inside = grad_of(1)[:, :RANK] @ grad_of(2)[:RANK]
    for _ in range(4):
        torch.testing.assert_close(step(*fira, inside), step(*galore, inside), rtol=1e-6, atol=1e-9)
        inside = 1.3 * inside


def test_the_limiter_caps_growth_and_lets_fall() -> None:
    state = {"last_norm": torch.zeros((), dtype=torch.float64)}
    kept = [float(limited(torch.tensor(n, dtype=torch.float64), state, 1.01)) * n for n in (2.0, 9.0, 1.0, 0.0, 3.0)]
    assert kept == pytest.approx([2.0, 2.02, 1.0, 0.0, 1.01])


@pytest.mark.parametrize("shape", [(20, 8), (8, 20)])
def test_apollo_scales_channels_and_mini_the_whole(shape: tuple[int, int]) -> None:
    dim = 1 if shape[0] > shape[1] else 0
    ratios = step(*made(apollo.ApolloAdamW, shape=shape), grad_of(1, shape)) / grad_of(1, shape)
    assert torch.allclose(ratios, ratios.mean(dim, keepdim=True))
    assert ratios.mean(dim).std() > 0.1 * ratios.mean().abs()
    mini = made(ApolloMiniAdamW, 1, shape)
    ratios = step(*mini, grad_of(1, shape)) / grad_of(1, shape)
    assert torch.allclose(ratios, ratios.mean())
    # State of rank one: a value a channel for each moment, and one number.
    held = {name: value.numel() for name, value in mini[1].state[mini[0]].items() if isinstance(value, Tensor)}
    assert held == {"exp_avg": 20, "exp_avg_sq": 20, "last_norm": 1}


def test_apollos_projection_has_the_stated_spread_and_follows_from_seed_and_draw() -> None:
    weight = torch.zeros(3000, 400)
    drawn = apollo.drawn_bases(weight, 16, 7, 2).right
    assert drawn is not None
    assert float(drawn.var()) == pytest.approx(1 / 16, rel=0.05)
    assert abs(float(drawn.mean())) < 0.02
    same, *others = (apollo.drawn_bases(weight, 16, *each).right for each in ((7, 2), (7, 3), (8, 2), (9, 0)))
    assert torch.equal(same, drawn)
    assert not any(torch.equal(drawn, each) for each in others)
    # The factors are those of the whole gradient on average: E ||R_j||^2 = ||G_j||^2.
    grad = torch.randn(3000, 400, generator=torch.Generator().manual_seed(3))
    assert float((grad @ drawn).square().sum() / grad.square().sum()) == pytest.approx(1.0, rel=0.05)


def test_drawing_rules_draw_by_the_seed_of_the_run_and_for_each_weight() -> None:
    def drawn(seed: int) -> list[int]:
        torch.manual_seed(seed)
        weights = [nn.Parameter(grad_of(index)) for index in range(2)]
        optimizer = FrugalAdamW([{"params": weights, "projection_rank": RANK}])
        for weight in reversed(weights):
            weight.grad = grad_of(5)
        optimizer.step()
        return [optimizer.state[weight]["seed"] for weight in weights]

    assert drawn(3) == drawn(3)
    assert len({*drawn(3), *drawn(8)}) == 4


@pytest.mark.parametrize("shape", [(20, 8), (8, 20)])
def test_ldadams_error_holds_exactly_what_was_projected_away(shape: tuple[int, int]) -> None:
    """All that came in, less what went into the momentum and what is still in it, is what the error holds."""
    weight, optimizer = made(LdadamAdamW, shape=shape, betas=(0.8, 0.99))
    came, went = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    beta = 0.8
    for seed in range(6):
        state = optimizer.state[weight]
        old = up(state["exp_avg"], bases_of(state)) if state else torch.zeros(shape, dtype=torch.float64)
        step(weight, optimizer, grad_of(seed, shape))
        came += grad_of(seed, shape)
        new = up(state["exp_avg"], bases_of(state))
        # m_new = beta m' + (1 - beta) R: in units of gradients, what the momentum took in, less what it lost.
        went += (new - beta * old) / (1 - beta)
        torch.testing.assert_close(state["error"], came - went, rtol=1e-9, atol=1e-10)
    assert weight.grad is not None
    assert torch.equal(weight.grad, grad_of(5, shape))


def up(low: Tensor, bases: Bases) -> Tensor:
    return low @ bases.right.T if bases.right is not None else bases.left @ low


def test_ldadams_basis_turns_towards_the_gradient_and_stays_orthonormal() -> None:
    weight, optimizer = made(LdadamAdamW, rho=0.0)
    steady = grad_of(1) * torch.logspace(0, -2, 8, dtype=torch.float64)
    for _ in range(12):
        step(weight, optimizer, steady)
        basis = optimizer.state[weight]["basis_right"]
        torch.testing.assert_close(basis.T @ basis, torch.eye(RANK, dtype=torch.float64))
        optimizer.state[weight]["error"].zero_()
    best = torch.linalg.svdvals(steady)[:RANK].square().sum()
    assert float((steady @ basis).square().sum() / best) == pytest.approx(1.0, abs=1e-6)


def test_frugals_columns_without_moments_move_by_sign_alone() -> None:
    weight, optimizer = made(FrugalAdamW, free_scale=0.5, refresh_gap=2, seed=1)
    chosen = []
    for seed in range(4):
        move = step(weight, optimizer, grad_of(seed))
        free = torch.ones(8, dtype=torch.bool)
        free[frugal.chosen_indices(weight, RANK, 1, seed // 2)] = False
        assert torch.allclose(move[:, free], -0.5e-2 * grad_of(seed)[:, free].sign())
        assert int(free.sum()) == 8 - RANK
        chosen.append(~free)
        # Moments begin anew with every choice, where Adam's first step is the sign.
        first = torch.allclose(move[:, ~free], -1e-2 * grad_of(seed)[:, ~free].sign(), rtol=1e-6)
        assert first == (seed % 2 == 0)
    assert not torch.equal(chosen[0], chosen[2])


def test_subtracks_basis_stays_orthonormal_and_its_step_lowers_the_error() -> None:
    grad = grad_of(1)
    basis = torch.linalg.qr(grad_of(2, (8, RANK))).Q

    def missed(bases: Bases) -> float:
        assert bases.right is not None
        return float((grad - grad @ bases.right @ bases.right.T).square().sum())

    old = Bases(None, basis)
    for _ in range(5):
        new = subtrack.geodesic_step(grad, old, 1e-3)
        assert new.right is not None
        torch.testing.assert_close(new.right.T @ new.right, torch.eye(RANK, dtype=torch.float64))
        assert missed(new) < missed(old)
        assert old.right is not None
        # One direction turns, the others stay.
        assert rank_of(new.right - old.right) == 1
        old = new


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1000])
def test_qgalores_basis_takes_half_a_byte_a_value_and_is_off_by_half_a_step_at_most(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    packed = qgalore.pack(values)
    assert packed.codes.dtype == torch.uint8
    assert packed.codes.numel() == -(-count // 2)
    assert packed.low.numel() == packed.step.numel() == -(-count // 256)
    off = (qgalore.unpack(packed, count) - values).abs()
    assert (off <= 0.501 * packed.step.repeat_interleave(256)[:count] + 1e-6).all()
    edges = torch.cat([values[:256].amin()[None], values[:256].amax()[None]])
    assert torch.allclose(qgalore.unpack(qgalore.pack(edges), 2), edges)


def test_qgalore_fits_less_and_less_where_the_basis_stays_and_not_where_it_turns() -> None:
    def fits(steady: bool) -> list[int]:
        weight, optimizer = made(qgalore.QgaloreAdamW, refresh_gap=2, window=2, likeness=0.9)
        found = []
        for seed in range(40):
            step(weight, optimizer, grad_of(1 if steady else seed))
            found += [seed] if optimizer.last_refreshed else []
        return found

    assert fits(steady=True) == [0, 2, 4, 8, 16, 32]
    assert fits(steady=False) == list(range(0, 40, 2))


def peer() -> Any:
    return pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed: no step to compare")


def falling(shape: tuple[int, int]) -> list[Tensor]:
    """Return gradients that shrink, so that no limiter binds: the peer's is on norms without bias corrections."""
    return [(grad_of(0, shape) + 0.1 * grad_of(seed, shape)) * 0.5**seed for seed in range(8)]


SETTLED = {"betas": (0.5, 0.9), "eps": 1e-16}


@pytest.mark.parametrize("shape", [(20, 8), (8, 20)])
def test_firas_steps_are_pytorch_optimizers(shape: tuple[int, int]) -> None:
    """Where the limiter does not bind and eps counts for nothing, up to the peer's own 1e-8 below the ratio."""
    weight, optimizer = made(FiraAdamW, shape=shape, **SETTLED)
    theirs = nn.Parameter(weight.detach().clone())
    group = {"params": [theirs], "rank": RANK, "update_proj_gap": 200, "scale": 1.0, "projection_type": "std"}
    other = peer().Fira([group], lr=1e-2, **SETTLED)
    for grad in falling(shape):
        torch.testing.assert_close(step(theirs, other, grad), step(weight, optimizer, grad), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("rule", "rank", "kind"), [(apollo.ApolloAdamW, 3, "channel"), (ApolloMiniAdamW, 1, "tensor")])
def test_apollos_factors_are_pytorch_optimizers_which_moves_in_the_projection_alone(
    rule: Any, rank: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer scales the projected gradient and takes it up again: our step, projected on the same basis, is its."""
    weight, optimizer = made(rule, rank, **SETTLED)
    theirs = nn.Parameter(weight.detach().clone())
    group = {"params": [theirs], "rank": rank, "update_proj_gap": 200, "scale": 1.0, "projection_type": "std"}
    other = peer().APOLLO([group], lr=1e-2, scale_type=kind, **SETTLED)
    for grad in falling((20, 8)):
        move = step(theirs, other, grad)
        basis = other.state[theirs]["projector"].ortho_matrix.T
        monkeypatch.setattr(apollo, "drawn_bases", lambda *_, basis=basis: Bases(None, basis.contiguous()))
        ours = step(weight, optimizer, grad)
        torch.testing.assert_close(ours @ basis @ basis.T, move, rtol=1e-4, atol=1e-7)
        assert rank_of(ours) == 8
        assert rank_of(move) == rank
