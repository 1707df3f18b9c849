"""A second opinion on the loop: the records' full fine-tuning again by a plain `transformers.Trainer`, same metrics.

Model, rows, tokens, steps, batch size, peak learning rate, warm-up, clipping and precision are the plan's; order,
dropout and schedule are Trainer's own, so that scores agree within the spread over seeds, not digit by digit.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from results.schema import Plan
from results.store import read_records
from suites.glue import SUITE
from suites.measure.environment import derived_seed
from suites.run.loop import autocast
from suites.suite import Runtime
from suites.text import encode

RECORDS = Path(__file__).resolve().parents[2] / "results" / "reference" / "glue-micro-r8"


class Rows(Dataset[encode.EncodedRow]):
    """The encoded rows as Trainer wants them."""

    def __init__(self, encoded: encode.Encoded) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> encode.EncodedRow:
        return self._encoded.rows([index])[0]


def trainer_scores(plan: Plan, runtime: Runtime, scratch: Path) -> dict[str, float | None]:
    """Return the scores of a plan of full fine-tuning after its last step, trained by `transformers.Trainer`."""
    training = plan.training
    job = SUITE.job(plan, runtime)
    _, encoded, _ = SUITE.encoded(plan, runtime)
    model = job.model().to(runtime.device)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size // training.accumulation,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup_steps,
        lr_scheduler_type=training.schedule,
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip_norm or 0.0,
        optim="adamw_torch_fused",
        bf16=training.precision == "bf16-autocast",
        use_cpu=True,
        seed=derived_seed(plan.seed, "trainer"),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )

    def collate(rows: list[encode.EncodedRow]) -> dict[str, Any]:
        return encode.collate(rows, encoded.pad_id, encoded.max_length)

    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(encoded), data_collator=collate)
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.train()
    with autocast(model, training):
        return job.evaluate(model).metrics


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mrpc", "rte"])
def test_a_plain_trainer_scores_as_the_records_within_their_spread(task: str, tmp_path: Path) -> None:
    every = [record for record in read_records([RECORDS]) if record.plan.task == task]
    records = [record for record in every if record.plan.method == "full"]
    assert len(records) >= 3
    runtime = Runtime(torch.device("cpu"), offline=True)
    ours, theirs = [], []
    for record in records:
        assert (record.status, record.plan.training.state_bits) == ("ok", 32)
        metric = record.main_metric
        assert metric is not None
        ours.append(record.evaluations[-1].metrics[metric])
        theirs.append(trainer_scores(record.plan, runtime, tmp_path)[metric])
    gap = abs(statistics.fmean(ours) - statistics.fmean(theirs))
    assert gap <= statistics.stdev(ours) + statistics.stdev(theirs), (ours, theirs)
