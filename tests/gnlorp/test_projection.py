"""Bases: orthonormal, the right ones, on the right side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gnlorp import GradNormLoRPAdamW
from gnlorp.krylov import krylov_basis, krylov_pays
from gnlorp.projection import (
    Bases,
    add_up_,
    check_projection_rank,
    damp_noise_,
    down,
    fit,
    projected_shape,
    projected_sides,
)

SHAPES = [(40, 12), (12, 40), (20, 20), (7, 1), (1, 7)]


def gradient(rows, columns, seed=0, decay=1.0, dtype=torch.float64):
    """Return a random matrix with singular values 1, 2^-decay, 3^-decay, ..."""
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, size, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, size, generator=generator, dtype=torch.float64)).Q
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -decay
    return ((left * values) @ right.T).to(dtype)


@pytest.mark.parametrize(
    ("shape", "side", "sides"),
    [
        ((5, 3), "small", (False, True)),
        ((3, 5), "small", (True, False)),
        ((4, 4), "small", (False, True)),
        ((5, 3), "large", (True, False)),
        ((3, 5), "large", (False, True)),
        ((4, 4), "large", (True, False)),
        ((5, 3), "both", (True, True)),
    ],
)
def test_the_side_rule(shape, side, sides):
    assert projected_sides(shape, side) == sides
    lengths = tuple(2 if projected else length for length, projected in zip(shape, sides, strict=True))
    assert projected_shape(shape, 2, side) == lengths


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", ["small", "large", "both"])
def test_exact_bases_are_the_top_singular_vectors(shape, side):
    rank = 1 if 1 in shape else 4
    grad = gradient(*shape)
    bases = fit([grad], [None], rank, side, "exact")[0]
    u, s, vh = torch.linalg.svd(grad, full_matrices=False)
    for basis, vectors in ((bases.left, u[:, :rank]), (bases.right, vh[:rank].T)):
        if basis is not None:
            assert torch.allclose(basis.T @ basis, torch.eye(rank, dtype=basis.dtype), atol=1e-12)
            assert torch.allclose((basis * vectors).sum(0).abs(), torch.ones(rank, dtype=basis.dtype), atol=1e-9)
            assert (basis.gather(0, basis.abs().argmax(0, keepdim=True)) > 0).all()
    assert down(grad, bases).shape == projected_shape(shape, rank, side)
    assert torch.allclose(down(grad, bases).norm(), s[:rank].norm())


@pytest.mark.parametrize("side", ["small", "large", "both"])
@pytest.mark.parametrize("kind", ["exact", "warm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bases_of_any_gradient_are_orthonormal(side, kind, dtype):
    for shape, rank in (((300, 20), 4), ((20, 300), 4), ((300, 280), 8), ((1, 9), 1)):
        for true_rank in (1, 3, min(shape)):
            grad = gradient(*shape, dtype=torch.float32)
            u, s, vh = torch.linalg.svd(grad, full_matrices=False)
            grad = ((u[:, :true_rank] * s[:true_rank]) @ vh[:true_rank]).to(dtype)
            bases = fit([grad], [None], rank, side, kind)[0]
            for basis in bases:
                if basis is not None:
                    assert basis.dtype == torch.float32
                    assert (basis.T @ basis - torch.eye(rank)).abs().max() < 2e-5


def test_columns_keep_pointing_the_way_of_their_predecessors():
    grad = gradient(30, 10)
    old = fit([grad], [None], 3, "both", "exact")[0]
    turned = Bases(-old.left, old.right)
    new = fit([grad + 1e-3 * gradient(30, 10, seed=1)], [turned], 3, "both", "exact")[0]
    assert ((new.left * turned.left).sum(0) > 0.9).all()
    assert ((new.right * turned.right).sum(0) > 0.9).all()


def test_fitting_many_at_once_equals_one_by_one_bit_for_bit():
    grads = [
        gradient(*shape, seed=i, dtype=torch.float32) for i, shape in enumerate([(40, 12), (12, 40), (30, 12), (9, 5)])
    ]
    together = fit(grads, [None] * 4, 3, "both", "exact")
    for grad, bases in zip(grads, together, strict=True):
        alone = fit([grad], [None], 3, "both", "exact")[0]
        assert torch.equal(alone.left, bases.left)
        assert torch.equal(alone.right, bases.right)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("decay", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(320, 256, 8), (256, 700, 4), (400, 300, 40)])
def test_warm_bases_keep_nearly_all_energy_of_the_exact_ones(half, decay, rows, columns, rank):
    old = None
    for seed in range(3):
        grad = gradient(rows, columns, seed, decay, torch.float32)
        tall = grad if rows >= columns else grad.T
        assert krylov_pays(min(grad.shape), rank)
        basis = krylov_basis(tall, old, rank, half_products=half)
        exact = torch.linalg.svdvals(grad)[:rank].square().sum()
        if basis is not None:
            assert (tall @ basis).square().sum() > 0.999 * exact
            assert (basis.T @ basis - torch.eye(rank)).abs().max() < 2e-5
            old = basis
        fitted = fit([grad], [None], rank, "small", "warm")[0]
        assert down(grad, fitted).square().sum() > 0.999 * exact


def test_the_krylov_space_finds_directions_that_the_old_basis_has_no_part_in():
    grad = gradient(300, 256, dtype=torch.float32)
    last = torch.linalg.svd(grad).Vh[-8:].T
    basis = krylov_basis(grad, last, 8)
    assert (grad @ basis).square().sum() > 0.999 * torch.linalg.svdvals(grad)[:8].square().sum()


@pytest.mark.parametrize("half", [False, True])
def test_one_dominating_value_does_not_hide_what_is_left_of_the_others(half):
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(300, 256)).Q, torch.linalg.qr(torch.randn(256, 256)).Q
    values = torch.cat([torch.full((1,), 100.0), torch.linspace(1, 0.1, 255)])
    grad = (left * values) @ right.T
    for old in (None, right[:, :40], right[:, -40:]):
        basis = krylov_basis(grad, old, 40, half_products=half)
        kept = 1.0 if basis is None else (grad @ basis).square().sum() / values[:40].square().sum()
        assert kept > 0.999


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("side", ["small", "large", "both"])
def test_up_is_the_transpose_of_down(shape, side):
    grad = gradient(*shape)
    bases = fit([grad], [None], 3, side, "exact")[0]
    low = torch.randn(projected_shape(shape, 3, side), dtype=torch.float64)
    lifted = torch.zeros(shape, dtype=torch.float64)
    add_up_(lifted, low, bases, 0.0, 1.0)
    assert torch.allclose((grad * lifted).sum(), (down(grad, bases) * low).sum())
    weight = torch.randn(shape, dtype=torch.float64)
    wanted = 0.9 * weight + 0.3 * lifted
    add_up_(weight, low, bases, 0.9, 0.3)
    assert torch.allclose(weight, wanted)


@pytest.mark.parametrize("size", [1e-20, 1e-12, 1e-9, 1.0, 1e9, 1e12, 1e18])
def test_warm_bases_are_as_good_whatever_the_size_of_the_gradient(size):
    grad = gradient(600, 300, decay=0.5, dtype=torch.float32)
    weight = nn.Parameter(torch.zeros(600, 300))
    optimizer = GradNormLoRPAdamW([weight], projection_rank=8, refresh_gap=1, basis="warm")
    for seed in (1, 0):
        weight.grad = gradient(600, 300, seed, decay=0.5, dtype=torch.float32) * size
        optimizer.step()
    kept = (grad @ optimizer.state[weight]["basis_right"]).square().sum()
    assert kept > 0.999 * torch.linalg.svdvals(grad)[:8].square().sum()


def test_noise_under_the_floor_is_zero_and_nothing_else_changes():
    projected = torch.tensor([[2.0, 1e-6], [-3e-5, -1.0]])
    assert torch.equal(damp_noise_(projected.clone(), 1e-5), torch.tensor([[2.0, 0.0], [-3e-5, -1.0]]))


@pytest.mark.parametrize(
    ("shape", "rank", "side", "message"),
    [
        ((5,), 1, "small", r"shape \(5,\).*only 2-D"),
        ((2, 3, 4), 1, "small", "only 2-D"),
        ((8, 4), 5, "small", "at most 4"),
        ((8, 4), 4, "small", "below the projected side of 4"),
        ((4, 4), 4, "large", "below the projected side of 4"),
        ((8, 4), 4, "both", "below the projected side of 4"),
        ((8, 4), 5, "large", "at most 4"),
    ],
)
def test_a_projection_that_saves_nothing_is_refused(shape, rank, side, message):
    with pytest.raises(ValueError, match=message):
        check_projection_rank(shape, rank, side, allow_full_rank=False)


def test_full_rank_is_allowed_on_request_and_on_the_longer_side():
    check_projection_rank((8, 4), 4, "small", allow_full_rank=True)
    check_projection_rank((8, 4), 4, "large", allow_full_rank=False)
    with pytest.raises(ValueError, match="at most 4"):
        check_projection_rank((8, 4), 5, "small", allow_full_rank=True)
