"""The profiles at the scale of papers: every setting of every run is the published one, with its source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import JsonValue
from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

from baselines.registry import default_methods
from reports.paper.departures import suite_departures
from results.protocols import read_protocols
from results.schema import Plan, Record
from suites import typed
from suites.config import PROFILES, PUBLISHED, default_rank, load_profile
from suites.models import micro_folder
from suites.plan import Request, comparison
from suites.run.execute import execute
from suites.suite import Runtime

RUNTIME = Runtime(torch.device("cpu"), dry=True)
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
SIZES = ("60m", "130m", "350m", "1b", "7b")


def comparisons(profile: str) -> Iterator[tuple[str, int, str, Any]]:
    """Yield suite, rank, size and comparison of everything that the papers ran."""
    for rank in (8, 4):
        yield "glue", rank, "", comparison(Request("glue", profile, rank, seeds=(0,)), tuned=False)
    for size in SIZES:
        rank = default_rank(profile, "c4", size)
        asked = Request("c4", profile, rank, seeds=(0,), overrides=(("model", size),))
        yield "c4", rank, size, comparison(asked, tuned=False)


def value_of(settings: Any, name: str) -> JsonValue:
    """Return a setting by the name that protocols use."""
    found: JsonValue = settings.config[name.removeprefix("config.")] if "." in name else getattr(settings, name)
    return found


@pytest.mark.parametrize("profile", PUBLISHED)
def test_every_setting_of_every_published_run_is_the_protocols(profile: str) -> None:
    seen = 0
    for suite, rank, size, asked in comparisons(profile):
        searched = {"learning_rate", "rest_learning_rate"} if profile == "fair" else set()
        for task, method in asked.cells():
            settings = asked.settings(task, method)
            given = read_protocols()[suite].settings(method, rank, size or task)
            assert given, (suite, task, method)
            for name, each in given.items():
                assert each.statement.source, name
                if name == "default_rank":
                    assert rank == each.value, (size, name)
                elif name in searched:
                    assert getattr(settings, name) is None, (task, method, name)
                else:
                    assert value_of(settings, name) == each.value, (suite, task, method, rank, name)
                    seen += 1
            # A task of one's own beside GLUE's has no rate in any paper.
            if profile == "paper" and task in {*GLUE, "c4"}:
                assert "learning_rate" in given, (suite, task, method)
    assert seen > 1000


@pytest.mark.parametrize("rank", [4, 8])
def test_a_planned_run_departs_from_its_own_protocol_in_nothing(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = comparison(Request("glue", "paper", rank, seeds=(0,)), tuned=False)
    # A plan names the hub's commit, which the name of a pinned model gives without a network.
    for task, method in asked.cells():
        plan = asked.plan(task, method, RUNTIME)
        record = Record.model_construct(plan=plan, data=None)
        assert suite_departures(record) == [], (task, method)
        assert math.isclose(plan.training.epochs or 0, 30)


def test_variants_share_everything_but_the_rates() -> None:
    paper = comparison(Request("glue", "paper", 8, seeds=(0,)), tuned=False)
    fair = comparison(Request("glue", "fair", 8, seeds=(0,)), tuned=False)
    for task, method in paper.cells():
        one, other = paper.settings(task, method), fair.settings(task, method)
        assert one.model_copy(update={"learning_rate": None}) == other
    assert {method for line in fair.notes() for method in default_methods() if "gives it no learning_rate" in line}


def test_a_rank_without_published_settings_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"rank 16: the protocol of profile 'paper' .* rank 4, 8 alone \(nearest: 8\)"):
        load_profile("paper", "glue", 16)
    assert load_profile("paper", "c4", 16)


def test_what_a_method_without_statement_runs_is_its_usual_rate() -> None:
    asked = comparison(Request("glue", "paper", 8, methods=("frozen",), seeds=(0,)), tuned=False)
    plan: Plan = asked.plan("rte", "frozen", RUNTIME)
    assert plan.training.learning_rate == asked.rates("frozen").usual


def cut_down(plan: Plan, small: Plan) -> Plan:
    """Return a published run on the model and data of a small one, two steps long; all else is the published run's."""
    training = plan.training
    fields = {"steps": 2, "epochs": None, "warmup_steps": 0, "batch_size": training.accumulation, "evaluations": 1}
    limits = {"rank": 4, "projection_rank": 2 if "rank" in plan.method_config else 4}
    config = {name: min(limits[name], value) if name in limits else value for name, value in plan.method_config.items()}
    return plan.model_copy(
        update={
            "model": small.model,
            "data": small.data,
            "training": training.model_copy(update=fields),
            "method_config": config,
        }
    )


@pytest.fixture(scope="module")
def small_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a RoBERTa of two narrow layers, random weights, and the micro tokenizer."""
    folder: Path = tmp_path_factory.mktemp("roberta")
    tokenizer = AutoTokenizer.from_pretrained(str(micro_folder()))
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("profile", PUBLISHED)
def test_every_published_run_steps_and_is_evaluated_on_a_cut_down_model(profile: str, small_roberta: Path) -> None:
    folder = Runtime(torch.device("cpu"), model_dir=small_roberta, offline=True)
    plain = Runtime(torch.device("cpu"), offline=True)
    wrong = []
    for suite, rank, size, asked in comparisons(profile):
        own = (("model", str(small_roberta)),) if suite == "glue" else ()
        micro = comparison(Request(suite, "micro", 8 if suite == "glue" else 24, seeds=(0,), overrides=own))
        for task, method in asked.cells():
            runtime = folder if suite == "glue" else plain
            plan = cut_down(asked.plan(task, method, RUNTIME), micro.plan(task, method, runtime))
            record = execute(plan, runtime, None, lambda step, loss: None)
            if record.status != "ok" or len(record.curve) != 2 or not record.evaluations:
                wrong.append((suite, rank, size, task, method, record.status, record.error))
    assert wrong == []


def test_a_profile_that_can_be_typed_is_one_that_there_is() -> None:
    files = [path.stem for path in PROFILES.glob("*.toml") if "." not in path.stem]
    assert sorted(typed.PROFILES) == sorted(["auto", *files])
