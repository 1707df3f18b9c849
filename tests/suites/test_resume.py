"""A run that is cut off and started again ends as the uninterrupted one, to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.method import RestartConfig
from baselines.registry import get_method, methods
from results.schema import Plan, Record
from results.store import read_records
from suites.measure.environment import ROOT
from suites.run import checkpoint
from suites.run.execute import execute
from suites.run.resume import digest
from suites.suite import Runtime

EVERY = 1
USUAL = {("full", 8), ("gradnormlorp", 32)}
"""What the default tests stop three times; the slow ones have every pair."""


def quiet(step: int, loss: float) -> None:
    pass


def stopping_at(last: int) -> Any:
    def report(step: int, loss: float) -> None:
        if step == last:
            raise KeyboardInterrupt

    return report


def lived_in(plan: Plan) -> Plan:
    """The plan with refreshes, merges and evaluations on both sides of the stops."""
    config = dict(plan.method_config)
    if "refresh_gap" in config:
        config["refresh_gap"] = 3
    if issubclass(get_method(plan.method).config_type, RestartConfig):
        config |= {"merge_gap": 4, "rewarm_steps": 2}
    return plan.model_copy(update={"method_config": config})


def same(first: Record, second: Record) -> None:
    assert (first.status, second.status) == ("ok", "ok"), (first.error, second.error)
    assert first.final_digest == second.final_digest
    assert first.curve == second.curve
    assert first.evaluations == second.evaluations
    assert first.engagement == second.engagement


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        pytest.param(name, bits, marks=[pytest.mark.slow] * ((name, bits) not in USUAL))
        for name, one in methods().items()
        for bits in one.widths
    ],
)
def test_a_run_stopped_three_times_ends_bit_equal(
    name: str, bits: int, make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    if bits == 8:
        pytest.importorskip("bitsandbytes")
    plan = lived_in(make_plan(method=name, steps=8, evaluations=3, state_bits=bits))
    runtime = replace(runtime, checkpoint_steps=EVERY)
    whole = execute(plan, runtime, None, quiet)
    for stop in (3, 5, 7):
        assert execute(plan, runtime, None, stopping_at(stop), tmp_path).status == "interrupted"
    resumed = execute(plan, runtime, None, quiet, tmp_path)
    assert resumed.resumed_at == [2, 4, 6]
    same(whole, resumed)


@pytest.mark.parametrize(
    "settings",
    [
        {"per_layer": True, "clip_norm": 0, "checkpointing": True},
        pytest.param({"per_layer": True, "clip_norm": 0}, marks=pytest.mark.slow),
        pytest.param({"checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_per_layer_and_checkpointing_runs_resume_too(
    settings: dict[str, Any], make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    plan = lived_in(make_plan(method="gradnormlorp", steps=5, **settings))
    runtime = replace(runtime, checkpoint_steps=EVERY)
    execute(plan, runtime, None, stopping_at(4), tmp_path)
    resumed = execute(plan, runtime, None, quiet, tmp_path)
    assert resumed.resumed_at == [3]
    same(execute(plan, runtime, None, quiet), resumed)


def test_the_seconds_of_earlier_processes_count(make_plan: Any, runtime: Runtime, tmp_path: Path) -> None:
    plan = make_plan(steps=6)
    runtime = replace(runtime, checkpoint_steps=1)

    def slow(step: int, loss: float) -> None:
        if step == 3:
            time.sleep(0.5)
        if step == 5:
            raise KeyboardInterrupt

    cut = execute(plan, runtime, None, slow, tmp_path)
    whole = execute(plan, runtime, None, quiet, tmp_path)
    assert whole.resumed_at == [4]
    assert cut.timing is not None
    assert whole.timing is not None
    assert whole.timing.wall_s > cut.timing.wall_s > 0.5
    assert whole.timing.wall_s > whole.timing.train_s + whole.timing.evaluation_s


def test_checkpoints_come_by_time_where_no_number_of_steps_is_given(
    make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    plan = make_plan()
    execute(plan, replace(runtime, checkpoint_s=1e6), None, stopping_at(3), tmp_path / "late")
    assert not (tmp_path / "late").exists()
    execute(plan, replace(runtime, checkpoint_s=0.0), None, stopping_at(3), tmp_path / "soon")
    found = checkpoint.newest(tmp_path / "soon", plan)
    assert found is not None
    assert found["step"] == 2


def test_another_number_of_processes_is_refused(make_plan: Any, runtime: Runtime, tmp_path: Path) -> None:
    plan = make_plan()
    execute(plan, replace(runtime, checkpoint_steps=1), None, stopping_at(3), tmp_path)
    path = next(iter(sorted(tmp_path.glob("*.pt"), reverse=True)))
    kept = torch.load(path, weights_only=True)
    for old in tmp_path.glob("*.pt"):
        old.unlink()
    kept["random"] = kept["random"] * 2
    checkpoint.save(tmp_path, plan, 2, {name: kept[name] for name in ("model", "optimizer", "random", "outcome")})
    record = execute(plan, runtime, None, quiet, tmp_path)
    assert record.status == "failed"
    assert "written by 2 processes, this run has 1" in (record.error or "")


def test_the_digest_sees_every_bit() -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    before = digest(model, optimizer)
    assert digest(model, optimizer) == before
    optimizer.param_groups[0]["lr"] *= 2
    changed = digest(model, optimizer)
    assert changed != before
    with torch.no_grad():
        model.weight[1, 2] = torch.nextafter(model.weight[1, 2], torch.tensor(9.0))
    assert digest(model, optimizer) != changed


COMMAND = (
    "run c4 --profile micro --method gradnormlorp --seeds 0 --workers 1 --checkpoint-every 1 --offline "
    "--set batch_size=4 --set train_rows=400 --set eval_tokens=2000 --set evaluations=5 "
    "--set method.gradnormlorp.config.refresh_gap=25 --set method.gradnormlorp.config.merge_gap=90"
).split()


def start(out: Path, steps: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "suites", *COMMAND, "--steps", str(steps), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    steps, kills, chance = 400, 20, random.Random(7)
    assert start(tmp_path / "whole", steps).wait() == 0
    (whole,) = read_records([tmp_path / "whole"])
    folder = tmp_path / "cut"
    for _ in range(kills):
        process = start(folder, steps)
        reached = newest_step(folder)
        # Somewhere after the first new step: while starting there is nothing to interrupt but imports.
        while newest_step(folder) == reached and process.poll() is None:
            time.sleep(0.02)
        time.sleep(chance.uniform(0.0, 0.3))
        assert process.poll() is None, "the run ended before the kills did: raise the steps"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(folder, steps).wait() == 0
    (cut,) = read_records([folder])
    assert len(cut.resumed_at) >= 1
    same(whole, cut)
    assert not (folder / checkpoint.FOLDER).exists()


def newest_step(folder: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoints/*/step-*.pt")), default=0)
