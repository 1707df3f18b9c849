"""The optimizer step on a LLaMA: GaLore through our optimizer and through galore-torch, beside dense AdamW."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gnlorp import GradNormLoRPAdamW
from results.bench import BenchCell, Candidate, Ratio
from suites.bench.peers import NO_GALORE, galore_torch
from suites.bench.text import llama
from suites.bench.timing import candidate, in_turns, ratio_claim

GAP = 200
STEP_TARGET, AMORTISED_TARGET = 0.6, 0.5
# Float32, a few steps from the same weights: the part of the way that two optimizers may end apart.
LIMIT = 3e-3
COMPARED_STEPS = 3
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-12}
BOUND = ", arithmetic bound"
TITLES = {
    "ours": "GaLore (gnlorp)",
    "peer": "GaLore (galore-torch)",
    "foreach": "AdamW(foreach=True)",
    "fused": "AdamW(fused=True)",
}


def step_cell(
    label: str, size: tuple[int, int, int, int], vocabulary: int, rank: int, tokens: int, budget_s: float
) -> BenchCell:
    """Measure plain and refresh steps on a LLaMA of `size` (hidden, inner, layers, heads) with one real gradient."""
    model = llama(*size, vocabulary)
    batch = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(1))
    model(input_ids=batch, labels=batch).loss.backward()
    matrices = [p for n, p in model.named_parameters() if ".self_attn." in n or ".mlp." in n]
    chosen = {id(p) for p in matrices}
    order = matrices + [p for p in model.parameters() if id(p) not in chosen]
    start = [p.detach().clone() for p in order]
    grads = [p.grad for p in order if p.grad is not None]
    assert len(grads) == len(order)
    made: dict[str, Optimizer] = {}
    moved: dict[str, list[nn.Parameter]] = {}
    refresh_s: dict[str, float] = {}
    agreement: dict[str, float] = {}
    for name, make in _makers(len(matrices), rank).items():
        moved[name] = [nn.Parameter(value.clone()) for value in start]
        made[name] = make(moved[name])
        refresh_s[name] = _first_steps(made[name], moved[name], grads)
    agreement["AdamW, foreach against fused"] = _apart(moved["foreach"], moved["fused"], start)
    if "peer" in made:
        agreement["energy lost against galore-torch's bases"] = _energy_lost(made, moved, grads)
        _restart_on_their_bases(made, moved, start)
        for name in ("ours", "peer"):
            _first_steps(made[name], moved[name], grads)
        agreement["GaLore here against galore-torch, same bases"] = _apart(moved["ours"], moved["peer"], start)
    seconds = in_turns({name: optimizer.step for name, optimizer in made.items()}, budget_s)
    bounds, words = _bounds(order, len(matrices), rank)
    candidates = [
        candidate(name, TITLES[name], seconds)
        if name in made
        else Candidate(name=name, title=TITLES[name], missing=NO_GALORE)
        for name in TITLES
    ]
    for name in ("ours", "peer"):
        if name in refresh_s:
            spent = [refresh_s[name]]
            candidates.append(Candidate(name=f"{name} refresh", title=f"{TITLES[name]}, refresh step", seconds=spent))
    for name, bound in bounds.items():
        candidates.append(Candidate(name=f"{name} bound", title=TITLES[name] + BOUND, seconds=[bound]))
    return BenchCell(
        group="step",
        label=label,
        settings={"rank": rank, "size": list(size), "vocabulary": vocabulary, "refresh_gap": GAP, "dtype": "float32"},
        candidates=candidates,
        claims=_claims(seconds, refresh_s) + _bound_claims(seconds, bounds),
        agreement=agreement,
        agreement_limit=LIMIT,
        note=(
            f"{sum(p.numel() for p in order):,} parameters, {len(matrices)} projected matrices, one real gradient; "
            f"{words}"
        ),
    )


def _makers(matrices: int, rank: int) -> dict[str, Callable[[Sequence[nn.Parameter]], Optimizer]]:
    """Return name -> what makes the optimizer over weights whose first `matrices` are projected."""

    def ours(weights: Sequence[nn.Parameter]) -> Optimizer:
        groups = [
            {"params": list(weights[:matrices]), "projection_rank": rank},
            {"params": list(weights[matrices:]), "projection_rank": None},
        ]
        return GradNormLoRPAdamW(groups, refresh_gap=GAP, scale=0.25, **SETTINGS)  # type: ignore[arg-type]

    def peer(weights: Sequence[nn.Parameter]) -> Optimizer:
        theirs = galore_torch()
        assert theirs is not None
        low = {"params": list(weights[:matrices]), "rank": rank, "update_proj_gap": GAP, "scale": 0.25}
        groups = [{**low, "proj_type": "std"}, {"params": list(weights[matrices:])}]
        optimizer: Optimizer = theirs.GaLoreAdamW(groups, no_deprecation_warning=True, **SETTINGS)
        return optimizer

    makers: dict[str, Callable[[Sequence[nn.Parameter]], Optimizer]] = {"ours": ours}
    if galore_torch() is not None:
        makers["peer"] = peer
    makers["foreach"] = lambda weights: torch.optim.AdamW(weights, foreach=True, weight_decay=0.0, **SETTINGS)  # type: ignore[arg-type]
    makers["fused"] = lambda weights: torch.optim.AdamW(weights, fused=True, weight_decay=0.0, **SETTINGS)  # type: ignore[arg-type]
    return makers


def _first_steps(optimizer: Optimizer, weights: Sequence[nn.Parameter], grads: Sequence[Tensor]) -> float:
    """Do the first steps, the very first of which fits every basis, and return the seconds of that one."""
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = grad
    begin = time.perf_counter()
    optimizer.step()
    spent = time.perf_counter() - begin
    for _ in range(COMPARED_STEPS - 1):
        optimizer.step()
    return spent


def _bases(
    made: dict[str, Optimizer], moved: dict[str, list[nn.Parameter]]
) -> Iterator[tuple[int, str, dict[str, Any], dict[str, Any], Tensor]]:
    """Yield, for each projected weight, its index, our basis's name, both states, and their basis as columns."""
    for index, (mine, other) in enumerate(zip(moved["ours"], moved["peer"], strict=True)):
        ours, peer = made["ours"].state[mine], made["peer"].state[other]
        if "projector" in peer:
            name = "basis_right" if "basis_right" in ours else "basis_left"
            matrix = peer["projector"].ortho_matrix
            yield index, name, ours, peer, matrix.T if name == "basis_right" else matrix


