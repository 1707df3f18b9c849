"""Counts: each storage once, nothing missed, and a certificate that fails when a method did nothing."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from results.schema import Layer
from suites.measure import live
from suites.measure.environment import ROOT


class Tied(nn.Module):
    """An embedding whose weight is the output layer's too, with one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.head = nn.Linear(4, 11)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.zeros(7, dtype=torch.bool), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


class Slotted:
    """A plain object that keeps a tensor in a slot."""

    __slots__ = ("ortho_basis",)

    def __init__(self, tensor: Tensor) -> None:
        self.ortho_basis = tensor


def stepped(optimizer: Optimizer, model: nn.Module, *inputs: Tensor) -> Optimizer:
    model(*inputs).float().sum().backward()
    optimizer.step()
    return optimizer


def test_tied_weights_count_once() -> None:
    model = Tied()
    assert live.weight_bytes(model) == 4 * (11 * 4 + 11)
    assert live.buffer_bytes(model) == 7
    model.head.bias.requires_grad_(False)
    assert live.trainable_bytes(model) == 4 * 11 * 4


def test_gradients_count_while_they_live_in_their_dtype() -> None:
    model = Tied().to(torch.bfloat16)
    assert live.gradient_bytes(model) == 0
    model(torch.tensor([1, 2])).float().sum().backward()
    assert live.gradient_bytes(model) == 2 * (11 * 4 + 11) == live.weight_bytes(model)
    model.zero_grad(set_to_none=True)
    assert live.gradient_bytes(model) == 0


def test_a_view_costs_its_whole_storage_and_views_share_it() -> None:
    whole = torch.zeros(100, 10)
    assert live.storage_bytes([whole[:, :1], whole[5:]]) == 4000


def test_a_sparse_tensor_costs_indices_and_values() -> None:
    sparse = torch.sparse_coo_tensor([[0, 2], [1, 0]], [1.0, 2.0], (3, 2), check_invariants=True)
    assert live.storage_bytes([sparse]) == 2 * 2 * 8 + 2 * 4


def test_dense_state_is_what_adamw_allocates() -> None:
    model = Tied()
    optimizer = stepped(torch.optim.AdamW(model.parameters()), model, torch.tensor([1]))
    assert live.state_bytes(optimizer) == live.dense_state_bytes(p.numel() for p in model.parameters())
    assert live.state_shapes(optimizer) == {
        "exp_avg 11 float32": 1,
        "exp_avg 11x4 float32": 1,
        "exp_avg_sq 11 float32": 1,
        "exp_avg_sq 11x4 float32": 1,
        "step scalar float32": 2,
    }
    assert live.basis_bytes(optimizer) == 0


def test_bitsandbytes_state_with_its_shared_tables_once() -> None:
    optim = pytest.importorskip("bitsandbytes").optim
    model = nn.Sequential(nn.Linear(128, 64, bias=False), nn.Linear(64, 128, bias=False), nn.Linear(128, 8))
    optimizer = stepped(optim.AdamW8bit(model.parameters()), model, torch.ones(2, 128))
    large, small = 2 * 64 * 128, 8 * 128 + 8
    blocks = large // 256
    tables = 2 * 256 * 4
    assert live.state_bytes(optimizer) == 2 * large + 2 * 4 * blocks + 2 * 4 * small + tables


def hidden(kind: str, copy: Tensor) -> Any:
    return {
        "attribute": copy,
        "list of dicts": [{"deep": (1, copy)}],
        "object": type("Plain", (), {})(),
        "slots": Slotted(copy),
        "ordered": OrderedDict(a=OrderedDict(b=copy)),
    }[kind]


@pytest.mark.parametrize("kind", ["attribute", "list of dicts", "object", "slots", "ordered"])
@pytest.mark.parametrize("place", ["state", "attribute", "group"])
def test_a_copy_is_found_wherever_the_optimizer_keeps_it(kind: str, place: str) -> None:
    weight = nn.Parameter(torch.ones(8, 4))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    assert live.state_bytes(optimizer) == 0
    copy = weight.detach().clone()
    value = hidden(kind, copy)
    if kind == "object":
        value.kept = copy
    if place == "state":
        optimizer.state[weight]["kept"] = value
    elif place == "attribute":
        optimizer.kept = value  # type: ignore[attr-defined]
    else:
        optimizer.param_groups[0]["kept"] = value
    assert live.state_bytes(optimizer) == copy.nbytes
    optimizer.extra = [value, copy[:2]]  # type: ignore[attr-defined]
    assert live.state_bytes(optimizer) == copy.nbytes


