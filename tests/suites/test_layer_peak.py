"""What the layer takes beyond inputs, results and what it keeps: a few chunks of a stated size, whatever the shapes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from gnlorp import NormLinear, NormLowRankLinear, base_weight
from gnlorp.weight_norm import Options
from suites.measure.trace import peak_of
from suites.measure.tracker import track

CHUNK = 1 << 12
CHUNKS = 6
"""Chunks that live at one time: of the mask, its bits, the dropped input, the response, the gradient in the gain."""


def beyond(layer: nn.Module, tokens: int, dtype: torch.dtype) -> int:
    """Return bytes at the peak of a training step without the input, the output, and the gradients of all of them."""
    x = torch.randn(tokens, layer.in_features, dtype=dtype, requires_grad=True)
    grad = torch.randn(tokens, layer.out_features, dtype=dtype)

    def run() -> None:
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None
        layer(x).backward(grad)

    run()
    run()
    trace = track(layer, None, run)
    before = sum(event.delta_bytes for event in trace.events if event.phase == "start")
    gradients = sum(p.numel() * p.element_size() for p in layer.parameters() if p.requires_grad)
    both = tokens * (layer.in_features + layer.out_features) * dtype.itemsize
    return peak_of(trace).total_bytes - before - gradients - both


MODES, BITS, DTYPES, CHANCES = ("fast", "least", "auto"), (None, 8, 4), (torch.float32, torch.bfloat16), (0.0, 0.1)
PAIRS = {(mode, bits, (i + j) % 2, (i + j // 2) % 2) for i, mode in enumerate(MODES) for j, bits in enumerate(BITS)}
"""Mode, bits, and the places of dtype and dropout: every pair of settings occurs; the whole product is slow."""


@pytest.mark.parametrize(
    ("mode", "bits", "dtype", "probability"),
    [
        pytest.param(mode, bits, DTYPES[d], CHANCES[c], marks=[pytest.mark.slow] * ((mode, bits, d, c) not in PAIRS))
        for mode, bits, d, c in product(MODES, BITS, (0, 1), (0, 1))
    ],
)
def test_temporaries_are_a_few_chunks(mode, bits, dtype, probability, monkeypatch):
    monkeypatch.setattr(base_weight, "CHUNK_ELEMENTS", CHUNK)
    rank, outputs, inputs, tokens = 4, 288, 192, 600
    options = {"dropout": probability, "activations": mode, "base_bits": bits}
    layer = NormLowRankLinear(nn.Linear(inputs, outputs, dtype=dtype), rank, 8.0, **options)
    # Factors in float32, vectors of O, what the tokens leave in R: small, but no chunks.
    small = 4 * (6 * (outputs + inputs) * rank + 12 * outputs + 3 * tokens * rank)
    # An output and a gradient of tokens in one chunk are wider than their chunk of inputs.
    wide = max(inputs, outputs) / inputs
    found = beyond(layer, tokens, dtype)
    assert found <= CHUNKS * wide * CHUNK * 4 + small
    assert found < tokens * inputs * dtype.itemsize


def test_so_they_are_where_the_weight_is_formed(monkeypatch):
    monkeypatch.setattr(base_weight, "CHUNK_ELEMENTS", CHUNK)
    layer, tokens = NormLowRankLinear(nn.Linear(192, 288), 4, 8.0, activations="least"), 1500
    assert Options(1.0, True).forms_weight(torch.empty(tokens, 192), layer.factor_out)
    assert beyond(layer, tokens, torch.float32) <= CHUNKS * CHUNK * 4 + 4 * (6 * 480 * 4 + 12 * 288)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_are_those_of_the_dense_form(dtype, monkeypatch):
    monkeypatch.setattr(base_weight, "CHUNK_ELEMENTS", CHUNK)
    layer = NormLinear(nn.Linear(192, 288, dtype=dtype))
    assert beyond(layer, 300, dtype) <= CHUNKS * 1.5 * CHUNK * 4 + 4 * 12 * 288
