"""The optimizer step of every method of the registry on a LLaMA, each in turns with full training's AdamW."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from baselines.method import AdamSettings, Method, set_refresh_gap
from baselines.registry import methods
from baselines.shared.targets import place
from results.bench import BenchCell
from suites.bench.text import llama
from suites.bench.timing import Work, candidate, in_turns, ratio_claim
from suites.config import method_config
from suites.measure.environment import bf16_slowdown
from suites.run.products import RoundedOnce

TARGETS = "attention+mlp"
RATE = 1e-3
NEVER = 10**9
SLOW = 1.5
"""Times as long as fp32 that a product of bf16 matrices may take before it is done in fp32."""
LIMIT = 1e-6
Size = tuple[int, int, int, int]


def methods_cell(label: str, size: Size, vocabulary: int, rank: int, tokens: int, budget_s: float) -> BenchCell:
    """Measure plain steps, no new basis among them, of every method that trains a weight matrix at `rank`.

    Two are alive at a time, the method and the yardstick, on weights and one real gradient of a LLaMA of `size`
    (hidden, inner, layers, heads); the rest is trained, as in pre-training.
    """
    batch = torch.randint(vocabulary, (1, tokens), generator=torch.Generator().manual_seed(1))
    yardstick = next(method for method in methods().values() if method.yardstick)
    against = _prepared(yardstick, size, vocabulary, rank, batch)
    others = [method for method in methods().values() if not method.yardstick and _trains(method, rank)]
    seconds: dict[str, list[float]] = {yardstick.name: []}
    claims = []
    names = {method.name: method.title for method in (yardstick, *others)}
    slow = (bf16_slowdown(torch.device("cpu")) or 1.0) > SLOW
    rounded = []
    for method in others:
        step: Work = _prepared(method, size, vocabulary, rank, batch).step
        if slow and _multiplies_bf16(step):
            rounded.append(method.title)
            step = partial(_rounded_once, step)
        found = in_turns({method.name: step, yardstick.name: against.step}, budget_s / len(others))
        seconds[method.name] = found[method.name]
        seconds[yardstick.name] += found[yardstick.name]
        pair = (names[method.name], names[yardstick.name])
        claims.append(ratio_claim("step time", found[method.name], found[yardstick.name], pair))
    return BenchCell(
        group="methods",
        label=label,
        settings={"rank": rank, "size": list(size), "vocabulary": vocabulary, "dtype": "float32", "state_bits": 32},
        candidates=[candidate(name, title, seconds) for name, title in names.items()],
        claims=claims,
        agreement={"the yardstick against torch.optim.AdamW(fused=True)": _apart_from_torch(yardstick, batch)},
        agreement_limit=LIMIT,
        note="plain steps on the same gradient, each method alone in turns with the yardstick"
        + (
            f"; products of bf16 matrices in fp32, rounded once, as here no unit does them: {', '.join(rounded)}"
            * bool(rounded)
        ),
    )


def _multiplies_bf16(step: Work) -> bool:
    """Do a step and say whether it multiplied bf16 matrices, which a processor without units for it takes long over."""
    products = RoundedOnce()  # type: ignore[no-untyped-call]
    with products:
        step()
    return products.count > 0


def _rounded_once(step: Work) -> None:
    with RoundedOnce():  # type: ignore[no-untyped-call]
        step()


def _trains(method: Method[Any], rank: int) -> bool:
    return method.trains_layers((2 * rank, 2 * rank), method.configure(rank))


def _prepared(method: Method[Any], size: Size, vocabulary: int, rank: int, batch: Tensor) -> Optimizer:
    """Return the method's optimizer over a fresh model with its gradients, after the first step."""
    model = llama(*size, vocabulary)
    placement = place(model, TARGETS, train_rest=True)
    dropout = {"dropout": 0.0} if "dropout" in method.config_type.model_fields else {}
    config = method_config(method.name, rank, dropout)
    torch.manual_seed(0)
    method.attach(model, placement, config)
    optimizer = method.make_optimizer(model, placement, AdamSettings(RATE), config)
    # Where a factor starts at zero, its partner has a gradient from the second pass on.
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    set_refresh_gap(optimizer, NEVER)
    return optimizer


def _apart_from_torch(yardstick: Method[Any], batch: Tensor) -> float:
    """Return how far a tiny model ends from one that torch's own AdamW trains, over the way that it went."""
    tokens = batch % 64
    ours, theirs, start = (llama(32, 64, 1, 2, 64) for _ in range(3))
    placement, config = place(ours, TARGETS, train_rest=True), yardstick.configure(4)
    yardstick.attach(ours, placement, config)
    pairs = (
        (ours, yardstick.make_optimizer(ours, placement, AdamSettings(RATE), config)),
        (theirs, torch.optim.AdamW(theirs.parameters(), lr=RATE, weight_decay=0.0, fused=True)),
    )
    for model, optimizer in pairs:
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
    weights = [list(model.parameters()) for model in (ours, theirs, start)]
    gap = sum(float((a.detach() - b.detach()).square().sum()) for a, b, _ in zip(*weights, strict=True))
    way = sum(float((a.detach() - s.detach()).square().sum()) for a, _, s in zip(*weights, strict=True))
    return math.sqrt(gap / way)
