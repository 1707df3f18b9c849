"""The cells of the bench, in order, each with its share of the time; and the run over them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch
from transformers import BertConfig

from results.bench import Bench, BenchCell, Group
from suites.bench.former import Former
from suites.bench.layer import layer_cell
from suites.bench.methods import Size, methods_cell
from suites.bench.model import model_cell
from suites.bench.peers import peer_versions
from suites.bench.refresh import refresh_cell
from suites.bench.step import step_cell
from suites.measure.environment import environment

GROUPS: tuple[Group, ...] = ("layer", "refresh", "step", "methods", "model")
OF_LAYERS: tuple[Group, ...] = ("layer", "model")
"""The groups that measure our layer, where it can be held against an earlier one."""
FORMER_SHARE = 1.2
"""Of the time of those cells, what they take with the earlier layer among their candidates."""
QUERY, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"


@dataclass(frozen=True)
class Item:
    """One cell to be measured: its group, what is shown while it runs, its seconds, and what measures it in them."""

    group: Group
    label: str
    seconds: float
    measure: Callable[[float], BenchCell]
    overhead_s: float = 0.0


def items(quick: bool, former: Former | None = None) -> list[Item]:
    """Return every cell; `quick` takes tiny shapes and a moment each, for a look at whether all of it works.

    With `former` our layer stands beside that of an earlier commit wherever it is measured.
    """
    found = _quick_items(former) if quick else _whole_items(former)
    if former is None:
        return found
    return [
        replace(item, seconds=item.seconds * FORMER_SHARE, overhead_s=item.overhead_s * FORMER_SHARE)
        if item.group in OF_LAYERS
        else item
        for item in found
    ]


def _whole_items(former: Former | None) -> list[Item]:
    # Shape, bias, seconds at 512 tokens; seconds and overhead at 4,096, where three rounds are the most of it.
    shapes = (
        ((768, 768), True, 5.0, (12.5, 5.0)),
        ((768, 3072), True, 8.0, (20.0, 8.0)),
        ((2048, 5461), False, 18.0, (20.0, 80.0)),
        ((4096, 11008), False, 32.0, (40.0, 320.0)),
    )
    found = [
        _layer_item(shape, rank, 512, bias, seconds, seconds * 0.8, former)
        for rank in (8, 128)
        for shape, bias, seconds, _ in shapes
    ]
    found += [_layer_item(shape, 8, 4096, bias, *longer, former) for shape, bias, _, longer in shapes]
    found += [
        _refresh_item("768x768", QUERY, (768, 3072), ((8, 40.0), (512, None)), (5, 35), 10.0, 15.0),
        _refresh_item("768x3072", DOWN, (768, 3072), ((8, 40.0), (512, None)), (5, 35), 12.0, 15.0),
        _refresh_item("2048x5461", DOWN, (2048, 5461), ((8, 40.0), (512, 6.0)), (2, 12), 45.0, 45.0),
        _refresh_item("4096x11008", DOWN, (4096, 11008), ((8, 40.0), (512, 6.0)), (2, 12), 100.0, 240.0),
    ]
    step = Item(
        "step",
        "LLaMA-60M, rank 128",
        20.0,
        lambda seconds: step_cell("LLaMA-60M, rank 128", (512, 1376, 8, 8), 32000, 128, 256, seconds),
        25.0,
    )
    models = [
        _model_item("MiniLM, 8x64 tokens", None, 8, 64, 25.0, 12.0, former),
        _model_item("MiniLM, 8x512 tokens", None, 8, 512, 40.0, 175.0, former),
    ]
    methods = _methods_item("LLaMA-60M, rank 128", (512, 1376, 8, 8), 32000, 128, 256, 60.0, 240.0)
    return [*found, step, methods, *models]


def _quick_items(former: Former | None) -> list[Item]:
    tiny = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    return [
        _layer_item((48, 32), 4, 16, True, 0.05, 0.5, former),
        _layer_item((32, 48), 8, 16, False, 0.05, 0.5, former),
        _refresh_item("64x160", DOWN, (64, 160), ((4, 40.0),), (1, 2), 0.05, 1.0),
        Item(
            "step",
            "tiny LLaMA, rank 4",
            0.05,
            lambda seconds: step_cell("tiny LLaMA, rank 4", (32, 64, 1, 2), 64, 4, 16, seconds),
            0.5,
        ),
        _methods_item("tiny LLaMA, rank 4", (32, 64, 1, 2), 64, 4, 16, 0.05, 2.0),
        _model_item("tiny BERT", tiny, 2, 8, 0.05, 1.0, former),
    ]


def _layer_item(
    shape: tuple[int, int], rank: int, tokens: int, bias: bool, seconds: float, overhead_s: float, former: Former | None
) -> Item:
    label = f"layer {shape[0]}x{shape[1]}, rank {rank}, {tokens} tokens"
    return Item("layer", label, seconds, lambda given: layer_cell(shape, rank, tokens, bias, given, former), overhead_s)


def _model_item(
    label: str,
    config: BertConfig | None,
    rows: int,
    length: int,
    seconds: float,
    overhead_s: float,
    former: Former | None,
) -> Item:
    return Item(
        "model", label, seconds, lambda given: model_cell(label, config, rows, length, given, former), overhead_s
    )


def _methods_item(
    label: str, size: Size, vocabulary: int, rank: int, tokens: int, seconds: float, overhead_s: float
) -> Item:
    name = f"every method, {label}"
    return Item(
        "methods", name, seconds, lambda given: methods_cell(name, size, vocabulary, rank, tokens, given), overhead_s
    )


def _refresh_item(
    label: str,
    name: str,
    width: tuple[int, int],
    ranks: Sequence[tuple[int, float | None]],
    steps: tuple[int, int],
    seconds: float,
    overhead_s: float,
) -> Item:
    return Item(
        "refresh", f"refresh {label}", seconds, lambda given: refresh_cell(name, width, ranks, steps, given), overhead_s
    )


def expected_seconds(chosen: Sequence[Item], share: float) -> float:
    """Return about how long the cells take: their shares of time, and what goes into making them ready."""
    return sum(item.seconds * share + item.overhead_s for item in chosen)


def run_bench(
    chosen: Sequence[Item], share: float, threads: int, quick: bool, command: str, report: Callable[[Item, Bench], None]
) -> Bench:
    """Measure the cells one after the other on `threads` threads; `report` is told the record so far after each."""
    started, load, peers = _now(), _load(), peer_versions()
    machine = environment(torch.device("cpu"), threads, 1)
    cells: list[BenchCell] = []

    def record() -> Bench:
        return Bench(
            started_at=started, finished_at=_now(), command=command, quick=quick, environment=machine, peers=peers,
            load_average=load, cells=cells,
        )  # fmt: skip

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for item in chosen:
            cells.append(item.measure(item.seconds * share))
            report(item, record())
    finally:
        torch.set_num_threads(before)
    return record()


def _load() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
