"""The pre-training suite: plans, jobs, measures, runs, the command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

from results.schema import Plan
from results.store import read_records
from suites.__main__ import app
from suites.c4 import data
from suites.c4.evaluate import Evaluated, evaluate, measures
from suites.c4.sequences import IGNORED
from suites.config import default_rank
from suites.options import Options
from suites.plan import Request, make_plans
from suites.registry import get_suite
from suites.run.execute import execute
from suites.search.command import searched
from suites.search.trials import trials_of
from suites.suite import Runtime

CPU = Runtime(torch.device("cpu"), offline=True)
FEW = {"model": "0.1m", "steps": 3, "batch_size": 4, "train_rows": 40, "eval_tokens": 400, "evaluations": 1}


def plan_of(method: str = "full", runtime: Runtime = CPU, seed: int = 0, profile: str = "micro", **more: Any) -> Plan:
    (plan,) = make_plans(Request("c4", profile, 8, (), (method,), (seed,), tuple({**FEW, **more}.items())), runtime)
    return plan


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GNLORP_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "c4"
    place.mkdir()
    for split, count in (("train", 60), ("validation", 12)):
        texts = [
            f"{split} text {index}: the cat of number {index * 7} sat on mat {index}." * 3 for index in range(count)
        ]
        (place / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return place


def directory_plan(folder: Path, **more: Any) -> tuple[Plan, Runtime]:
    runtime = Runtime(torch.device("cpu"), data_dir=folder, offline=True)
    settings = {"source": "directory", "tokenizer": "bpe:300", "layout": "packed", "max_length": 32, "train_rows": None}
    return plan_of(runtime=runtime, **{**settings, **more}), runtime


def test_the_plan_names_everything_that_decides_the_tokens() -> None:
    plan = plan_of()
    assert (plan.model.name, plan.model.source) == ("0.1m", "config")
    assert plan.data.tokenizer == "micro"
    assert plan.data.layout == "padded"
    assert len(plan.data.tokenizer_digest or "") == len(plan.data.digest or "") == 64
    assert plan.training.final_fraction == 0.1
    assert plan.hash() != plan_of(layout="packed").hash() != plan_of().hash()


def test_an_outline_has_the_shape_of_every_batch() -> None:
    plan = plan_of(accumulation=2)
    suite = get_suite("c4")
    outline, job = suite.outline(plan, CPU), suite.job(plan, CPU)
    for batch in islice(job.batches(0), 5):
        assert {name: value.shape for name, value in batch.items()} == {
            name: value.shape for name, value in outline.largest.items()
        }
        assert batch["input_ids"].shape == (2, 64)
    with pytest.raises(RuntimeError, match="no batches"):
        outline.batches(0)


def test_methods_of_a_seed_see_the_same_weights_and_batches_and_seeds_differ() -> None:
    suite = get_suite("c4")
    jobs = [suite.job(plan_of(method, seed=seed), CPU) for method, seed in (("full", 0), ("galore", 0), ("full", 1))]
    weights = [job.model().state_dict() for job in jobs]
    firsts = [next(job.batches(0))["input_ids"] for job in jobs]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[0], firsts[2])
    assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])


def test_the_position_is_a_micro_batch() -> None:
    job = get_suite("c4").job(plan_of(), CPU)
    whole = list(islice(job.batches(0), 15))
    for start in (1, 7, 11):
        again = next(job.batches(start))
        assert all(torch.equal(again[name], whole[start][name]) for name in again)


def test_evaluation_weighs_tokens_alike_and_leaves_the_model_in_training() -> None:
    plan = plan_of()
    job = get_suite("c4").job(plan, CPU)
    evaluated = data.prepare(plan.data, plan.model.vocabulary or 0, CPU).evaluated
    model = job.model()
    found = evaluate(model, evaluated)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in range(len(evaluated.sequences)):
            batch = evaluated.sequences.batch([row])
            logits, labels = model(input_ids=batch["input_ids"]).logits[0, :-1], batch["labels"][0, 1:]
            kept = labels != IGNORED
            total += float(functional.cross_entropy(logits[kept], labels[kept], reduction="sum"))
            count += int(kept.sum())
    assert model.training
    assert count == evaluated.tokens >= 400
    assert found.rows == {"validation": len(evaluated.sequences)}
    assert found.metrics["validation/loss"] == pytest.approx(total / count, rel=1e-6)
    assert found.metrics["validation/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    bits = total / math.log(2) / evaluated.covered_bytes
    assert found.metrics["validation/bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert evaluated.floor_nats is not None
    assert found.metrics["validation/excess"] == pytest.approx(total / count - evaluated.floor_nats, rel=1e-5)


class Oracle(nn.Module):
    """Predicts what the source itself would: the loss must then be the floor."""

    def __init__(self, evaluated: Evaluated, vocabulary: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.evaluated, self.vocabulary = evaluated, vocabulary

    def forward(self, input_ids: torch.Tensor) -> Any:
        from types import SimpleNamespace

        from suites.c4 import tokens
        from suites.generated import text

        names = {index: word for word, index in tokens.micro().core.get_vocab().items()}
        logits = torch.full((*input_ids.shape, self.vocabulary), -1e4)
        for row, ids in enumerate(input_ids.tolist()):
            words = [names[index] for index in ids]
            end = words.index(tokens.END) if tokens.END in words else len(words)
            surprisals = [*text.source().surprisals(words[:end]), 0.0]
            for place in range(1, min(end + 1, len(words))):
                probability = math.exp(-surprisals[place])
                logits[row, place - 1] = math.log(max((1 - probability) / (self.vocabulary - 1), 1e-30))
                logits[row, place - 1, ids[place]] = math.log(probability)
        return SimpleNamespace(logits=logits)


def test_the_source_itself_has_the_floor_as_its_loss() -> None:
    plan = plan_of(eval_tokens=150)
    vocabulary = plan.model.vocabulary or 0
    evaluated = data.prepare(plan.data, vocabulary, CPU).evaluated
    found = evaluate(Oracle(evaluated, vocabulary), evaluated)
    assert found.metrics["validation/excess"] == pytest.approx(0.0, abs=1e-5)
    assert found.metrics["validation/perplexity_ratio"] == pytest.approx(1.0, abs=1e-5)


def test_a_loss_that_is_not_finite_has_no_measures() -> None:
    assert set(measures("validation", math.nan, 10, 30, 1.0).metrics.values()) == {None}
    assert measures("validation", 2e4, 10, 30, None).metrics["validation/perplexity"] is None


@pytest.mark.parametrize("method", ["full", "gradnormlorp"])
def test_a_run_ends_in_a_whole_record(method: str) -> None:
    record = execute(plan_of(method), CPU, None, lambda step, loss: None)
    assert record.status == "ok", record.error
    assert record.main_metric == "validation/perplexity"
    assert record.data is not None
    assert record.data.dropped_rows == 40 - record.data.train_rows
    assert 0 < record.data.floor_nats["validation"] < record.evaluations[-1].metrics["validation/loss"]
    assert record.data.constant_scores["validation/perplexity"] > math.exp(record.data.floor_nats["validation"])
    assert record.timing is not None
    assert record.timing.tokens <= 4 * 64


def test_a_folder_is_packed_with_a_trained_tokenizer(folder: Path) -> None:
    plan, runtime = directory_plan(folder)
    record = execute(plan, runtime, None, lambda step, loss: None)
    assert record.status == "ok", record.error
    assert record.data is not None
    assert record.data.floor_nats == {}
    assert record.evaluations[-1].metrics["validation/bits_per_byte"] > 0
    assert str(folder) not in record.model_dump_json()


def test_a_folder_that_changed_since_the_plan_is_refused(folder: Path) -> None:
    plan, runtime = directory_plan(folder)
    with (folder / "train.jsonl").open("a") as stream:
        stream.write('{"text": "one more"}\n')
    with pytest.raises(ValueError, match=r"it changed since the plan was made|has \d+ entries"):
        get_suite("c4").job(plan, runtime)


def test_a_search_looks_at_train_alone_and_takes_the_lowest_perplexity(tmp_path: Path, folder: Path) -> None:
    from results.store import write_record

    runtime = Runtime(torch.device("cpu"), data_dir=folder, offline=True)
    more = {**FEW, "train_rows": None, "tokenizer": "bpe:300", "max_length": 32, "steps": 6}
    asked = Request("c4", "small", 8, (), ("full",), (0,), tuple(more.items()))
    trials = trials_of(searched(asked), runtime, tmp_path, 2)
    for plan in trials.plans(0):
        record = execute(plan, runtime, None, lambda step, loss: None)
        assert record.main_metric == "held_out/perplexity", record.error
        assert record.data is not None
        assert set(record.data.eval_rows) == {"held_out"}
        write_record(tmp_path, record)
    found = trials.search()
    scores = [trial.score for trial in found.results if trial.score is not None]
    assert len(scores) == 2
    assert found.choices[0].score == min(scores) < max(scores)


def test_nothing_of_the_hubs_stream_can_be_held_out() -> None:
    asked = Request("c4", "paper", 128, (), ("full",), (0,), (("held_out", True),))
    runtime = Runtime(torch.device("cpu"), offline=True, dry=True)
    with pytest.raises(ValueError, match=r"of the hub's stream there are none; .* --data-dir"):
        get_suite("c4").verify(make_plans(asked, runtime)[0], runtime)


def test_ranks_and_settings_follow_the_models_size() -> None:
    assert default_rank("paper", "c4") == 128
    assert default_rank("paper", "c4", "7b") == 1024
    assert default_rank("micro", "c4") == 24
    assert default_rank("paper", "glue") == 8
    runtime = Runtime(torch.device("cpu"), offline=True, dry=True)
    request = Request("c4", "paper", 1024, (), ("full", "galore"), (0,), (("model", "7b"),))
    full, galore = make_plans(request, runtime)
    assert (galore.training.steps, galore.training.warmup_steps, galore.training.clip_norm) == (150_000, 15_000, 1.0)
    assert (galore.training.learning_rate, galore.method_config["refresh_gap"]) == (0.005, 500)
    assert galore.method_config["scale"] == 0.25
    assert full.training.batch_size == 512
    assert full.model.vocabulary == 32_000
    assert (full.data.tokenizer, full.data.layout, full.data.eval_tokens) == ("t5-base", "padded", 10_000_000)


@pytest.mark.parametrize(
    ("asked", "ranks"),
    [
        ({"sweep": ["model=60m,130m,1b"]}, [128, 256, 512]),
        ({"sweep": ["model=60m,130m"], "rank": 64}, [64, 64]),
        ({"sweep": ["model=60m,130m", "rank=32,64"]}, [32, 64, 32, 64]),
        ({"set_": ["model=130m"]}, [256]),
        ({"model": "1b"}, [512]),
    ],
)
def test_a_rank_that_nobody_asks_for_follows_the_models_size(asked: dict[str, Any], ranks: list[int]) -> None:
    from suites.__main__ import prepare

    options = Options("c4", profile="paper", device="cpu", method="lora", seeds="0", quiet=True, **asked)
    assert [plan.method_config["rank"] for plan in prepare(options, dry=True).plans] == ranks


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GNLORP_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(app, arguments)


def check_refused(result: Any, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def test_plan_of_a_paper_size_needs_neither_network_nor_tokenizer(invoke: Any, tmp_path: Path) -> None:
    result = invoke(
        "plan", "c4", "--profile", "paper", "--model", "9m", "--device", "cpu", "--offline", "--method", "full",
        "--set", "accumulation=64", "--seeds", "0",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "10,000 steps of 64 micro-batches of 8 sequences" in result.output
    assert "131,072 tokens a step, 1,310,720,000 in all; warm-up 1,000 steps" in result.output
    assert "checkpoint" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--model", "61m"), ("unknown model size '61m'", "nearest: 60m")),
        (("--set", "accumulation=3"), ("accumulation 3", "must divide batch_size 4", "nearest allowed value: 2")),
        (("--set", "vocabulary=32000"), ("vocabulary 32000", "tokenizer micro has 188 entries")),
        (("--tokenizer", "bpe:500"), ("tokenizer 'bpe:500'", "does not go with source 'micro'")),
        (("--set", "source=directory", "--set", "tokenizer=bpe:300"), ("needs a folder", "--data-dir")),
        (("--data-dir", "nowhere"), ("nowhere", "is not there")),
        (("--set", "eval_rows=5"), ("unknown setting 'eval_rows'", "nearest: eval_tokens")),
        (("--set", "max_length=1"), ("max_length 1", "at least 2")),
        (("--set", "max_length=2000"), ("max_length 2000", "1024 positions")),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: tuple[str, ...], parts: tuple[str, ...], invoke: Any) -> None:
    few = [part for name, value in FEW.items() for part in ("--set", f"{name}={json.dumps(value)}") if name != "model"]
    size = () if "--model" in arguments else ("--model", "0.1m")
    check_refused(invoke("run", "c4", "--profile", "micro", *few, *size, *arguments, "--seeds", "0"), *parts)


def test_the_paper_profile_offline_is_refused_before_the_first_run(invoke: Any) -> None:
    result = invoke("run", "c4", "--profile", "paper", "--device", "cpu", "--offline")
    check_refused(result, "cannot be had from the hub" if "tokenizer" in result.stderr else "needs the network")


@pytest.mark.parametrize("line", ['{"text": "torn', '{"body": "no text"}'])
def test_a_faulty_line_is_refused_before_the_first_run(line: str, invoke: Any, folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as stream:
        stream.write(line + "\n")
    result = invoke("run", "c4", "--profile", "small", "--data-dir", str(folder), "--set", "tokenizer=bpe:300")
    check_refused(result, "train.jsonl: line 61")
    (folder / "train.jsonl").write_text("")
    check_refused(invoke("run", "c4", "--profile", "small", "--data-dir", str(folder)), "train.jsonl: is empty")


def test_settings_of_pre_training_are_refused_by_fine_tuning(invoke: Any) -> None:
    check_refused(invoke("plan", "glue", "--profile", "micro", "--tokenizer", "bpe:400"), "unknown setting 'tokenizer'")


@pytest.mark.slow
def test_run_and_report_from_the_command_line(invoke: Any, tmp_path: Path) -> None:
    few = [part for name, value in FEW.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    result = invoke("run", "c4", "--profile", "micro", *few, "--seeds", "0", "--out", "records")
    assert result.exit_code == 0, result.output
    assert {record.status for record in read_records([tmp_path / "records"])} == {"ok"}