def test_parameters_gradients_and_models_are_no_state() -> None:
    model = Tied()
    model.head.bias.requires_grad_(False)
    optimizer = torch.optim.SGD([model.embed.weight], lr=0.1)
    model(torch.tensor([1])).sum().backward()
    optimizer.model = model  # type: ignore[attr-defined]
    optimizer.seen = [model.embed.weight, model.embed.weight.grad, model.embed.weight.data]  # type: ignore[attr-defined]
    assert live.state_bytes(optimizer) == 0
    optimizer.frozen = model.head.bias  # type: ignore[attr-defined]
    assert live.state_bytes(optimizer) == 44
    assert live.state_bytes(optimizer, model) == 0


def test_bases_are_found_by_their_key_below_objects_too() -> None:
    weight = nn.Parameter(torch.ones(8, 4))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight] = {"projector": Slotted(torch.ones(4, 2)), "basis_left": torch.ones(8, 1), "m": weight + 1}
    assert live.basis_bytes(optimizer) == 32 + 32
    assert live.state_shapes(optimizer) == {
        "basis_left 8x1 float32": 1,
        "m 8x4 float32": 1,
        "projector.ortho_basis 4x2 float32": 1,
    }


LAYERS = [Layer(name="0", shape=(8, 16), rank=2, projection_rank=None)]


def certified(model: nn.Module, optimizer: Optimizer, layers: list[Layer], dense_bytes: int = 10**6) -> Any:
    return live.engagement(layers, 1, 2, optimizer, dense_bytes, refreshes=3)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))


def test_certificate_holds_what_was_found() -> None:
    model = small_model()
    optimizer = stepped(torch.optim.AdamW(model.parameters()), model, torch.ones(2, 16))
    certificate = certified(model, optimizer, LAYERS)
    assert certificate.layers == LAYERS
    assert (certificate.trainable_parameters, certificate.total_parameters, certificate.refreshes) == (1, 2, 3)
    assert certificate.state_bytes == live.state_bytes(optimizer)
    assert sum(certificate.state_shapes.values()) == 3 * 4
    live.check_engagement(certificate, model, "Method", saves_state=True)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no layer", "no layer was matched"),
        ("gone", "9 is not in the model"),
        ("frozen", "nothing is trainable in the matched layer 0"),
        ("no state", "no state"),
        ("no basis", "no basis"),
        ("no saving", "not below the"),
    ],
)
def test_a_method_that_did_nothing_gets_no_certificate(fault: str, message: str) -> None:
    model = small_model()
    layers = {"no layer": [], "gone": [Layer(name="9", shape=(8, 16))]}.get(fault, LAYERS)
    if fault == "no basis":
        layers = [Layer(name="0", shape=(8, 16), projection_rank=2)]
    if fault == "frozen":
        model[0].requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: Optimizer = torch.optim.AdamW(trained)
    if fault == "no state":
        optimizer = torch.optim.SGD(trained)
    stepped(optimizer, model, torch.ones(2, 16))
    dense = live.dense_state_bytes(p.numel() for p in model.parameters()) if fault == "no saving" else 10**6
    certificate = certified(model, optimizer, layers, dense)
    with pytest.raises(RuntimeError, match=message):
        live.check_engagement(certificate, model, "Method", saves_state=True)


def test_full_fine_tuning_need_not_save_state() -> None:
    model = small_model()
    optimizer = stepped(torch.optim.AdamW(model.parameters()), model, torch.ones(2, 16))
    dense = live.dense_state_bytes(p.numel() for p in model.parameters())
    live.check_engagement(certified(model, optimizer, LAYERS, dense), model, "Full", saves_state=False)


def test_peak_resident_set_follows_touched_memory() -> None:
    before = live.rss_peak_bytes()
    size = max(0, before - live.rss_bytes()) + 64 * 2**20
    block = torch.zeros(size, dtype=torch.uint8).fill_(1)
    peak = live.rss_peak_bytes()
    assert peak >= before + 32 * 2**20
    del block
    assert live.rss_peak_bytes() >= peak - 2**20


def test_a_system_without_posix_is_refused_in_one_line() -> None:
    # Of psutil's modules only those of the system that it is on need it.
    code = "import psutil, sys; from results.ending import one_line_errors; sys.modules['resource'] = None\n"
    code += "with one_line_errors(): import suites.measure.live"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the suites run on POSIX systems alone, such as Linux and macOS\n",
    )


def test_device_peaks_are_unknown_on_a_cpu() -> None:
    peaks = live.DevicePeaks(torch.device("cpu"))
    with peaks.phase("train"):
        torch.ones(3)
    assert peaks.allocated_bytes is None
    assert peaks.reserved_bytes is None
