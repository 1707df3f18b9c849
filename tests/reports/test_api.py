"""The API of the reports: typed frames and figures of records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from reports import api
from results.schema import Record
from results.store import write_record

Grid = Callable[..., list[Record]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, make_grid: Grid) -> Path:
    """A store with a comparison on two tasks and another alpha of LoRA."""
    folder = tmp_path_factory.mktemp("store")
    records = make_grid(tasks=("rte", "cola"))
    records += make_grid(methods=("lora",), tasks=("rte",), method_config={"rank": 8, "alpha": 8.0})
    for record in records:
        write_record(folder, record)
    return folder


def test_frames_are_typed_and_rows_are_told_apart(store: Path) -> None:
    runs = api.frame(store)
    assert len(runs) == 33
    assert runs.dtypes.astype(str)[["tracked_peak_bytes", "last_score", "title"]].tolist() == [
        "Int64", "Float64", "string",
    ]  # fmt: skip
    assert set(runs["title"]) >= {"LoRA, alpha 8", "LoRA, alpha 16", "DoRA"}
    assert len(api.frame([store], where=["method_config.alpha=8.0"]).query("method == 'lora'")) == 3
    assert set(api.frame(store, "metrics")["metric"]) == {"accuracy", "matthews"}
    assert len(api.frame(store, "curves")) == 33 * 60


@pytest.mark.usefixtures("unsaved")
def test_tables_and_figures_are_those_of_the_report(store: Path) -> None:
    scores = api.table("scores", store, suite="glue")
    assert isinstance(scores, pd.DataFrame)
    mean = scores.query("method == 'lora:alpha=8' and task == 'rte'")["mean"].iloc[0]
    mine = api.frame(store).query("method == 'lora:alpha=8'")["last_score"]
    assert mean == pytest.approx(mine.mean())
    against = api.table("differences", store, against="LoRA, alpha 8")
    assert set(against["against"]) == {"lora:alpha=8"}
    assert isinstance(api.plot("dots", store), Figure)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda store: api.frame(store / "none"), "does not exist"),
        (lambda store: api.frame(store, "run"), "unknown kind of frame 'run': known are runs, metrics, curves"),
        (lambda store: api.table("score", store), "unknown table 'score'.*nearest: scores"),
        (lambda store: api.plot("font", store), "unknown figure 'font'.*nearest: front"),
        (lambda store: api.plot("validation", store), "figure 'validation': the records hold no values for it"),
        (lambda store: api.table("scores", store, profile="smal"), "unknown profile"),
        (lambda store: api.table("scores", store, epoch="first"), "unknown epoch 'first'"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[Path], object], words: str, store: Path) -> None:
    with pytest.raises(ValueError, match=words):
        call(store)
