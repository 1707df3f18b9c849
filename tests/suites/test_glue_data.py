"""Readers of the official TSV layout, hub and micro sources."""

from __future__ import annotations

import dataclasses
import os
import sys
import types
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

import suites.generated
from suites.glue import SUITE, data
from suites.glue.data import digest_of, load
from suites.glue.tasks import TASKS, GlueTask
from suites.suite import Runtime
from suites.text.rows import Loaded

MNLI_HEAD = [
    *("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse".split()),
    *("sentence1_parse sentence2_parse sentence1 sentence2".split()),
]
HEADERS = {
    "cola": None,
    "sst2": ["sentence", "label"],
    "mrpc": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score".split(),
    "qqp": "id qid1 qid2 question1 question2 is_duplicate".split(),
    "qnli": "index question sentence label".split(),
    "rte": "index sentence1 sentence2 label".split(),
    "wnli": "index sentence1 sentence2 label".split(),
}
LABELS: dict[str, list[str]] = {
    **dict.fromkeys(("cola", "sst2", "mrpc", "qqp", "wnli"), ["1", "0", "1"]),
    **dict.fromkeys(("qnli", "rte"), ["not_entailment", "entailment", "not_entailment"]),
    "mnli": ["contradiction", "entailment", "neutral"],
    "stsb": ["5.000", "0.25", "3"],
}
EXPECTED: dict[str, list[float]] = {
    **dict.fromkeys(("cola", "sst2", "mrpc", "qqp", "wnli", "qnli", "rte"), [1, 0, 1]),
    "mnli": [2, 0, 1],
    "stsb": [5.0, 0.25, 3.0],
}
TEXTS = (['"He said ""no"""', 'one " quote', "caf\u00e9 \u2028 line \x85 end "], ["b 'x'", "", "d"])


def table(task: GlueTask, split: str) -> list[list[str]]:
    """Header (if the layout has one) and three rows, as the official files have them."""
    header = HEADERS.get(task.name)
    if task.name == "mnli":
        header = [*MNLI_HEAD, *(["label1"] if split == "train" else [f"label{n}" for n in range(1, 6)]), "gold_label"]
    names = header or list(task.layout.header or ())
    rows = []
    for number, label in enumerate(LABELS[task.name]):
        cells = dict.fromkeys(names, f"{number}")
        cells |= {column: TEXTS[side][number] for side, column in enumerate(task.layout.text)}
        cells[task.layout.label] = label
        rows.append([cells[name] for name in names])
    return [header, *rows] if header else rows


def write(folder: Path, task: GlueTask, *, bom: bool = False, end: str = "\n", last: bool = True) -> None:
    """One task's files under `folder`."""
    (folder / task.folder).mkdir(parents=True, exist_ok=True)
    for split, name in task.files.items():
        text = end.join("\t".join(cells) for cells in table(task, split)) + (end if last else "")
        encoded = ("\ufeff" if bom else "").encode() + text.encode()
        (folder / task.folder / name).write_bytes(encoded)


def edit(path: Path, line: int, new: bytes | None) -> None:
    """Replace the line (from 1), or delete it."""
    lines = path.read_bytes().split(b"\n")
    lines[line - 1 : line] = [] if new is None else [new]
    path.write_bytes(b"\n".join(lines))


