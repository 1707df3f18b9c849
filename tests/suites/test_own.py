"""Own tasks: what a file may say, what its rows may be, and that they run like any other."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from suites import models
from suites.generated import tasks as generated
from suites.own import SUITE, data, tasks
from suites.own.data import loaded
from suites.own.tasks import add_task, get_task, read_task
from suites.plan import Request, make_plans
from suites.run.execute import execute
from suites.suite import Outside, Runtime

CLASSES = ("bad", "odd", "good")
TOML = """
name = "reviews"
title = "Reviews of mine"
text = "review"
label = "stars"
labels = ["bad", "odd", "good"]
metrics = ["accuracy", "f1_macro"]
train = "train.csv"
validation = "dev.csv"
"""
PYTHON = """
from suites.own import Metric, Task

def off_by(guess, truth):
    return float(abs(guess - truth).mean())

TASK = Task(
    name="reviews", text="review", label="stars", labels=("bad", "odd", "good"), train="train.csv",
    validation="dev.csv", metrics=(Metric("off_by", off_by, "classes off", better="lower"), "accuracy"),
)
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_known", {})


def rows_of(count: int) -> list[dict[str, str]]:
    """Return sentences of the generated language; their class is their length, which can be learnt."""
    texts = generated.load("sst2")["train"]["sentence"][:count]
    return [{"id": str(i), "review": text, "stars": CLASSES[len(text.split()) % 3]} for i, text in enumerate(texts)]


def write(path: Path, rows: list[dict[str, str]], separator: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = rows_of(90)
    write(tmp_path / "train.csv", rows[:60])
    write(tmp_path / "dev.csv", rows[60:])
    (tmp_path / "reviews.toml").write_text(TOML)
    return tmp_path


def task_of(folder: Path, text: str, name: str = "task.toml") -> Any:
    (folder / name).write_text(text)
    return loaded(read_task(folder / name))


def test_a_table_of_three_classes_is_read(folder: Path) -> None:
    task, found = loaded(read_task(folder / "reviews.toml"))
    assert (task.labels, task.num_labels, task.main_metric) == (CLASSES, 3, "validation/accuracy")
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 60, "validation": 30}
    first = rows_of(1)[0]
    assert found.splits["train"][0] == {"text": first["review"], "label": CLASSES.index(first["stars"]), "idx": 0}


def test_every_form_of_file_gives_the_same_rows(folder: Path) -> None:
    _, wanted = loaded(read_task(folder / "reviews.toml"))
    rows = rows_of(60)
    write(folder / "train.tsv", rows, "\t")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    for ending in ("tsv", "jsonl", "parquet"):
        _, found = task_of(folder, TOML.replace("train.csv", f"train.{ending}"))
        assert found.splits["train"][:] == wanted.splits["train"][:], ending


def test_text_of_digits_and_words_that_mean_nothing_stay_as_they_are(folder: Path) -> None:
    rows = [{"a": "1.10", "b": "NA", "stars": "01"}, {"a": "007", "b": "null", "stars": "2"}]
    write(folder / "train.csv", rows)
    write(folder / "dev.csv", rows)
    text = 'name = "pairs"\ntext = ["a", "b"]\nlabel = "stars"\ntrain = "train.csv"\nvalidation = "dev.csv"\n'
    task, found = task_of(folder, text)
    assert task.labels == ("01", "2")
    assert found.splits["train"][:]["text1"] == ["1.10", "007"]
    assert found.splits["train"][:]["text2"] == ["NA", "null"]


def test_without_validation_a_tenth_of_train_is_held_out_and_said(folder: Path) -> None:
    _, found = task_of(folder, TOML.replace('validation = "dev.csv"', ""))
    assert {name: len(rows) for name, rows in found.splits.items()} == {"train": 54, "validation": 6}
    assert found.notes == ["no validation split: 6 of 60 rows of train are held out for it"]


def test_a_number_is_a_number(folder: Path) -> None:
    rows = [{"review": f"word {i}", "score": str(i / 4)} for i in range(12)]
    write(folder / "train.csv", rows)
    text = 'name = "scores"\ntext = "review"\nlabel = "score"\nregression = true\n'
    text += 'train = "train.csv"\nvalidation = "train.csv"\n'
    task, found = task_of(folder, text)
    assert (task.labels, task.num_labels, task.main_metric) == (None, 1, "validation/pearsonr")
    assert found.splits["train"]["label"][:3] == [0.0, 0.25, 0.5]


