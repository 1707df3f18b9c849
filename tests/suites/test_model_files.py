"""A model's folder: every file that decides what is loaded is in its digest; what does not fit is one line at plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
)
from transformers.utils import logging

from suites import models
from suites.model_files import folder_digest
from suites.suite import Runtime

MICRO = models.micro_folder()
ENTRIES = len(AutoTokenizer.from_pretrained(str(MICRO)))
SIZES: dict[str, Any] = {
    "vocab_size": ENTRIES,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
Made = tuple[Path, Runtime]


def save(folder: Path, seed: int = 0, kind: Any = BertForMaskedLM, shard: str = "1GB", **changes: Any) -> Path:
    """Write a tiny BERT, its weights drawn from `seed`, with the micro tokenizer."""
    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config: PretrainedConfig = BertConfig(**{**SIZES, **changes})
    kind(config).save_pretrained(folder, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MICRO / name, folder)
    return folder


def query(model: nn.Module) -> torch.Tensor:
    """Return a weight of the backbone."""
    return model.get_parameter("bert.encoder.layer.0.attention.self.query.weight")


def here(folder: Path) -> Runtime:
    """Return a runtime of the folder."""
    return Runtime(torch.device("cpu"), model_dir=folder, offline=True)


def test_other_weights_in_shards_are_another_digest(tmp_path: Path) -> None:
    folder = save(tmp_path / "sharded", 0, shard="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    before, runtime = folder_digest(folder), here(folder)
    weight = query(models.classifier(models.resolve_model(str(folder), runtime), runtime, 2, 0))
    save(folder, 1, shard="10KB")
    assert folder_digest(folder) != before
    again = query(models.classifier(models.resolve_model(str(folder), runtime), runtime, 2, 0))
    assert not torch.equal(weight, again)
    next(folder.glob("model-*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"index\.json: names model-.* which is not in the folder"):
        folder_digest(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_configuration_and_tokenizer_are_in_the_digest(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    before = folder_digest(folder)
    said = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**said, "something": 1}))
    assert folder_digest(folder) != before


def test_files_that_decide_nothing_are_not_in_the_digest(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    before = folder_digest(folder)
    (folder / "README.md").write_text("words")
    assert folder_digest(folder) == before


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        (("tokenizer.json",), "has no tokenizer, every word would be unknown"),
        (("config.json",), "has no config.json"),
        (("model.safetensors",), "holds none of model.safetensors"),
    ],
)
def test_a_folder_without_what_is_needed_is_refused(missing: tuple[str, ...], text: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ValueError, match=text):
        models.resolve_model(str(folder), here(folder))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"vocab_size": ENTRIES - 1}, "a token beyond them has none"),
        ({"vocab_size": 2 * ENTRIES}, "it is another model's, or its files are missing"),
        ({"max_position_embeddings": 40}, r"max_length 48: .* has 40 positions \(nearest allowed value: 40\)"),
    ],
)
def test_model_and_tokenizer_that_do_not_fit_are_one_line(
    changes: dict[str, int], text: str, tmp_path: Path, make_plan: Callable[..., Any]
) -> None:
    from suites.registry import get_suite

    folder = save(tmp_path / "model", **changes)
    runtime = here(folder)
    plan = make_plan().model_copy(update={"model": models.resolve_model(str(folder), runtime)})
    with pytest.raises(ValueError, match=text) as caught:
        get_suite("glue").verify(plan, runtime)
    assert "\n" not in str(caught.value)


def test_a_padded_vocabulary_is_said_and_no_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", vocab_size=ENTRIES + 8)
    (line,) = models.check_text(models.resolve_model(str(folder), here(folder)), here(folder), 48)
    assert "the rest is never used" in line


def test_positions_of_roberta_begin_after_padding() -> None:
    runtime = Runtime(torch.device("cpu"))
    config = models.configuration(models.resolve_model("micro", runtime), runtime)
    assert models.positions(config) == config.max_position_embeddings - 2


@pytest.mark.parametrize("own_labels", [2, 3])
def test_a_head_that_the_checkpoint_has_is_drawn_from_the_seed(own_labels: int, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", kind=BertForSequenceClassification, num_labels=own_labels)
    runtime = here(folder)
    plan = models.resolve_model(str(folder), runtime)
    one, same, other = (dict(models.classifier(plan, runtime, 3, seed).named_parameters()) for seed in (1, 1, 2))
    own = dict(BertForSequenceClassification.from_pretrained(folder).named_parameters())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {"classifier.weight"}
    assert all(torch.equal(one[name], own[name]) for name in one if name.startswith("bert."))
    assert own_labels != 3 or not torch.equal(one["classifier.weight"], own["classifier.weight"])


def test_a_backbone_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "intermediate_size": 96}))
    runtime = here(folder)
    with pytest.raises(ValueError, match="has another shape than its configuration says"):
        models.classifier(models.resolve_model(str(folder), runtime), runtime, 2, 0)


def test_a_llama_without_a_padding_token_takes_its_tokenizers(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    config = LlamaConfig(**SIZES, pad_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MICRO / name, folder)
    runtime = here(folder)
    plan = models.resolve_model(str(folder), runtime)
    expected = models.tokenizer(plan, runtime).pad_token_id
    for model in (models.classifier(plan, runtime, 2, 0), models.classifier_skeleton(plan, runtime, 2)):
        assert model.config.pad_token_id == expected
    model = models.classifier(plan, runtime, 2, 0)
    assert model(input_ids=torch.full((2, 5), 7), labels=torch.tensor([0, 1])).loss.isfinite()


def test_a_tokenizer_that_does_not_know_the_words_is_warned_of(
    make_plan: Callable[..., Any], runtime: Runtime, tmp_path: Path
) -> None:
    from suites.glue import SUITE

    assert SUITE.verify(make_plan(), runtime) == []
    said = json.loads((MICRO / "tokenizer.json").read_text())
    words = said["model"]["vocab"]
    said["model"]["vocab"] = {name if index < 5 else f"{name}x": index for name, index in words.items()}
    folder = save(tmp_path / "model")
    (folder / "tokenizer.json").write_text(json.dumps(said))
    local = replace(runtime, model_dir=folder)
    plan = make_plan().model_copy(update={"model": models.resolve_model(str(folder), local)})
    (line,) = SUITE.verify(plan, local)
    assert "100% of the words of task rte are unknown" in line
    assert line in SUITE.job(plan, local).facts.notes


def test_code_that_a_model_brings_is_never_run_and_never_asked_about(tmp_path: Path) -> None:
    from suites.lab.networks import find_network

    folder = save(tmp_path / "model")
    remote = {"architectures": ["FooForCausalLM"], "model_type": "foo", "auto_map": {"AutoConfig": "foo.FooConfig"}}
    (folder / "config.json").write_text(json.dumps(remote))
    (folder / "foo.py").write_text("raise SystemExit('this ran')\n")
    runtime = here(folder)
    with pytest.raises(ValueError, match="cannot be loaded"):
        models.configuration(models.resolve_model(str(folder), runtime), runtime)
    with pytest.raises(ValueError, match="custom code"):
        find_network(str(folder))


def test_a_checkpoint_of_quantised_weights_is_refused(tmp_path: Path) -> None:
    from suites.lab.networks import find_network

    folder = save(tmp_path / "model")
    said = json.loads((folder / "config.json").read_text())
    said["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(said))
    runtime = here(folder)
    plan = models.resolve_model(str(folder), runtime)
    for ask in (
        lambda: models.configuration(plan, runtime),
        lambda: models.classifier(plan, runtime, 2, 0),
        lambda: find_network(str(folder)),
    ):
        with pytest.raises(ValueError, match=r"weights are quantised \(bitsandbytes\).*--base-bits 4"):
            ask()


@pytest.mark.parametrize(("kind", "language_model"), [("modernbert", False), ("gpt2", True), ("deberta-v2", False)])
def test_the_lab_takes_encoders_for_encoders(kind: str, language_model: bool, tmp_path: Path) -> None:
    from suites.lab.networks import find_network

    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert find_network(str(tmp_path)).language_model == language_model


def test_the_lab_refuses_an_encoder_with_a_decoder(tmp_path: Path) -> None:
    from suites.lab.networks import find_network

    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]})
    )
    with pytest.raises(ValueError, match="t5 is an encoder with a decoder"):
        find_network(str(tmp_path))
