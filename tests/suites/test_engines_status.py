"""`status`, `--detach` and what keeps a run from going out twice, over a made-up engine that outlives its command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from results.schema import Timing
from results.store import write_record
from suites.__main__ import app
from suites.engines import away, journal, status
from suites.engines.engine import Gone, Queued, Resources, Running, State, Task
from suites.run import checkpoint
from suites.suite import Runtime
from tests.suites.fake_engine import World, record_of, usual

STATES: dict[str, State] = {
    "1": Queued(),
    "2": Running(40, 0.5, "H100"),
    "3": Gone("job 3: SLURM says FAILED", "ended"),
}


@pytest.fixture
def store(make_plan: Any, tmp_path: Path) -> Path:
    """Runs in every state: two done, one failed, and five that some command was asked for."""
    plans = [make_plan(seed=seed, steps=100) for seed in range(8)]
    status.note_asked(plans, tmp_path, 2)
    for plan, how in zip(plans, ("ok", "diverged", "failed"), strict=False):
        write_record(tmp_path, record_of(plan, how, None if how == "ok" else f"{how}: why\nand more"))  # type: ignore[arg-type]
    for number, plan in enumerate(plans[3:6], start=1):
        journal.note(tmp_path, plan, journal.Entry("slurm", str(number), None))
    return tmp_path


def test_every_run_is_said_to_be_where_it_is(store: Path, make_plan: Any) -> None:
    plans = [make_plan(seed=seed, steps=100) for seed in range(8)]
    held = checkpoint.folder_of(store, plans[6])
    held.mkdir(parents=True)
    (held / "step-00000030-0123456789abcdef.pt").write_bytes(b"")
    with checkpoint.held(store, plans[6]):
        found, slots = status.standings(store, {"slurm": STATES.get})
    by_seed = {each.plan.seed: (each.state, each.step) for each in found}
    assert slots == 2
    assert by_seed == {
        0: ("ok", 100), 1: ("diverged", 100), 2: ("failed", None), 3: ("queued", None), 4: ("running", 40),
        5: ("gone", None), 6: ("running", 30), 7: ("waiting", None),
    }  # fmt: skip
    assert [each.state for each in found] == sorted((each.state for each in found), key=status.ORDER.index)
    silent, _ = status.standings(store, {"slurm": lambda handle: None})
    assert {each.state for each in silent if each.plan.seed in (3, 4, 5)} == {"unknown"}


def test_what_is_left_is_counted_by_steps_and_slots(store: Path, make_plan: Any) -> None:
    found, slots = status.standings(store, {"slurm": STATES.get})
    assert status.seconds_left(found, [], slots) is None
    names = ("timed_steps", "warmup_steps", "train_s", "forward_s", "backward_s", "optimizer_s", "refresh_steps")
    times: dict[str, Any] = dict.fromkeys((*names, "tokens", "evaluation_s"), 0)
    timing = Timing(**times, refresh_s=None, tokens_per_s=None, wall_s=100.0)
    known = record_of(make_plan(seed=0, steps=100)).model_copy(update={"timing": timing})
    # Six runs of 100 s that are not done, 40 of 100 steps of one of them are; two at a time.
    assert status.seconds_left(found, [known], slots) == pytest.approx((6 - 0.4) * 100 / 2)


def test_the_command_says_it_in_lines(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "slurm_poll", lambda store: STATES.get)
    result = CliRunner().invoke(app, ("status", str(store)))
    assert result.exit_code == 0, result.output
    first, *lines = result.output.splitlines()
    assert first == f"8 runs in {store}: 1 ok, 1 diverged, 1 running, 1 queued, 2 waiting, 1 gone, 1 failed"
    assert any("running  rte   full          seed 4  step 40 of 100  slurm 2 on H100" in line for line in lines)
    assert any("SLURM says FAILED; the same command goes on" in line for line in lines)
    assert any(line.strip().startswith("failed") and line.endswith("failed: why") for line in lines)
    # The folder's records have no times; committed ones of such runs do.
    assert lines[-1].startswith("left: ")
    assert "unknown" not in lines[-1]
    assert not any("diverged  " in line for line in lines)


def test_a_folder_without_runs_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ("status", str(tmp_path / "nothing")))
    assert result.exit_code == 2
    assert "no run was asked for or recorded there" in result.stderr
    (tmp_path / status.FOLDER).mkdir()
    (tmp_path / status.FOLDER / "abc").write_text("{")
    result = CliRunner().invoke(app, ("status", str(tmp_path)))
    assert (result.exit_code, "remove it" in result.stderr) == (2, True)


FEW = ("--seeds", "0,1", "--task", "cola", "--method", "lora", "--steps", "2", "--set", "train_rows=32")
WORDS = ("run", "glue", *FEW, "--set", "eval_rows=32", "--device", "cpu")


@pytest.mark.slow
def test_a_detached_command_hands_over_and_the_same_command_collects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world = World(lambda world, task, second: Queued(), name="slurm", outlives=True, pause_s=0.0)

    @contextmanager
    def on_slurm(
        runtime: Runtime, store: Path, settings: Any, retries: int, say: Any, detach: bool
    ) -> Iterator[away.Away]:
        yield away.Away(world, Resources(1), retries, 2, say, detach=detach)

    def call(*more: str) -> Any:
        return CliRunner().invoke(app, (*WORDS, "--out", "runs", *more))

    monkeypatch.setattr(away, "on_slurm", on_slurm)
    monkeypatch.setattr(status, "slurm_poll", lambda store: world.poll)
    first = call("--on", "slurm", "--detach")
    assert first.exit_code == 0, first.output
    assert "2 runs are in the hands of slurm; the same command collects" in first.output
    assert "2 queued" in CliRunner().invoke(app, ("status", "runs")).output
    again = call("--on", "slurm", "--detach")
    assert again.exit_code == 0
    assert len(world.submitted) == 2
    here = call()
    assert here.exit_code == 2
    assert "was handed to slurm (job-1): go on with --on slurm" in here.stderr
    anew = call("--on", "slurm", "--fresh")
    assert (anew.exit_code, "without --fresh" in anew.stderr) == (2, True)
    world.script = lambda world, task, second: usual(world, task, 9)
    collected = call("--on", "slurm")
    assert collected.exit_code == 0, collected.output
    assert "2 runs ok" in collected.output
    assert len(world.submitted) == 2
    assert "2 runs in runs: 2 ok" in CliRunner().invoke(app, ("status", "runs")).output
    assert call().exit_code == 0


def test_detached_tasks_are_noted_once(tasks: list[Task]) -> None:
    world = World(lambda world, task, second: Queued(), outlives=True)
    out = away.Away(world, Resources(1), 0, 2, lambda line: None, detach=True)
    for _ in range(2):
        assert out([task.plan for task in tasks], tasks[0].runtime, tasks[0].store, {}, lambda event: None) == []
    assert [task.plan for task in world.submitted] == [task.plan for task in tasks]
    assert world.now == 0.0
    assert replace(out, detach=False).detach is False
