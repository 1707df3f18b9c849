"""The hub's stream, with a local one in its place: order, position, and documents that must not be trained on."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import datasets
import pytest
import torch

from results.schema import DataPlan
from suites.c4 import data, documents, tokens
from suites.suite import Runtime

TEXTS = {"train": [f"document {index} of many" for index in range(23)], "validation": ["document 5 of many", "other"]}
RUNTIME = Runtime(torch.device("cpu"))


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataPlan:
    monkeypatch.setenv("GNLORP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    for split, texts in TEXTS.items():
        lines = [json.dumps({"text": text, "url": "x"}) for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")

    def local(split: str, offline: bool) -> datasets.IterableDataset:
        return datasets.load_dataset(
            "json", data_files={split: str(tmp_path / f"{split}.jsonl")}, split=split, streaming=True
        )

    made = tokens.trained(300, lambda: TEXTS["train"], "hub test")
    monkeypatch.setattr(documents, "_hub", local)
    monkeypatch.setattr(tokens, "from_hub", lambda name, offline: made)
    return DataPlan(source="hub", name="allenai/c4", max_length=16, tokenizer="t5-base", layout="padded", eval_tokens=8)


def test_the_stream_starts_again_at_any_place_and_epochs_differ(plan: DataPlan) -> None:
    made = data.tokenizer_of("t5-base", "hub", RUNTIME)
    prepared = data.prepare(plan, made.size, RUNTIME)
    whole = [batch["input_ids"] for batch in islice(prepared.batches(4, 7, 0), 13)]
    for start in (1, 5, 6, 12):
        assert torch.equal(next(prepared.batches(4, 7, start))["input_ids"], whole[start])
    rows = [tuple(row) for batch in whole for row in batch.tolist()]
    first, second = rows[:22], rows[22:44]
    assert first != second
    assert sorted(first) == sorted(second)
    other = next(prepared.batches(4, 8, 0))["input_ids"]
    assert not torch.equal(other, whole[0])


def test_an_evaluated_document_is_never_trained_on(plan: DataPlan) -> None:
    made = data.tokenizer_of("t5-base", "hub", RUNTIME)
    prepared = data.prepare(plan, made.size, RUNTIME)
    seen = {tuple(row) for batch in islice(prepared.batches(4, 0, 0), 12) for row in batch["input_ids"].tolist()}
    (forbidden,) = data.lay_out(made.encode(["document 5 of many"]), "padded", 16, made.end).ids.tolist()
    assert tuple(forbidden) not in seen
    assert len(seen) == 22
    assert prepared.facts.official
    assert prepared.evaluated.tokens >= 8


def test_nothing_of_it_can_be_held_out(plan: DataPlan) -> None:
    made = data.tokenizer_of("t5-base", "hub", RUNTIME)
    with pytest.raises(ValueError, match="tune on a folder given with --data-dir"):
        data.prepare(plan.model_copy(update={"held_out": True}), made.size, RUNTIME)
