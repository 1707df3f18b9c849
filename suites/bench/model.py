"""A whole training step of MiniLM: forward, backward, optimizer, as the suites build it from the registry."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from baselines.method import AdamSettings, check_optimizer_covers
from baselines.registry import get_method
from baselines.shared.targets import place
from results.bench import BenchCell
from suites.bench.timing import candidate, in_turns, ratio_claim
from suites.measure.tracker import peak_of, track
from suites.models import MINILM_PACKAGE

OURS, LORA, DORA = "gradnormlorp", "lora", "dora"
TARGET = 1.1
# all-MiniLM-L6-v2, where its package is missing.
SHAPE: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "max_position_embeddings": 512,
}  # fmt: skip
STEPS_BEFORE = 3


def model_cell(label: str, shape: dict[str, Any] | None, rows: int, length: int, budget_s: float) -> BenchCell:
    """Measure the step of GradNormLoRP, LoRA and DoRA at rank 8 on the same batch; `shape` None takes MiniLM."""
    make, source = (_packaged, "its packaged weights") if shape is None and _package() else (None, "random weights")
    batch = _batch(rows, length)
    work: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int] = {}
    starts: dict[str, Tensor] = {}
    titles = {name: get_method(name).title for name in (OURS, LORA, DORA)}
    for name in titles:
        model = make() if make is not None else _from_config(shape or SHAPE)
        step, starts[name], optimizer = _prepared(name, model, batch)
        peaks[name] = peak_of(track(model, optimizer, step)).total_bytes
        work[name] = step
    seconds = in_turns(work, budget_s)
    claims = [
        ratio_claim("step time", seconds[OURS], seconds[LORA], (titles[OURS], titles[LORA]), "at most", TARGET),
        ratio_claim("step time", seconds[OURS], seconds[DORA], (titles[OURS], titles[DORA])),
        ratio_claim("peak bytes", [peaks[OURS]], [peaks[LORA]], (titles[OURS], titles[LORA])),
        ratio_claim("peak bytes", [peaks[OURS]], [peaks[DORA]], (titles[OURS], titles[DORA])),
    ]
    base = starts[LORA]
    return BenchCell(
        group="model",
        label=label,
        settings={"rank": 8, "rows": rows, "length": length, "dtype": "float32", "state_bits": 32},
        candidates=[candidate(name, title, seconds, peaks[name]) for name, title in titles.items()],
        claims=claims,
        agreement={
            f"{titles[name]} against LoRA, outputs at the start": float((starts[name] - base).norm() / base.norm())
            for name in (OURS, DORA)
        },
        agreement_limit=1e-5,
        note=f"{source}; plain steps, no refresh among them",
    )


def _prepared(name: str, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Callable[[], None], Tensor, Any]:
    """Return one training step, the outputs before the first, and the optimizer; the bases are fitted already."""
    method = get_method(name)
    placement, config = place(model, "attention+mlp", train_rest=False), method.configure(8)
    torch.manual_seed(0)
    method.attach(model, placement, config)
    optimizer = method.optimizer(model, placement, AdamSettings(1e-3), config)
    check_optimizer_covers(model, optimizer)
    with torch.no_grad():
        start = model.eval()(**batch).logits.clone()
    model.train()

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(STEPS_BEFORE):
        step()
    return step, start, optimizer


def _package() -> Path | None:
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


def _packaged() -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(_package(), num_labels=2)
    return model


def _from_config(shape: dict[str, Any]) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**shape, num_labels=2))


def _batch(rows: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, 60, (rows, length), generator=generator)
    return {"input_ids": tokens, "labels": torch.arange(rows) % 2}
