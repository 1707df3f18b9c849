"""Real runs on a Ray that is started here: equal to those of the launcher, lost ones come back, nodes are checked."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from results.schema import Plan, Record
from results.store import read_records
from suites.engines.engine import Resources
from suites.run.launch import launch
from suites.run.worker import Event
from suites.suite import Runtime
from tests.suites.fake_engine import facts

ray: Any = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def test_runs_on_ray_are_those_of_the_launcher_and_a_killed_worker_comes_back(
    make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    from suites.engines.away import on_ray

    plans: list[Plan] = [make_plan(method="gradnormlorp", steps=300), make_plan(method="lora", steps=60)]
    asked = replace(runtime, threads=1, workers=psutil.cpu_count() or 1, checkpoint_steps=20)
    lines: list[str] = []
    killed: list[int] = []

    def strike(event: Event) -> None:
        """Kill the Ray worker of the first run, once, after its first checkpoints."""
        if event.plan != plans[0] or event.step <= 60 or killed:
            return
        for process in psutil.Process().children(recursive=True):
            if plans[0].label in " ".join(process.cmdline()) and "ray::" in " ".join(process.cmdline()):
                process.kill()
                killed.append(event.step)

    with on_ray(asked, None, None, 2, lines.append) as away:
        engine: Any = away.engine
        with pytest.raises(ValueError, match="no node has what a run asks for, 10000 CPUs"):
            engine.capacity(Resources(10_000))
        with pytest.raises(ValueError, match="no node has what a run asks for, 1 CPUs and 1 of a GPU"):
            engine.capacity(Resources(1, 1.0))
        records = away(plans, asked, tmp_path / "ray", {}, strike)
        right, engine._code = engine._code, "0" * 12
        with pytest.raises(ValueError, match="its code is another"):
            engine.check_nodes(tmp_path, "", Resources(1))
        engine._code = right
    assert len(killed) == 1
    assert len([line for line in lines if "tried again, 1 more" in line]) == 1, lines
    here = launch(
        plans, replace(asked, workers=records[0].environment.workers), tmp_path / "here", {}, lambda event: None
    )
    there = {record.plan_hash: record for record in records}
    assert {record.plan_hash: record for record in read_records([tmp_path / "ray"])} == there
    for record in here:
        other = there[record.plan_hash]
        assert facts(record) == facts(other)
        assert record.environment.workers == other.environment.workers
        assert record.final_digest is not None
    assert there[plans[0].hash()].resumed_at[0] >= 40
    assert there[plans[1].hash()].resumed_at == []


def test_runs_are_bound_to_the_gpus_that_ray_gives_them(
    make_plan: Any, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from suites.engines.away import Away
    from suites.engines.node import NONCE
    from suites.engines.on_ray import RayEngine

    def bound(size: Resources, runtime: Runtime) -> Runtime:
        import time

        from suites.engines.on_ray import placed

        time.sleep(4)
        return placed(runtime, size)

    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, logging_level=logging.ERROR)
    try:
        for size, visible in ((Resources(1, 1.0), {"0", "1"}), (Resources(2, 0.5), {"0", "1"})):
            task = ray.remote(num_cpus=size.cpus, num_gpus=size.gpus)(bound)
            found = ray.get([task.remote(size, replace(runtime, device=torch.device("cuda"))) for _ in range(2)])
            assert {each.workers for each in found} == {2}
            assert {each.threads for each in found} == {2}
            assert {each.visible_devices for each in found} <= visible
            if size.gpus == 1:
                assert {each.visible_devices for each in found} == visible
        engine = RayEngine()
        assert len(engine.check_nodes(tmp_path, "none holds it", Resources(1))) == 1
        away = Away(
            engine, Resources(1), 0, 4, lambda line: None, lambda store, *given: (store / NONCE).write_text("another")
        )
        (record,) = away([make_plan()], runtime, tmp_path, {}, lambda event: None)
        assert record.status == "ok"
        assert [path.name for path in tmp_path.glob("*.json")] == [f"{make_plan().label}.json"]
    finally:
        ray.shutdown()


def test_ctrl_c_at_the_command_records_what_was_in_hand(tmp_path: Path) -> None:
    words = "run glue --profile micro --task rte --method lora --seeds 0 --steps 20000 --checkpoint-every 20 --on ray"
    command = [sys.executable, "-m", "suites", *words.split(), "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        until = time.monotonic() + 180
        while not list(tmp_path.glob("checkpoints/*/step-*.pt")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=90)[1]
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith("interrupted: the runs in hand are recorded"), said
    (record,) = read_records([tmp_path])
    assert record.status == "interrupted"
    assert list(tmp_path.glob("checkpoints/*/step-*.pt"))


def test_the_comparison_on_ray_gives_the_records_of_here(tmp_path: Path) -> None:
    """Two tasks, two methods, as a person types it: equal in scores, bytes, curves and final weights."""
    words = "run glue --profile micro --task cola,rte --method full,gradnormlorp --seeds 0"
    found: dict[str, dict[str, Record]] = {}
    for engine in ("here", "ray"):
        out = tmp_path / engine
        command = [sys.executable, "-m", "suites", *words.split(), "--on", engine, "--out", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found[engine] = {record.plan_hash: record for record in read_records([out])}
    assert len(found["here"]) == 4
    assert found["here"].keys() == found["ray"].keys()
    for key, record in found["here"].items():
        other = found["ray"][key]
        assert record.status == "ok"
        assert facts(record) == facts(other)
        assert record.environment.commit == other.environment.commit
        assert record.environment.workers == other.environment.workers
