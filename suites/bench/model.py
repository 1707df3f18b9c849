"""A whole training step of MiniLM: forward, backward, optimizer, as the suites build it from the registry."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig

from baselines.method import AdamSettings
from baselines.registry import get_method
from baselines.shared.targets import place
from results.bench import BenchCell
from suites.bench.timing import candidate, in_turns, ratio_claim
from suites.config import method_config
from suites.lab.networks import find_network
from suites.measure.tracker import peak_of, track
from suites.models import MINILM_PACKAGE, minilm_folder

OURS = "gradnormlorp"
YARDSTICK = "lora"
NORMED = "dora"
FULL = "full"
PEERS = (YARDSTICK, NORMED, FULL)
MODES = ("auto", "fast", "least")
TARGET = 1.1
STEPS_BEFORE = 3


def model_cell(label: str, config: BertConfig | None, rows: int, length: int, budget_s: float) -> BenchCell:
    """Measure the step of ours and its peers at rank 8 on the same batch; `config` None takes MiniLM."""
    packaged = config is None and find_spec(MINILM_PACKAGE) is not None
    batch = _batch(rows, length)
    work: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int] = {}
    starts: dict[str, Tensor] = {}
    ours = {f"{OURS} {mode}": {"activations": mode} for mode in MODES}
    titles = {name: f"{get_method(OURS).title}, {mode}" for name, mode in zip(ours, MODES, strict=True)}
    titles |= {name: get_method(name).title for name in PEERS}
    for name in titles:
        torch.manual_seed(0)
        model = _packaged() if packaged else _random(config or find_network("minilm").config)
        method = OURS if name in ours else name
        work[name], starts[name], optimizer = _prepared(method, ours.get(name, {}), model, batch)
        peaks[name] = peak_of(track(model, optimizer, work[name])).total_bytes
    seconds = in_turns(work, budget_s)
    claims = []
    for name, mode in zip(ours, MODES, strict=True):
        for peer in PEERS:
            names = (titles[name], titles[peer])
            target = TARGET if peer is YARDSTICK and mode == "fast" else None
            claims.append(ratio_claim("step time", seconds[name], seconds[peer], names, target=target))
            claims.append(ratio_claim("peak bytes", [peaks[name]], [peaks[peer]], names))
    base = starts[YARDSTICK]
    return BenchCell(
        group="model",
        label=label,
        settings={"rank": 8, "rows": rows, "length": length, "dtype": "float32", "state_bits": 32},
        candidates=[candidate(name, title, seconds, peaks[name]) for name, title in titles.items()],
        claims=claims,
        agreement={
            f"{titles[name]} against {titles[YARDSTICK]}, outputs at the start": float(
                (start - base).norm() / base.norm()
            )
            for name, start in starts.items()
            if name != YARDSTICK
        },
        agreement_limit=1e-5,
        note=f"{'its packaged' if packaged else 'random'} weights; plain steps, no refresh among them",
    )


def _prepared(
    name: str, settings: dict[str, str], model: nn.Module, batch: dict[str, Tensor]
) -> tuple[Callable[[], None], Tensor, Any]:
    """Return one training step, the outputs before the first, and the optimizer; the bases are fitted already."""
    method = get_method(name)
    placement, config = place(model, "attention+mlp", train_rest=False), method_config(name, 8, settings)
    torch.manual_seed(0)
    method.attach(model, placement, config)
    optimizer = method.make_optimizer(model, placement, AdamSettings(1e-3), config)
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


def _packaged() -> nn.Module:
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2)
    return model


def _random(config: Any) -> nn.Module:
    model: nn.Module = AutoModelForSequenceClassification.from_config(config)
    return model


def _batch(rows: int, length: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, 60, (rows, length), generator=generator)
    return {"input_ids": tokens, "labels": torch.arange(rows) % 2}
