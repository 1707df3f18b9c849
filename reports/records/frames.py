"""Records as typed pandas frames: one row a run, one row a metric value, one row a curve point.

Unknown is `<NA>`. Bytes are `Int64`, other numbers `Float64`, so that a missing count never turns into a float.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
from pydantic.fields import FieldInfo

from results.catalogue import Catalogue, CatalogueError, MetricEntry, catalogue_of
from results.schema import Environment, Evaluation, Memory, Peak, Record, Status, Timing

Fields = dict[str, Any]

STATUSES: tuple[str, ...] = get_args(Status)
PEAKS = ("step_peak", "refresh_peak")
PACKAGES = ("torch", "transformers", "datasets", "peft", "bitsandbytes")
ROW = ":"
"""Stands between a method's name and the settings of one of its rows, see `reports.records.rows`."""
TEXT, WHOLE, REAL, FLAG = "string", "Int64", "Float64", "boolean"

# Runs that agree in these ran on the same machine, equally loaded, ...
MACHINE_FIELDS = ("device", "device_name", "platform", "cpu_count", "threads", "workers", "python", "torch")
# ... and in these did the same work there, so that their times can be divided.
CLOCK_FIELDS = (
    "suite", "profile", "purpose", "task", "seed", "model_name", "batch_size", "accumulation", "max_length",
    "precision", "checkpointing", "recompute", *MACHINE_FIELDS,
)  # fmt: skip


def _kind(field: FieldInfo) -> str | None:
    """Return the column type of a schema field, or None for one that is not a plain number, flag or text."""
    parts = set(get_args(field.annotation)) - {type(None)} if get_args(field.annotation) else {field.annotation}
    if len(parts) != 1:
        return None
    part = parts.pop()
    part = get_args(part)[0] if hasattr(part, "__metadata__") else part
    kinds: dict[Any, str] = {int: WHOLE, float: REAL, bool: FLAG, str: TEXT}
    return kinds.get(part)