def failure(*arguments: Any, **named: Any) -> str:
    """Text of the error that loading gives; one line always."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "shape", [{}, {"bom": True}, {"last": False}, {"end": "\r\n"}], ids=["plain", "bom", "no-last-newline", "crlf"]
)
@pytest.mark.parametrize("task", [TASKS[name] for name in EXPECTED], ids=lambda task: task.name)
def test_every_layout_loads_alike(task: GlueTask, shape: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, task, **shape)
    loaded = load(task.name, "directory", tmp_path)
    assert list(loaded.splits) == list(task.splits)
    for rows in loaded.splits.values():
        assert tuple(rows.column_names) == task.columns
        assert rows["label"][:] == EXPECTED[task.name]
        assert rows["idx"][:] == [0, 1, 2]
        for side, column in enumerate(task.text_columns):
            assert rows[column][:] == TEXTS[side]
        assert rows.cache_files == []
        names = None if task.labels is None else list(task.labels)
        assert getattr(rows.features["label"], "names", None) == names
    assert loaded.digest == digest_of(task.name, "directory", tmp_path)
    assert loaded.revision is None
    assert not loaded.official
    assert loaded.notes[0] == f"train: 3 of {task.official_rows['train']:,} official rows"
    assert len(loaded.notes) == len(task.splits)


def test_digest_follows_content_and_nothing_else(tmp_path: Path) -> None:
    task = TASKS["rte"]
    write(tmp_path / "a", task)
    write(tmp_path / "b", task)
    (tmp_path / "b" / "RTE" / "test.tsv").write_text("not used")
    first, second = (digest_of("rte", "directory", tmp_path / name) for name in "ab")
    assert first == second
    edit(tmp_path / "b" / "RTE" / "dev.tsv", 2, b"0\tx\ty\tentailment")
    assert digest_of("rte", "directory", tmp_path / "b") != first


def test_a_file_that_changes_in_one_process_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, TASKS["rte"])
    runtime = Runtime(torch.device("cpu"), data_dir=tmp_path)
    settings = SUITE.settings(model="micro", source="directory")

    def found() -> tuple[str | None, int]:
        plan = SUITE.data("rte", settings, runtime)
        return plan.digest, len(SUITE.load("rte", plan, runtime).splits["validation"])

    before = found()
    with (tmp_path / "RTE" / "dev.tsv").open("a") as stream:
        stream.write("3\ta\tb\tentailment\n")
    after = found()
    assert (before[1], after[1]) == (3, 4)
    assert before[0] != after[0]


def test_official_only_with_all_row_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, TASKS["rte"])
    for dev, official in ((3, True), (4, False)):
        monkeypatch.setitem(
            TASKS, "rte", dataclasses.replace(TASKS["rte"], official_rows={"train": 3, "validation": dev})
        )
        loaded = load("rte", "directory", tmp_path)
        assert loaded.official is official
        assert loaded.notes == ([] if official else ["validation: 3 of 4 official rows"])


def test_missing_directory_and_files(tmp_path: Path) -> None:
    assert "needs --data-dir" in failure("mnli", "directory")
    assert "no such directory" in failure("mnli", "directory", tmp_path / "nowhere")
    text = failure("mnli", "directory", tmp_path)
    assert "no file train.tsv, dev_matched.tsv, dev_mismatched.tsv" in text
    write(tmp_path, TASKS["mnli"])
    (tmp_path / "MNLI" / "dev_matched.tsv").unlink()
    text = failure("mnli", "directory", tmp_path)
    assert text.startswith(str(tmp_path / "MNLI"))
    assert "no file dev_matched.tsv; mnli expects train.tsv, dev_matched.tsv, dev_mismatched.tsv" in text
    with pytest.raises(ValueError, match="no file dev_matched.tsv"):
        digest_of("mnli", "directory", tmp_path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, TASKS["rte"])

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "train.tsv: cannot be read: Permission denied" in failure("rte", "directory", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "line", "new", "told"),
    [
        ("rte", "dev.tsv", 3, b"1\tonly a prem", "line 3: 2 tab-separated columns, expected 4: '1\\tonly a prem'"),
        ("cola", "train.tsv", 1, b"gj04\t1", "line 1: 2 tab-separated columns, expected 4"),
        ("sst2", "train.tsv", 2, b"a\tb\t1", "line 2: 3 tab-separated columns, expected 2"),
        ("mrpc", "dev.tsv", 3, b"", "line 3: 1 tab-separated columns, expected 5: ''"),
        ("qqp", "train.tsv", 3, b"7\t1\t2\thalf", "line 3: 4 tab-separated columns, expected 6"),
        (
            "rte",
            "train.tsv",
            4,
            b"2\ta\tb\tentailmnet",
            "line 4: wrong label 'entailmnet'; allowed are entailment, not_entailment; nearest is 'entailment'",
        ),
        ("wnli", "dev.tsv", 2, b"0\ta\tb\t2", "line 2: wrong label '2'; allowed are 0, 1; nearest is '1'"),
        ("cola", "dev.tsv", 3, b"x\t\t*\ttext", "line 3: wrong label ''; allowed are 0, 1"),
        ("qnli", "dev.tsv", 2, b"0\ta\tb\t0", "line 2: wrong label '0'; allowed are entailment, not_entailment"),
        (
            "stsb",
            "dev.tsv",
            2,
            b"\t" * 9 + b"5.2",
            "line 2: wrong label '5.2'; allowed is a number from 0.0 to 5.0; near",
        ),
        ("stsb", "dev.tsv", 2, b"\t" * 9 + b"nan", "line 2: wrong label 'nan'; allowed is a number from 0.0 to 5.0"),
        ("stsb", "dev.tsv", 2, b"\t" * 9 + b"high", "line 2: wrong label 'high'; allowed is a number"),
        ("rte", "train.tsv", 3, b"1\tcaf\xe9 au lait\tb\tentailment", "line 3, byte "),
        (
            "rte",
            "dev.tsv",
            1,
            b"index\tsentence1\tsentence2\tgold",
            "line 1: header has no column 'label'; found 'index, sentence1, sentence2, gold', "
            "expected sentence1, sentence2, label",
        ),
    ],
)
def test_bad_line(name: str, file: str, line: int, new: bytes, told: str, tmp_path: Path) -> None:
    task = TASKS[name]
    write(tmp_path, task)
    path = tmp_path / task.folder / file
    edit(path, line, new)
    text = failure(name, "directory", tmp_path)
    assert text.startswith(f"{path}, line ")
    assert told in text


def test_not_utf8_names_line_byte_and_value(tmp_path: Path) -> None:
    write(tmp_path, TASKS["sst2"])
    path = tmp_path / "SST-2" / "dev.tsv"
    path.write_bytes(b"sentence\tlabel\nfine\t1\nab\xe9c\t0\n")
    assert f"{path}, line 3, byte 24: not UTF-8: e9" in failure("sst2", "directory", tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("rte", b""), ("cola", b""), ("rte", b"index\tsentence1\tsentence2\tlabel\n")]
)
def test_empty_split(name: str, content: bytes, tmp_path: Path) -> None:
    write(tmp_path, TASKS[name])
    path = tmp_path / TASKS[name].folder / "dev.tsv"
    path.write_bytes(content)
    assert failure(name, "directory", tmp_path) == f"{path}: no rows; the validation split needs at least one"


def test_broken_qqp_lines_only_beside_the_official_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, TASKS["qqp"])
    path = tmp_path / "QQP" / "train.tsv"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], b"9\t1\t2\ta question that", b"\tgoes on?\t0", *lines[2:]]))
    assert "line 3: 4 tab-separated columns" in failure("qqp", "directory", tmp_path)
    exact = dataclasses.replace(TASKS["qqp"], official_rows={"train": 3, "validation": 3})
    monkeypatch.setitem(TASKS, "qqp", exact)
    loaded = load("qqp", "directory", tmp_path)
    assert loaded.official
    assert loaded.notes == ["train: 2 broken lines left out, as in the hub's release"]
    assert loaded.splits["train"]["idx"][:] == [0, 3, 4]
    edit(path, 3, None)
    edit(path, 5, None)
    assert "line 3: 3 tab-separated columns" in failure("qqp", "directory", tmp_path)


def hub_copy(task: GlueTask, **changes: Any) -> DatasetDict:
    """What the hub gives: more splits and, in another order, the same columns."""
    label = Value("float32") if task.labels is None else ClassLabel(names=list(task.labels))
    features = Features({"idx": Value("int32"), "label": label, **dict.fromkeys(task.text_columns, Value("string"))})
    columns = {"idx": [0, 1], "label": [0, 1], **{name: ["x", "y"] for name in task.text_columns}}
    rows = Dataset.from_dict(columns, features=features)
    return DatasetDict({**dict.fromkeys((*task.splits, "test"), rows), **changes})


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_hub_is_asked_for_the_pinned_revision(task: GlueTask, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def answer(*arguments: Any, **named: Any) -> DatasetDict:
        calls.append((arguments, named))
        return hub_copy(task)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    loaded = load(task.name, "hub")
    assert calls == [(("nyu-mll/glue", task.name), {"revision": data.HUB_REVISION})]
    assert list(loaded.splits) == list(task.splits)
    assert tuple(loaded.splits["train"].column_names) == task.columns
    assert (loaded.revision, loaded.digest) == (data.HUB_REVISION, digest_of(task.name, "hub"))
    assert not loaded.official
    assert loaded.notes[0].startswith("train: 2 of ")


@pytest.mark.parametrize("error", [ConnectionError("no\nroute"), datasets.exceptions.DatasetNotFoundError("gone")])
def test_hub_unreachable_is_an_error_not_a_fallback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **named: Any) -> DatasetDict:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    text = failure("rte", "hub")
    assert "could not be loaded" in text
    assert type(error).__name__ in text
    assert "--data-dir" in text
    assert "--profile micro" in text


def test_hub_offline_does_not_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("went to the network"))
    text = failure("rte", "hub", offline=True)
    assert "needs the network, and this run is offline" in text
    assert "--data-dir" in text


def test_hub_content_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS["rte"]
    whole = hub_copy(task)
    turned = whole["train"].cast_column("label", ClassLabel(names=["not_entailment", "entailment"]))
    stale = hub_copy(task)["train"]
    stale.info.download_checksums = {"hf://datasets/nyu-mll/glue@0123abc/rte/train.parquet": {}}
    for changed, told in (
        (whole["train"].remove_columns("sentence2"), "no column 'sentence2'"),
        (whole["train"].select([]), "no rows"),
        (turned, "classes are"),
        (stale, "another revision"),
    ):
        monkeypatch.setattr(
            datasets, "load_dataset", lambda *_, changed=changed, **__: {**whole, "validation": changed}
        )
        assert told in failure("rte", "hub")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": whole["train"]})
    assert "no split 'validation', found train" in failure("rte", "hub")


def test_micro_is_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    generated = types.ModuleType("suites.generated.tasks")
    generated.load = lambda name: hub_copy(TASKS[name])  # type: ignore[attr-defined]
    generated.digest = lambda name: f"digest of {name}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "suites.generated.tasks", generated)
    monkeypatch.setattr(suites.generated, "tasks", generated, raising=False)
    loaded = load("mnli", "micro")
    assert list(loaded.splits) == list(TASKS["mnli"].splits)
    assert loaded == Loaded(loaded.splits, "digest of mnli", None, [suites.generated.NOTICE], False)
    assert "generated language" in loaded.notes[0]


def test_unknown_source_and_task() -> None:
    assert "known are directory, hub, micro; nearest: directory" in failure("rte", "folder directory")
    assert "nearest is 'stsb'" in failure("sts-b", "micro")
    with pytest.raises(ValueError, match="unknown data source 'web'"):
        digest_of("rte", "web")


@pytest.mark.skipif("GNLORP_GLUE_DIR" not in os.environ, reason="GNLORP_GLUE_DIR names no real GLUE directory")
@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_real_files(task: GlueTask) -> None:
    loaded = load(task.name, "directory", os.environ["GNLORP_GLUE_DIR"])
    short = {note.split(":")[0] for note in loaded.notes}
    for split in task.splits:
        assert len(loaded.splits[split]) == task.official_rows[split] or split in short
        labels = loaded.splits[split]["label"][:]
        if task.labels is not None:
            assert set(labels) == set(range(task.num_labels))