def _energy_lost(made: dict[str, Optimizer], moved: dict[str, list[nn.Parameter]], grads: Sequence[Tensor]) -> float:
    """Return the part of the energy of all projected gradients that our bases miss and theirs keep."""
    kept = {"ours": 0.0, "peer": 0.0}
    for index, name, ours, _, theirs in _bases(made, moved):
        grad = grads[index] if name == "basis_right" else grads[index].T
        kept["ours"] += float((grad @ ours[name]).square().sum())
        kept["peer"] += float((grad @ theirs).square().sum())
    return max(1.0 - kept["ours"] / kept["peer"], 0.0)


@torch.no_grad()
def _restart_on_their_bases(
    made: dict[str, Optimizer], moved: dict[str, list[nn.Parameter]], start: Sequence[Tensor]
) -> None:
    """Put both back to the first weights with empty moments, and our bases to theirs.

    Small singular values have vectors that rounding turns, and Adam scales all of them alike: with bases of their own
    the two end a few percent of the way apart, which says nothing about the step.
    """
    for _, name, ours, _, theirs in _bases(made, moved):
        ours[name] = theirs.contiguous().clone()
    for side in ("ours", "peer"):
        for weight, value in zip(moved[side], start, strict=True):
            weight.copy_(value)
            state = made[side].state[weight]
            state["exp_avg"].zero_()
            state["exp_avg_sq"].zero_()
            state["step"] = 1


