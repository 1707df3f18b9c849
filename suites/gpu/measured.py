"""Questions of bytes and seconds: tracked against allocated, per-layer, and our kernels beside others'."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from baselines.method import set_refresh_gap
from baselines.registry import default_methods, get_method
from gnlorp import GradNormLoRPAdamW, attach
from gnlorp.projection import fit
from results.lab import Precision, Setting
from suites.bench.peers import NO_GALORE, galore_torch
from suites.gpu.where import Training, Where, seconds_of, training
from suites.measure.trace import peak_of
from suites.measure.tracker import track
from suites.run.per_layer import PerLayer

NEVER = 10**9
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16-autocast", "bf16")
# Beside tensors a device holds cuBLAS's workspace (32 MiB on Hopper), and every tensor is rounded up.
SLACK_BYTES, SLACK_SHARE = 64 << 20, 0.05


def tracked_against_allocated(where: Where) -> None:
    """Compare the tracked and the predicted peak of a step with what the device's allocator says of it."""
    for network, (rank, rows, tokens) in where.networks().items():
        for method in default_methods():
            for precision in PRECISIONS[:1] if where.rehearsal else PRECISIONS:
                made = training(where, network, method, precision)
                setting = Setting(
                    model=network, method=method, rank=rank, batch=rows, sequence=tokens, precision=precision,
                    device=made.lab.device,
                )  # fmt: skip
                _compare(where, f"{method} on {network}, {precision}", made, setting)
                del made
                _empty(where)


def _compare(where: Where, what: str, made: Training, setting: Setting) -> None:
    for _ in range(2):
        made.step()
    set_refresh_gap(made.optimizer, NEVER)
    before = _allocated(where)
    tracked = peak_of(track(made.model, made.optimizer, made.step)).total_bytes
    allocated, reserved = _peak(where, made.step)
    predicted = made.lab.held(setting)
    numbers = {
        "tracked_bytes": tracked, "predicted_bytes": predicted.tensor_bytes, "allocated_bytes": allocated,
        "predicted_allocated_bytes": predicted.allocated_bytes, "reserved_bytes": reserved,
        "predicted_reserved_bytes": predicted.reserved_bytes, "held_before_bytes": before,
    }  # fmt: skip
    if allocated is None or reserved is None:
        where.say(what, "stated", "no device: nothing to compare the tracked peak with", **numbers)
        return
    room = SLACK_BYTES + SLACK_SHARE * allocated
    words = f"allocated {allocated:,}, tracked {tracked:,}, predicted {predicted.allocated_bytes:,} bytes"
    where.judge(f"{what}: tracked", abs(allocated - tracked) <= room, words, **numbers)
    where.judge(f"{what}: predicted", abs(allocated - predicted.allocated_bytes) <= room, words)
    gap = f"reserved {reserved:,}, predicted {predicted.reserved_bytes:,} bytes"
    where.say(f"{what}: reserved", "stated", gap, ratio=predicted.reserved_bytes / reserved)


def per_layer(where: Where) -> None:
    """Compare peaks of the ordinary and the per-layer step, with 8-bit state and accumulation."""
    network = list(where.networks())[-1]
    for method in (name for name in default_methods() if not get_method(name).factors):
        peaks: dict[str, int | None] = {}
        for accumulation in (1, 4):
            for inside in (False, True):
                made = training(where, network, method, "fp32", bits=8)
                switch = PerLayer(made.optimizer, accumulation) if inside else None

                def step(made: Training = made, switch: PerLayer | None = switch, parts: int = accumulation) -> None:
                    for _ in range(parts):
                        made.lab.loss(made.model, made.batch).backward()
                    if switch is None:
                        made.optimizer.step()
                        made.optimizer.zero_grad(set_to_none=True)
                    else:
                        switch.finish()

                step()
                key = f"{'per-layer' if inside else 'ordinary'}, accumulation {accumulation}"
                allocated, _ = _peak(where, step)
                tracked = peak_of(track(made.model, made.optimizer, step)).total_bytes
                peaks[key] = tracked if allocated is None else allocated
                del made, switch, step
                _empty(where)
        one, other = (peaks[f"{kind}, accumulation 1"] for kind in ("ordinary", "per-layer"))
        assert one is not None
        assert other is not None
        where.judge(f"{method} on {network}", other <= one, f"{other:,} bytes, ordinary {one:,}", **peaks)


def layers(where: Where) -> None:
    """Time forward and backward of one layer: ours under both rules, peft's LoRA and DoRA, full training."""
    width, rows = (32, 16) if where.rehearsal else (1024, 8192)
    x = torch.randn(rows, width, device=where.device)
    found = {}
    for name, make in _layer_makers(width).items():
        model = make().to(where.device)

        def run(model: nn.Module = model) -> None:
            model(x).square().mean().backward()
            model.zero_grad(set_to_none=True)

        found[name] = statistics.median(seconds_of(where, run))
    _state_ratios(where, found, "peft LoRA")


