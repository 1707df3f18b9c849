"""Ten thousand records: loaded and rendered within the budget, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from results.schema import Record
from results.store import as_text

COUNT, SECONDS, BYTES = 10_000, 20, 2 * 2**30
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
METHODS = ("full", "lora", "dora", "galore", "gradnormlorp")


@pytest.mark.slow
def test_ten_thousand_records_load_and_render(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    store = tmp_path / "store"
    store.mkdir()
    places = ((seed, task, method) for seed in range(223) for task in TASKS for method in METHODS)
    for (seed, task, method), _ in zip(places, range(COUNT), strict=False):
        record = make_record(task, method, seed, steps=200)
        (store / f"{record.plan.label}.json").write_text(as_text(record))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), str(store), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert found["records"] == COUNT
    # Processor seconds of the one thread: what else the machine does is no part of it.
    assert found["cpu_s"] < SECONDS, found
    assert found["peak_bytes"] < BYTES, found
