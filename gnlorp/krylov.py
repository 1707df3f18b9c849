"""Nearly the top singular vectors of a gradient, by a block Krylov space from an old basis.

M rows, N columns, P projection rank, W width of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def krylov_pays(size: int, projection_rank: int) -> bool:
    """Return whether the block Krylov basis is expected to cost less than the eigenproblem of this size."""
    return size >= 256 and 6 * projection_rank <= size


def krylov_basis(
    grad_MN: Tensor,
    start_NP: Tensor | None,
    projection_rank: int,
    tolerance: float = 1e-4,
    half_products: bool = False,
) -> Tensor | None:
    """Return nearly the top right singular vectors of a tall gradient, by a block Krylov space with Rayleigh-Ritz.

        K = span(Z, C Z, C^2 Z, ...),   C = G^T G,   Q = V E    with V a basis of K, E the top eigenvectors of V^T C V

    Musco and Musco 2015, algorithm 2, from the old basis in place of a random block (filled up with fixed random
    columns), by block Lanczos: a new block meets only the last one in V^T C V, and its own corner needs G Z alone.
    The space grows until the part of the energy |G Q|^2 that it is expected to miss is below `tolerance`: by the
    residuals of the eigenvectors (`_expected_gain`), or, before the second product of a block, by the last two gains
    going on as a geometric series. C is never formed.

    `half_products` multiplies by G in bfloat16. V stays orthonormal in full precision, so the rounding only turns the
    basis a little within the space, which costs energy in second order.

    Returns None where the space would grow past 0.6 N, and the full eigenproblem costs less.
    Shapes: gradient (M, N) with M >= N, start (N, P); returns (N, P).
    """
    size = grad_MN.shape[1]
    full = torch.promote_types(grad_MN.dtype, torch.float32)
    width = max(16, -(-projection_rank // 2))
    operand = grad_MN.to(torch.bfloat16 if half_products else full)
    block = orthonormal(_start_block(start_NP, size, width, full, grad_MN.device))
    space = block
    small, link = block.new_zeros(0, 0), block.new_zeros(0, width)
    energies: list[float] = []
    while True:
        high_MW = _times(operand, block.to(operand.dtype))
        small = _bordered(small, link, (high_MW.T @ high_MW).to(full))
        values, vectors = torch.linalg.eigh(small)
        top = vectors[:, -projection_rank:]
        if space.shape[1] >= projection_rank:
            energies.append(float(values[-projection_rank:].sum()))
            if _series_left(energies) <= tolerance * energies[-1]:
                return _in_order(space, top)
        # The narrow factor stands on the left: the wide one is then read once, in order.
        image = (high_MW.T @ operand).T.to(full)
        rest = image - space @ (space.T @ image)
        if (
            len(energies) > 1
            and _expected_gain(values, rest @ top[-width:], projection_rank) <= tolerance * energies[-1]
        ):
            return _in_order(space, top)
        if space.shape[1] + width > 0.6 * size:
            return None
        block = orthonormal(rest)
        # Once more: where the space is nearly closed, what is left of the image is mostly rounding.
        block = orthonormal(block - space @ (space.T @ block))
        link = rest.T @ block
        space = torch.cat([space, block], 1)


def _in_order(space: Tensor, vectors: Tensor) -> Tensor:
    basis: Tensor = space @ vectors.flip(1)
    return basis


def _series_left(energies: Sequence[float]) -> float:
    """Return what is still to come if the gains of energy go on falling at the rate of the last two."""
    if len(energies) < 3:
        return float("inf")
    before, last = energies[-2] - energies[-3], energies[-1] - energies[-2]
    if last <= 0.0:
        return 0.0
    return last * last / (before - last) if before > last else float("inf")


def _expected_gain(values: Tensor, residual_NP: Tensor, projection_rank: int) -> float:
    """Return by how much the sum of the top values may grow outside the space, from the residuals r of their vectors.

    Each value t with its residual makes a problem of size 2 with the largest value u outside the top:
    the larger eigenvalue of [[t, r], [r, u]] exceeds t by (sqrt((t - u)^2 + 4 r^2) - (t - u)) / 2.
    """
    top = values[-projection_rank:]
    outside = values[-projection_rank - 1] if values.shape[0] > projection_rank else torch.zeros_like(top[0])
    gap = top - outside
    square = residual_NP.square().sum(0)
    return float(((gap.square() + 4.0 * square).sqrt() - gap).sum()) / 2.0


def half_products_pay(grad: Tensor) -> bool:
    """Return whether bfloat16 products are native where this gradient lies, and precise enough for it."""
    if grad.dtype not in (torch.float32, torch.bfloat16):
        return False
    return _native_bf16(grad.device.type)


@functools.cache
def _native_bf16(device_type: str) -> bool:
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Older torch has no way to ask; there float32 products are taken, with the same result to a rounding.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return device_type == "cpu" and bool(capabilities.get("avx512_bf16", False))


def _start_block(start_NP: Tensor | None, size: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    kept = torch.empty(size, 0, dtype=dtype, device=device) if start_NP is None else start_NP[:, :width].to(dtype)
    missing = width - kept.shape[1]
    if missing == 0:
        return kept
    generator = torch.Generator("cpu").manual_seed(0)
    fresh = torch.randn(size, missing, generator=generator, dtype=torch.float32, device="cpu")
    return torch.cat([kept, fresh.to(kept)], 1)


def _times(matrix_MN: Tensor, narrow_NW: Tensor) -> Tensor:
    """Return the product, formed in the order in which the wide factor lies in memory."""
    return (narrow_NW.T @ matrix_MN.T).T if matrix_MN.stride(0) == 1 else matrix_MN @ narrow_NW


def _bordered(square: Tensor, link: Tensor, corner: Tensor) -> Tensor:
    """Return the symmetric block-tridiagonal matrix grown by `corner`, which `link` joins to the last block."""
    old, wide = square.shape[0], corner.shape[0]
    grown = square.new_zeros(old + wide, old + wide)
    grown[:old, :old] = square
    grown[old:, old:] = corner
    if old:
        grown[old - wide : old, old:] = link
        grown[old:, old - wide : old] = link.T
    return grown


def orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the columns."""
    basis: Tensor = torch.linalg.qr(columns).Q
    return basis
