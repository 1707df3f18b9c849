"""Fitting a basis: ours beside galore-torch's full SVD, on gradients taken from a training in the same run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from torch import Tensor

from gnlorp.krylov import half_products_pay
from gnlorp.projection import Bases, fit
from results.bench import BenchCell, Candidate, Ratio
from suites.bench.peers import NO_GALORE, galore_torch
from suites.bench.text import captured_gradients
from suites.bench.timing import candidate, in_turns, ratio_claim

SVD = "SVD (galore-torch)"
ENERGY_TARGET = 0.999
# 1 minus the energy kept may be this much below 0 by rounding.
LIMIT = 1e-3


def refresh_cell(
    name: str,
    width: tuple[int, int],
    ranks: Sequence[tuple[int, float | None]],
    steps: tuple[int, int],
    budget_s: float,
    turned: bool = False,
) -> BenchCell:
    """Measure the refresh of one weight, of a LLaMA layer of `width` (hidden, inner), at each (rank, target ratio).

    The old basis is the exact one of the gradient at the first of `steps`, the new gradient that of the second.
    """
    taken, losses = captured_gradients(*width, (name,), steps)
    before, grad = taken[name]
    theirs = galore_torch()
    work: dict[str, Callable[[], object]] = {}
    bases: dict[str, Tensor] = {}
    titles: dict[str, str] = {}
    exact = _right_or_left(fit([grad], [None], max(rank for rank, _ in ranks), "small", "exact")[0])
    for rank, _ in ranks:
        old = fit([before], [None], rank, "small", "exact")
        for kind in ("warm", "exact"):
            key = f"{kind} {rank}"
            titles[key] = f"gnlorp, {kind} basis, rank {rank}"
            work[key] = functools.partial(fit, [grad], old, rank, "small", kind)
            bases[key] = _right_or_left(fit([grad], old, rank, "small", kind)[0])
    if theirs is not None:
        projector = theirs.galore_projector.GaLoreProjector(max(rank for rank, _ in ranks))
        side = "right" if grad.shape[0] >= grad.shape[1] else "left"
        work["svd"] = functools.partial(projector.get_orthogonal_matrix, grad, projector.rank, type=side)
        found = projector.get_orthogonal_matrix(grad, projector.rank, type=side)
        exact = found.T if side == "right" else found
    seconds = in_turns(work, budget_s, least=2)
    energies = {rank: _energy(grad, exact[:, :rank]) for rank, _ in ranks}
    shares = {key: _energy(grad, basis) / energies[int(key.split()[1])] for key, basis in bases.items()}
    claims = _claims(ranks, titles, seconds, shares)
    candidates = [candidate(key, title, seconds) for key, title in titles.items()]
    missing = None if theirs is not None else NO_GALORE
    candidates.append(Candidate(name="svd", title=SVD, seconds=seconds.get("svd", []), missing=missing))
    worst = max(1.0 - claim.values[0] for claim in claims if claim.what == "energy kept")
    products = "bfloat16" if half_products_pay(grad) else "float32"
    return BenchCell(
        group="refresh",
        label=f"{grad.shape[0]}x{grad.shape[1]}",
        settings={"weight": name, "width": list(width), "shape": list(grad.shape), "steps": list(steps)},
        candidates=candidates,
        claims=claims,
        agreement={"energy lost": max(worst, 0.0)},
        agreement_limit=LIMIT,
        note=(
            f"gradients of a one-layer LLaMA at steps {steps[0]} and {steps[1]} of its training (loss {losses[0]:.2f} "
            f"and {losses[1]:.2f}); the old basis is that of the first; products in {products}"
        ),
    )


def _claims(
    ranks: Sequence[tuple[int, float | None]],
    titles: dict[str, str],
    seconds: dict[str, list[float]],
    shares: dict[str, float],
) -> list[Ratio]:
    """Return, for each way at each rank, how much faster than the SVD it is and what share of its energy it keeps."""
    claims = []
    for rank, target in ranks:
        for kind, limit in (("warm", target), ("exact", None)):
            key = f"{kind} {rank}"
            names = (titles[key], SVD)
            claims.append(ratio_claim("times faster", seconds.get("svd", []), seconds[key], names, "at least", limit))
            goal = ENERGY_TARGET if limit else None
            claims.append(ratio_claim("energy kept", [shares[key]], [1.0], names, "at least", goal))
    return claims


def _energy(grad: Tensor, basis: Tensor) -> float:
    work = grad if grad.shape[1] == basis.shape[0] else grad.T
    return float((work.double() @ basis.double()).square().sum())


def _right_or_left(bases: Bases) -> Tensor:
    basis = bases.right if bases.right is not None else bases.left
    assert basis is not None
    return basis
