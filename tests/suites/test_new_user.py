"""A new user's path, from a copy of the tree beside their own files: own task, model and method, two settings, and all
that is made of them. Everything goes through the command lines that a person types."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM
from transformers.utils import logging

from results.schema import Record
from results.store import read_records
from suites.generated import encoder_path
from suites.generated import tasks as generated

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gnlorp", "baselines", "suites", "results", "reports")
CLASSES = ("short", "middle", "long")
TASK = """
name = "lengths"
title = "How long"
text = "sentence"
label = "length"
labels = ["short", "middle", "long"]
metrics = ["accuracy", "f1_macro"]
train = "train.csv"
validation = "dev.csv"
"""
METHOD = '''"""Plain gradient descent on the head alone."""
from dataclasses import replace

import torch

from baselines.frozen import METHOD as FROZEN
from baselines.method import Rates, nothing_kept, trainable


def optimizer(model, placement, adam, config):
    return torch.optim.SGD(trainable(model).values(), lr=adam.learning_rate, weight_decay=adam.weight_decay)


METHOD = replace(
    FROZEN, name="head_sgd", title="SGD on the head", optimizer=optimizer, rest_kept=nothing_kept, widths=(32,),
    control=False, pack_rate=0.2, order=60, rates={"fine-tuning": Rates.around(0.05, "own choice")},
)
'''


def write_task(folder: Path) -> None:
    """Write a CSV of three classes: how long a sentence is."""
    folder.mkdir()
    texts = generated.load("sst2")["train"]["sentence"][:240]
    ordered = sorted(len(text.split()) for text in texts)
    bounds = (ordered[80], ordered[160])
    rows = [(text, CLASSES[sum(len(text.split()) > bound for bound in bounds)]) for text in texts]
    for name, part in (("train", rows[:180]), ("dev", rows[180:])):
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("sentence", "length"), *part])
    (folder / "lengths.toml").write_text(TASK)
    (folder / "head_sgd.py").write_text(METHOD)


def write_model(folder: Path) -> None:
    """Write a tiny BERT, its weights drawn, with the micro tokenizer."""
    logging.disable_progress_bar()
    entries = len(json.loads((encoder_path() / "tokenizer.json").read_text())["model"]["vocab"])
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=entries, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(encoder_path() / name, folder)


def typed(place: Path, tree: Path, *words: str) -> str:
    """Return what a command prints that is typed in `place`, the packages being those of `tree`; it must end well."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=place, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_from_own_files_to_tables_page_and_a_model_that_loads(tmp_path: Path) -> None:
    tree, place = tmp_path / "tree", tmp_path / "mine"
    ignored = shutil.ignore_patterns("__pycache__", "runs", "build", ".*cache*")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    write_task(place)
    write_model(place / "tiny-bert")
    own = ["suites", "run", "own", "--task", "lengths.toml", "--model", "tiny-bert", "--offline", "--seeds", "0,1",
           "--workers", "1", "--out", "runs", "--steps", "40"]  # fmt: skip
    first = typed(place, tree, *own, "--method", "lora,head_sgd.py:METHOD", "--save-model", "merged",
                  "--tracker", "tensorboard")  # fmt: skip
    assert "4 runs ok" in first
    second = typed(place, tree, *own, "--method", "lora", "--set", "method.lora.config.alpha=32")
    assert "2 runs ok" in second
    records = read_records([place / "runs"])
    assert len(records) == 6
    assert {record.plan.task for record in records} == {"lengths"}
    assert not any(str(place) in record.plan.model_dump_json() for record in records)
    check_reports(place, tree)
    for record in records:
        folder = place / "runs" / "models" / record.plan.label
        if record.plan.method_config.get("alpha") == 32:
            assert not folder.exists()
            continue
        check_model(folder, record, place)
        check_events(place / "runs" / "trackers" / record.plan.label, record)


def check_reports(place: Path, tree: Path) -> None:
    """Check table, figure, page and JSON of both settings, the task and the methods by their own names."""
    table = typed(place, tree, "reports", "own", "--records", "runs", "--out", "made")
    for title in ("How long", "LoRA", "SGD on the head"):
        assert title in table
    made = place / "made" / "own-micro-r8"
    lines = (made / "scores.md").read_text().splitlines()
    assert sum(line.startswith("| LoRA") for line in lines) == 2, "two settings are two rows"
    assert list(made.glob("*.svg"))
    assert list(made.glob("*.json"))
    typed(place, tree, "reports", "paper", "--records", "runs", "--out", "page", "--no-figures")
    page = next((place / "page").rglob("index.html")).read_text()
    assert "How long" in page
    assert "SGD on the head" in page


def check_model(folder: Path, record: Record, place: Path) -> None:
    """Check that a saved model loads with the recorded score."""
    from transformers import AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with (place / "dev.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    right = 0
    for row in rows:
        logits = model(**tokenizer(row["sentence"], truncation=True, max_length=64, return_tensors="pt")).logits
        right += model.config.id2label[int(logits.argmax())] == row["length"]
    assert record.main_metric == "validation/accuracy"
    assert right / len(rows) == pytest.approx(record.evaluations[-1].metrics["validation/accuracy"])
    assert f"{record.evaluations[-1].metrics['validation/accuracy']}" in (folder / "README.md").read_text()


def check_events(folder: Path, record: Record) -> None:
    """Check that TensorBoard reads the run's curve back."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == {point.step: pytest.approx(point.loss, rel=1e-5) for point in record.curve}
