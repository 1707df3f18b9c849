"""Nodes that go away under a run, and nodes that come: real raylets of one Ray, several on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from results.schema import Plan, Record
from suites.run.launch import launch
from suites.run.worker import Event
from suites.suite import Runtime
from tests.suites.fake_engine import facts

ray: Any = pytest.importorskip("ray")
pytestmark = pytest.mark.slow
STEPS = 200
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave raylets time to start on a busy machine, and runs their share of it; keep all of them to themselves."""
    settings = {
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def plan(make_plan: Any) -> Plan:
    made: Plan = make_plan(method="gradnormlorp", steps=STEPS)
    return made


@pytest.fixture(scope="module")
def here(plan: Plan, runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The run by this machine's launcher, undisturbed."""
    alone = replace(runtime, threads=1, workers=1)
    (record,) = launch([plan], alone, tmp_path_factory.mktemp("here"), {}, lambda event: None)
    assert record.final_digest is not None
    return record


# Nodes that go away


@pytest.fixture
def cluster(quiet_ray: None) -> Iterator[Any]:
    """A head that takes no run, and three nodes of one processor each, started one after the other."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(3):
            made.add_node(num_cpus=1)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def strike(cluster: Any, label: str, whole: bool) -> None:
    """Kill the raylet of the node that a run is on; with `whole` also all that it started, the run's process too."""
    for node in cluster.worker_nodes:
        raylet = node.all_processes["raylet"][0].process
        if raylet.poll() is not None:
            continue
        below = psutil.Process(raylet.pid).children(recursive=True)
        lines = [" ".join(each.cmdline()) for each in below]
        if any("ray::" in line and label in line for line in lines):
            raylet.kill()
            # Workers take a raylet that nobody has waited for, a zombie, for a living one.
            raylet.wait()
            for each in below if whole else ():
                with suppress(psutil.Error):
                    each.kill()
            return
    raise LookupError(label)


def test_a_run_whose_nodes_are_killed_comes_back_on_the_next_one(
    cluster: Any, plan: Plan, here: Record, runtime: Runtime, tmp_path: Path
) -> None:
    """First the raylet alone, so that the run's process sees its launcher go; then a node with all that is on it."""
    from suites.engines.away import on_ray

    strikes = [(50, False), (100, True)]
    struck: list[int] = []
    lines: list[str] = []

    def follow(event: Event) -> None:
        if strikes and event.step > strikes[0][0]:
            struck.append(event.step)
            strike(cluster, plan.label, strikes.pop(0)[1])

    asked = replace(runtime, threads=1, workers=1, checkpoint_steps=20)
    with on_ray(asked, cluster.address, None, 2, lines.append) as away:
        (record,) = away([plan], asked, tmp_path, {}, follow)
        left = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    assert "4 nodes: 3 CPUs" in lines[0]
    assert (len(struck), len(left)) == (2, 1)
    assert [line.rpartition("; ")[2] for line in lines[1:]] == [
        f"tried again, {more} more times at most" for more in (1, 0)
    ]
    assert facts(record) == facts(here)
    assert record.final_digest == here.final_digest
    first, second = record.resumed_at
    assert 40 <= first < second
    assert 80 <= second < STEPS


# Nodes that come

FAKE = {
    "type": "fake_multinode",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
HEAD = "ray.head.default"
LISTS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def address_of_a_head() -> str:
    """Return where this process's Ray head stands."""
    return f"{ray.util.get_node_ip_address()}:{26379 + os.getpid() % 1000}"


def autoscaling(address: str) -> dict[str, Any]:
    """Return the settings of Ray's own autoscaler over nodes of this machine: none at first, one of a processor."""
    kinds = {
        HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    }
    return {
        "cluster_name": "loopback",
        "max_workers": 1,
        "provider": {**FAKE, "gcs_address": address},
        "available_node_types": kinds,
        "head_node_type": HEAD,
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{f"{name}_commands": [] for name in LISTS},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


@contextmanager
def head(folder: Path, *more: str, **variables: str) -> Iterator[str]:
    """Start a Ray head as a person does, and give its address; end all that came of it."""
    address = address_of_a_head()
    words = f"start --head --port={address.rpartition(':')[2]} --include-dashboard=false --block"
    said = folder / "head.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *words.split(), *more],
            env={**os.environ, **variables}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        started = [psutil.Process(process.pid)]
        try:
            until = time.monotonic() + 120
            while "block forever" not in said.read_text():
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < until
                time.sleep(0.5)
            yield address
        finally:
            ray.shutdown()
            started += started[0].children(recursive=True) if process.poll() is None else []
            for each in started:
                with suppress(psutil.Error):
                    each.kill()
            process.wait()


def test_a_cluster_without_a_node_gets_one_for_the_command_and_loses_it_again(
    make_plan: Any, runtime: Runtime, tmp_path: Path
) -> None:
    """Ray's own autoscaler over nodes of this machine."""
    from suites.engines.away import on_ray

    lines: list[str] = []
    asked = replace(runtime, threads=1, workers=1)
    (tmp_path / "scaling.json").write_text(json.dumps(autoscaling(address_of_a_head())))
    scaling = f"--autoscaling-config={tmp_path / 'scaling.json'}"
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with head(tmp_path, "--num-cpus=0", scaling, **fake) as address:
        with (
            pytest.raises(ValueError, match=r"no node has .* \(nodes: .*0 CPUs.*\); if nodes can still come"),
            on_ray(asked, address, None, 0, lines.append),
        ):
            pass
        assert lines == []
        with on_ray(asked, address, None, 0, lines.append, wait_s=180.0) as away:
            assert "one is asked for and waited for, 3 min 0 s at most" in lines[0]
            assert "1 CPUs, 0 GPUs; 1 runs at a time so far" in lines[1]
            # Longer than an idle node is kept: what was asked for holds it.
            time.sleep(15)
            (record,) = away([make_plan()], asked, tmp_path / "runs", {}, lambda event: None)
        assert record.status == "ok"
        # The command has ended: nothing holds the node any more.
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        until = time.monotonic() + 90
        while any(node["Alive"] and node["Resources"].get("CPU") for node in ray.nodes()):
            assert time.monotonic() < until
            time.sleep(1)


def test_the_command_joins_a_ray_that_asks_for_the_token_kept_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `ray start` makes of a machine with a token; as a person types it, in a process that has no Ray yet."""
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    few = "run glue --profile micro --task rte --method lora --seeds 0 --steps 3 --device cpu --on ray"
    with head(tmp_path, "--num-cpus=1") as address:
        assert "Token authentication is enabled" in (tmp_path / "head.log").read_text()
        command = [sys.executable, "-m", "suites", *few.split(), "--address", address, "--out", str(tmp_path / "runs")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "1 runs ok" in done.stdout
        monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
        other = subprocess.run([*command, "--seeds", "1"], cwd=ROOT, capture_output=True, text=True, check=False)
        assert other.returncode == 2
        assert "have another token than ~/.ray/auth_token here" in other.stderr.splitlines()[-1]
