"""A whole training step of MiniLM: forward, backward, optimizer, as the suites build it from the registry.

Our layer as an earlier commit had it, where the bench is run against that commit, is trained by today's optimizer: what
differs is the layer alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import AutoModelForSequenceClassification, BertConfig

from baselines.gradnormlorp import GradNormLoRPConfig
from baselines.method import AdamSettings, Method, Placement, freeze_except, trainable
from baselines.registry import get_method
from baselines.shared.projected import projected_adamw
from baselines.shared.targets import place
from gnlorp.layer import Activations
from results.bench import FORMER, BenchCell, Ratio
from suites.bench.former import TARGETS as FORMER_TARGETS
from suites.bench.former import Former, against
from suites.bench.timing import candidate, in_turns, ratio_claim
from suites.config import method_config
from suites.lab.networks import find_network
from suites.measure.trace import peak_of
from suites.measure.tracker import track
from suites.models import MINILM_PACKAGE, minilm_folder

OURS = "gradnormlorp"
YARDSTICK = "lora"
NORMED = "dora"
FULL = "full"
PEERS = (YARDSTICK, NORMED, FULL)
MODES: tuple[Activations, ...] = ("auto", "fast", "least")
TARGET = 1.1
STEPS_BEFORE = 3
FACTORS = (".factor_out", ".factor_in")
ADDED = (*FACTORS, ".magnitude")


def model_cell(
    label: str, config: BertConfig | None, rows: int, length: int, budget_s: float, former: Former | None = None
) -> BenchCell:
    """Measure the step of ours and its peers at rank 8 on the same batch; `config` None takes MiniLM."""
    packaged = config is None and find_spec(MINILM_PACKAGE) is not None
    batch = _batch(rows, length)
    work: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int] = {}
    starts: dict[str, Tensor] = {}
    ours = {f"{OURS} {mode}": {"activations": mode} for mode in MODES}
    titles = {name: f"{get_method(OURS).title}, {mode}" for name, mode in zip(ours, MODES, strict=True)}
    trained = dict.fromkeys(ours, get_method(OURS)) | {name: get_method(name) for name in PEERS}
    titles |= {name: get_method(name).title for name in PEERS}
    if former is not None:
        trained[FORMER], titles[FORMER] = _former_method(former), f"{get_method(OURS).title} at {former.revision}"
    for name, method in trained.items():
        torch.manual_seed(0)
        model = _packaged() if packaged else _random(config or find_network("minilm").config)
        work[name], starts[name], optimizer = _prepared(method, ours.get(name, {}), model, batch)
        peaks[name] = peak_of(track(model, optimizer, work[name])).total_bytes
    seconds = in_turns(work, budget_s)
    base = starts[YARDSTICK]
    return BenchCell(
        group="model",
        label=label,
        settings={
            "rank": 8,
            "rows": rows,
            "length": length,
            "dtype": "float32",
            "state_bits": 32,
            **against(former),
        },  # fmt: skip
        candidates=[candidate(name, title, seconds, peaks[name]) for name, title in titles.items()],
        claims=_claims(list(ours), seconds, peaks, titles),
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


def _claims(
    ours: Sequence[str], seconds: Mapping[str, list[float]], peaks: Mapping[str, int], titles: Mapping[str, str]
) -> list[Ratio]:
    claims = []
    for name, mode in zip(ours, MODES, strict=True):
        targets = {YARDSTICK: TARGET if mode == "fast" else None, FORMER: FORMER_TARGETS[mode]}
        for peer in (each for each in titles if each not in ours):
            names = (titles[name], titles[peer])
            claims.append(ratio_claim("step time", seconds[name], seconds[peer], names, target=targets.get(peer)))
            claims.append(ratio_claim("peak bytes", [peaks[name]], [peaks[peer]], names))
    return claims


def _former_method(former: Former) -> Method[GradNormLoRPConfig]:
    """Return our method with the former layer in the place of today's."""

    def attach(model: nn.Module, placement: Placement, config: GradNormLoRPConfig) -> None:
        options = (config.rank, config.alpha, config.dropout, config.norm_gradient)
        former.attach(model, placement.targets, *options)
        factors = [name for name, _ in model.named_parameters() if name.endswith(ADDED)]
        freeze_except(model, [*factors, *placement.trained])

    def optimizer(model: nn.Module, placement: Placement, adam: AdamSettings, config: GradNormLoRPConfig) -> Optimizer:
        named = trainable(model)
        rest = [parameter for name, parameter in named.items() if not name.endswith(FACTORS)]
        factors = [parameter for name, parameter in named.items() if name.endswith(FACTORS)]
        return projected_adamw(factors, rest, adam, config)

    return replace(get_method(OURS), attach=attach, optimizer=optimizer)


def _prepared(
    method: Method[Any], settings: Mapping[str, str], model: nn.Module, batch: dict[str, Tensor]
) -> tuple[Callable[[], None], Tensor, Any]:
    """Return one training step, the outputs before the first, and the optimizer; the bases are fitted already."""
    placement, config = place(model, "attention+mlp", train_rest=False), method_config(method.name, 8, settings)
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
