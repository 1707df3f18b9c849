"""The catalogue: what owners say is what is committed, embedded and refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from baselines.registry import methods
from results.catalogue import (
    COMMITTED,
    Catalogue,
    CatalogueError,
    MethodEntry,
    MetricEntry,
    SuiteEntry,
    TaskEntry,
    catalogue_of,
    committed,
    joined,
    read_catalogue,
)  # fmt: skip
from results.schema import Record
from results.store import StoreError, read_record, record_paths, write_record
from suites.catalogue import catalogue, catalogue_for, method_entry
from suites.registry import all_suites


def test_the_committed_catalogue_says_what_the_owners_say() -> None:
    """What is new since describes its own records; what is committed must be as its owner has it today."""
    said, kept = catalogue(), committed()
    names = {method.name for method in kept.methods}
    assert [method for method in said.methods if method.name in names] == kept.methods, (
        "python -m suites catalogue --out results/reference/catalogue.json"
    )
    for suite in kept.suites:
        mine = said.suite(suite.name)
        tasks, metrics = {task.name for task in suite.tasks}, {metric.name for metric in suite.metrics}
        reduced = {
            "tasks": [task for task in mine.tasks if task.name in tasks],
            "metrics": [metric for metric in mine.metrics if metric.name in metrics],
        }
        assert mine.model_copy(update=reduced) == suite, (
            "python -m suites catalogue --out results/reference/catalogue.json"
        )


def test_every_reference_record_is_described_by_itself_or_by_the_committed_catalogue() -> None:
    records = [read_record(path) for path in record_paths([COMMITTED.parent])]
    known = catalogue_of(record.catalogue for record in records)
    assert {record.plan.method for record in records} <= {method.name for method in known.methods}
    for suite, task, metric in {(r.plan.suite, r.plan.task, r.main_metric) for r in records}:
        assert known.suite(suite).task(task) is not None
        assert metric is None or known.suite(suite).metric(metric)


def test_every_method_has_a_row_and_a_look_of_its_own() -> None:
    found = [method_entry(method) for method in methods().values()]
    assert [entry.name for entry in found if entry.yardstick] == [found[0].name]
    assert len({entry.order for entry in found}) == len(found)
    slots = [entry.slot for entry in found if entry.slot is not None]
    assert len(set(slots)) == len(slots)


@pytest.mark.parametrize("name", tuple(all_suites()))
def test_a_suite_describes_all_its_tasks_and_their_metrics(name: str) -> None:
    suite = all_suites()[name]
    assert suite.entry.name == name
    assert suite.entry.ordered(suite.tasks) == list(suite.tasks) == [task.name for task in suite.entry.tasks]
    for task in suite.entry.tasks:
        assert suite.entry.metric(task.main_metric).name in task.metrics
        for key in [key for keys in task.readings.values() for key in keys]:
            assert suite.entry.metric(key).name in task.metrics
        assert not task.readings or next(iter(task.readings.values())) == [task.main_metric]


def test_a_record_embeds_what_it_needs_and_keeps_its_hash(make_record: Callable[..., Record], tmp_path: Path) -> None:
    record = make_record()
    found = catalogue_for(record.plan)
    assert [entry.name for entry in found.methods] == [record.plan.method]
    assert [task.name for entry in found.suites for task in entry.tasks] == [record.plan.task]
    described = record.model_copy(update={"catalogue": found})
    assert read_record(write_record(tmp_path, described)) == described
    assert described.plan.hash() == record.plan_hash


def test_what_a_record_embeds_stands_in_the_place_of_what_is_committed() -> None:
    new = Catalogue(
        methods=[MethodEntry(name="lora", title="LoRA, renamed"), MethodEntry(name="rslora", title="rsLoRA")],
        suites=[SuiteEntry(name="glue", title="GLUE", tasks=[_task("toy", "Toy", 99)])],
    )
    found = catalogue_of([None, new])
    assert [found.method(name).title for name in ("full", "lora", "rslora", "x")] == [
        "Full fine-tuning", "LoRA, renamed", "rsLoRA", "x",
    ]  # fmt: skip
    assert found.ordered(["x", "rslora", "dora", "full"]) == ["full", "dora", "rslora", "x"]
    suite = found.suite("glue")
    assert suite.ordered(["toy", "rte", "cola"]) == ["cola", "rte", "toy"]
    assert suite.task_title("toy") == "Toy"
    assert suite.metric("validation/f1").title == "F1"


def test_an_unknown_metric_has_no_direction() -> None:
    with pytest.raises(CatalogueError, match=r"'acuracy' of suite 'glue' is in no catalogue.*nearest: accuracy"):
        committed().suite("glue").metric("validation/acuracy")


def test_metrics_print_values_and_differences() -> None:
    metric = MetricEntry(name="a", title="accuracy", better="higher", unit="%", format=".1f", scale=100)
    assert (metric.text(0.1234), metric.text(-0.5, "+"), metric.text(-1e-9, "+")) == ("12.3", "−50.0", "0.0")
    assert metric.head == "Accuracy, %"
    assert (metric.gain(2), metric.model_copy(update={"better": "lower"}).gain(2)) == (2, -2)


def test_the_yardstick_is_found_by_what_it_is() -> None:
    assert committed().yardstick(["lora", "full"]) == "full"
    assert committed().yardstick(["lora"]) is None
    assert joined([]).yardstick(["full"]) is None


@pytest.mark.parametrize("title", ["", "  "])
def test_a_method_without_a_title_is_refused_by_its_file(title: str) -> None:
    broken = dataclasses.replace(methods()["lora"], title=title)
    with pytest.raises(CatalogueError, match=r"METHOD of baselines/lora\.py: title "):
        method_entry(broken)


def test_an_entry_without_a_title_is_refused(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps({"methods": [{"name": "x"}]}))
    with pytest.raises(CatalogueError, match=r"no catalogue: methods\.0\.title: Field required"):
        read_catalogue(path)
    written = write_record(tmp_path / "store", make_record())
    table = json.loads(written.read_text()) | {"catalogue": {"methods": [{"name": "x"}]}}
    written.write_text(json.dumps(table))
    with pytest.raises(StoreError, match=r"catalogue\.methods\.0\.title: Field required"):
        read_record(written)


def _task(name: str, title: str, order: int) -> TaskEntry:
    return TaskEntry(name=name, title=title, order=order, main_metric="validation/f1", metrics=["f1"])
