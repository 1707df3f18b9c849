"""Two gloo processes against one: the same losses, the same bases everywhere, one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from results.store import read_records
from suites.measure.environment import ROOT
from suites.resolved import resolved
from suites.run.build import build
from suites.run.distributed import Group, check_divides
from suites.run.loop import _own_to_device
from suites.run.resume import digest
from suites.suite import Runtime

SETTINGS = {"steps": 3, "batch_size": 8, "accumulation": 4}


def test_alone_nothing_is_exchanged() -> None:
    group, cpu = Group(), torch.device("cpu")
    gradient = torch.ones(3)
    group.sum_([gradient])
    group.wait()
    assert group.leads
    assert torch.equal(gradient, torch.ones(3))
    assert group.total(2.5, cpu) == 2.5
    assert group.agreed(True, cpu)
    assert not group.agreed(False, cpu)


def test_every_process_gets_as_many_micro_batches() -> None:
    check_divides(4, Group(0, 2))
    with pytest.raises(
        ValueError, match=r"accumulation 3: must be a multiple of the 2 processes.*nearest allowed value: 2"
    ):
        check_divides(3, Group(0, 2))


@pytest.mark.parametrize("rank", [0, 1])
def test_of_the_others_micro_batches_none_goes_to_the_device(rank: int) -> None:
    given = [{"x": torch.ones(2)} for _ in range(4)]
    moved = _own_to_device(given, torch.device("meta"), Group(rank, 2))
    assert [batch["x"].device.type == "meta" for batch in moved] == [index % 2 == rank for index in range(4)]


def _train(rank: int, size: int, port: int, out: Path, plan_text: str) -> None:
    """Train a plan without dropout on `size` processes; leave losses and a digest of the whole state behind."""
    from results.schema import Plan
    from suites.registry import get_suite
    from suites.run.loop import Hooks, Outcome, train

    torch.set_num_threads(1)
    group = Group(rank, size)
    if size > 1:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", address, rank=rank, world_size=size, timeout=timedelta(seconds=120))
    plan, cpu = Plan.model_validate_json(plan_text), torch.device("cpu")
    job = get_suite(plan.suite).job(plan, Runtime(cpu))
    built = build(job.model(), job.placement, resolved(plan, Runtime(cpu)))
    for module in built.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for module in built.model.modules():
        if hasattr(module, "config"):
            module.config.attention_probs_dropout_prob = 0.0
    found = Outcome()
    train(built.model, built.optimizer, job, plan.training, found, Hooks(lambda step, loss: None), group)
    bases = [s["basis_right"] for s in built.optimizer.state.values() if "basis_right" in s]
    losses = [point.loss for point in found.curve]
    text = {"losses": losses, "digest": digest(built.model, built.optimizer), "bases": len(bases)}
    (out / f"{size}-{rank}.json").write_text(json.dumps(text))
    if size > 1:
        dist.destroy_process_group()


def _second(_: int, *given: Any) -> None:
    _train(1, 2, *given)


@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.slow), "gradnormlorp"])
def test_two_processes_train_as_one(method: str, make_plan: Any, tmp_path: Path) -> None:
    config = {"config": {"refresh_gap": 2}} if method == "gradnormlorp" else {}
    plan = make_plan(method=method, **SETTINGS, **config).model_dump_json()
    port = 20_000 + os.getpid() % 20_000
    _train(0, 1, port, tmp_path, plan)
    other = mp.start_processes(_second, args=(port, tmp_path, plan), nprocs=1, start_method="spawn", join=False)
    _train(0, 2, port, tmp_path, plan)
    assert other is not None
    while not other.join():
        pass
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert first["digest"] != ""


@pytest.mark.slow
def test_the_command_line_under_torchrun_writes_each_record_once(tmp_path: Path) -> None:
    command = "run glue --profile micro --task rte --method full,lora --seeds 0 --steps 3 --set accumulation=2".split()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*launcher, "-m", "suites", *command, "--out", str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("2 runs ok") == 1
    assert {record.status for record in read_records([tmp_path])} == {"ok"}
    assert len(list(tmp_path.glob("*.json"))) == 2
