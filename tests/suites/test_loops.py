"""Loops over chunks that are gone through a few times leave the trace, or its peaks, as they are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import gnlorp.base_weight
from gnlorp import NormLinear, NormLowRankLinear
from suites.lab import loops
from suites.lab.lines import ROWS, Line, line_of
from suites.measure import allocator
from suites.measure.trace import Event, Trace, peak_of
from suites.measure.tracker import track

TOKENS = 90


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gnlorp.base_weight, "CHUNK_ELEMENTS", 200)


class Two(nn.Module):
    def __init__(self, kind: str, options: dict[str, Any]):
        super().__init__()
        torch.manual_seed(0)
        linears = [nn.Linear(24, 60, dtype=torch.bfloat16), nn.Linear(60, 24, bias=False, dtype=torch.bfloat16)]
        if kind == "dense":
            self.layers = nn.ModuleList(NormLinear(each) for each in linears)
        else:
            self.layers = nn.ModuleList(NormLowRankLinear(each, 3, 6.0, **options) for each in linears)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers[1](self.layers[0](x).tanh()).float().square().mean()
        return found


def traced(kind: str, options: dict[str, Any], way: AbstractContextManager[None], tokens: int = TOKENS) -> Trace:
    model = Two(kind, options)
    x = torch.randn(tokens, 24, dtype=torch.bfloat16, requires_grad=True)
    with way:
        model(x).backward()
        model.zero_grad()
        x.grad = None
        return track(model, None, lambda: model(x).backward(), look_into_foreign=False)


def named(events: tuple[Event, ...]) -> list[tuple[int | None, int, str]]:
    """Storages by the order of their coming."""
    names: dict[int, int] = {}
    return [
        (None if each.storage is None else names.setdefault(each.storage, len(names)), each.delta_bytes, each.phase)
        for each in events
    ]


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("dense", {}), ("factors", {}), ("factors", {"activations": "least"}), ("factors", {"activations": "fast"}),
    ("factors", {"dropout": 0.2}), ("factors", {"base_bits": 8}), ("factors", {"base_bits": 4}),
    ("factors", {"norm_gradient": "detached"}), ("factors", {"activations": "fast", "dropout": 0.2}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), WAYS)
def test_rounds_said_again_are_the_rounds(kind: str, options: dict[str, Any]) -> None:
    plain = traced(kind, options, nullcontext())
    short = traced(kind, options, loops.short())
    found = loops.said_again(short)
    assert len(short.events) < 0.8 * len(plain.events)
    assert named(found.events) == named(plain.events)
    kinds = [[trace.categories[each.storage] for each in trace.events if each.storage is not None]
             for trace in (found, plain)]  # fmt: skip
    assert kinds[0] == kinds[1]
    assert gnlorp.base_weight.alike_spans is gnlorp.base_weight.spans


@pytest.mark.parametrize(("kind", "options"), WAYS)
def test_a_few_rounds_have_the_peaks_of_all(kind: str, options: dict[str, Any]) -> None:
    plain = traced(kind, options, nullcontext())
    few = traced(kind, options, loops.few(TOKENS, collapse=False))
    assert len(few.events) < len(plain.events)
    assert peak_of(few) == peak_of(plain)
    assert allocator.held(few) == allocator.held(plain)


@pytest.mark.parametrize("rows", [2, 3, 7, 40])
def test_a_loop_over_tokens_is_said_at_any_batch(rows: int) -> None:
    length = 10
    two = [traced("dense", {}, loops.few(each * length, collapse=True), each * length) for each in ROWS]
    line: Line = line_of(*two)
    assert line.loop.any()
    step = line.at_batch(rows, length)
    plain = traced("dense", {}, nullcontext(), rows * length)
    held = allocator.replay((step.storage, step.bytes))
    # Parameters, which a step is given apart, are in the trace alone.
    weights = sum(each.nbytes for each in Two("dense", {}).parameters())
    assert held.tensor_bytes + weights == peak_of(plain).total_bytes


def test_rounds_that_differ_are_not_said_again() -> None:
    model = nn.Linear(2, 2)
    kept: list[torch.Tensor] = []

    def run() -> None:
        for c in gnlorp.base_weight.alike_spans(60, 24):
            kept.append(torch.ones(c.stop - c.start))

    with loops.short():
        trace = track(model, None, run)
    with pytest.raises(RuntimeError, match="two rounds of a loop over chunks differ"):
        loops.said_again(trace)
