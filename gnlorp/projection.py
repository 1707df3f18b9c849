"""Which side of a gradient a basis spans, how a basis is fitted, and the way down and up.

    left Q:  down(G) = Q^T G,      up(N) = Q N
    right Q: down(G) = G Q,        up(N) = N Q^T
    both:    down(G) = U^T G Q,    up(N) = U N Q^T

M rows, N columns, P projection rank. One rule for factors and for dense weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gnlorp.krylov import half_products_pay, krylov_basis, krylov_pays, orthonormal

Side = Literal["small", "large", "both"]
BasisKind = Literal["exact", "warm"]

STACKED_VALUES = 1 << 22


class Bases(NamedTuple):
    """Orthonormal columns: `left` (M, P), `right` (N, P); None where the gradient is not projected."""

    left: Tensor | None
    right: Tensor | None


def projected_sides(shape: Sequence[int], side: Side) -> tuple[bool, bool]:
    """Return whether the rows (left) and the columns (right) of a matrix of this shape are projected.

    "small" projects the columns where M >= N, else the rows; "large" the other one; "both" both.
    """
    tall = shape[0] >= shape[1]
    if side == "both":
        return True, True
    right = tall if side == "small" else not tall
    return not right, right


def projected_shape(shape: Sequence[int], projection_rank: int, side: Side) -> tuple[int, int]:
    """Return the shape of the projected gradient."""
    left, right = projected_sides(shape, side)
    return (projection_rank if left else shape[0], projection_rank if right else shape[1])


def check_projection_rank(shape: Sequence[int], projection_rank: int, side: Side, allow_full_rank: bool) -> None:
    """Refuse a projection that saves nothing.

    Raises: ValueError for a shape that is not 2-D, for a projection rank above the smaller side (there are no more
        singular vectors), and for one equal to the projected side (a rotation) unless `allow_full_rank`.
    """
    if len(shape) != 2:
        raise ValueError(f"parameter of shape {tuple(shape)} in a projected group: only 2-D parameters are projected")
    smallest = min(shape)
    if projection_rank > smallest:
        raise ValueError(
            f"projection_rank {projection_rank} for a parameter of shape {tuple(shape)}: must be at most {smallest}"
        )
    left, right = projected_sides(shape, side)
    spanned = min(length for length, projected in zip(shape, (left, right), strict=True) if projected)
    if projection_rank >= spanned and not allow_full_rank:
        raise ValueError(
            f"projection_rank {projection_rank} for a parameter of shape {tuple(shape)}: must be below the projected "
            f"side of {spanned}, else the projection is a rotation and saves nothing; allow_full_rank permits it"
        )


def down(grad_MN: Tensor, bases: Bases) -> Tensor:
    """Return the projected gradient in the dtype of the bases.

    Between two bases the products are in that dtype too, over blocks of rows: `damp_noise_` takes what rounding leaves
    for noise, and in bfloat16 that would be nearly all of it.
    """
    left, right = bases
    if left is not None and right is not None and left.dtype != grad_MN.dtype:
        rows = max(1, STACKED_VALUES // grad_MN.shape[1])
        blocks = zip(torch.split(left, rows), torch.split(grad_MN, rows), strict=True)
        return torch.stack([left_BP.T @ (grad_BN.to(left.dtype) @ right) for left_BP, grad_BN in blocks]).sum(0)
    projected = grad_MN
    if right is not None:
        projected = projected @ right.to(grad_MN.dtype)
    if left is not None:
        projected = left.to(grad_MN.dtype).T @ projected
    dtype = left.dtype if left is not None else right.dtype if right is not None else grad_MN.dtype
    return projected.to(dtype)


def add_up_(weight_MN: Tensor, update: Tensor, bases: Bases, keep: float, scale: float) -> None:
    """Set weight = keep * weight + scale * up(update), in place and with no tensor of the weight's size."""
    left, right = bases
    dtype = weight_MN.dtype
    if left is None:
        assert right is not None
        first, second = update, right.T
    elif right is None:
        first, second = left, update
    else:
        first, second = left, update @ right.T
    weight_MN.addmm_(first.to(dtype), second.to(dtype), beta=keep, alpha=scale)


