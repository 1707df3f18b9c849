"""What is found below a folder: thin curves, duplicates and other files told, no machine's paths."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from reports.records.reading import gather, thinned
from results.schema import CurvePoint, Record
from results.store import StoreError, as_text, write_record

Make = Callable[..., Record]


def curve(losses: list[float]) -> list[CurvePoint]:
    """Return a curve of these losses at steps 1, 2, ..."""
    points = enumerate(losses, start=1)
    return [CurvePoint(step=step, loss=loss, learning_rate=1.0, gradient_norm=None) for step, loss in points]


def test_a_curve_is_thinned_to_bin_means_at_their_last_steps() -> None:
    found = thinned(curve([1.0, 3.0, 5.0, 7.0]), points=2)
    assert (found.steps, found.losses) == ((2, 4), (2.0, 6.0))
    assert thinned(curve([1.0, 2.0]), points=48).losses == (1.0, 2.0)
    assert thinned([]).steps == ()


def test_a_bin_with_a_loss_that_is_not_finite_has_none() -> None:
    assert thinned(curve([1.0, math.inf, 2.0, 4.0]), points=2).losses == (None, 3.0)
    assert thinned(curve([math.inf, -math.inf]), points=1).losses == (None,)


def test_records_lose_their_curves_and_keep_the_rest(tmp_path: Path, make_record: Make) -> None:
    record = make_record()
    write_record(tmp_path, record)
    gathered = gather([tmp_path])
    assert gathered.records == [record.model_copy(update={"curve": []})]
    assert len(gathered.found[0].trace.steps) == 48
    assert gathered.whole(gathered.records) == [record]
    assert gc.isenabled()


def test_duplicates_are_told_and_the_first_kept(tmp_path: Path, make_record: Make) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_record(first, make_record(score=0.5))
    write_record(second, make_record(score=0.6))
    write_record(tmp_path / "c", make_record(score=0.5))
    gathered = gather([first, second, tmp_path / "c"])
    assert len(gathered.found) == 1
    assert [(out.split("/")[0], alike) for out, _, alike in gathered.duplicates] == [("b", False), ("c", True)]
    assert gathered.found[0].path.startswith("a/")


def test_the_same_folder_twice_is_no_duplicate(tmp_path: Path, make_record: Make) -> None:
    write_record(tmp_path, make_record())
    assert gather([tmp_path, tmp_path]).duplicates == ()


def test_files_that_are_no_runs_are_named_and_left_out(tmp_path: Path, make_record: Make) -> None:
    write_record(tmp_path, make_record())
    (tmp_path / "ledger.json").write_text('{"ledger": 1}')
    gathered = gather([tmp_path])
    assert len(gathered.found) == 1
    assert [path.split("/")[-1] for path in gathered.others] == ["ledger.json"]


def test_a_broken_record_is_an_error_and_the_collector_comes_back(tmp_path: Path, make_record: Make) -> None:
    table = {**json.loads(as_text(make_record())), "schema_version": 99}
    (tmp_path / "new.json").write_text(json.dumps(table))
    with pytest.raises(StoreError, match="version 99 is newer"):
        gather([tmp_path])
    assert gc.isenabled()


def test_paths_are_shown_without_this_machines_folders(
    tmp_path: Path, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_record(tmp_path / "results" / "runs", make_record())
    (far,) = gather([tmp_path]).found
    assert (far.path, far.inside) == (f"runs/{path.name}", False)
    monkeypatch.chdir(tmp_path)
    (near,) = gather([tmp_path]).found
    assert (near.path, near.inside) == (f"results/runs/{path.name}", True)
