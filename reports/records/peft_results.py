"""Result files of peft's method_comparison in the same frame as our runs, marked as foreign.

Read are the files of its MetaMathQA and similar suites: `run_info`, `train_info`, `meta_info`. What they do not hold
stays unknown. Its file sizes are not taken over: 99999999 stands there for none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from reports.figures.style import GIB
from reports.records.frames import RUN_COLUMNS, TEXT, Fields, typed
from reports.records.reading import shown_path
from reports.tables.table import Entry, Table
from results.catalogue import committed
from results.store import StoreError

ORIGIN = "peft method_comparison"
FOREIGN_COLUMNS: dict[str, str] = {**RUN_COLUMNS, "origin": TEXT, "experiment": TEXT, "path": TEXT}
# Its status -> ours. It calls every run that an exception ended "canceled", so that one is failed unless it says more.
STATUSES = {"success": "ok", "canceled": "failed", "failed": "failed", "running": "interrupted"}
PARTS = ("run_info", "train_info", "meta_info")


@dataclass(frozen=True)
class Foreign:
    """One run of another suite as a row of `FOREIGN_COLUMNS`."""

    row: Fields

    @property
    def score(self) -> float | None:
        """Its main metric at the end."""
        return self.row.get("last_score")


def read_foreign(roots: Iterable[Path]) -> list[Foreign]:
    """Return every result file below `roots`, sorted by experiment.

    Raises:
        StoreError: a root does not exist, or a file is no such result file; the text names file and field.
    """
    found: list[Foreign] = []
    for root in roots:
        if not root.exists():
            raise StoreError(f"{root}: does not exist; name a folder of peft result files with --foreign")
        paths = [root] if root.is_file() else sorted(root.rglob("*.json"))
        found += [_read(path) for path in paths]
    return sorted(found, key=lambda item: (item.row["experiment"], item.row["path"]))


def foreign_frame(found: Sequence[Foreign]) -> pd.DataFrame:
    """Return the typed frame: the columns of our runs, then where each row comes from."""
    return typed([item.row for item in found], FOREIGN_COLUMNS)


def _read(path: Path) -> Foreign:
    try:
        table = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path}: not JSON: {error}") from error
    try:
        return Foreign(_row(table, path))
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path}: not a result file of {ORIGIN}: {_missing(table, error)}; expected {', '.join(PARTS)}"
        ) from error


def _missing(table: Any, error: Exception) -> str:
    if not isinstance(table, dict):
        return f"a JSON {type(table).__name__}"
    absent = [name for name in PARTS if name not in table]
    return f"no {absent[0]}" if absent else f"field {error}"


def _row(table: dict[str, Any], path: Path) -> Fields:
    run, train, meta = (table[name] for name in PARTS)
    config, adapter = run["train_config"], run.get("peft_config") or {}
    status = STATUSES.get(train["status"], "failed")
    error = run.get("error_msg") or (None if status == "ok" else f"status {train['status']}")
    method = _method(adapter, run["experiment_name"])
    packages, system = meta.get("package_info") or {}, meta.get("system_info") or {}
    return {
        **{"suite": "peft", "profile": ORIGIN, "purpose": "result", "task": _task(path), "method": method},
        "title": f"{committed().method(method).title} (peft)", "rank": adapter.get("r"), "seed": config["seed"],
        "status": status, "error": error, "method_config": json.dumps(adapter, sort_keys=True),
        "targets": _targets(adapter), "model_name": config["model_id"], "model_source": "hub",
        "model_revision": (meta.get("model_info") or {}).get("sha"),
        "steps": config["max_steps"], "batch_size": config["batch_size"], "max_length": config.get("max_seq_length"),
        "learning_rate": (config.get("optimizer_kwargs") or {}).get("lr"),
        "weight_decay": (config.get("optimizer_kwargs") or {}).get("weight_decay"),
        "precision": config.get("dtype"), "schedule": config.get("lr_scheduler"),
        **_score(train.get("metrics") or []),
        "trainable_parameters": train.get("num_trainable_params"), "total_parameters": train.get("num_total_params"),
        "cuda_reserved_peak_bytes": train.get("accelerator_memory_max"),
        "train_s": train.get("train_time"), "wall_s": run.get("total_time"),
        "device": "cuda" if system.get("accelerator") else None, "device_name": system.get("accelerator"),
        "torch": packages.get("torch-version"), "transformers": packages.get("transformers-version"),
        "peft": packages.get("peft-version"), "commit": packages.get("peft-commit-hash"),
        "started_at": run["created_at"], "origin": ORIGIN, "experiment": run["experiment_name"],
        "path": shown_path(path),
    }  # fmt: skip


def _task(path: Path) -> str:
    """Return the suite's folder name, as `MetaMathQA/results/x.json` has it; "metamathqa" where there is none."""
    parts = [part.lower() for part in path.parts]
    return parts[parts.index("results") - 1] if "results" in parts[1:] else "metamathqa"


def _method(adapter: dict[str, Any], experiment: str) -> str:
    """Return our name where the method is one of ours, else peft's in lower case."""
    kind = str(adapter.get("peft_type") or experiment.partition("/")[0]).lower()
    known = [method.name for method in committed().methods]
    if re.fullmatch(r"full[-_]finetuning", kind):
        return committed().yardstick(known) or kind
    return next((name for name in known if adapter.get(f"use_{name}")), kind)


def _targets(adapter: dict[str, Any]) -> str | None:
    targets = adapter.get("target_modules")
    return ",".join(sorted(targets)) if isinstance(targets, list) else targets


def _score(metrics: Sequence[dict[str, Any]]) -> Fields:
    """Return the test accuracy, and the best validation accuracy seen on the way."""
    tests = [point for point in metrics if "test accuracy" in point]
    valid = [(point["valid accuracy"], point["step"]) for point in metrics if "valid accuracy" in point]
    row: Fields = {"main_metric": "test/accuracy", "evaluations": len(metrics)}
    if tests:
        row |= {"last_score": tests[-1]["test accuracy"], "last_step": tests[-1]["step"]}
    if valid:
        best, step = max(valid, key=lambda pair: pair[0])
        row |= {"best_score": best, "best_step": step}
    return row


def foreign_table(found: Sequence[Foreign]) -> Table | None:
    """Return the imported runs as a table of their own; None for none."""
    if not found:
        return None
    rows = [
        (Entry(item.row["title"]), Entry(item.row["experiment"]), Entry(_percent(item.score)),
         Entry(_gib(item.row["cuda_reserved_peak_bytes"])), Entry(_seconds(item.row["train_s"])),
         Entry(item.row["status"]))
        for item in found
    ]  # fmt: skip
    heads = ("Method", "Experiment", "Test accuracy, %", "Peak reserved, GiB", "Training, s", "Status")
    caption = f"Foreign: result files of {ORIGIN}, one seed each unless two rows say otherwise; not run here."
    notes = ("Best checkpoint or last: as that suite does it, the test after the last step",)
    return Table("foreign", caption, heads, tuple(rows), notes, foreign_frame(found))


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{100 * value:.2f}"


def _gib(value: int | None) -> str:
    return "—" if value is None else f"{value / GIB:.2f}"


def _seconds(value: float | None) -> str:
    return "—" if value is None else f"{value:.0f}"
