"""Slow references of the projection family's rules, in float64, in the order of their papers.

Each is a generator for a weight with no more rows than columns: it is sent gradients, and yields -1 / lr of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from baselines import apollo, frugal

RANK, GAP = 3, 7
BETAS, EPS, SCALE, GROWTH, RHO, FREE, TURN = (0.9, 0.99), 1e-8, 0.5, 1.01, 0.8, 0.3, 0.02


class Moments:
    """Adam's moments, by the book."""

    def __init__(self) -> None:
        self.step, self.mean, self.square = 0, torch.zeros(()), torch.zeros(())

    def direction(self, grad: Tensor) -> Tensor:
        self.step += 1
        self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * grad
        self.square = BETAS[1] * self.square + (1 - BETAS[1]) * grad**2
        first, second = (1 - beta**self.step for beta in BETAS)
        return (self.mean / first) / ((self.square / second).sqrt() + EPS)

    def carry(self, turn: Tensor) -> None:
        first, second = (1 - beta**self.step for beta in BETAS)
        mean = turn @ self.mean
        spread = turn**2 @ (self.square / second - (self.mean / first) ** 2)
        self.mean, self.square = mean, second * (spread + (mean / first) ** 2).abs()


class Limiter:
    def __init__(self) -> None:
        self.last: float | None = None

    def __call__(self, value: Tensor) -> Tensor:
        norm = float(value.norm())
        kept = norm if self.last is None else min(norm, GROWTH * self.last)
        self.last = kept
        return value * (kept / norm)


def top(grad: Tensor, old: Tensor | None) -> Tensor:
    basis = torch.linalg.svd(grad)[0][:, :RANK]
    against = basis.gather(0, basis.abs().argmax(0, keepdim=True))[0] if old is None else (basis * old).sum(0)
    return basis * against.sign()


def fira_reference(rows: int, fit: Callable[[Tensor, Tensor, Moments], Tensor] | None = None) -> Iterator[Any]:
    moments, limiter, basis = Moments(), Limiter(), None
    grad = yield
    while True:
        if moments.step % GAP == 0:
            basis = top(grad, basis) if fit is None or basis is None else fit(grad, basis, moments)
        low = basis.T @ grad
        direction = moments.direction(low)
        factors = direction.norm(dim=0) / low.norm(dim=0)
        grad = yield SCALE * (basis @ direction + limiter((grad - basis @ low) * factors))


def subtrack_reference(rows: int) -> Iterator[Any]:
    def moved(grad: Tensor, basis: Tensor, moments: Moments) -> Tensor:
        low = basis.T @ grad
        left, lengths, right = torch.linalg.svd(-2 * (grad - basis @ low) @ low.T, full_matrices=False)
        u, s, v = left[:, :1], lengths[0], right[:1].T
        new = (basis @ v * (TURN * s).cos() - u * (TURN * s).sin()) @ v.T + basis @ (torch.eye(RANK) - v @ v.T)
        moments.carry(new.T @ basis)
        return new

    return fira_reference(rows, moved)


def apollo_reference(rows: int, by_channel: bool = True) -> Iterator[Any]:
    moments, limiter = Moments(), Limiter()
    rank = RANK if by_channel else 1
    grad = yield
    while True:
        drawn = apollo.drawn_bases(torch.zeros(rows, rows + 1, dtype=torch.float64), rank, 5, moments.step // GAP).left
        low = drawn.T @ grad
        direction = moments.direction(low)
        factors = direction.norm(dim=0) / low.norm(dim=0) if by_channel else direction.norm() / low.norm()
        grad = yield limiter(SCALE * factors * grad)


def ldadam_reference(rows: int) -> Iterator[Any]:
    moments, basis, error = Moments(), None, 0.0
    grad = yield
    while True:
        whole = grad + error
        if basis is None:
            new, error = top(whole, None), 0.0
            low = new.T @ whole
        else:
            mixed = RHO * basis @ moments.mean / (1 - BETAS[0] ** moments.step) + (1 - RHO) * whole
            new = torch.linalg.qr(mixed @ (mixed.T @ basis)).Q
            low, before = new.T @ whole, basis @ moments.mean
            moments.carry(new.T @ basis)
            error = BETAS[0] / (1 - BETAS[0]) * (before - new @ moments.mean)
        basis, error = new, whole - new @ low + error
        grad = yield basis @ moments.direction(low)


def frugal_reference(rows: int) -> Iterator[Any]:
    moments, draw = Moments(), 0
    grad = yield
    while True:
        if moments.step == GAP:
            moments, draw = Moments(), draw + 1
        chosen = frugal.chosen_indices(torch.zeros(rows, rows + 1), RANK, 5, draw)
        move = FREE * grad.sign()
        move[chosen] = moments.direction(grad[chosen])
        grad = yield move


def qgalore_reference(rows: int) -> Iterator[Any]:
    moments, basis, gap, next_fit = Moments(), None, GAP, 0
    grad = yield
    while True:
        if moments.step == next_fit:
            new = top(grad, basis)
            if basis is not None and new[:, 0] @ basis[:, 0] >= 0.4 * new[:, 0].norm() * basis[:, 0].norm():
                gap *= 2
            next_fit += gap
            # All values are one group here: sixteen steps from the smallest to the largest, in float32.
            values = new.float()
            unit = (values.max() - values.min()) / 15
            basis = (((values - values.min()) / unit).round() * unit + values.min()).double()
        grad = yield SCALE * basis @ moments.direction(basis.T @ grad)


REFERENCES: dict[str, Callable[[int], Iterator[Any]]] = {
    "fira": fira_reference,
    "apollo": apollo_reference,
    "apollo_mini": lambda rows: apollo_reference(rows, by_channel=False),
    "ldadam": ldadam_reference,
    "frugal": frugal_reference,
    "subtrack": subtrack_reference,
    "qgalore": qgalore_reference,
}
