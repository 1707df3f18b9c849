"""Runs sharded over gloo processes against runs of one: losses, norms, weights, bytes, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from baselines.method import set_refresh_gap
from results.schema import Plan
from suites.measure import live
from suites.plan import Request, make_plans
from suites.resolved import resolved
from suites.run import resume
from suites.run.build import build
from suites.run.distributed import Group, sharded_group
from suites.run.loop import Hooks, Outcome, train
from suites.run.shard import check_shard, full, gathered_state
from suites.suite import Runtime

CPU = torch.device("cpu")
FEW = {"model": "0.1m", "steps": 6, "batch_size": 8, "accumulation": 4, "evaluations": 1, "eval_tokens": 300}
NO_DROPOUT = {"dropout": 0.0}
PROJECTED = {"refresh_gap": 2}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "lora": ("lora", NO_DROPOUT),
    "dora": ("dora", NO_DROPOUT),
    "galore": ("galore", PROJECTED),
    "factors": ("gradnormlorp", {**PROJECTED, **NO_DROPOUT, "form": "factors", "rank": 8, "projection_rank": 4}),
    "dense": ("galore_norm", PROJECTED),
}


def plan_of(name: str, method: str, config: dict[str, Any], **more: Any) -> Plan:
    settings = {**FEW, **more, f"method.{method}": {"config": config, "learning_rate": 1e-3}}
    overrides: dict[str, Any] = {key: value for key, value in settings.items() if not key.startswith("method.")}
    overrides["method"] = {method: settings[f"method.{method}"]}
    (plan,) = make_plans(Request("c4", "micro", 8, (), (method,), (0,), tuple(overrides.items())), Runtime(CPU))
    return plan


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a worker: what it is called, its plan, how it is sharded, where its checkpoints stand."""

    name: str
    plan: str
    shard: str | None
    checkpoints: str | None = None
    stop: int | None = None


def run_case(case: Case, group: Group, folder: Path) -> dict[str, Any]:
    plan = Plan.model_validate_json(case.plan)
    group = dataclasses.replace(group, shard=case.shard)
    runtime = Runtime(CPU, group=group, checkpoint_steps=2)
    this = resolved(plan, runtime)
    check_shard(this)
    job = this.job()
    built = build(job.model(), job.placement, this)
    out = Outcome()
    saver = resume.Saver(None if case.checkpoints is None else Path(case.checkpoints), this, built, out)
    saver.load()

    def save(step: int) -> None:
        saver.save(step)
        if step == case.stop:
            raise KeyboardInterrupt

    try:
        train(built.model, built.optimizer, job, plan.training, out, Hooks(lambda step, loss: None, save=save), group)
    except KeyboardInterrupt:
        pass
    state = gathered_state(built.model, group.leads) if case.shard else dict(built.model.state_dict())
    digest = resume.digest(built.model, built.optimizer)
    if group.leads:
        torch.save(state, folder / f"{case.name}-{group.size}.pt")
    counters = sum(value["step"].nbytes for value in built.optimizer.state.values() if torch.is_tensor(value["step"]))
    return {
        "losses": [point.loss for point in out.curve],
        "norms": [point.gradient_norm for point in out.curve],
        "refreshes": out.refreshes,
        "scores": out.evaluations[-1].metrics if out.evaluations else {},
        "state": live.state_bytes(built.optimizer, built.model) - counters,
        "formula": built.formula_state_bytes,
        "weights": live.weight_bytes(built.model),
        "digest": digest,
        "resumed": out.resumed_at,
    }


def work(rank: int, size: int, folder: Path, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet-{size}", rank=rank, world_size=size)
    for case in cases:
        found = run_case(case, Group(rank, size), folder)
        (folder / f"{case.name}-{size}-{rank}.json").write_text(json.dumps(found))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def run(size: int, folder: Path, cases: list[Case]) -> None:
    if size == 1:
        work(0, 1, folder, cases)
    else:
        mp.start_processes(work, args=(size, folder, cases), nprocs=size, start_method="spawn")
        (folder / f"meet-{size}").unlink(missing_ok=True)


def found(folder: Path, name: str, size: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{name}-{size}-{rank}.json").read_text()) for rank in range(size)]


def assert_as_one(folder: Path, name: str, whole: str, size: int) -> None:
    (one,), all_of_them = found(folder, whole, 1), found(folder, name, size)
    for each in all_of_them:
        assert each["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert each["norms"] == pytest.approx(one["norms"], rel=1e-5)
        assert each["refreshes"] == one["refreshes"]
        assert each["state"] == each["formula"]
        assert each["digest"] == all_of_them[0]["digest"]
    sharded, plain = (torch.load(folder / f"{what}.pt") for what in (f"{name}-{size}", f"{whole}-1"))
    assert set(sharded) == set(plain)
    for key, value in plain.items():
        torch.testing.assert_close(sharded[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_method_trains_sharded_as_alone(size: int, tmp_path: Path) -> None:
    plans = {name: plan_of(name, *how).model_dump_json() for name, how in METHODS.items()}
    alone = [Case(name, plan, None) for name, plan in plans.items()]
    shared = [Case(name, plan, "all") for name, plan in plans.items()]
    shared += [Case(f"{name}-frozen", plans[name], "frozen") for name in ("lora", "factors")]
    run(1, tmp_path, alone)
    run(size, tmp_path, shared)
    for case in shared:
        assert_as_one(tmp_path, case.name, case.name.removesuffix("-frozen"), size)
    assert found(tmp_path, "galore", size)[0]["refreshes"] == 3