def _claims(seconds: dict[str, list[float]], refresh_s: dict[str, float]) -> list[Ratio]:
    ours, peer = seconds["ours"], seconds.get("peer", [])
    names = (TITLES["ours"], TITLES["peer"])
    claims = [
        ratio_claim("step time", ours, peer, names, target=STEP_TARGET),
        ratio_claim(
            f"step time with a refresh every {GAP}",
            _amortised(ours, refresh_s["ours"]),
            _amortised(peer, refresh_s.get("peer", 0.0)),
            names,
            target=AMORTISED_TARGET,
        ),
    ]
    for name in ("foreach", "fused"):
        claims.append(ratio_claim("step time", ours, seconds[name], (TITLES["ours"], TITLES[name])))
    return claims


def _bounds(order: Sequence[Tensor], matrices: int, rank: int) -> tuple[dict[str, float], str]:
    """Return the seconds that a step must take at this machine's rates, and those rates in words.

    The longer of the time of its multiplications and that of its bytes, each value read or written once. Dense AdamW
    moves seven values a parameter (weight, gradient, both moments; all but the gradient back). A projected weight of
    GaLore's: itself both ways and its gradient, both moments of the projected gradient both ways, and the basis; 2 P
    multiplications an element, down and up.
    """
    projected = [(max(p.shape), min(p.shape)) for p in order[:matrices]]
    rest = sum(p.numel() for p in order[matrices:])
    products = sum(2 * 2 * large * small * rank for large, small in projected)
    values = sum(3 * large * small + 4 * large * rank + small * rank for large, small in projected)
    moved = {"ours": 4 * (values + 7 * rest), "fused": 4 * 7 * sum(p.numel() for p in order)}
    flops, bandwidth = _rates()
    bounds = {
        "ours": max(products / flops, moved["ours"] / bandwidth),
        "fused": moved["fused"] / bandwidth,
    }
    words = (
        f"bounds: {products / 1e9:.1f} G operations and {moved['ours'] / 1e9:.2f} GB against AdamW's "
        f"{moved['fused'] / 1e9:.2f} GB, at {flops / 1e9:.0f} G operations and {bandwidth / 1e9:.1f} GB a second"
    )
    return bounds, words


def _rates(size: int = 1024, copied: int = 1 << 24, rounds: int = 5) -> tuple[float, float]:
    """Return operations a second of a float32 product, and bytes a second of a copy, the best of some."""
    square, source = torch.randn(size, size), torch.randn(copied)
    out, target = torch.empty_like(square), torch.empty_like(source)
    work = {"product": lambda: torch.mm(square, square, out=out), "copy": lambda: target.copy_(source)}
    seconds = in_turns(work, 0.0, least=rounds)
    return 2 * size**3 / min(seconds["product"]), 2 * 4 * copied / min(seconds["copy"])


def _bound_claims(seconds: dict[str, list[float]], bounds: dict[str, float]) -> list[Ratio]:
    """Return how far each is from its bound, and what the bounds allow between the two."""
    claims = []
    for name, bound in bounds.items():
        names = (TITLES[name], TITLES[name] + BOUND)
        claims.append(ratio_claim("step time", seconds[name], [bound] * len(seconds[name]), names))
    names = (TITLES["ours"] + BOUND, TITLES["fused"] + BOUND)
    return [*claims, ratio_claim("step time", [bounds["ours"]], [bounds["fused"]], names)]


def _amortised(plain: Sequence[float], refresh_s: float) -> list[float]:
    # The refresh step's own part of a plain step is taken as the median, so that one slow round counts once.
    extra = max(refresh_s - statistics.median(plain), 0.0) if plain else 0.0
    return [value + extra / GAP for value in plain]


def _apart(some: Sequence[Tensor], others: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    gap = sum(float((a.detach() - b.detach()).square().sum()) for a, b in zip(some, others, strict=True))
    way = sum(float((a.detach() - s).square().sum()) for a, s in zip(some, start, strict=True))
    return math.sqrt(gap / way)
