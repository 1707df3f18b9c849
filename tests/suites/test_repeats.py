"""Calls of a layer's functions that a trace says again: the same events, storage for storage, as if gone through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gnlorp.base_weight
import gnlorp.weight_norm
from gnlorp import NormLowRankLinear
from suites.lab import loops, repeats
from suites.measure.predict import without_values
from suites.measure.trace import Trace
from suites.measure.tracker import track

WAYS: list[dict[str, Any]] = [
    {}, {"activations": "least"}, {"activations": "fast"}, {"dropout": 0.2}, {"base_bits": 8}, {"base_bits": 4},
    {"norm_gradient": "detached"}, {"activations": "fast", "dropout": 0.2},
]  # fmt: skip

CHUNK = 120


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gnlorp.base_weight, "CHUNK_ELEMENTS", CHUNK)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each function was gone through."""
    found: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            found[name] += 1
            return function(*args)

        return call

    for module, name in repeats.FUNCTIONS:
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    return found


def traced(options: dict[str, Any], way: AbstractContextManager[None], layers: int = 3) -> Trace:
    with without_values():
        linears = [nn.Linear(24, 24, dtype=torch.bfloat16) for _ in range(layers)]
        model = nn.Sequential(*(NormLowRankLinear(each, 3, 6.0, **options) for each in linears))
        x = torch.randn(20, 24, dtype=torch.bfloat16, requires_grad=True)
        model(x).float().square().mean().backward()
        model.zero_grad()
        x.grad = None
        with way:
            return track(model, None, lambda: model(x).float().square().mean().backward(), look_into_foreign=False)


def named(trace: Trace) -> list[tuple[int | None, int, str, str | None]]:
    """Storages by the order of their coming, with what they are."""
    names: dict[int, int] = {}
    return [
        (None, each.delta_bytes, each.phase, None)
        if each.storage is None
        else (
            names.setdefault(each.storage, len(names)), each.delta_bytes, each.phase, trace.categories[each.storage]
        )
        for each in trace.events
    ]  # fmt: skip


@pytest.mark.parametrize("options", WAYS)
def test_a_trace_with_calls_said_again_is_the_trace(options: dict[str, Any], calls: Counter[str]) -> None:
    plain = traced(options, nullcontext())
    through = Counter(calls)
    calls.clear()
    # A step before the trace goes through everything; with what the first of three layers does, so do the rest.
    said = traced(options, repeats.said_again())
    assert named(said) == named(plain)
    assert sum(calls.values()) < 0.8 * sum(through.values())


def test_muons_update_is_gone_through_once_for_each_shape(calls: Counter[str]) -> None:
    def stepped(way: AbstractContextManager[None]) -> Trace:
        with without_values():
            model = nn.Sequential(*(nn.Linear(24, width, bias=False) for width in (24, 48, 24, 24)))
            optimizer = torch.optim.Muon(model.parameters())
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            calls.clear()
            with way:
                return track(model, optimizer, optimizer.step, look_into_foreign=False)

    plain = stepped(nullcontext())
    assert calls.total() == 4
    said = stepped(repeats.said_again())
    assert calls.total() == 2
    assert named(said) == named(plain)


def test_moments_are_noted_again_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "said_again", nullcontext)
    plain = traced({}, loops.short())
    monkeypatch.undo()
    monkeypatch.setattr(gnlorp.base_weight, "CHUNK_ELEMENTS", CHUNK)
    assert plain.notes
    said = traced({}, loops.short())
    assert said.notes == plain.notes
    assert named(said) == named(plain)


def test_without_a_trace_results_are_like_those_of_the_call(calls: Counter[str]) -> None:
    def gradients() -> list[tuple[torch.Size, torch.dtype]]:
        layer = NormLowRankLinear(nn.Linear(24, 60), 3, 6.0)
        layer(torch.randn(9, 24)).sum().backward()
        return [(each.grad.shape, each.grad.dtype) for each in layer.parameters() if each.grad is not None]

    with without_values():
        plain = gradients()
        with repeats.said_again():
            first = gradients()
            gone_through = sum(calls.values())
            assert gradients() == first == plain
            assert sum(calls.values()) == gone_through


def test_what_shares_memory_with_its_arguments_is_gone_through_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Counter[str]()

    def halves(x: Tensor) -> Tensor:
        asked["halves"] += 1
        return x[1:]

    module, name = repeats.FUNCTIONS[0]
    monkeypatch.setattr(module, name, halves)
    with without_values(), torch.no_grad(), repeats.said_again():
        x = torch.randn(4, 4)
        for _ in range(2):
            found = getattr(module, name)(x)
            assert found.untyped_storage()._cdata == x.untyped_storage()._cdata
    assert asked["halves"] == 2


def test_tensors_with_values_are_never_spared(calls: Counter[str]) -> None:
    layer = NormLowRankLinear(nn.Linear(24, 24), 3, 6.0)
    x = torch.randn(9, 24)
    with repeats.said_again():
        first = layer(x)
        gone_through = sum(calls.values())
        second = layer(2 * x)
    assert sum(calls.values()) == 2 * gone_through
    assert not torch.equal(first, second)


@contextmanager
def nested() -> Iterator[None]:
    with repeats.said_again(), repeats.said_again():
        yield


def test_a_context_within_another_starts_anew_and_leaves_the_functions_as_they_were(calls: Counter[str]) -> None:
    before = [getattr(*place) for place in repeats.FUNCTIONS]
    assert named(traced({}, nested())) == named(traced({}, nullcontext()))
    assert [getattr(*place) for place in repeats.FUNCTIONS] == before