def damp_noise_(projected_PP: Tensor, floor: float) -> Tensor:
    """Set entries of at most `floor` times the largest one to 0.

    Right at a refresh U^T G Q is diagonal and its other entries are rounding noise, which Adam would scale up to
    full-size steps.
    """
    size = projected_PP.abs()
    return projected_PP.masked_fill_(size <= size.amax() * floor, 0.0)


def fit(
    grads: Sequence[Tensor], old: Sequence[Bases | None], projection_rank: int, side: Side, kind: BasisKind
) -> list[Bases]:
    """Return bases of the top singular vectors of each gradient, shape (M, N) with M and N free.

    "exact" solves the eigenproblem of the Gram matrix on the smaller side; "warm" runs `krylov_basis` from the old
    basis where that is cheaper, and is exact elsewhere. The columns come in the order of their singular values; each
    points the way of its predecessor where there is one, else its largest entry is positive.
    """
    fitted = []
    for grad, small, before in zip(grads, small_bases(grads, old, projection_rank, kind), old, strict=True):
        tall = grad.shape[0] >= grad.shape[1]
        left, right = projected_sides(grad.shape, side)
        needs_small, needs_large = (right, left) if tall else (left, right)
        large = orthonormal(_tall(grad) @ small) if needs_large else None
        kept = small if needs_small else None
        new = Bases(large, kept) if tall else Bases(kept, large)
        past = before or Bases(None, None)
        fitted.append(Bases(oriented(new.left, past.left), oriented(new.right, past.right)))
    return fitted


def small_bases(
    grads: Sequence[Tensor], old: Sequence[Bases | None], projection_rank: int, kind: BasisKind
) -> list[Tensor]:
    """Return the top singular vectors on the smaller side of each gradient."""
    found: dict[int, Tensor] = {}
    exact: dict[tuple[int, torch.dtype, torch.device], list[int]] = defaultdict(list)
    for index, (grad, before) in enumerate(zip(grads, old, strict=True)):
        basis = None
        if kind == "warm" and krylov_pays(min(grad.shape), projection_rank):
            tall = grad if grad.shape[0] >= grad.shape[1] else grad.T
            half = half_products_pay(grad)
            basis = krylov_basis(tall, _small_side(before, grad), projection_rank, half_products=half)
        if basis is None:
            exact[min(grad.shape), grad.dtype, grad.device].append(index)
        else:
            found[index] = basis
    for (size, _, _), indices in exact.items():
        # Eigenproblems of one size go in one call, but never more than a few large Gram matrices at once.
        step = max(1, STACKED_VALUES // (size * size))
        for start in range(0, len(indices), step):
            part = indices[start : start + step]
            vectors = torch.linalg.eigh(torch.stack([_gram(grads[index]) for index in part])).eigenvectors
            for index, each in zip(part, vectors, strict=True):
                found[index] = each[:, -projection_rank:].flip(1)
    return [found[index] for index in range(len(grads))]


def _tall(grad_MN: Tensor) -> Tensor:
    work = grad_MN.to(torch.promote_types(grad_MN.dtype, torch.float32))
    return work if work.shape[0] >= work.shape[1] else work.T


def _gram(grad_MN: Tensor) -> Tensor:
    work = _tall(grad_MN)
    return work.T @ work


def _small_side(bases: Bases | None, grad: Tensor) -> Tensor | None:
    """Return the old basis on the smaller side, through the gradient where only the larger side had one."""
    if bases is None:
        return None
    small, large = (bases.right, bases.left) if grad.shape[0] >= grad.shape[1] else (bases.left, bases.right)
    if small is None and large is not None:
        return orthonormal(_tall(grad).T @ large)
    return small


def oriented(basis: Tensor | None, old: Tensor | None) -> Tensor | None:
    """Return the basis with each column pointing the way of its predecessor, or its largest entry positive."""
    if basis is None:
        return None
    if old is not None:
        reference = (basis * old).sum(0)
    else:
        reference = basis.gather(0, basis.abs().argmax(0, keepdim=True))[0]
    return (basis * torch.where(reference < 0, -1.0, 1.0).to(basis.dtype)).contiguous()
