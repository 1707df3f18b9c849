"""The optimizer and the layer on weights sharded by FSDP2, over gloo processes, against the same on whole ones."""

import copy
import itertools
import json
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from gnlorp import GradNormLoRPAdamW, attach, param_groups
from gnlorp.checks import is_sharded

# Of shapes (10, 7), (6, 10), (9, 6), (5, 9): tall and wide, with lengths that divide and that do not.
WIDTHS = (7, 10, 6, 9, 5)
SMALL = [{"side": "small", "moments": moments} for moments in ("keep", "rotate", "reset")]
MORE = [
    {"side": side, "moments": moments, "basis": basis}
    for side, moments, basis in itertools.product(("large", "both"), ("keep", "rotate"), ("exact",))
] + [{"side": "small", "basis": "warm"}]


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS)]
    return nn.Sequential(*itertools.chain.from_iterable((layer, nn.Tanh()) for layer in layers)).to(dtype)


def groups_of(model):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return [
        {"params": matrices, "projection_rank": 3},
        {"params": [p for p in model.parameters() if p.ndim < 2], "projection_rank": None},
    ]


def made(options, size=1, dtype=torch.float64, mesh=None):
    model = network(dtype)
    if size > 1:
        shard(model, [{**group, **options} for group in groups_of(model)], size, mesh)
    return model, GradNormLoRPAdamW(groups_of(model), lr=0.02, weight_decay=0.1, refresh_gap=2, **options)


def shard(model, groups, size, mesh=None, whole=frozenset()):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from gnlorp.sharded import placement

    mesh = mesh or init_device_mesh("cpu", (size,))
    fully_shard(model, mesh=mesh, shard_placement_fn=placement(groups, size), ignored_params=set(whole))
    model.set_gradient_divide_factor(1.0)
    model.set_force_sum_reduction_for_comms(True)


def train(model, optimizer, steps, rank=0, size=1, spoil=None, first=0):
    norms = []
    for step in range(first, first + steps):
        x = torch.randn(8, WIDTHS[0], generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        x = x.to(next(model.parameters()).dtype)
        if step == spoil:
            x[-1, 0] = float("nan")
        (model(x[rank::size]).square().sum() / 8).backward()
        optimizer.step()
        optimizer.zero_grad()
        norms.append(optimizer.last_gradient_norm)
    return norms


def full(tensor):
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def distance(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((full(a.detach()) - b.detach()).abs().max()) for a, b in pairs)


def bytes_of(optimizer):
    found = {}
    for weight, state in optimizer.state.items():
        tensors = [value for value in state.values() if torch.is_tensor(value)]
        size = sum((t._local_tensor if is_sharded(t) else t).nbytes for t in tensors)
        found[id(weight)] = size
    return found


def formula_of(optimizer, rank, size):
    from gnlorp.moments import layout_bytes
    from gnlorp.sharded import local_state_layout, share_of

    return {
        id(weight): layout_bytes(
            local_state_layout(
                weight.shape, weight.dtype, group["projection_rank"], group["side"], size, rank, share_of(weight).dim
            )
        )
        for group in optimizer.param_groups
        for weight in group["params"]
    }


def trained_found(options, rank, size):
    whole, alone = made(options)
    norms = train(whole, alone, 7)
    model, optimizer = made(options, size)
    assert all(map(is_sharded, model.parameters()))
    ours = train(model, optimizer, 7, rank, size)
    return {
        "distance": distance(model, whole),
        "moved": distance(network(), whole),
        "norms": max(abs(a - b) for a, b in zip(norms, ours, strict=True)),
        "bytes": bytes_of(optimizer) == formula_of(optimizer, rank, size),
        "refreshed": optimizer.last_refreshed == alone.last_refreshed,
    }


def per_layer_found(rank, size):
    """Updates inside backward, in one pass and summed over two, against ordinary ones."""
    found = {}
    options = {"moments": "keep"}
    whole, alone = made(options)
    train(whole, alone, 5)
    model, optimizer = made(options, size)
    optimizer.per_layer()
    found["supported"] = optimizer.supports_per_layer
    train(model, optimizer, 5, rank, size)
    found["distance"] = distance(model, whole)
    found["freed"] = all(p.grad is None for p in model.parameters())
    # Two passes a step, one the other's half: bases come from the first one's gradient, as in one process.
    results = []
    for shares in (1, size):
        model, optimizer = made(options, shares)
        optimizer.per_layer(accumulation=2, reduce=None if shares > 1 else lambda grad: None)
        for step in range(4):
            x = torch.randn(8, WIDTHS[0], generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            for half in (x[:4], x[4:]):
                mine = half if shares == 1 else half[rank::size]
                (model(mine).square().sum() / 8).backward()
            optimizer.step()
        results.append((model, optimizer))
    found["summed"] = distance(results[1][0], results[0][0])
    found["norm"] = results[1][1].last_gradient_norm
    return found


def state_found(rank, size):
    """A state loaded into another model goes on bit for bit; one that is prepared is what a first step makes."""
    model, optimizer = made({}, size)
    train(model, optimizer, 3, rank, size)
    kept = copy.deepcopy({name: value.clone() for name, value in model.state_dict().items()})
    other, loaded = made({}, size)
    other.load_state_dict(kept)
    loaded.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 2, rank, size, first=3)
    train(other, loaded, 2, rank, size, first=3)
    same = all(torch.equal(full(a), full(b)) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    fresh, prepared = made({}, size)
    prepared.prepare()
    early = bytes_of(prepared) == formula_of(prepared, rank, size)
    train(fresh, prepared, 5, rank, size)
    again = all(torch.equal(full(a), full(b)) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    return {"same": same, "early": early, "again": again}


def skipped_found(rank, size):
    """A gradient that is not finite, on one process alone, is skipped by all; weights stay the same everywhere."""
    whole, alone = made({})
    train(whole, alone, 4, spoil=2)
    model, optimizer = made({}, size)
    train(model, optimizer, 4, rank, size, spoil=2)
    return {"skipped": optimizer.skipped_steps, "distance": distance(model, whole)}


def layer_found(rank, size, base_bits):
    """GradNormLoRP's layer: its weight sharded with its factors; norms made anew from shards."""
    results = {}
    for shares in (1, size):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 12))
        attach(model, ["0", "2"], 4, 8, base_bits=base_bits)
        if shares > 1:
            vectors = {p for p in model.parameters() if p.ndim < 2}
            square = model[0].base_square.clone()
            shard(model, param_groups(model, 2), size, whole=vectors)
            model.to(torch.float32)
            model.load_state_dict({**model.state_dict()})
            renewed = float((model[0].base_square - square).abs().max())
        optimizer = GradNormLoRPAdamW(param_groups(model, 2), lr=0.02, refresh_gap=2)
        for step in range(5):
            x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step))
            mine = x if shares == 1 else x[rank::size]
            (model(mine).square().sum() / 8).backward()
            for parameter in model.parameters():
                if shares > 1 and parameter.grad is not None and not is_sharded(parameter):
                    dist.all_reduce(parameter.grad)
            optimizer.step()
            optimizer.zero_grad()
        results[shares] = model
    return {"distance": distance(results[size], results[1]), "renewed": renewed}


