"""The table of GLUE tasks is complete and consistent."""

from __future__ import annotations

import pytest

from suites.glue.metrics import FUNCTIONS
from suites.glue.tasks import TASKS, GlueTask, get_task


def test_nine_tasks_in_their_folders() -> None:
    folders = {name: task.folder for name, task in TASKS.items()}
    official = {
        "cola": "CoLA",
        "sst2": "SST-2",
        "mrpc": "MRPC",
        "stsb": "STS-B",
        "qqp": "QQP",
        "mnli": "MNLI",
        "qnli": "QNLI",
        "rte": "RTE",
        "wnli": "WNLI",
    }
    assert official.items() <= folders.items()


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_row_is_consistent(task: GlueTask) -> None:
    split, _, metric = task.main_metric.partition("/")
    assert split == task.eval_splits[0]
    assert metric in task.metrics
    assert set(task.metrics) <= set(FUNCTIONS)
    assert set(task.official_rows) == set(task.splits)
    assert len(task.layout.text) == len(task.text_columns) in (1, 2)
    assert task.num_labels == (1 if task.labels is None else len(task.labels))
    # Where the files spell labels out, class order is the hub's.
    words = task.layout.words
    assert (words is None) == task.regression
    assert words is None or words == task.labels or words == tuple(map(str, range(task.num_labels)))


def test_files_of_both_layout_shapes() -> None:
    assert TASKS["rte"].files == {"train": "train.tsv", "validation": "dev.tsv"}
    assert TASKS["mnli"].files == {
        "train": "train.tsv",
        "validation_matched": "dev_matched.tsv",
        "validation_mismatched": "dev_mismatched.tsv",
    }


def test_entailment_is_class_zero_but_for_wnli() -> None:
    index = {name: TASKS[name].labels.index("entailment") for name in ("mnli", "qnli", "rte", "wnli")}  # type: ignore[union-attr]
    assert index == {"mnli": 0, "qnli": 0, "rte": 0, "wnli": 1}


@pytest.mark.parametrize(
    ("name", "near"), [("SST-2", "sst2"), ("CoLA", "cola"), ("mnli_matched", "mnli"), ("", "cola")]
)
def test_unknown_task_names_known_and_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown GLUE task '{name}'.*cola, sst2, mrpc.*nearest is '{near}'"):
        get_task(name)
