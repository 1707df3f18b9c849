"""A second opinion on the loop: the same full fine-tuning by a plain `transformers.Trainer`, under the same metrics.

Model, rows, tokens, steps, batch size, peak learning rate, warm-up, clipping and precision are the plan's; order,
dropout and schedule are Trainer's own, so that scores agree within the spread over seeds, not digit by digit.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from rich.table import Table
from torch.utils.data import Dataset

from results.schema import Plan, Record
from suites.glue import SUITE, encode
from suites.measure.environment import derived_seed
from suites.run.loop import autocast
from suites.suite import Runtime

PRECISIONS = {"fp32": False, "bf16-autocast": True}


def comparison_table(plans: Sequence[Plan], records: Iterable[Record], runtime: Runtime) -> Table:
    """Train every plan with Trainer and return a row a task: both means and spreads, and whether they agree.

    They agree where the means differ by at most the sum of the two standard deviations over seeds.

    Raises:
        ValueError: a plan without an ok record, or one that `trainer_scores` refuses.
    """
    known = {record.plan_hash: record for record in records if record.status == "ok"}
    lost = [plan.label for plan in plans if plan.hash() not in known]
    if lost:
        raise ValueError(
            f"no record of {lost[0]} (and {len(lost) - 1} more): run it first, or name its folder by --out"
        )
    table = Table("task", "metric", "seeds", "this loop", "Trainer", "agree", title="Full fine-tuning, two loops")
    for task in dict.fromkeys(plan.task for plan in plans):
        own = [plan for plan in plans if plan.task == task]
        metric = known[own[0].hash()].main_metric
        assert metric is not None
        ours = [known[plan.hash()].evaluations[-1].metrics[metric] for plan in own]
        theirs = [trainer_scores(plan, runtime)[metric] for plan in own]
        table.add_row(task, metric, str(len(own)), _spread(ours), _spread(theirs), _verdict(ours, theirs))
    return table


def _spread(scores: Sequence[float | None]) -> str:
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        return "undefined"
    deviation = f" ± {statistics.stdev(known):.4f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.4f}{deviation}"


def _verdict(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    first, second = ([score for score in scores if score is not None] for scores in (ours, theirs))
    if len(first) < max(2, len(ours)) or len(second) < max(2, len(theirs)):
        return "unknown: needs two seeds with a score"
    gap = abs(statistics.fmean(first) - statistics.fmean(second))
    return "yes" if gap <= statistics.stdev(first) + statistics.stdev(second) else "no"


class _Rows(Dataset[encode.EncodedRow]):
    def __init__(self, encoded: encode.Encoded) -> None:
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> encode.EncodedRow:
        return self._encoded.rows([index])[0]


def trainer_scores(plan: Plan, runtime: Runtime) -> dict[str, float | None]:
    """Return the scores of a GLUE plan of full fine-tuning after its last step, trained by `transformers.Trainer`.

    Raises:
        ValueError: the plan is not plain full fine-tuning with 32-bit states on GLUE.
    """
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

    training = plan.training
    if (
        (plan.suite, plan.method) != ("glue", "full")
        or training.state_bits != 32
        or training.precision not in PRECISIONS
    ):
        raise ValueError("the cross-check takes GLUE, method full, state_bits 32, precision fp32 or bf16-autocast")
    job = SUITE.job(plan, runtime)
    _, encoded, _ = SUITE.encoded(plan, runtime)
    model = job.model().to(runtime.device)
    torch.set_num_threads(runtime.threads)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=training.steps,
            per_device_train_batch_size=training.batch_size // training.accumulation,
            gradient_accumulation_steps=training.accumulation,
            learning_rate=training.learning_rate,
            warmup_steps=training.warmup_steps,
            lr_scheduler_type=training.schedule,
            weight_decay=training.weight_decay,
            max_grad_norm=training.clip_norm or 0.0,
            optim="adamw_torch_fused",
            bf16=PRECISIONS[training.precision],
            use_cpu=runtime.device.type == "cpu",
            seed=derived_seed(plan.seed, "trainer"),
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )

        def collate(rows: list[encode.EncodedRow]) -> dict[str, Any]:
            return encode.collate(rows, encoded.pad_id, encoded.max_length)

        trainer = Trainer(model=model, args=arguments, train_dataset=_Rows(encoded), data_collator=collate)
        for callback in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
    with autocast(model, training):
        return job.evaluate(model).metrics
