"""C4's documents: what a folder may hold, what is refused and how, and that no validation document is trained on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from suites.c4 import documents
from suites.c4.documents import directory_digest, files, load, read


def write(path: Path, texts: list[str], **more: Any) -> Path:
    content = "".join(json.dumps({"text": text, **more}) + "\n" for text in texts)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode(), mtime=0))
    else:
        path.write_text(content)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "c4-train.00001-of-00002.json.gz", ["third\nline two", "fourth é"], url="x")
    write(tmp_path / "c4-train.00000-of-00002.json.gz", ["first", "second"])
    write(tmp_path / "validation.jsonl", ["kept apart", "second"])
    return tmp_path


def test_files_of_both_kinds_are_read_in_order_of_name(folder: Path) -> None:
    found = files(folder)
    assert list(read(found["train"])) == ["first", "second", "third\nline two", "fourth é"]
    assert list(read(found["validation"])) == ["kept apart", "second"]


def test_the_hubs_layout_has_a_folder_for_the_language(folder: Path, tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "en"
    inner.mkdir(parents=True)
    for path in folder.glob("*.json*"):
        path.rename(inner / path.name)
    assert len(files(inner.parent)["train"]) == 2


def test_a_validation_document_in_train_is_left_out_and_counted(folder: Path) -> None:
    corpus = load("directory", folder, None, False)
    assert corpus.train == ("first", "third\nline two", "fourth é")
    assert corpus.evaluated == ("kept apart", "second")
    assert corpus.dropped == 1
    assert not corpus.official
    assert load("directory", folder, 1, False).train == ("first",)


def test_the_generated_documents_are_apart_too() -> None:
    corpus = load("micro", None, 300, False)
    assert not set(corpus.train) & set(corpus.evaluated)
    assert len(corpus.train) + corpus.dropped == 300


def test_held_out_documents_come_from_train_alone(tmp_path: Path) -> None:
    texts = [f"text {index}" for index in range(38)] + ["text 9"]
    write(tmp_path / "train.jsonl", texts)
    write(tmp_path / "validation.jsonl", ["never looked at"])
    corpus = load("directory", tmp_path, None, True)
    assert corpus.evaluated == ("text 9", "text 19", "text 29")
    assert set(corpus.train) == set(texts) - set(corpus.evaluated)
    with pytest.raises(ValueError, match="5 documents are too few"):
        load("directory", tmp_path, 5, True)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"text": "good"}\n{"text": "torn', ("train.jsonl: line 2", "no JSON")),
        (b'{"text": "good"}\n\n{"text": "more"}\n', ("train.jsonl: line 2", "is blank")),
        (b"\n\n", ("train.jsonl: is empty",)),
        (b'{"text": "good"}\n{"body": "x", "url": "y"}\n', ("train.jsonl: line 2", "no 'text'", "body, url")),
        (b'{"text": 3}\n', ("train.jsonl: line 1", "no 'text' that is a string")),
        (b'{"text": "  "}\n', ("train.jsonl: line 1", "something in it")),
        (b'["text"]\n', ("train.jsonl: line 1", "the line is no object")),
        (b"", ("train.jsonl: is empty",)),
        (b'{"text": "a"}\n{"text": "b"}\n{"text": "caf\xe9"}\n', ("train.jsonl: line 3, byte 14: not UTF-8: e9",)),
        (b'{"text": "a"}\n{"text": "half \\ud800 pair"}\n', ("train.jsonl: line 2", "surrogate", "character 6")),
        (b'{"text": ' + b"[" * 100_000 + b"\n", ("train.jsonl: line 1", "nested too deep")),
    ],
)
def test_a_faulty_line_is_named_with_file_and_number(content: bytes, parts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the parts are the match
        list(read([tmp_path / "train.jsonl"]))
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_blank_last_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\n\n \n')
    assert list(read([path])) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_without_validation.jsonl", "train"),
        ("validation_of_train.jsonl", "validation"),
        ("c4-train.00000-of-01024.json.gz", "train"),
        ("C4_Validation.json", "validation"),
        ("constrained.jsonl", None),
        ("invalidation.jsonl", None),
        ("train.txt", None),
    ],
)
def test_the_first_whole_word_of_a_name_decides(name: str, split: str | None) -> None:
    assert documents._split_of(Path(name)) == split


def test_a_torn_archive_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"text": "number %d"}\n' % index for index in range(2000)))
    (tmp_path / "train.json.gz").write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"train.json.gz: cannot be read after line \d+"):
        list(read([tmp_path / "train.json.gz"]))


def test_folders_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a folder of JSON lines, given with --data-dir"):
        files(None)
    with pytest.raises(ValueError, match="is not there"):
        files(tmp_path / "nowhere")
    (folder / "validation.jsonl").unlink()
    with pytest.raises(
        ValueError, match="no file for validation; a name holds 'validation' as a word and ends in .jsonl"
    ):
        files(folder)


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ["same"])
    write(tmp_path / "validation.jsonl", ["same"])
    with pytest.raises(ValueError, match="none of its 1 documents is left"):
        load("directory", tmp_path, None, False)


def test_the_digest_names_the_content(folder: Path, tmp_path: Path) -> None:
    before = directory_digest(folder)
    assert directory_digest(folder) == before
    write(folder / "validation.jsonl", ["kept apart", "third"])
    assert directory_digest(folder) != before


def test_a_file_that_changes_in_one_process_is_read_again(folder: Path) -> None:
    assert "third" not in load("directory", folder, None, False).evaluated
    write(folder / "validation.jsonl", ["kept apart", "third"])
    assert "third" in load("directory", folder, None, False).evaluated


def test_offline_forbids_the_hub() -> None:
    with pytest.raises(ValueError, match="allenai/c4 needs the network, which --offline forbids"):
        next(documents.hub_validation(offline=True))
