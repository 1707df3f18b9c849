"""Where runs go: typed, or of a file of site defaults; packed by predicted memory; from `run`, `tune` and `gate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from results.schema import Plan
from results.store import write_record
from suites.__main__ import app
from suites.engines import away, packing
from suites.engines.engine import Gone, Resources, State, Task
from suites.engines.place import Place, settled
from suites.engines.site import read_site
from suites.run import preflight
from suites.suite import Runtime
from tests.suites.fake_engine import Told, World, record_of, usual

GIB = 2**30


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """(text) -> None. Writes the file of site defaults of the working folder; no other one is there."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def write(text: str) -> None:
        (work / "gnlorp.toml").write_text(text)

    return write


def test_site_defaults_count_where_nothing_is_typed(site: Callable[[str], None]) -> None:
    assert settled(Place()) == settled(Place(on="here"))
    ray = 'on = "ray"\naddress = "head:6379"\ngpus-per-run = 0.5\nwait-nodes = "2h"\nretries = 5\n'
    site(ray + '[slurm]\npartition = "gpu"\ncpus = 8\n')
    found = settled(Place())
    assert (found.on, found.address, found.gpus_per_run, found.retries) == ("ray", "head:6379", 0.5, 5)
    assert found.wait_s == 7200
    typed = settled(Place(address="auto", retries=0, pack=True, wait_nodes="0"))
    assert typed.wait_s == 0
    assert (typed.address, typed.gpus_per_run, typed.pack, typed.retries) == ("auto", None, True, 0)
    slurm = settled(Place(on="slurm", slurm="partition=fast,time=60"))
    assert slurm.slurm == {"partition": "fast", "cpus": "8", "time": "60"}
    assert slurm.address is None
    assert not settled(Place(on="here")).away


def test_the_users_file_counts_where_the_folder_has_none(site: Callable[[str], None], tmp_path: Path) -> None:
    users = tmp_path / "config" / "gnlorp" / "gnlorp.toml"
    users.parent.mkdir(parents=True)
    users.write_text("retries = 7\n")
    assert settled(Place()).retries == 7
    site("retries = 1\n")
    assert settled(Place()).retries == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("adress = 'head:1'", ("unknown setting of", "known are on, address", "nearest: address")),
        ("[slurm]\npartitoin = 'gpu'", ("unknown setting of [slurm]", "nearest: partition")),
        ("retries = true", ("retries = True", "a whole number")),
        ("pack = 1", ("pack = 1", "true or false")),
        ("wait-nodes = 10", ("wait-nodes = 10", 'a time such as "10m"')),
        ("on = 'ray'\nwait-nodes = '10'", ("wait-nodes 10: must be", "nearest allowed value: 10m")),
        ("[slurm]\ncpus = 1.5", ("slurm.cpus = 1.5",)),
        ("pack = true\ngpus-per-run = 0.5", ("give one of the two",)),
        ("on = ", ("is no TOML",)),
        ("on = 'slrum'", ("unknown engine 'slrum'", "nearest: slurm")),
        ("retries = -1", ("retries -1", "nearest allowed value: 0")),
    ],
)
def test_bad_site_defaults_are_one_line(text: str, parts: tuple[str, ...], site: Callable[[str], None]) -> None:
    site(text)
    for command in (("run", "glue"), ("tune", "glue"), ("gate", "run")):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, result.output
        (said,) = result.stderr.splitlines()
        assert all(part in said for part in parts), said


def test_a_site_file_is_named_where_it_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "gnlorp.toml"
    path.write_text("x = 1")
    with pytest.raises(ValueError, match=str(path)):
        read_site(path)


# The same hand-off from every command


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A made-up engine in Ray's place."""
    made = World(lambda world, task, second: usual(world, task, 9), pause_s=0.0)

    @contextmanager
    def on_ray(runtime: Runtime, *given: Any) -> Iterator[away.Away]:
        made.entered += 1
        yield away.Away(made, Resources(1), 0, 3, lambda line: None)

    monkeypatch.setattr(away, "on_ray", on_ray)
    return made


FEW = ("--steps", "2", "--set", "train_rows=32", "--set", "eval_rows=32", "--device", "cpu")


def test_run_hands_its_plans_over_and_starts_no_engine_where_none_is_missing(
    world: World, site: Callable[[str], None]
) -> None:
    few = ("run", "glue", "--seeds", "0,1", "--task", "cola", "--method", "lora", *FEW, "--out", "runs")
    result = CliRunner().invoke(app, (*few, "--on", "ray"))
    assert result.exit_code == 0, result.output
    assert "2 missing; 3 at a time" in result.output
    assert [task.plan.seed for task in world.submitted] == [0, 1]
    assert {task.store for task in world.submitted} == {Path("runs").resolve()}
    again = CliRunner().invoke(app, (*few, "--on", "ray"))
    assert again.exit_code == 0, again.output
    assert "0 missing; expected time: none, everything is there" in again.output
    assert (world.entered, len(world.submitted)) == (1, 2)


@pytest.mark.slow
def test_the_gate_hands_its_plans_over(world: World, site: Callable[[str], None]) -> None:
    gate = CliRunner().invoke(app, ("gate", "run", "--only", "rte/lora", "--out", "gate", "--on", "ray"))
    assert gate.exit_code == 0, gate.output
    assert world.submitted
    found = {(task.plan.purpose, task.plan.task, task.plan.method) for task in world.submitted}
    assert found == {("gate", "rte", "lora")}


