"""Checkpoint files: whole or not at all, the newest whole one, and never another plan's."""

from __future__ import annotations

import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from results.schema import Plan
from suites.run import checkpoint
from suites.run.checkpoint import CheckpointError


@pytest.fixture
def plan(make_plan: Any) -> Plan:
    made: Plan = make_plan()
    return made


def state(value: float = 1.0) -> dict[str, Any]:
    return {"model": {"weight": torch.full((64,), value)}, "outcome": "{}"}


def test_the_newest_comes_back_and_older_ones_are_dropped(plan: Plan, tmp_path: Path) -> None:
    for step in (9, 10, 11):
        checkpoint.save(tmp_path, plan, step, state(step))
    found = checkpoint.newest(tmp_path, plan)
    assert found is not None
    assert found["step"] == 11
    assert torch.equal(found["model"]["weight"], torch.full((64,), 11.0))
    assert len(list(tmp_path.iterdir())) == checkpoint.KEPT


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_one_is_passed_over_with_a_warning(damage: str, plan: Plan, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, plan, 1, state())
    newest = checkpoint.save(tmp_path, plan, 2, state())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"cut": content[:-7], "flip": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="truncated or damaged"):
        found = checkpoint.newest(tmp_path, plan)
    assert found is not None
    assert found["step"] == 1


def test_none_without_a_folder(plan: Plan, tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none", plan) is None


def test_another_plan_is_refused_by_the_fields_that_differ(make_plan: Any, plan: Plan, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, plan, 1, state())
    other = make_plan(learning_rate=0.5, batch_size=4)
    with pytest.raises(CheckpointError, match=r"training\.batch_size 8 -> 4.*training\.learning_rate .* -> 0\.5"):
        checkpoint.newest(tmp_path, other)


def test_an_unfinished_run_is_not_silently_left_behind(make_plan: Any, plan: Plan, tmp_path: Path) -> None:
    checkpoint.check_unchanged(tmp_path, [plan])
    checkpoint.save(checkpoint.folder_of(tmp_path, plan), plan, 1, state())
    checkpoint.check_unchanged(tmp_path, [plan])
    checkpoint.check_unchanged(tmp_path, [make_plan(seed=1)])
    assert checkpoint.unfinished(tmp_path, [plan, make_plan(seed=1)]) == 1
    with pytest.raises(CheckpointError, match=r"learning_rate .* -> 0\.5.*--fresh"):
        checkpoint.check_unchanged(tmp_path, [make_plan(learning_rate=0.5)])
    checkpoint.remove(checkpoint.folder_of(tmp_path, plan))
    checkpoint.check_unchanged(tmp_path, [make_plan(learning_rate=0.5)])
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_the_earlier_ones(plan: Plan, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, plan, 1, state())
    before = sorted(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(CheckpointError, match="step 2 cannot be written .* the earlier ones are whole"):
            checkpoint.save(tmp_path, plan, 2, {"model": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.iterdir()) == before
    found = checkpoint.newest(tmp_path, plan)
    assert found is not None
    assert found["step"] == 1


def test_what_a_killed_writer_left_goes_with_the_next_checkpoint(plan: Plan, tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.parts_folder(tmp_path, step).mkdir()
        checkpoint.save(tmp_path, plan, step, state())
    before = sorted(tmp_path.iterdir())
    # Step 3 was never whole; step 4's parts stand already when its file is written.
    (tmp_path / ".abcdefgh.tmp").write_text("half")
    for name in ("step-00000003.parts", ".step-00000004.parts.partial", "step-00000004.parts"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.distcp").write_text("half")
    newest = checkpoint.save(tmp_path, plan, 4, state())
    kept = [path for path in before if "00000002" in path.name]
    assert sorted(tmp_path.iterdir()) == sorted([*kept, newest, checkpoint.parts_folder(tmp_path, 4)])


def test_nothing_but_tensors_numbers_and_text_is_loaded(plan: Plan, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, plan, 1, {"model": Path("x")})
    with pytest.raises(Exception, match="weights_only"):
        checkpoint.newest(tmp_path, plan)
    assert path.exists()


def _hold(store: Path, plan: Plan, ready: Any) -> None:
    with checkpoint.held(store, plan):
        ready.set()
        time.sleep(60)


def test_a_run_is_held_until_its_process_is_killed(
    make_plan: Any, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, plan, ready))
    process.start()
    assert ready.wait(60)
    monkeypatch.setattr(checkpoint, "LOCK_WAIT_S", 0.2)
    with checkpoint.held(tmp_path, make_plan(seed=1)):
        pass
    with pytest.raises(CheckpointError, match="another process runs this plan"), checkpoint.held(tmp_path, plan):
        pass
    assert checkpoint.is_held(tmp_path, plan)
    process.kill()
    process.join()
    assert not checkpoint.is_held(tmp_path, plan)
    with checkpoint.held(tmp_path, plan):
        pass
