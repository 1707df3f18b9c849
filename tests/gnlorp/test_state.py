"""State: what it costs, that it is complete, and that a run goes on from it bit for bit."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from gnlorp import Diverged, GradNormLoRPAdamW, attach, param_groups
from gnlorp.moments import optimizer_state_bytes

GO_ON = """
import importlib.util, pathlib, sys, torch
spec = importlib.util.spec_from_file_location("state_test", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
torch.set_num_threads(int(sys.argv[3]))
for name, options in module.RUNS.items():
    start = pathlib.Path(sys.argv[2], name)
    torch.save(module.train(f"{start}.pt", 5, options), f"{start}.resumed.pt")
"""


def train(start: str, steps: int, options: dict[str, object]) -> dict[str, object]:
    """Train from a file, or anew where it has no name, and return everything that going on needs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 80), nn.Tanh(), nn.Linear(80, 96))
    attach(model, ["0", "2"], 48, 8.0, dropout=0.1)
    optimizer = GradNormLoRPAdamW(param_groups(model, 44, lr=0.01, refresh_gap=4, **options))
    if start:
        saved = torch.load(start, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
    for _ in range(steps):
        x = torch.randn(16, 96)
        (model(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


RUNS: dict[str, dict[str, object]] = {
    "plain": {"state_bits": 32, "side": "small"},
    "packed": {"state_bits": 8, "side": "small"},
    "packed_rotated": {"state_bits": 8, "side": "both", "moments": "rotate"},
    "reset": {"state_bits": 32, "side": "large", "moments": "reset", "basis": "warm"},
}


@pytest.mark.slow
def test_runs_resumed_in_a_new_process_are_bit_equal(tmp_path):
    pytest.importorskip("bitsandbytes")
    whole = {name: train("", 11, options) for name, options in RUNS.items()}
    for name, options in RUNS.items():
        torch.save(train("", 6, options), tmp_path / f"{name}.pt")
    subprocess.run([sys.executable, "-c", GO_ON, __file__, tmp_path, str(torch.get_num_threads())], check=True)
    for name in RUNS:
        assert same(whole[name], torch.load(tmp_path / f"{name}.resumed.pt", weights_only=True)), name
    states = whole["packed"]["optimizer"]["state"].values()
    assert torch.uint8 in {
        value.dtype for state in states for value in state.values() if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("stop", range(1, 9))
@pytest.mark.parametrize("side", ["small", "both"])
def test_a_run_can_stop_at_any_step(stop, side):
    def fresh():
        torch.manual_seed(0)
        weights = [nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.randn(8))]
        groups = [{"params": weights[:1], "projection_rank": 3, "side": side}, {"params": weights[1:]}]
        return weights, GradNormLoRPAdamW(groups, lr=0.02, refresh_gap=3, moments="rotate")

    torch.manual_seed(7)
    grads = [[torch.randn(12, 8), torch.randn(8)] for _ in range(9)]

    def go(weights, optimizer, part):
        for pair in part:
            for weight, grad in zip(weights, pair, strict=True):
                weight.grad = grad.clone()
            optimizer.step()

    weights, optimizer = fresh()
    go(weights, optimizer, grads[:stop])
    saved = copy.deepcopy((optimizer.state_dict(), [weight.detach() for weight in weights]))
    go(weights, optimizer, grads[stop:])
    others, second = fresh()
    for weight, value in zip(others, saved[1], strict=True):
        weight.data.copy_(value)
    second.load_state_dict(saved[0])
    go(others, second, grads[stop:])
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))


def test_loading_copies_and_keeps_dtypes():
    weight = nn.Parameter(torch.randn(12, 8, dtype=torch.bfloat16))
    optimizer = GradNormLoRPAdamW([weight], projection_rank=3)
    weight.grad = torch.randn(12, 8, dtype=torch.bfloat16)
    optimizer.step()
    optimizer.skipped_steps = 5
    saved = optimizer.state_dict()
    other = GradNormLoRPAdamW([nn.Parameter(weight.detach().clone())], projection_rank=3)
    other.load_state_dict(saved)
    loaded = next(iter(other.state.values()))
    assert loaded["exp_avg"].dtype == torch.float32
    assert torch.equal(loaded["exp_avg"], saved["state"][0]["exp_avg"])
    assert loaded["exp_avg"].data_ptr() != saved["state"][0]["exp_avg"].data_ptr()
    assert other.skipped_steps == 5


def test_load_hooks_of_users_still_see_and_change_the_state():
    weight = nn.Parameter(torch.randn(6, 4))
    optimizer = GradNormLoRPAdamW([weight], projection_rank=2)
    weight.grad = torch.randn(6, 4)
    optimizer.step()
    other = GradNormLoRPAdamW([nn.Parameter(torch.randn(6, 4))], projection_rank=2)

    def double(_, given):
        state = {0: {**given["state"][0], "exp_avg": given["state"][0]["exp_avg"] * 2}}
        return {**given, "state": state}

    other.register_load_state_dict_pre_hook(double)
    seen = []
    other.register_load_state_dict_post_hook(lambda each: seen.append(len(each.state)))
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(next(iter(other.state.values()))["exp_avg"], optimizer.state[weight]["exp_avg"] * 2)
    assert seen == [1]


@pytest.mark.parametrize(
    ("shape", "rank"), [((9, 8), 3), ((12, 7), 3), ((12, 8), 4)], ids=["rows", "columns", "projection_rank"]
)
def test_a_state_of_another_shape_is_refused_and_nothing_is_loaded(shape, rank):
    def stepped(shape, rank):
        weight = nn.Parameter(torch.randn(shape))
        optimizer = GradNormLoRPAdamW([weight], projection_rank=rank, side="both")
        weight.grad = torch.randn(shape)
        optimizer.step()
        return optimizer

    source, target = stepped(shape, rank), stepped((12, 8), 3)
    saved = source.state_dict()
    if rank == 4:
        saved["param_groups"][0]["projection_rank"] = 3
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError, match=r"state of parameter 0 of shape \(12, 8\)"):
        target.load_state_dict(saved)
    assert same(before, target.state_dict())
    with pytest.raises(ValueError, match="parameter group"):
        target.load_state_dict(
            GradNormLoRPAdamW([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))]).state_dict()
        )


