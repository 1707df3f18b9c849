"""What the lab says of one sharded process, over tensors without values, against real gloo processes: to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from baselines.method import set_refresh_gap
from results.lab import MemoryCell, Parts, Setting
from results.schema import TrainingPlan
from suites.lab.asked import Asked
from suites.lab.asked import lab_of as lab_asked
from suites.lab.halves import NEVER
from suites.lab.lab import PHASES, parts_of
from suites.lab.networks import find_network
from suites.lab.share import ShardedLab
from suites.measure import live
from suites.measure.trace import peak_of
from suites.measure.tracker import track
from suites.run.clock import Clock
from suites.run.loop import train_step
from suites.run.per_layer import PerLayer
from suites.suite import rows

MODEL = "20m"
NUMBER = (4, 8)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "full": ("full", "all", {}),
    "lora": ("lora", "all", {}),
    "lora-frozen": ("lora", "frozen", {}),
    "galore": ("galore", "all", {"accumulation": 2}),
    "galore-checkpointing": ("galore", "all", {"checkpointing": True}),
    "galore-inside": ("galore", "all", {"per_layer": True}),
    "factors": ("gradnormlorp", "all", {}),
    "dense": ("galore_norm", "all", {}),
}


def lab_of(case: str, processes: int) -> tuple[ShardedLab, Setting]:
    method, mode, changes = CASES[case]
    lab = ShardedLab(processes, mode, find_network(MODEL), method, 16)  # type: ignore[arg-type]
    setting = Setting(model=MODEL, method=method, rank=16, batch=1, sequence=8, processes=processes, **changes)
    return lab, setting.model_copy(update={"shard": mode})


def real(case: str, processes: int) -> dict[str, Any]:
    """Track a plain step and a refresh with values, after two others, by the loop itself."""
    lab, setting = lab_of(case, processes)
    torch.manual_seed(0)
    model, placement = lab.changed(setting)
    optimizer = lab.optimizer(model, placement, setting.state_bits)
    batches = [lab.network.batch(setting.batch, setting.sequence) for _ in range(setting.accumulation)]
    plan = TrainingPlan(steps=1, batch_size=setting.batch * setting.accumulation, learning_rate=1e-3)
    job: Any = SimpleNamespace(loss=lab.loss, weight=rows)
    inside = PerLayer(optimizer, setting.accumulation, group=lab.group) if setting.per_layer else None

    def step() -> None:
        train_step(model, optimizer, batches, job, plan, Clock(torch.device("cpu")), per_layer=inside)

    step()
    step()
    set_refresh_gap(optimizer, NEVER)
    plain = track(model, optimizer, step, look_into_foreign=False)
    found: dict[str, Any] = {str(phase): parts_of(peak_of(plain, phase)).model_dump() for phase in PHASES}
    if set_refresh_gap(optimizer, 1):
        again = track(model, optimizer, step, look_into_foreign=False)
        found["refresh"] = parts_of(peak_of(again, None if setting.per_layer else "optimizer")).model_dump()
    return {
        "phases": found,
        "weights": live.weight_bytes(model),
        "state": live.state_bytes(optimizer, model),
        "bases": live.basis_bytes(optimizer),
    }


def work(rank: int, size: int, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    for case in cases:
        (folder / f"{case}-{rank}.json").write_text(json.dumps(real(case, size)))
    dist.barrier()
    dist.destroy_process_group()


def check(cell: MemoryCell, measured: dict[str, Any]) -> list[str]:
    problems = []
    counters = 4 if cell.setting.method == "gradnormlorp" else 0
    for name, value in (("weights", "weight_bytes"), ("state", "state_bytes"), ("bases", "basis_bytes")):
        if getattr(cell.count, value) != measured[name]:
            problems.append(f"{name}: {getattr(cell.count, value)} said, {measured[name]} measured")
    for name in ("weight_bytes", "gradient_bytes", "basis_bytes"):
        if getattr(cell.count, name) != getattr(cell.formula, name):
            problems.append(f"{name}: {getattr(cell.count, name)} counted, {getattr(cell.formula, name)} by formula")
    beside = sum(cell.state_outside.values())
    if cell.count.state_bytes - beside != cell.formula.state_bytes:
        problems.append(f"state: {cell.count.state_bytes} counted, {cell.formula.state_bytes} + {beside} by formula")
    for name, parts in measured["phases"].items():
        said = cell.phases.get(name, Parts()).model_dump()
        for what, size in parts.items():
            # A second step counter, of factors whose first gradient is 0: see `test_memory_lab.check`. And one number
            # that processes have summed, of which gloo's thread may let go a moment later.
            allowed = {"temporary_bytes": (counters,), "activation_bytes": NUMBER, "other_bytes": NUMBER}
            if said[what] != size and size - said[what] not in allowed.get(what, ()):
                problems.append(f"{name} {what}: {said[what]} said, {size} measured ({said[what] - size:+})")
    return problems


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_the_lab_says_what_a_process_takes(size: int, tmp_path: Path) -> None:
    mp.start_processes(work, args=(size, tmp_path, list(CASES)), nprocs=size, start_method="spawn")
    problems: dict[str, list[str]] = {}
    for case in CASES:
        lab, setting = lab_of(case, size)
        found = check(lab.cell(setting), json.loads((tmp_path / f"{case}-0.json").read_text()))
        if found:
            problems[case] = found
    assert not problems, json.dumps(problems, indent=1)


@pytest.mark.parametrize("case", ["full", "factors"])
def test_what_no_block_holds_is_gathered_in_forward(case: str) -> None:
    lab, setting = lab_of(case, 2)
    forward = lab.cell(setting).phases["forward"]
    with torch.device("meta"):
        model = lab.network.model()
    outside = [parameter for name, parameter in model.named_parameters() if ".layers." not in name]
    shards = live.storage_bytes(model.parameters()) // 2
    assert forward.parameter_bytes >= shards + live.storage_bytes(outside)


def test_a_shard_of_low_precision_agrees_with_its_formula() -> None:
    lab = ShardedLab(4, "all", find_network("9m"), "lora", 16, "bf16")
    cell = lab.cell(Setting(model="9m", method="lora", rank=16, batch=1, sequence=8, precision="bf16", processes=4))
    beside = sum(cell.state_outside.values())
    assert cell.formula == cell.count.model_copy(
        update={"state_bytes": cell.count.state_bytes - beside, "buffer_bytes": cell.formula.buffer_bytes}
    )
    assert cell.peak.parameter_bytes > cell.count.weight_bytes


def test_what_the_lab_cannot_share_out_is_refused() -> None:
    network = find_network("9m")
    with pytest.raises(ValueError, match="state_bits 8 with --shard"):
        ShardedLab(2, "all", network, "full", 8, "fp32", (8,))
    with pytest.raises(ValueError, match="method 'muon' with --shard: .* needs whole parameters"):
        ShardedLab(2, "all", network, "muon", 8).cell(Setting(model="9m", method="muon", rank=8, batch=1, sequence=8))
    with pytest.raises(ValueError, match="method 'fira' with --shard"):
        ShardedLab(2, "all", network, "fira", 8).cell(Setting(model="9m", method="fira", rank=8, batch=1, sequence=8))
    with pytest.raises(ValueError, match="accumulation 3: must be a multiple of the 2 GPUs.*nearest allowed value: 4"):
        lab_asked(find_network("9m"), "full", Asked(rest={**ASKED, "accumulation": 3, "batch": 6}))


ASKED: dict[str, Any] = {
    "batch": 2, "accumulation": 2, "sequence": 8, "state_bits": 32, "per_layer": False, "checkpointing": False,
    "recompute": (), "variant": "", "bf16_updates": "nearest", "processes": 2, "shard": "all", "device": "cpu",
}  # fmt: skip