def test_a_data_set_of_the_hub_brings_its_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features({"review": Value("string"), "stars": ClassLabel(names=["no", "yes"])})
    made = Dataset.from_dict({"review": ["a", "b", "c"], "stars": [0, 1, 1]}, features=features)
    seen: list[Any] = []

    def load(name: str, config: str | None, split: str, revision: str) -> Dataset:
        seen.append((name, config, split, revision))
        return DatasetDict({"train": made, "validation": made})[split]

    monkeypatch.setattr(data.datasets, "load_dataset", load)
    text = 'name = "hubbed"\ntext = "review"\nlabel = "stars"\nhub = "owner/name"\nrevision = "abc"\n'
    task, found = task_of(folder, text)
    assert task.labels == ("no", "yes")
    assert found.revision == "abc"
    assert found.splits["train"]["label"][:] == [0, 1, 1]
    assert seen == [("owner/name", None, "train", "abc"), ("owner/name", None, "validation", "abc")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("metrics", "metrcs"), "unknown task's 'metrcs'.*nearest: metrics"),
        (('"accuracy", "f1_macro"', '"acuracy"'), "unknown metric of task 'reviews'.*nearest: accuracy"),
        (('"accuracy", "f1_macro"', '"pearsonr"'), "unknown metric of task 'reviews' \\(classes\\) 'pearsonr'"),
        (('"accuracy", "f1_macro"', '"f1"'), "metric 'f1' is of two classes, it has 3.*f1_macro"),
        (('text = "review"', 'text = "revew"'), "no column 'revew', found id, review, stars"),
        (('label = "stars"', 'label = "review"'), "label 'review': is a column of text too"),
        (('"bad", "odd", "good"', '"bad", "good"'), "train, row \\d+: label 'odd': allowed are bad, good"),
        (('"train.csv"', '"nowhere.csv"'), "train file .*nowhere.csv: is not there"),
        (('"train.csv"', '"train.xls"'), "train.xls"),
        (('train = "train.csv"', ""), "train and hub: give exactly one of the two"),
        (('name = "reviews"', 'name = "My Reviews"'), "name = 'My Reviews'"),
        (('name = "reviews"', "name = "), "is no TOML"),
        (('text = "review"', 'text = ["a", "b", "c"]'), "must be one column, or two different ones"),
    ],
)
def test_what_is_wrong_is_one_line(change: tuple[str, str], words: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        task_of(folder, TOML.replace(*change))
    assert "\n" not in str(caught.value)


def test_a_row_without_text_is_named(folder: Path) -> None:
    rows = rows_of(5)
    rows[3]["review"] = " "
    write(folder / "train.csv", rows)
    with pytest.raises(ValueError, match="task 'reviews', train, row 4: column 'review' is empty"):
        loaded(read_task(folder / "reviews.toml"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "train.csv",
            ",review,stars\n0,a,bad\n",
            r"line 1: header \['', 'review', 'stars'\]: must name every .*index=False",
        ),
        (
            "train.csv",
            "review,stars,\na,bad,\n",
            r"line 1: header \['review', 'stars', ''\]: must name every column, [^;]*$",
        ),
        ("train.csv", "review,stars\na,bad\nb, c,odd\n", "line 3: 3 fields, and the header has 2"),
        ("train.csv", "review,stars\na,b,bad\nc,d,odd\n", "line 2: 3 fields, and the header has 2"),
        ("train.csv", 'id,review,stars\n0,"a\nb",bad\n\n1,odd\n', "line 5: 2 fields, and the header has 3"),
        ("train.tsv", "review\tstars\na\tbad\nb\tc\todd\n", "line 3: 3 fields, and the header has 2"),
        ("train.csv", b"review,stars\na,bad\n\xe9,odd\n", "not UTF-8 at byte 19"),
    ],
)
def test_a_table_that_would_be_read_askew_is_refused(name: str, content: str | bytes, words: str, folder: Path) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"{name}(, |: ){words}") as caught:
        task_of(folder, TOML.replace("train.csv", name))
    assert "\n" not in str(caught.value)


def test_what_the_csv_module_cannot_read_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "LONGEST_FIELD", 20)
    with pytest.raises(ValueError, match=r"train\.csv, line \d+: cannot be read as csv: field larger than field limit"):
        loaded(read_task(folder / "reviews.toml"))
    assert csv.field_size_limit() > 20


def test_long_texts_blank_lines_and_quotes_in_a_header_are_read(folder: Path) -> None:
    text = "word " * 50_000
    (folder / "train.csv").write_text(f'\ufeffreview,stars\n"{text}",bad\n\nb,odd\n"c ""d""",good\n   \n')
    _, found = loaded(read_task(folder / "reviews.toml"))
    assert found.splits["train"]["text"][:] == [text, "b", 'c "d"']
    (folder / "train.tsv").write_text('"review"\tstars\n"a\tbad\nb"\todd\n')
    quoted = "name = 'quoted'\ntext = '\"review\"'\nlabel = 'stars'\ntrain = 'train.tsv'\nvalidation = 'train.tsv'\n"
    _, found = task_of(folder, quoted)
    assert found.splits["train"]["text"][:] == ['"a', 'b"']


