"""What fits, and every way to ask for it wrongly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from results.lab import Setting
from suites.__main__ import app
from suites.c4.sizes import SIZES, llama_config
from suites.lab.fits import largest, parse_bytes
from suites.lab.lab import Lab
from suites.lab.networks import Network, find_network
from suites.measure.allocator import Held

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * 2**30), ("24 gb", 24 * 10**9), ("1.5MiB", 3 * 2**19), ("0KB", 0)]
)
def test_a_limit_is_read_with_its_unit(text: str, size: int) -> None:
    assert parse_bytes(text, "limit") == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("24", r"limit '24': has no unit; allowed are .*nearest: 24GiB"),
        ("24XiB", r"unknown unit .*'XiB'.*known are KB, MB, GB, KiB, MiB, GiB"),
        ("-1GiB", "must be a number of at least 0"),
        ("much", "must be a number of at least 0"),
        ("1.2.3GiB", "must be a number of at least 0"),
    ],
)
def test_a_limit_that_cannot_be_read_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_bytes(text, "limit")


@pytest.mark.parametrize("limit", [0, 99, 100, 149, 150, 1000, 5017, 123_456])
def test_the_largest_is_found_on_a_bent_line(limit: int) -> None:
    def peak(rows: int) -> int:
        return max(100 + 20 * rows, 17 + 50 * rows, 70 * rows - 900)

    rows, now, after = largest(peak, limit)
    fitting = [n for n in range(3000) if n and peak(n) <= limit]
    assert rows == max(fitting, default=0)
    assert after == peak(rows + 1)
    assert now == (peak(rows) if rows else 0)


def test_the_search_ends_at_the_most() -> None:
    assert largest(lambda rows: 1, 5, most=64) == (64, 1, None)


def test_answer_and_next_are_traced_on_a_network() -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    tiny = Network("tiny", LlamaConfig(**sizes, vocab_size=500, use_cache=False), language_model=True)
    lab = Lab(tiny, "full", 8)
    setting = Setting(model="tiny", method="full", rank=8, batch=1, sequence=16)
    asked: list[int] = []

    def peak(rows: int) -> int:
        asked.append(rows)
        return lab.peak_bytes(setting.model_copy(update={"batch": rows}))

    limit = 10 * 2**20
    rows, now, after = largest(peak, limit)
    assert rows > 2
    assert now <= limit < (after or 0)
    assert {rows, rows + 1} <= set(asked)
    assert len(asked) < 8


def test_sizes_have_the_published_numbers_of_parameters() -> None:
    # Own arithmetic on the released configurations: 58.07M at 60M, 6.74B at 7B.
    counts = {}
    for name in ("60m", "7b"):
        config = llama_config(name)
        layer = 4 * config.hidden_size**2 + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
        counts[name] = 2 * 32_000 * config.hidden_size + config.num_hidden_layers * layer + config.hidden_size
    assert counts == {"60m": 58_073_600, "7b": 6_738_415_616}
    assert find_network("llama-7b").rank == 1024
    assert set(SIZES) >= {"9m", "20m", "35m", "60m", "130m", "350m", "1b", "3b", "7b"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("minilm", "lorra"), "unknown method 'lorra'"),
        (("70m", "full"), "nearest: 60m"),
        (("20m", "full", "--fits", "24"), "limit '24': has no unit"),
        (("20m", "full", "--fits", "1GiB", "--overhead", "1GiB"), "overhead '1GiB': must be below the limit"),
        (("20m", "full", "--fits", "1GiB", "--overhead", "1MiB", "--accumulation", "0"), "accumulation 0: must be at"),
        (("20m", "full", "--fits", "1GiB", "--gpus", "4", "--accumulation", "6"), "a multiple of the 4 GPUs"),
        (("20m", "full", "--batch", "10", "--accumulation", "3"), "accumulation 3: must divide the batch of 10"),
        (("20m", "full", "--precision", "fp8"), "unknown precision 'fp8'"),
        (("20m", "full", "--state-bits", "4"), "state_bits 4: must be 32 or 8"),
        (("minilm", "full", "--sequence", "600"), "minilm has 512 positions (nearest allowed value: 512)"),
        (("minilm", "lora", "--rank", "4000"), "rank 4000"),
        (("./nowhere", "full"), "unknown model './nowhere'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: tuple[str, ...], words: str, refused: Refused) -> None:
    assert words in refused(*arguments)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., str]:
    def write(**changes: Any) -> str:
        sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 96}
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128, **sizes, **changes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return write


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 5}, "The hidden size (64) is not a multiple of the number of attention heads (5)"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 must divide num_attention_heads 4"),
        ({"model_type": "nothing-known"}, "transformers rejects its configuration"),
        ({"hidden_act": "no-such"}, "transformers rejects its configuration"),
    ],
)
def test_a_configuration_that_does_not_work_is_named(
    changes: dict[str, Any], words: str, write_config: Callable[..., str], refused: Refused
) -> None:
    assert words in refused(write_config(**changes), "full", "--batch", "2", "--sequence", "8")


def test_a_folder_with_a_configuration_is_enough(write_config: Callable[..., str]) -> None:
    arguments = ["memory", write_config(), "full", "--batch", "2", "--sequence", "8", "--precision", "fp32"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "explained to the byte" in result.stdout
    assert "unexplained" not in result.stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [(("--overhead", "1KB"), 1), (("--overhead", "1KB", "--accumulation", "4"), 4),
     (("--gpus", "2"), 1), (("--gpus", "2", "--accumulation", "4"), 2)],
)  # fmt: skip
def test_the_largest_batch_is_of_the_micro_batches_asked_for(
    words: tuple[str, ...], parts: int, write_config: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Setting] = []
    gpus = 2 if "--gpus" in words else 1

    def step(_: Lab, setting: Setting) -> int:
        asked.append(setting)
        return setting.batch * 2**20

    monkeypatch.setattr(Lab, "peak_bytes", step)
    monkeypatch.setattr(Lab, "held", lambda lab, setting: Held(*[step(lab, setting)] * 3))
    limit = "3001KiB" if gpus == 1 else f"{300 + 3}MiB"
    result = CliRunner().invoke(app, ["memory", write_config(), "full", "--sequence", "8", "--fits", limit, *words])
    assert result.exit_code == 0, result.output
    assert {(setting.accumulation, setting.processes) for setting in asked} == {(parts, gpus)}
    assert "Batches are rows a step" in result.stdout
    # Two rows a micro-batch beside an overhead, three beside the context of the lowest estimate.
    rows = (2 if gpus == 1 else 3) * parts * gpus
    assert f" {rows} " in result.stdout or f" {rows}, 0.296 GiB" in result.stdout
