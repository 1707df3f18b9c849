"""Two ranks: what is refused there in one line, and what works as with torch's AdamW."""

from __future__ import annotations

import itertools
import json
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from gnlorp import GradNormLoRPAdamW, attach, param_groups

PARTS = {
    "plain": {},
    "full": {"full_state_dict": True},
    "from rank 0": {"full_state_dict": True, "broadcast_from_rank0": True},
    "flat": {"flatten_optimizer_state_dict": True},
}


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    attach(model, ["0", "2"], 4, 8.0)
    return model, GradNormLoRPAdamW(param_groups(model, 2, refresh_gap=2, lr=0.01))


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        model(torch.randn(4, 16, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def equal(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def refusal(call):
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def average(grad):
    dist.all_reduce(grad.div_(dist.get_world_size()))


def per_layer_found():
    early, inside = build()
    model, optimizer = build()
    refused = refusal(optimizer.per_layer)
    train(nn.parallel.DistributedDataParallel(model), optimizer, 5)
    inside.per_layer(reduce=average)
    train(early, inside, 5)
    return {"per_layer": refused, "supported": optimizer.supports_per_layer, "averaged": equal(model, early)}


def checkpoint_found():
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    found = {}
    # After one step factor B has not had a gradient. With hooks on, torch's step without a backward pass must still
    # make the state that it loads into.
    for (name, options), steps, hooked in itertools.product(PARTS.items(), (1, 3), (False, True)):
        model, optimizer = build()
        train(nn.parallel.DistributedDataParallel(model), optimizer, steps)
        given = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**options))
        if name == "from rank 0" and dist.get_rank():
            given = {}
        other, resumed = build()
        other.load_state_dict(model.state_dict())
        if hooked:
            resumed.per_layer(reduce=average)
        set_optimizer_state_dict(other, resumed, given, options=StateDictOptions(**options))
        train(nn.parallel.DistributedDataParallel(model), optimizer, 3, steps)
        train(other if hooked else nn.parallel.DistributedDataParallel(other), resumed, 3, steps)
        found[f"{name}, {steps} steps, {hooked}"] = equal(model, other)
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    # Called before there are ranks: found out in the first backward pass.
    model, optimizer = build()
    optimizer.per_layer()
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    late = refusal(lambda: train(model, optimizer, 1))
    found = {"late": late, "ranks": per_layer_found(), "checkpoint": checkpoint_found()}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("gloo over a file")
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (folder,), nprocs=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_per_layer_updates_are_refused_or_come_after_the_average(found):
    for each in found:
        for message in (each["late"], each["ranks"]["per_layer"]):
            assert message.startswith("RuntimeError: per-layer updates on 2 ranks")
        assert not each["ranks"]["supported"]
        assert each["ranks"]["averaged"]


def test_a_distributed_checkpoint_of_the_optimizer_goes_on_bit_for_bit(found):
    for each in found:
        assert len(each["checkpoint"]) == 16
        assert all(each["checkpoint"].values()), each["checkpoint"]
