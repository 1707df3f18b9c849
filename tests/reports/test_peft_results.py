"""Result files of peft's method_comparison: in our frame, marked, nothing made up."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from reports.records.frames import RUN_COLUMNS
from reports.records.peft_results import FOREIGN_COLUMNS, ORIGIN, foreign_frame, foreign_table, read_foreign
from reports.tables.table import to_markdown
from results.store import StoreError

# The keys of such a file, with values of our own.
FILE: dict[str, Any] = json.loads(Path(__file__).with_name("peft_result.json").read_text())


def put(folder: Path, name: str = "a.json", **changes: Any) -> Path:
    """Write the file with changes such as `train_info__status="canceled"` and return its path."""
    table = copy.deepcopy(FILE)
    for key, value in changes.items():
        part, _, field = key.partition("__")
        table[part][field] = value
    path = folder / "MetaMathQA" / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table))
    return path


def test_a_file_becomes_a_row_of_our_frame(tmp_path: Path) -> None:
    put(tmp_path)
    frame = foreign_frame(read_foreign([tmp_path]))
    assert list(frame.columns) == list(FOREIGN_COLUMNS)
    assert list(frame.columns)[: len(RUN_COLUMNS)] == list(RUN_COLUMNS)
    row = frame.iloc[0]
    assert (row["origin"], row["profile"], row["task"]) == (ORIGIN, ORIGIN, "metamathqa")
    assert (row["method"], row["title"], row["rank"], row["seed"]) == ("dora", "DoRA (peft)", 4, 3)
    assert row["last_score"] == 0.375
    assert (row["best_score"], row["best_step"]) == (0.5, 5)
    assert row["cuda_reserved_peak_bytes"] == 2 * 2**30
    assert (row["train_s"], row["learning_rate"], row["torch"]) == (100.25, 0.001, "2.9.0")
    # What such a file does not hold stays unknown.
    assert frame[["weight_bytes", "state_bytes", "tracked_peak_bytes", "optimizer_s"]].isna().all(axis=None)


def test_a_canceled_run_is_a_failed_one_with_its_text(tmp_path: Path) -> None:
    put(tmp_path, train_info__status="canceled", train_info__metrics=[], train_info__accelerator_memory_max=None)
    frame = foreign_frame(read_foreign([tmp_path]))
    assert (frame["status"][0], frame["error"][0]) == ("failed", "status canceled")
    assert frame[["last_score", "cuda_reserved_peak_bytes"]].isna().all(axis=None)


def test_full_fine_tuning_has_no_adapter(tmp_path: Path) -> None:
    put(tmp_path, run_info__peft_config=None, run_info__experiment_name="full-finetuning/tiny-lr_1")
    frame = foreign_frame(read_foreign([tmp_path]))
    assert frame["method"][0] == "full"
    assert frame["rank"].isna().all()


def test_the_table_says_that_it_is_foreign(tmp_path: Path) -> None:
    put(tmp_path)
    table = foreign_table(read_foreign([tmp_path]))
    assert table is not None
    text = to_markdown(table)
    assert "Foreign" in text
    assert "| DoRA (peft) | lora/tiny-rank4-dora | 37.50 | 2.00 | 100 | ok |" in text
    assert foreign_table([]) is None


@pytest.mark.parametrize(
    ("content", "text"),
    [("{", "not JSON"), ("[1]", "a JSON list"), ('{"run_info": {}}', "no train_info"),
     (json.dumps({**FILE, "train_info": {}}), "field 'status'")],
)  # fmt: skip
def test_another_file_is_refused_by_name(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(StoreError, match=rf"bad\.json: .*{text}"):
        read_foreign([tmp_path])


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere: does not exist"):
        read_foreign([tmp_path / "nowhere"])