def walked_bytes(state: dict[str, object]) -> int:
    return sum(value.untyped_storage().nbytes() for value in state.values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("shape", [(700, 90), (90, 700), (300, 300), (40, 12)])
@pytest.mark.parametrize("side", ["small", "large", "both"])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projected_state_bytes_equal_the_formula(shape, side, bits, dtype):
    if bits == 8:
        pytest.importorskip("bitsandbytes")
    weight = nn.Parameter(torch.randn(shape).to(dtype))
    optimizer = GradNormLoRPAdamW([weight], projection_rank=8, side=side, state_bits=bits)
    for _ in range(2):
        weight.grad = torch.randn(shape).to(dtype)
        optimizer.step()
    found = walked_bytes(optimizer.state[weight])
    assert found == optimizer_state_bytes(shape, 8, side, bits)
    low = (8 if side == "both" else shape[0] if (side == "small") == (shape[0] >= shape[1]) else 8) * (
        8 if side == "both" else shape[1] if (side == "small") == (shape[0] < shape[1]) else 8
    )
    spanned = {"both": sum(shape), "small": min(shape), "large": max(shape)}[side]
    small = bits == 32 or low < 4096
    assert found == (8 * low if small else 2 * low + 8 * -(-low // 256)) + 4 * spanned * 8


@pytest.mark.parametrize(
    ("dtype", "bits", "wanted"), [(torch.float32, 32, 8), (torch.bfloat16, 32, 4), (torch.float32, 8, 2)]
)
def test_plain_state_bytes_equal_the_formula(dtype, bits, wanted):
    if bits == 8:
        pytest.importorskip("bitsandbytes")
    for shape in ((64, 64), (63, 64), (5,)):
        weight = nn.Parameter(torch.randn(shape).to(dtype))
        optimizer = GradNormLoRPAdamW([weight], state_bits=bits)
        weight.grad = torch.randn(shape).to(dtype)
        optimizer.step()
        values = weight.numel()
        exact = wanted * values if bits == 32 else 2 * values + 8 * -(-values // 256) if values >= 4096 else 8 * values
        assert (
            walked_bytes(optimizer.state[weight]) == optimizer_state_bytes(shape, None, "small", bits, dtype) == exact
        )


def test_state_holds_tensors_and_numbers_and_no_option_leaves_a_buffer():
    model = nn.Sequential(nn.Linear(12, 10), nn.Linear(10, 4))
    attach(model, ["0"], 4, 8.0)
    optimizer = GradNormLoRPAdamW(param_groups(model, 2))
    for _ in range(2):
        model(torch.randn(3, 12)).square().sum().backward()
        optimizer.step()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for weight, state in optimizer.state.items():
        wanted = {"step", "exp_avg", "exp_avg_sq"}
        if "factor" in names[id(weight)]:
            wanted |= {"basis_left" if weight.shape[0] < weight.shape[1] else "basis_right"}
        assert set(state) == wanted
        assert all(isinstance(value, torch.Tensor | int) for value in state.values())


@pytest.mark.parametrize("how", ["state dict", "deep copy"])
def test_skips_in_a_row_are_counted_on_across_a_restart(how):
    def spoilt(optimizer, weight):
        weight.grad = torch.full_like(weight, float("nan"))
        optimizer.step()

    weight = nn.Parameter(torch.ones(4))
    optimizer = GradNormLoRPAdamW([weight], max_skips=3)
    for _ in range(2):
        spoilt(optimizer, weight)
    if how == "state dict":
        resumed = GradNormLoRPAdamW([weight], max_skips=3)
        resumed.load_state_dict(optimizer.state_dict())
    else:
        resumed = copy.deepcopy(optimizer)
    assert resumed.skipped_steps == 2
    with pytest.raises(Diverged, match="3 steps in a row"):
        spoilt(resumed, resumed.param_groups[0]["params"][0])