def _layer_makers(width: int) -> dict[str, Callable[[], nn.Module]]:
    def ours(rule: Any) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            model = nn.Sequential(nn.Linear(width, width, bias=False))
            attach(model, ["0"], 8, 16.0, 0.0, rule)
            return model

        return make

    def theirs(weight_norm: bool) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            from peft import LoraConfig, inject_adapter_in_model

            model = nn.Sequential(nn.Linear(width, width, bias=False))
            inject_adapter_in_model(LoraConfig(r=8, target_modules=["0"], use_dora=weight_norm), model)
            return model

        return make

    return {
        "ours, full rule": ours("full"), "ours, detached rule": ours("detached"), "peft LoRA": theirs(False),
        "peft DoRA": theirs(True), "torch": lambda: nn.Sequential(nn.Linear(width, width, bias=False)),
    }  # fmt: skip


def refreshes(where: Where) -> None:
    """Time the fitting of a basis: exact, warm, and galore-torch's singular value decomposition."""
    shape, rank = ((64, 48), 4) if where.rehearsal else ((2048, 1024), 128)
    torch.manual_seed(0)
    scale = torch.logspace(0, -3, shape[1], device=where.device)
    grad = torch.randn(*shape, device=where.device) * scale
    turned = grad + 0.05 * torch.randn(*shape, device=where.device) * scale
    old = fit([grad], [None], rank, "small", "exact")
    work: dict[str, Callable[[], object]] = {
        "exact": lambda: fit([turned], [None], rank, "small", "exact"),
        "warm": lambda: fit([turned], old, rank, "small", "warm"),
    }
    theirs = galore_torch()
    if theirs is None:
        where.say("galore-torch", "skipped", NO_GALORE)
    else:
        projector = theirs.galore_projector.GaLoreProjector(rank)
        work["galore-torch"] = lambda: projector.get_orthogonal_matrix(turned, rank, type="right")
    found = {name: statistics.median(seconds_of(where, run, least=3)) for name, run in work.items()}
    _state_ratios(where, found, "galore-torch")


def steps(where: Where) -> None:
    """Time the optimizer's step over all weights of a network: GaLore here and in galore-torch, AdamW fused."""
    network = list(where.networks())[-1]
    rank = where.networks()[network][0]
    found: dict[str, float] = {}
    for name in ("gnlorp", "galore-torch", "fused AdamW"):
        made = training(where, network, "galore")
        weights = list(made.model.parameters())
        matrices = {id(p) for group in made.optimizer.param_groups if group["projection_rank"] for p in group["params"]}
        low, rest = [p for p in weights if id(p) in matrices], [p for p in weights if id(p) not in matrices]
        optimizer = _optimizer(name, low, rest, rank)
        if optimizer is None:
            where.say(name, "skipped", NO_GALORE)
            continue
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        # The first step fits every basis.
        optimizer.step()
        found[name] = statistics.median(seconds_of(where, optimizer.step))
        del made, optimizer, weights, low, rest
        _empty(where)
    _state_ratios(where, found, "fused AdamW")


def _optimizer(name: str, low: list[nn.Parameter], rest: list[nn.Parameter], rank: int) -> Optimizer | None:
    if name == "fused AdamW":
        return torch.optim.AdamW([*low, *rest], lr=1e-4, fused=True)
    if name == "gnlorp":
        groups: list[dict[str, Any]] = [{"params": low, "projection_rank": rank}, {"params": rest}]
        return GradNormLoRPAdamW(groups, lr=1e-4, refresh_gap=NEVER)
    theirs = galore_torch()
    if theirs is None:
        return None
    group = {"params": low, "rank": rank, "update_proj_gap": NEVER, "scale": 1.0, "proj_type": "std"}
    made: Optimizer = theirs.GaLoreAdamW([group, {"params": rest}], lr=1e-4, no_deprecation_warning=True)
    return made


def throughput(where: Where) -> None:
    """Time whole training steps of every method: tokens a second in fp32 and under bf16 autocast."""
    for network, (_, rows, tokens) in where.networks().items():
        for precision in PRECISIONS[:2]:
            found = {}
            for method in default_methods():
                made = training(where, network, method, precision)
                found[method] = rows * tokens / statistics.median(seconds_of(where, made.step))
                del made
                _empty(where)
            words = ", ".join(f"{name} {rate:,.0f}" for name, rate in found.items())
            where.say(f"{network}, {precision}", "stated", f"tokens a second: {words}", **found)


def _state_ratios(where: Where, found: dict[str, float], yardstick: str) -> None:
    for name, seconds in found.items():
        base = found.get(yardstick)
        beside = "" if base is None else f", {seconds / base:.2f} of {yardstick}"
        where.say(name, "stated", f"{seconds * 1e3:.3f} ms{beside}", seconds=seconds)


def _allocated(where: Where) -> int | None:
    return torch.cuda.memory_allocated(where.device) if where.device.type == "cuda" else None


def _peak(where: Where, step: Callable[[], object]) -> tuple[int | None, int | None]:
    """Return the device's peaks of one call, from an empty cache on: (allocated, reserved)."""
    if where.device.type != "cuda":
        step()
        return None, None
    _empty(where)
    torch.cuda.reset_peak_memory_stats(where.device)
    step()
    where.settle()
    return torch.cuda.max_memory_allocated(where.device), torch.cuda.max_memory_reserved(where.device)


def _empty(where: Where) -> None:
    gc.collect()
    if where.device.type == "cuda":
        torch.cuda.empty_cache()