@pytest.mark.parametrize("missing", [None, -1])
def test_a_label_that_the_hub_does_not_have_is_named(
    missing: int | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Features({"review": Value("string"), "stars": ClassLabel(names=["no", "yes"])})
    made = Dataset.from_dict({"review": ["a", "b"], "stars": [0, missing]}, features=features)
    monkeypatch.setattr(data.datasets, "load_dataset", lambda *given, **named: made)
    text = 'name = "hubbed"\ntext = "review"\nlabel = "stars"\nhub = "owner/name"\nrevision = "abc"\n'
    with pytest.raises(ValueError, match="^task 'hubbed', train, row 2: has no label in column 'stars'$"):
        task_of(folder, text)


def planned(folder: Path, path: Path, method: str = "full", **more: Any) -> tuple[Any, Runtime]:
    add_task(path)
    name = read_task(path).name
    runtime = Runtime(torch.device("cpu"), outside=Outside(tasks=(path,)), offline=True)
    overrides = (("steps", 2), ("batch_size", 8), ("evaluations", 1), *more.items())
    (plan,) = make_plans(Request("own", "micro", 4, (name,), (method,), (0,), overrides), runtime)
    return plan, runtime


def test_a_python_file_brings_a_metric_of_its_own_and_runs(folder: Path) -> None:
    path = folder / "mine.py"
    path.write_text(PYTHON)
    plan, runtime = planned(folder, path)
    assert str(folder) not in plan.model_dump_json()
    record = execute(plan, runtime, None, lambda step, loss: None)
    assert record.status == "ok", record.error
    assert record.main_metric == "validation/off_by"
    assert set(record.evaluations[-1].metrics) == {"validation/off_by", "validation/accuracy"}
    assert record.catalogue is not None
    entry = record.catalogue.suite("own")
    assert entry.task_title("reviews") == "reviews"
    assert entry.metric("validation/off_by").better == "lower"
    assert record.data is not None
    assert record.data.constant_scores["validation/accuracy"] is not None


def test_data_or_description_that_change_are_another_plan(folder: Path) -> None:
    plan, _ = planned(folder, folder / "reviews.toml")
    rows = rows_of(60)
    write(folder / "train.csv", rows[:-1])
    other, _ = planned(folder, folder / "reviews.toml")
    assert other.hash() != plan.hash()
    (folder / "reviews.toml").write_text(TOML.replace("of mine", "of others"))
    third, _ = planned(folder, folder / "reviews.toml")
    assert third.hash() not in {plan.hash(), other.hash()}


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    add_task(folder / "reviews.toml")
    (folder / "again.toml").write_text(TOML)
    with pytest.raises(ValueError, match=r"task 'reviews': stands in .*reviews\.toml and in .*again\.toml: rename"):
        add_task(folder / "again.toml")
    assert get_task("reviews").path == folder / "reviews.toml"


def test_rows_of_like_length_come_together_where_it_is_asked_for(folder: Path) -> None:
    plain, _ = planned(folder, folder / "reviews.toml")
    grouped, _ = planned(folder, folder / "reviews.toml", length_grouping=5)
    assert (plain.data.length_grouping, grouped.data.length_grouping) == (0, 5)
    assert grouped.hash() != plain.hash()
    assert "length_grouping" not in plain.data.model_dump(exclude_defaults=True)


def test_the_suite_says_how_it_is_given_a_task(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no task of its own: give one with --task"):
        make_plans(Request("own", "micro", 4), Runtime(torch.device("cpu")))
    add_task(folder / "reviews.toml")
    with pytest.raises(ValueError, match="where its rows are stands in the task's own file"):
        SUITE.data("reviews", SUITE.settings(model="micro"), Runtime(torch.device("cpu"), data_dir=folder))


def test_other_suites_say_where_own_tasks_run(folder: Path) -> None:
    from suites.outside import named_tasks
    from suites.registry import get_suite

    with pytest.raises(ValueError, match=r"suite 'glue' takes no files of tasks; .*suites run own --task FILE"):
        named_tasks([str(folder / "reviews.toml")], get_suite("glue"))


def test_a_saved_model_calls_the_classes_by_their_names(folder: Path, make_plan: Callable[..., Any]) -> None:
    plan, runtime = planned(folder, folder / "reviews.toml")
    assert SUITE.job(plan, runtime).model().config.id2label == dict(enumerate(CLASSES))
    assert get_task("reviews").labels == CLASSES
    local = shutil.copytree(models.micro_folder(), folder / "encoder")
    named = models.resolve_model(str(local), replace(runtime, model_dir=local))
    assert named.source == "directory"