def _columns(model: type[Any], prefix: str = "") -> dict[str, str]:
    """Return the plain fields of a schema part with their column types: a field added there appears here by itself."""
    kinds = {prefix + name: _kind(field) for name, field in model.model_fields.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


MEMORY_COLUMNS = _columns(Memory)
TIMING_COLUMNS = {f"timing_{n}" if n == "warmup_steps" else n: k for n, k in _columns(Timing).items()}
ENVIRONMENT_COLUMNS = _columns(Environment)
PEAK_COLUMNS = {name: kind for peak in PEAKS for name, kind in _columns(Peak, f"{peak}_").items()}

RUN_COLUMNS: dict[str, str] = {
    **dict.fromkeys(["plan_hash", "suite", "profile", "purpose", "task", "method", "title"], TEXT),
    **dict.fromkeys(["rank", "projection_rank", "seed"], WHOLE),
    **dict.fromkeys(["status", "error", "targets", "method_config"], TEXT),
    **dict.fromkeys(["model_name", "model_source", "model_revision", "model_digest", "model_disclosure"], TEXT),
    **dict.fromkeys(["data_source", "data_name", "data_revision", "data_digest", "data_notes"], TEXT),
    **dict.fromkeys(["held_out", "official"], FLAG),
    **dict.fromkeys(["train_rows", "steps", "batch_size", "accumulation", "max_length", "warmup_steps"], WHOLE),
    **dict.fromkeys(["learning_rate", "rest_learning_rate", "epochs", "weight_decay"], REAL),
    **dict.fromkeys(["schedule", "precision", "recompute"], TEXT),
    **dict.fromkeys(["state_bits", "skipped_steps"], WHOLE),
    **dict.fromkeys(["per_layer", "checkpointing"], FLAG),
    "main_metric": TEXT,
    **dict.fromkeys(["evaluations", "last_step", "best_step"], WHOLE),
    **dict.fromkeys(["last_score", "last_epoch", "best_score", "best_epoch"], REAL),
    **dict.fromkeys(["matched_layers", "trainable_parameters", "total_parameters", "refreshes"], WHOLE),
    "dense_state_bytes": WHOLE,
    **MEMORY_COLUMNS,
    **PEAK_COLUMNS,
    **dict.fromkeys(["tracked_peak_bytes", "cuda_allocated_peak_bytes", "cuda_reserved_peak_bytes"], WHOLE),
    **TIMING_COLUMNS,
    **dict.fromkeys(["step_s", "refresh_step_s", "optimizer_share", "step_ratio"], REAL),
    **ENVIRONMENT_COLUMNS,
    **dict.fromkeys(PACKAGES, TEXT),
    **dict.fromkeys(["started_at", "finished_at"], TEXT),
}

METRIC_COLUMNS: dict[str, str] = {
    **dict.fromkeys(["plan_hash", "suite", "profile", "task", "method", "title"], TEXT),
    **dict.fromkeys(["rank", "projection_rank", "seed"], WHOLE),
    "status": TEXT,
    **dict.fromkeys(["evaluation", "step"], WHOLE),
    "epoch": REAL,
    **dict.fromkeys(["split", "metric", "key"], TEXT),
    "value": REAL,
    "rows": WHOLE,
    "is_main": FLAG,
}

CURVE_LABELS = ("plan_hash", "suite", "profile", "task", "method", "status")
CURVE_NUMBERS = ("loss", "learning_rate", "gradient_norm")


def table_ranks(record: Record) -> tuple[int | None, int | None]:
    """Return (rank, projection_rank) of a plan's method settings; None where the method has no such number."""
    config = record.plan.method_config

    def whole(name: str) -> int | None:
        value = config.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    return whole("rank"), whole("projection_rank")


def main_values(record: Record) -> list[tuple[Evaluation, float]]:
    """Return the evaluations at which the main metric is defined, with its value, in order of step."""
    if record.main_metric is None:
        return []
    pairs = [(evaluation, evaluation.metrics.get(record.main_metric)) for evaluation in record.evaluations]
    return sorted(((e, v) for e, v in pairs if v is not None), key=lambda pair: pair[0].step)


def _identity(record: Record, catalogue: Catalogue) -> Fields:
    plan, model, data, training = record.plan, record.plan.model, record.plan.data, record.plan.training
    rank, projection_rank = table_ranks(record)
    return {
        **{n: getattr(plan, n) for n in ("suite", "profile", "purpose", "task", "method", "seed", "targets")},
        "plan_hash": record.plan_hash, "title": catalogue.method(plan.method).title,
        "rank": rank, "projection_rank": projection_rank, "status": record.status, "error": record.error,
        "method_config": json.dumps(plan.method_config, sort_keys=True),
        "model_name": model.name, "model_source": model.source, "model_revision": model.revision,
        "model_digest": model.digest, "model_disclosure": model.disclosure,
        "data_source": data.source, "data_name": data.name, "data_revision": data.revision,
        "data_digest": data.digest, "held_out": data.held_out, "max_length": data.max_length,
        "official": record.data.official if record.data else None,
        "data_notes": "; ".join(record.data.notes) if record.data else None,
        "train_rows": record.data.train_rows if record.data else None,
        **{n: getattr(training, n) for n in (
            "steps", "epochs", "batch_size", "accumulation", "learning_rate", "rest_learning_rate", "schedule",
            "warmup_steps", "weight_decay", "precision", "state_bits", "per_layer", "checkpointing")},
        "recompute": ",".join(training.recompute),
        "main_metric": record.main_metric, "skipped_steps": record.skipped_steps,
        "started_at": record.started_at, "finished_at": record.finished_at,
    }  # fmt: skip


def _scores(record: Record, catalogue: Catalogue) -> Fields:
    """Return the main metric at the last evaluation and at the best one (the first of equals), if that is known."""
    row: Fields = {"evaluations": len(record.evaluations)}
    values = main_values(record)
    if record.evaluations and record.main_metric is not None:
        last = max(record.evaluations, key=lambda evaluation: evaluation.step)
        value = last.metrics.get(record.main_metric)
        row |= {"last_score": value, "last_step": last.step, "last_epoch": last.epoch}
    metric = main_entry(record, catalogue)
    if values and metric is not None:
        best, value = max(values, key=lambda pair: metric.gain(pair[1]))
        row |= {"best_score": value, "best_step": best.step, "best_epoch": best.epoch}
    return row


def main_entry(record: Record, catalogue: Catalogue) -> MetricEntry | None:
    """Return how a run's main metric is printed; None where no catalogue has it."""
    try:
        return catalogue.suite(record.plan.suite).metric(record.main_metric or "")
    except CatalogueError:
        return None


def tracked_peak(record: Record) -> int | None:
    """Return the larger of the peaks of a plain and of a refresh step; None where neither was measured."""
    peaks = () if record.memory is None else (record.memory.step_peak, record.memory.refresh_peak)
    return max((peak.total_bytes for peak in peaks if peak is not None), default=None)


def _measured(record: Record) -> Fields:
    row: Fields = {}
    if (certificate := record.engagement) is not None:
        names = ("trainable_parameters", "total_parameters", "refreshes", "dense_state_bytes")
        row |= {"matched_layers": len(certificate.layers), **{name: getattr(certificate, name) for name in names}}
    if (memory := record.memory) is not None:
        row |= {name: getattr(memory, name) for name in MEMORY_COLUMNS}
        for peak in PEAKS:
            if (part := getattr(memory, peak)) is not None:
                row |= {f"{peak}_{name}": value for name, value in part}
        row["tracked_peak_bytes"] = tracked_peak(record)
        row["cuda_allocated_peak_bytes"] = memory.device_allocated_bytes
        row["cuda_reserved_peak_bytes"] = memory.device_reserved_bytes
    return row


def _clock(record: Record) -> Fields:
    if (timing := record.timing) is None:
        return {}
    row: Fields = {f"timing_{n}" if n == "warmup_steps" else n: v for n, v in timing}
    row["step_s"] = timing.train_s / timing.timed_steps if timing.timed_steps else None
    row["optimizer_share"] = timing.optimizer_s / timing.train_s if timing.train_s else None
    if timing.refresh_s is not None and timing.refresh_steps:
        row["refresh_step_s"] = timing.refresh_s / timing.refresh_steps
    return row


def _row(record: Record, catalogue: Catalogue) -> Fields:
    environment = record.environment
    versions = {name: environment.packages.get(name) for name in PACKAGES}
    place = {name: getattr(environment, name) for name in ENVIRONMENT_COLUMNS}
    said = {**_identity(record, catalogue), **_scores(record, catalogue)}
    return {**said, **_measured(record), **_clock(record), **place, **versions}


def typed(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Return `rows` as a frame of exactly `columns` (name -> dtype); a missing value is `<NA>`."""
    kinds: Mapping[str, Any] = columns
    data = {name: pd.array([row.get(name) for row in rows], dtype=kind) for name, kind in kinds.items()}
    return pd.DataFrame(data, columns=list(columns))


def in_order(records: Sequence[Record]) -> list[Record]:
    """Return the records sorted by what they ran, so that no output depends on the order of files."""
    return sorted(
        records, key=lambda r: (r.plan.suite, r.plan.profile, r.plan.task, r.plan.method, r.plan.seed, r.plan_hash)
    )


def described(records: Iterable[Record]) -> Catalogue:
    """Return what the records say of their methods, suites, tasks and metrics; of the newest where they differ."""
    return catalogue_of(record.catalogue for record in sorted(records, key=lambda r: (r.finished_at, r.plan_hash)))


def runs_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return one typed row a run (columns: `RUN_COLUMNS`), sorted by suite, profile, task, method and seed.

    `last_score` and `best_score` are the record's main metric at the last evaluation and at the one where it is
    best. `tracked_peak_bytes` is the larger of the plain and the refresh step's peak. `step_s` is training seconds
    per timed step, `step_ratio` that over the yardstick's of the same task, seed and environment
    (`CLOCK_FIELDS`), `<NA>` where no such run is among the records.
    """
    catalogue = described(records)
    rows = typed([_row(record, catalogue) for record in in_order(records)], RUN_COLUMNS)
    return with_step_ratio(rows, catalogue.yardstick(rows["method"]))


def one_machine(runs: pd.DataFrame) -> bool:
    """Whether runs were made on one machine under one load: a mean of seconds over several is of none of them."""
    return len(runs[list(MACHINE_FIELDS)].drop_duplicates()) == 1


def with_step_ratio(runs: pd.DataFrame, yardstick: str | None) -> pd.DataFrame:
    """Return `runs` with `step_ratio`: `step_s` over the mean one of `yardstick` in equal `CLOCK_FIELDS`.

    Where the yardstick was run under several settings, its other rows stand in for it: one of another precision has
    runs of equal clock there.
    """
    method = (yardstick or "").partition(ROW)[0]
    exact, any_row = runs["method"] == yardstick, runs["method"].str.split(ROW).str[0] == method
    return runs.assign(step_ratio=_step_ratio(runs, exact).fillna(_step_ratio(runs, any_row)))


def _step_ratio(runs: pd.DataFrame, of_yardstick: pd.Series) -> pd.Series:
    keys = list(CLOCK_FIELDS)
    base = runs[of_yardstick & (runs["status"] == "ok") & runs["step_s"].notna()]
    mean = base.groupby(keys, dropna=False, observed=True)["step_s"].mean().rename("base_s").reset_index()
    joined = runs[[*keys, "step_s"]].merge(mean, on=keys, how="left")
    ratio: pd.Series = (joined["step_s"] / joined["base_s"]).astype(pd.Float64Dtype())
    return ratio.set_axis(runs.index)


def metrics_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return one typed row for each run, evaluation and "split/metric" (columns: `METRIC_COLUMNS`)."""
    rows: list[Fields] = []
    catalogue = described(records)
    for record in in_order(records):
        plan = record.plan
        rank, projection_rank = table_ranks(record)
        label = {
            **{n: getattr(plan, n) for n in ("suite", "profile", "task", "method", "seed")},
            **{"plan_hash": record.plan_hash, "title": catalogue.method(plan.method).title, "status": record.status},
            **{"rank": rank, "projection_rank": projection_rank},
        }
        for index, evaluation in enumerate(sorted(record.evaluations, key=lambda item: item.step)):
            at = {**label, "evaluation": index, "step": evaluation.step, "epoch": evaluation.epoch}
            for key, value in evaluation.metrics.items():
                split, _, metric = key.rpartition("/")
                main = key == record.main_metric
                rows.append(
                    {**at, "split": split, "metric": metric, "key": key, "value": value,
                     "rows": evaluation.rows.get(split), "is_main": main}
                )  # fmt: skip
    return typed(rows, METRIC_COLUMNS)


def curves_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return one row for each run and optimizer step on its curve.

    Labels are categories and numbers plain arrays: ten thousand runs make millions of rows. A gradient norm that was
    not recorded is NaN here, as is a loss that was not finite.
    """
    ordered = in_order(records)
    counts = [len(record.curve) for record in ordered]
    frame = pd.DataFrame()
    for name in CURVE_LABELS:
        values = [_label(record, name) for record in ordered]
        place = {value: index for index, value in enumerate(sorted(set(values)))}
        codes = np.repeat([place[value] for value in values], counts).tolist()
        frame[name] = pd.Categorical.from_codes(codes, categories=pd.Index(list(place)))
    frame["seed"] = np.repeat(np.array([record.plan.seed for record in ordered], dtype=np.int64), counts)
    points = [point for record in ordered for point in record.curve]
    frame["step"] = np.array([point.step for point in points], dtype=np.int64)
    for name in CURVE_NUMBERS:
        values_of = (getattr(point, name) for point in points)
        frame[name] = np.array([np.nan if value is None else value for value in values_of], dtype=np.float64)
    return frame


def _label(record: Record, name: str) -> str:
    return str(getattr(record, name) if name in ("plan_hash", "status") else getattr(record.plan, name))
