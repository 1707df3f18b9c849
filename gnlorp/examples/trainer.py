"""GradNormLoRP inside `transformers.Trainer`: `python -m gnlorp.examples.trainer`.

Attach, hand the optimizer to the Trainer, train, merge, save. The Trainer brings the schedule, clipping and
checkpoints.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import gnlorp
from gnlorp.examples.task import TARGETS, Rows, accuracy, tiny_bert


def train(folder: Path, steps: int = 120) -> tuple[nn.Module, list[float]]:
    """Train, merge, and save an ordinary BERT under `folder`; return it and the accuracies before, after and merged."""
    from transformers import Trainer, TrainingArguments

    model, held_out = tiny_bert(), Rows(256, seed=1)
    model.requires_grad_(False)
    model.get_submodule("classifier").requires_grad_(True)
    gnlorp.attach(model, TARGETS, rank=8, alpha=16)
    scores = [accuracy(model, held_out)]
    groups = gnlorp.param_groups(model, projection_rank=4)
    optimizer = gnlorp.GradNormLoRPAdamW(groups, lr=5e-3, refresh_gap=50)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / 10, 1 - step / steps))
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=32,
        max_grad_norm=1.0,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        seed=0,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(2048, seed=0), optimizers=(optimizer, schedule))
    trainer.train()
    scores.append(accuracy(model, held_out))
    gnlorp.merge(model)
    scores.append(accuracy(model, held_out))
    model.save_pretrained(folder / "merged")  # type: ignore[operator]
    return model, scores


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        before, after, merged = train(Path(scratch))[1]
    print(f"accuracy before {before:.3f}, after {after:.3f}, merged {merged:.3f}")
