"""Tokenizers of the pre-training suite: trained, local, generated; sizes, bytes covered, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from suites.c4 import data, tokens
from suites.c4.tokens import END, Tokenizer, local, micro, ready, trained

TEXTS = ["the cat sat on the mat", "the dog sat", "naïve café — 漢字 and 🙂", "a\nb  c "] * 5


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GNLORP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def train(size: int = 300) -> Tokenizer:
    return trained(size, lambda: TEXTS, "texts")


def test_training_gives_the_same_tokenizer_again_with_and_without_the_cache(cache: Path) -> None:
    first = train()
    (file,) = cache.iterdir()
    assert train().digest == first.digest
    file.unlink()
    assert train().digest == first.digest
    assert first.size <= 300
    file.write_text("{}")
    with pytest.raises(ValueError, match="no file of the tokenizers library"):
        train()


def test_a_cache_that_cannot_be_written_changes_nothing(cache: Path) -> None:
    expected = train().digest
    for file in cache.iterdir():
        file.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder would be")
    assert train().digest == expected


def test_texts_come_back_and_end_with_the_end_token() -> None:
    made = train()
    for text, ids in zip(TEXTS, made.encode(TEXTS), strict=True):
        assert ids[-1] == made.end
        assert made.core.decode(list(ids[:-1])) == text


@pytest.mark.parametrize("make", [train, None])
def test_covered_bytes_add_up_to_the_text(make: object) -> None:
    made, texts = (train(), TEXTS) if make else (micro(), ["this gifan ( it )"])
    for text, ids, covered in zip(texts, made.encode(texts), made.covered_bytes(texts), strict=True):
        assert len(covered) == len(ids)
        assert covered[-1] == 0
        assert covered.sum() == len(text.encode())
        assert (covered >= 0).all()


def test_a_marker_inside_a_text_is_text() -> None:
    made = train()
    (ids,) = made.encode([f"a {END} b"])
    assert made.end not in ids[:-1]


def test_a_file_and_its_folder_are_the_same_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(train().core.to_str())
    assert local(tmp_path).digest == local(tmp_path / "tokenizer.json").digest


def test_a_file_that_changes_in_one_process_is_read_again(tmp_path: Path) -> None:
    core = train().core
    (tmp_path / "tokenizer.json").write_text(core.to_str())
    before = local(tmp_path).size
    core.add_tokens(["a word of its own"])
    (tmp_path / "tokenizer.json").write_text(core.to_str())
    assert local(tmp_path).size == before + 1


def test_size_counts_what_a_text_can_hold_not_markers_that_it_cannot() -> None:
    core = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "</s>": 2, "<extra_0>": 3}, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["</s>", "<extra_0>"])
    assert ready(core.to_str(), "toy").size == 3
    core.add_tokens(["mail"])
    made = ready(core.to_str(), "toy")
    assert made.size == 5
    assert list(made.encode(["a mail"])[0]) == [0, 4, 2]


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="no file of the tokenizers library"):
        local(tmp_path)
    with pytest.raises(ValueError, match="cannot be read; must be a tokenizer.json or a folder with one"):
        local(tmp_path / "nowhere")
    core = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(ValueError, match="has no end token; one of </s>"):
        ready(core.to_str(), "toy")
    with pytest.raises(ValueError, match=r"'bpe:3': must have at least 257 entries \(nearest: bpe:257\)"):
        train(3)


def test_the_models_embedding_must_have_as_many() -> None:
    made = micro()
    data.check_vocabulary(made, "micro", made.size)
    with pytest.raises(ValueError, match=rf"vocabulary 32000: tokenizer micro has {made.size} entries.*nearest"):
        data.check_vocabulary(made, "micro", 32000)


def test_an_unknown_name_is_refused_before_any_download() -> None:
    with pytest.raises(ValueError, match="unknown tokenizer 't5-bas': known are t5-base; nearest: t5-base"):
        tokens.from_hub("t5-bas", False)
