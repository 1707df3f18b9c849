"""GradNormLoRP in a plain `accelerate` loop with accumulation: `python -m gnlorp.examples.accelerated`."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

import gnlorp
from gnlorp.examples.task import TARGETS, Rows, accuracy, tiny_bert


def train(steps: int = 120, accumulation: int = 2) -> tuple[nn.Module, list[float]]:
    """Train and merge; return the ordinary model, and the accuracies before, after and merged."""
    from accelerate import Accelerator

    accelerator = Accelerator(gradient_accumulation_steps=accumulation)
    model, held_out = tiny_bert(), Rows(256, seed=1)
    model.requires_grad_(False)
    model.get_submodule("classifier").requires_grad_(True)
    gnlorp.attach(model, TARGETS, rank=8, alpha=16)
    scores = [accuracy(model, held_out)]
    optimizer = gnlorp.GradNormLoRPAdamW(gnlorp.param_groups(model, projection_rank=4), lr=5e-3, refresh_gap=50)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(Rows(4096, seed=0), batch_size=16, shuffle=True, generator=order)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    for _, batch in zip(range(steps * accumulation), loader, strict=False):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    model = accelerator.unwrap_model(model)
    scores.append(accuracy(model, held_out))
    gnlorp.merge(model)
    scores.append(accuracy(model, held_out))
    return model, scores


if __name__ == "__main__":
    before, after, merged = train()[1]
    print(f"accuracy before {before:.3f}, after {after:.3f}, merged {merged:.3f}")