def refusal(build):
    try:
        build()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Own(GradNormLoRPAdamW):
    takes_shards = False


def refused_found(rank, size):
    from torch.distributed.device_mesh import init_device_mesh

    model = network()
    shard(model, [], size)
    hybrid = network()
    shard(hybrid, [], size, init_device_mesh("cpu", (1, size), mesh_dim_names=("replicate", "shard")))
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(4, 4))
    attach(layer, ["0"], 2, 4)
    shard(layer, [], size)
    return [
        refusal(lambda: GradNormLoRPAdamW(model.parameters(), state_bits=8)),
        refusal(lambda: GradNormLoRPAdamW(hybrid.parameters())),
        refusal(lambda: Own(groups_of(model))),
        refusal(layer[0].merge),
        refusal(layer[0].restart),
    ]


def work(rank, size, folder, grid):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    found = {
        "trained": [trained_found(options, rank, size) for options in grid],
        "per_layer": per_layer_found(rank, size),
        "state": state_found(rank, size),
        "skipped": skipped_found(rank, size),
        "layers": [layer_found(rank, size, bits) for bits in (None, 8)],
        "refused": refused_found(rank, size),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def results(size, folder, grid):
    if sys.platform != "linux":
        pytest.skip("gloo over a file")
    mp.spawn(work, (size, folder, grid), nprocs=size)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def check(found, size):
    for each in found:
        for trained in each["trained"]:
            assert trained["moved"] > 0.05
            assert trained["distance"] < 1e-7
            assert trained["norms"] < 1e-7
            assert trained["bytes"]
            assert trained["refreshed"]
        assert each["per_layer"]["supported"]
        assert each["per_layer"]["freed"]
        assert each["per_layer"]["distance"] < 1e-7
        assert each["per_layer"]["summed"] < 1e-7
        assert each["per_layer"]["norm"] is None
        assert each["state"] == {"same": True, "early": True, "again": True}
        assert each["skipped"]["skipped"] == 1
        assert each["skipped"]["distance"] < 1e-7
        for layer in each["layers"]:
            assert layer["distance"] < 1e-5
            assert layer["renewed"] < 1e-6
        words = ("state_bits 8", "not HSDP", "Own has a rule of its own", "need whole ones", "need whole ones")
        for message, word in zip(each["refused"], words, strict=True):
            assert word in message
            assert "\n" not in message


def test_two_processes_train_sharded_weights_as_one_trains_whole_ones(tmp_path):
    check(results(2, tmp_path, SMALL), 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_side_and_rule_on_more_processes(size, tmp_path):
    check(results(size, tmp_path, SMALL + MORE), size)


def test_the_dimension_is_the_one_that_no_basis_spans():
    from gnlorp.moments import layout_bytes
    from gnlorp.sharded import local_state_layout, part, shard_dim

    assert shard_dim((4096, 4096), 1024, "small", 8) == 0
    assert shard_dim((4096, 11008), 1024, "small", 8) == 1
    assert shard_dim((2048, 5461), 512, "small", 8) == 0  # 5461 does not divide
    assert shard_dim((11008, 4096), 1024, "large", 8) == 1
    assert shard_dim((64, 64), 8, "both", 2) == 0
    assert shard_dim((64,), None, "small", 2) == 0
    assert [part(5, 4, rank) for rank in range(4)] == [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 5)]
    # 4 bytes: moments 2 x 512 x 1024 and 512 rows of the basis; where the basis spans the shared side, whole moments.
    assert layout_bytes(local_state_layout((4096, 4096), torch.float32, 1024, "small", 8)) == 4 * (
        2 * 512 * 1024 + 512 * 1024
    )
    assert layout_bytes(local_state_layout((2048, 5461), torch.float32, 512, "small", 8)) == 4 * (
        2 * 512 * 5461 + 256 * 512
    )
    assert layout_bytes(local_state_layout((10, 3), torch.float32, None, "small", 4, rank=3)) == 4 * 2 * 1 * 3
