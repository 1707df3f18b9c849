"""Ten thousand records: loaded and rendered within their memory, in time that grows with their number and no faster."""

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

COUNT, BYTES = 10_000, 2 * 2**30
FEWER, MARGIN = 5, 1.3
TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
METHODS = ("full", "lora", "dora", "galore", "gradnormlorp")


@pytest.mark.slow
def test_ten_thousand_records_load_and_render(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    many, few = (rendered(tmp_path / str(count), count, make_record) for count in (COUNT, COUNT // FEWER))
    assert many["records"] == COUNT
    # Processor seconds of one thread, both of this machine: the bound needs no idea of how fast it is.
    assert many["cpu_s"] < FEWER * MARGIN * few["cpu_s"], (many, few)
    assert many["peak_bytes"] < BYTES, many


def rendered(folder: Path, count: int, make_record: Callable[..., Record]) -> dict[str, float]:
    """Return what rendering so many records took, in a process of its own."""
    store = folder / "store"
    store.mkdir(parents=True)
    places = ((seed, task, method) for seed in range(223) for task in TASKS for method in METHODS)
    for (seed, task, method), _ in zip(places, range(count), strict=False):
        record = make_record(task, method, seed, steps=200)
        (store / f"{record.plan.label}.json").write_text(as_text(record))
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), str(store), str(folder / "out")]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found