@pytest.mark.slow
def test_tune_hands_its_rounds_over(world: World, site: Callable[[str], None]) -> None:
    """Every run is lost once and for all: none is handed over twice, and no choice is written."""
    world.script = lambda world, task, second: Gone("its node went away", "lost")
    words = ("tune", "glue", "--profile", "micro", "--task", "cola", "--method", "lora", "--trials", "2", *FEW)
    result = CliRunner().invoke(app, (*words, "--on", "ray", "--out", "runs"))
    assert result.exit_code == 1, result.output
    assert "2 runs did not end with a result: no choice is written" in result.output
    assert len(world.submitted) == 2
    assert {task.plan.purpose for task in world.submitted} == {"tuning"}
    assert {task.store.name for task in world.submitted} == {"search-glue-micro-r8"}


def test_tune_refuses_to_detach_by_name(site: Callable[[str], None]) -> None:
    result = CliRunner().invoke(app, ("tune", "glue", "--on", "slurm", "--detach"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --detach: is for run and gate run, not for tune")


# Packing


def test_runs_are_packed_only_where_they_outnumber_the_gpus_and_fit() -> None:
    needs: dict[str, int | None] = {"small": 10 * GIB, "large": 50 * GIB, "huge": 90 * GIB, "unknown": None}
    assert packing.shares(needs, 4, 80 * GIB) == dict.fromkeys(needs, 1.0)
    assert packing.shares(needs, 1, 80 * GIB) == {"small": 0.25, "large": 0.63, "huge": 1.0, "unknown": 1.0}
    # Eight runs on four GPUs: two each, though eight would fit on one.
    assert set(packing.shares({str(index): 10 * GIB for index in range(8)}, 4, 80 * GIB).values()) == {0.5}
    assert set(packing.shares({str(index): 10 * GIB for index in range(9)}, 4, 80 * GIB).values()) == {0.34}
    assert packing.shares({"a": 40 * GIB, "b": 40 * GIB}, 1, 80 * GIB) == {"a": 0.5, "b": 0.5}
    assert packing.shares({"a": 40 * GIB + 1, "b": 40 * GIB + 1}, 1, 80 * GIB) == {"a": 0.51, "b": 0.51}


def test_packed_runs_are_handed_over_with_their_shares_and_a_crowded_one_runs_alone(
    tasks: list[Task], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [task.plan for task in tasks]
    needs = dict(zip((plan.hash() for plan in plans), (30 * GIB, 30 * GIB, 70 * GIB), strict=True))
    monkeypatch.setattr(preflight, "device_bytes", lambda plans, runtime: needs)

    def sizes(plans: Any, runtime: Runtime) -> Any:
        return away.packed_sizes(plans, runtime, 2, 80 * GIB, told.lines.append)

    def script(world: World, task: Task, second: int) -> State:
        if task.plan == plans[0] and task.resources.gpus < 1:
            return Gone("out of memory", "crowded")
        if task.plan == plans[0]:
            write_record(task.store, record_of(task.plan, "out_of_memory", "alone too"))
            return Gone("out of memory", "ended")
        return usual(world, task, 9)

    world = World(script, pause_s=0.0)
    out = away.Away(world, Resources(1, 1.0), 0, 2, told.lines.append, sizes=sizes)
    records = out(plans, tasks[0].runtime, tasks[0].store, {}, told.events.append)
    assert [task.resources.gpus for task in world.submitted] == [0.5, 0.5, 0.88, 1.0]
    assert world.submitted[3].plan == plans[0]
    assert {record.plan_hash: record.status for record in records} == {
        plan.hash(): "out_of_memory" if plan is plans[0] else "ok" for plan in plans
    }
    assert told.lines[0] == "packed: 3 of 3 runs share one of 2 GPUs of 80.0 GiB"
    monkeypatch.setattr(preflight, "device_bytes", lambda plans, runtime: pytest.fail("no run needs to be packed"))
    assert {each.gpus for each in sizes(plans[:2], tasks[0].runtime).values()} == {1.0}


@pytest.mark.slow
def test_what_a_packed_run_needs_holds_its_refresh_and_its_evaluation(make_plan: Any, runtime: Runtime) -> None:
    """By a device's rules, without one: at least what a plain step reserves, and more where a refresh needs more."""
    on_gpu = replace(runtime, device=torch.device("cuda"), workers=1)
    plans: list[Plan] = [make_plan(method="galore"), make_plan(method="full")]
    plain = {key: found.held for key, found in preflight.predict(plans, on_gpu).items()}
    most = preflight.device_bytes(plans, on_gpu)
    high = {key: preflight.estimated(held, "high") for key, held in plain.items()}
    assert most.keys() == high.keys()
    assert all(most[key] >= high[key] for key in high)
    assert all(most[key] > 900 << 20 for key in most)


def test_packing_is_for_gpus(runtime: Runtime) -> None:
    pytest.importorskip("ray")
    with (
        pytest.raises(ValueError, match="--pack: the runs are on the processor"),
        away.on_ray(runtime, None, None, 0, lambda line: None, True),
    ):
        pass
