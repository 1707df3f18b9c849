"""The suites from Python: which runs a comparison has, and running them; the command line's words as arguments.

    from suites import api

    api.plan("glue", tasks=["rte"], methods=["lora"], sweep={"method.lora.config.alpha": [8, 16, 32]})
    api.run("glue", tasks=["rte"], methods=["lora"], seeds=[0])

`reports.api` is the other half: records as frames, tables and figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from results.schema import Plan, Record, flat
from results.store import read_records
from suites.options import RUNS, Options

LABELS = ("plan_hash", "suite", "profile", "task", "method")
PLAN_COLUMNS = {
    **dict.fromkeys(LABELS, "string"), "seed": "Int64", "missing": "boolean", "predicted_peak_bytes": "Int64",
}  # fmt: skip
RUN_COLUMNS = {
    **dict.fromkeys(LABELS, "string"), "seed": "Int64", "status": "string", "error": "string", "metric": "string",
    "score": "Float64", "step_peak_bytes": "Int64", "state_bytes": "Int64", "train_s": "Float64", "wall_s": "Float64",
}  # fmt: skip


def plan(suite: str, *, predict: bool = True, out: Path | str = RUNS, **asked: Any) -> pd.DataFrame:
    """Return every run of a comparison, a row each; nothing is run.

    Args:
        suite: "glue", "c4" or another of `python -m suites`.
        predict: whether the peak of every missing run is predicted, which takes seconds a method.
        out: folder of the records: what has one is not missing.
        asked: see `run`.

    Returns:
        Labels, seed, `missing`, `predicted_peak_bytes`, and the plan's settings under their dotted names, as
        `training.learning_rate` and `method_config.rank`.

    Raises:
        ValueError: an unknown name or a value outside its rule, as at the command line.
    """
    from suites.__main__ import missing_runs, prepare
    from suites.run.preflight import predict_peaks

    prepared = prepare(options_of(suite, Path(out), asked), dry=True)
    todo, _ = missing_runs(prepared.plans, prepared.runtime, Path(out))
    peaks = predict_peaks(todo, prepared.runtime) if predict else {}
    waiting = {each.hash() for each in todo}
    rows = [
        {**_labels(each), "missing": each.hash() in waiting, "predicted_peak_bytes": peaks.get(each.hash())}
        for each in prepared.plans
    ]
    settings = pd.DataFrame([_settings(each) for each in prepared.plans]).convert_dtypes()
    return pd.concat([_typed(rows, PLAN_COLUMNS), settings], axis=1)


def run(suite: str, *, out: Path | str = RUNS, **asked: Any) -> pd.DataFrame:
    """Run what is missing of a comparison, write one record a run into `out`, and return a row a run.

    In a script it stands below `if __name__ == "__main__":`, since runs have processes of their own. A run that ends
    badly is a row whose `status` and `error` say so.

    Args:
        suite: "glue", "c4" or another of `python -m suites`.
        out: folder of the records; a run with a record there is not run again.
        asked: any option of `python -m suites run` under its own name: `profile`, `rank`, `model`, `data_dir`, `steps`,
            `device`, `workers`, `offline`, `quiet` (True unless said); and with Python's own values `tasks`, `methods`
            and `seeds` (sequences), `settings` (a mapping for `--set`), `sweep` (a mapping of names to values).

    Returns:
        Labels, seed, status, error, the main metric at the last evaluation, bytes and seconds; unknown is `<NA>`.

    Raises:
        ValueError: as `plan`.
        KeyboardInterrupt: the runs in hand are recorded as interrupted; the same call goes on.
    """
    from suites.__main__ import prepare, start

    options = options_of(suite, Path(out), asked)
    prepared = prepare(options)
    start(prepared.plans, prepared.runtime, options.out, options.fresh)
    records = {record.plan_hash: record for record in read_records([Path(out)])}
    return _typed([_outcome(records[each.hash()]) for each in prepared.plans], RUN_COLUMNS)


def options_of(suite: str, out: Path, asked: Mapping[str, Any]) -> Options:
    """Return what the command line would have been told.

    Raises:
        ValueError: an argument that is no option.
    """
    from results.choice import check_choice

    words = {"quiet": True, **asked}
    joined = {"tasks": "task", "methods": "method", "seeds": "seeds"}
    values: dict[str, Any] = {}
    known = [name for name in Options.__dataclass_fields__ if name not in ("suite", "out", "set_")]
    for name, value in words.items():
        check_choice(name, [*known, *joined, "settings"], "argument")
        if name in joined:
            values[joined[name]] = ",".join(map(str, [value] if isinstance(value, (str, int)) else value))
        elif name == "settings":
            values["set_"] = [f"{field}={json.dumps(given)}" for field, given in flat(dict(value)).items()]
        elif name == "sweep":
            values["sweep"] = [f"{field}={json.dumps(list(given))}" for field, given in value.items()]
        elif name == "data_dir":
            values[name] = Path(value)
        else:
            values[name] = value
    return Options(suite=suite, out=out, **values)


def _labels(plan: Plan) -> dict[str, Any]:
    return {"plan_hash": plan.hash(), **{n: getattr(plan, n) for n in (*LABELS[1:], "seed")}}


def _settings(plan: Plan) -> dict[str, Any]:
    said = (*LABELS, "seed", "purpose", "variant")
    return {name: value for name, value in flat(plan.model_dump(mode="json")).items() if name not in said}


def _outcome(record: Record) -> dict[str, Any]:
    memory, timing = record.memory, record.timing
    last = record.evaluations[-1] if record.evaluations and record.main_metric else None
    return {
        **_labels(record.plan), "status": record.status, "error": record.error, "metric": record.main_metric,
        "score": last.metrics.get(record.main_metric or "") if last else None,
        "step_peak_bytes": memory.step_peak.total_bytes if memory and memory.step_peak else None,
        "state_bytes": memory.state_bytes if memory else None,
        "train_s": timing.train_s if timing else None, "wall_s": timing.wall_s if timing else None,
    }  # fmt: skip


def _typed(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.array([row[name] for row in rows], dtype=kind) for name, kind in columns.items()})
