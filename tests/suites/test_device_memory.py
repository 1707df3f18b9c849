"""A CUDA device's memory, predicted without one: the allocator's rules, autocast's, and what is said before a run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from results.lab import Setting
from results.schema import Peak
from suites.lab.lab import Lab
from suites.lab.networks import find_network
from suites.measure.allocator import (
    LARGE_SEGMENT,
    MIB,
    SMALL_SEGMENT,
    Allocator,
    Changes,
    Held,
    held,
    replay,
    stretches,
)
from suites.measure.cuda import cuda_rules
from suites.measure.estimate import CONTEXT_BYTES, estimated
from suites.measure.predict import Prediction, without_values
from suites.measure.trace import Event, Trace, peak_of
from suites.measure.tracker import track
from suites.run.preflight import memory_warnings, predict
from suites.suite import Runtime


def trace_of(*deltas: tuple[int, int]) -> Trace:
    events = tuple(Event(storage, size, "forward") for storage, size in deltas)
    return Trace(events, dict.fromkeys({storage for storage, _ in deltas}, "activation"))


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, SMALL_SEGMENT),
        (513, 1024, SMALL_SEGMENT),
        (MIB, MIB, SMALL_SEGMENT),
        (MIB + 1, MIB + 512, LARGE_SEGMENT),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (100 * MIB, 100 * MIB, 100 * MIB),
    ],
)
def test_one_tensor_takes_what_the_rules_say(size: int, allocated: int, reserved: int) -> None:
    assert held(trace_of((0, size))) == Held(size, allocated, reserved)


def test_a_large_block_is_only_split_where_more_than_a_mebibyte_is_left() -> None:
    allocator = Allocator()
    allocator.give(allocator.take(12 * MIB))
    assert allocator.take(11 * MIB).size == 12 * MIB
    allocator.give(allocator.take(24 * MIB))
    assert allocator.take(12 * MIB).size == 12 * MIB
    assert allocator.take(12 * MIB).size == 12 * MIB
    assert allocator.reserved == (12 + 24) * MIB


def test_small_tensors_share_a_segment_and_free_neighbours_grow_together() -> None:
    allocator = Allocator()
    blocks = [allocator.take(512) for _ in range(4096)]
    assert (allocator.allocated, allocator.reserved) == (2 * MIB, SMALL_SEGMENT)
    for block in blocks:
        allocator.give(block)
    assert allocator.allocated == 0
    allocator.take(MIB)
    allocator.take(MIB)
    assert allocator.reserved == SMALL_SEGMENT


def test_holes_are_reserved_and_not_allocated() -> None:
    # Every second block of 4 MiB is freed: 8 MiB in two holes, in which 8 MiB in one piece finds no room.
    start = [(index, 4 * MIB) for index in range(5)]
    found = held(trace_of(*start, (1, -4 * MIB), (3, -4 * MIB), (5, 8 * MIB)))
    assert found == Held(20 * MIB, 20 * MIB, 2 * LARGE_SEGMENT)


def test_blocks_never_overlap_and_nothing_is_lost() -> None:
    chance, allocator, live = random.Random(0), Allocator(), []
    for _ in range(3000):
        if live and chance.random() < 0.5:
            allocator.give(live.pop(chance.randrange(len(live))))
        else:
            live.append(allocator.take(chance.choice([100, 5000, MIB, 3 * MIB, 11 * MIB])))
        spans = sorted((block.address, block.address + block.size) for block in live)
        assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))
    free = sum(size for pool in allocator._free.values() for size, _ in pool)
    assert allocator.allocated + free == allocator.reserved


def test_what_shrinks_and_what_a_trace_says_again_is_freed_whole() -> None:
    assert held(trace_of((0, 6 * MIB), (0, -2 * MIB), (0, -4 * MIB), (1, MIB))).allocated_bytes == 6 * MIB
    again = [(0, 4 * MIB)] * 3 + [(0, -4 * MIB)] * 3 + [(1, 12 * MIB)]
    assert held(trace_of(*again)) == Held(12 * MIB, 12 * MIB, LARGE_SEGMENT)


def test_ways_to_go_on_are_replayed_as_if_each_stood_alone() -> None:
    chance, live, changes = random.Random(0), [], []
    for storage in range(600):
        if live and chance.random() < 0.45:
            gone, size = live.pop(chance.randrange(len(live)))
            changes.append((gone, -size))
        else:
            live.append((storage, chance.choice([100, 5000, MIB, 3 * MIB, 11 * MIB])))
            changes.append(live[-1])
    begun = changes[:400]
    ends = [changes[400:], changes[400:500], [(9000, 50 * MIB), *changes[400:450]]]
    alone = [replay(columns([*begun, *end])) for end in ends]
    assert replay(columns(begun), [columns(end) for end in ends]) == Held(*map(max, zip(*alone, strict=True)))
    assert len(set(alone)) == 3
    for end, wanted in zip(ends, alone, strict=True):
        assert replay(columns(begun), [columns(end)]) == replay(columns(begun), [columns(end), columns([])]) == wanted


def columns(changes: Sequence[tuple[int, int]]) -> Changes:
    storage, size = np.array(changes, dtype=np.int64).reshape(-1, 2).T
    return storage, size


@pytest.mark.parametrize("seed", range(40))
def test_an_end_that_does_the_same_again_is_replayed_as_it_stands(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [100, 5000, MIB, 3 * MIB, 11 * MIB]
    begun = [(index, chance.choice(sizes)) for index in range(30)]
    begun += [(index, -begun[index][1]) for index in chance.sample(range(30), 12)]
    kinds = []
    for _ in range(3):
        # Taken, shrunk in part, freed in another order than taken.
        took = [(place, chance.choice(sizes)) for place in range(chance.randint(1, 5))]
        shrunk = [(place, -(size // 2)) for place, size in took if chance.random() < 0.3]
        left = {place: size + sum(less for which, less in shrunk if which == place) for place, size in took}
        kinds.append([*took, *shrunk, *((place, -left[place]) for place in chance.sample(list(left), len(left)))])
    live, end = dict(change for change in begun if (change[0], -change[1]) not in begun), []
    for turn in range(40):
        end += [(1000 + 10 * turn + place, size) for place, size in chance.choice(kinds)]
        if live and chance.random() < 0.2:
            end.append((gone := chance.choice(list(live)), -live.pop(gone)))
        if chance.random() < 0.1:
            end.append((5000 + turn, chance.choice(sizes)))
    found = list(stretches(*columns(end)))
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found[:-1])]
    assert found[-1][1] == len(end)
    # As one list the changes are replayed one by one.
    assert replay(columns(begun), [columns(end)]) == replay(columns([*begun, *end]))


def test_what_leaves_every_block_where_it_was_is_replayed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = Allocator.take
    monkeypatch.setattr(Allocator, "take", lambda self, size: taken.append(size) or take(self, size))
    layer = [(0, MIB), (1, 3 * MIB), (0, -MIB), (1, -3 * MIB)]
    end = [(2 * turn + which, size) for turn in range(100) for which, size in layer]
    # The first one makes segments; the second one is the first that could be left out.
    quarter = MIB // 4
    most = 4 * MIB + quarter
    assert replay(columns([(900, quarter)]), [columns(end)]) == Held(most, most, SMALL_SEGMENT + LARGE_SEGMENT)
    assert len(taken) == 1 + 2 * 2
    taken.clear()
    # Something comes to stay in between: what was seen before it counts no more.
    replay(columns([(900, quarter)]), [columns([*end[:200], (901, quarter), *end[200:]])])
    assert len(taken) == 1 + 2 * 2 + 1 + 2


def kept_by(layer: Any, x: torch.Tensor, cuda: bool) -> dict[torch.dtype, int]:
    """Return the bytes by dtype that autograd keeps of one forward under autocast."""
    found: dict[torch.dtype, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.dtype] = found.get(tensor.dtype, 0) + tensor.nbytes
        return tensor

    rules = cuda_rules() if cuda else torch.random.fork_rng(devices=[])
    with rules, torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    return found


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm(64), nn.Softmax(-1), nn.LogSoftmax(-1)], ids=lambda each: type(each).__name__
)
def test_under_autocast_a_device_makes_norms_and_softmax_fp32(layer: nn.Module) -> None:
    x = torch.randn(32, 64, dtype=torch.bfloat16, requires_grad=True)
    low, high = kept_by(layer, x, cuda=False), kept_by(layer, x, cuda=True)
    assert low[torch.bfloat16] >= x.nbytes
    assert high.get(torch.bfloat16, 0) == 0
    assert high[torch.float32] >= 2 * x.nbytes
    with cuda_rules(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
        assert F.gelu(x).dtype == torch.bfloat16
    with cuda_rules():
        assert layer(x).dtype == torch.bfloat16


def test_a_devices_attention_keeps_no_scores() -> None:
    peaks = {}
    for cuda in (False, True):
        with without_values():
            q, k, v = (torch.empty(2, 4, 256, 16, requires_grad=True) for _ in range(3))
            model = nn.Linear(1, 1)

            def run(cuda: bool = cuda, q: Any = q, k: Any = k, v: Any = v) -> None:
                with cuda_rules() if cuda else torch.random.fork_rng(devices=[]):
                    out = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
                    assert out.shape == q.shape
                    out.sum().backward()

            peaks[cuda] = peak_of(track(model, None, run)).total_bytes
    scores = 4 * 2 * 4 * 256 * 256
    assert peaks[False] > scores
    assert peaks[True] < scores / 2


def test_what_is_computed_again_in_backward_follows_the_rules_too() -> None:
    x, grads = torch.randn(2, 4, 16, 8), []
    norm = nn.LayerNorm(8)

    def block(x: torch.Tensor) -> torch.Tensor:
        y = norm(x)
        assert not torch.is_autocast_enabled("cpu") or y.dtype == torch.float32
        return F.scaled_dot_product_attention(y, y, y)

    for cuda in (False, True):
        with cuda_rules() if cuda else torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16, cuda):
            leaf = x.clone().requires_grad_()
            # A block whose tensors were others the second time is refused by torch.
            checkpoint(block, leaf, use_reentrant=False).sum().backward()
        grads.append(leaf.grad)
    assert all(grad is not None and grad.shape == x.shape for grad in grads)


def test_the_lab_says_other_bytes_for_a_device() -> None:
    cells = {}
    for device in ("cpu", "cuda"):
        lab = Lab(find_network("micro"), "lora", 4, "bf16-autocast", device=device)
        setting = Setting(
            model="micro", method="lora", rank=4, batch=8, sequence=32, precision="bf16-autocast", device=device
        )
        cells[device] = lab.cell(setting)
    assert (cells["cpu"].allocated_bytes, cells["cpu"].reserved_bytes) == (None, None)
    cuda = cells["cuda"]
    assert cuda.peak.activation_bytes != cells["cpu"].peak.activation_bytes
    assert cuda.count == cells["cpu"].count
    assert cuda.peak.total_bytes <= (cuda.allocated_bytes or 0) <= (cuda.reserved_bytes or 0)


def test_estimates_are_in_order_and_say_their_parts() -> None:
    some = Held(1000 * MIB, 1001 * MIB, 1200 * MIB)
    low, expected, high = (estimated(some, estimate) for estimate in ("low", "expected", "high"))
    assert low == 1000 * MIB + CONTEXT_BYTES["low"]
    assert expected == 1200 * MIB + CONTEXT_BYTES["expected"]
    assert high == 1320 * MIB + CONTEXT_BYTES["high"]


def test_too_little_memory_is_said_before_the_run(make_plan: Any) -> None:
    plan = make_plan()
    zero = Peak(
        total_bytes=0, parameter_bytes=0, buffer_bytes=0, gradient_bytes=0, activation_bytes=0, temporary_bytes=0,
        optimizer_bytes=0,
    )  # fmt: skip
    said = {plan.hash(): Prediction(zero, {}, {}, Held(8 << 30, 8 << 30, 9 << 30))}
    assert memory_warnings([plan], said, None) == []
    assert memory_warnings([plan], said, 16 << 30) == []
    (line,) = memory_warnings([plan], said, 10 << 30)
    assert "full, task rte: may not fit the 10.00 GiB of the device: low 8.29, expected 9.49, high 10.78" in line
    with pytest.raises(ValueError, match=r"'full', task 'rte'.*8\.00 GiB \(predicted\), more than the 4\.00 GiB"):
        memory_warnings([plan], said, 4 << 30)


def test_a_plan_for_a_device_is_predicted_by_its_rules(make_plan: Any) -> None:
    plan = make_plan(precision="bf16-autocast")
    found = {kind: predict([plan], Runtime(torch.device(kind)))[plan.hash()] for kind in ("cpu", "cuda")}
    assert found["cuda"].peak.activation_bytes != found["cpu"].peak.activation_bytes
    assert found["cuda"].peak.parameter_bytes == found["cpu"].peak.parameter_bytes
