from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

import pytest
import torch
import transformers

from suites.micro import encoder_path, tasks, tokenizer
from suites.micro.discourse import Document, document
from suites.micro.language import Dice
from suites.micro.pretrain import IGNORED, Recipe, block, config, encode, mask, objective, pretrain, rate, write

TINY = Recipe(steps=24, batch=8, hidden=16, heads=2, layers=1, intermediate=32, warmup_steps=4)


@pytest.fixture(scope="module")
def shipped() -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(encoder_path(), local_files_only=True)


def test_pair_format_is_robertas(shipped: transformers.PreTrainedTokenizerBase) -> None:
    coded = shipped("the dog runs .", "the cat sleeps .")
    shown = shipped.convert_ids_to_tokens(coded["input_ids"])
    assert shown == "<s> the dog runs . </s> </s> the cat sleeps . </s>".split()
    assert set(coded) == {"input_ids", "attention_mask"}
    assert shipped.pad_token_id == 1


@pytest.mark.parametrize("task", tasks.TASKS)
def test_no_unknown_word_and_nothing_cut(task: str, shipped: transformers.PreTrainedTokenizerBase) -> None:
    for data in tasks.load(task).values():
        coded = shipped(*(list(data[column]) for column in tasks.TABLE[task].columns))["input_ids"]
        assert max(len(ids) for ids in coded) <= 48
        assert all(tokenizer.UNK not in ids for ids in coded)


def test_encoder_loads_as_classifier_and_is_small() -> None:
    folder = encoder_path()
    weights = folder / "model.safetensors"
    assert weights.stat().st_size < 3_000_000
    record = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["weights_sha256"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, local_files_only=True)
    assert model.config.num_labels == 3
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    names = {name.rsplit(".", 1)[-1] for name, _ in model.roberta.encoder.layer[0].attention.self.named_children()}
    assert {"query", "key", "value"} <= names


def test_encoder_predicts_masked_words_far_better_than_chance(shipped: transformers.PreTrainedTokenizerBase) -> None:
    """`mary helps <mask> .` and the second saying of a sentence: what masked-language modelling must have taught."""
    model = transformers.RobertaForMaskedLM.from_pretrained(encoder_path(), local_files_only=True).eval()

    def best(text: str, pair: str | None = None) -> str:
        coded = shipped(text, pair, return_tensors="pt")
        with torch.no_grad():
            logits = model(**coded).logits[0]
        at = int((coded["input_ids"][0] == shipped.mask_token_id).nonzero()[0, 0])
        return str(shipped.convert_ids_to_tokens(int(logits[at].argmax())))

    assert best("mary helps <mask> .") == "herself"
    assert best("john helps <mask> .") == "himself"
    assert best("the dogs do <mask> chase a cat .") == "not"
    assert best("the horse is pushed <mask> the farmer .") == "by"


def test_block_depends_on_seed_and_index_alone() -> None:
    words = tokenizer.vocabulary()
    assert block(TINY, 3, words) == block(TINY, 3, words)
    assert block(TINY, 3, words) != block(TINY, 4, words)
    assert block(TINY, 3, words) != block(dataclasses.replace(TINY, seed=2), 3, words)


def test_connective_is_the_target_at_the_head_and_never_shown() -> None:
    words = tokenizer.vocabulary()
    item = Document("the dog runs .", "the dog moves .", "so")
    ids, asked = encode(item, words, True)
    assert asked == words["so"]
    assert words["so"] not in ids
    assert encode(item, words, False) == (ids, None)
    inputs, _, targets = mask(
        [(ids, asked), (ids, None)], Recipe(masked=0.0), len(words), torch.Generator().manual_seed(0)
    )
    assert inputs[0].tolist() == ids
    assert targets[0].tolist() == [words["so"]] + [IGNORED] * (len(ids) - 1)
    assert set(targets[1].tolist()) == {IGNORED}


def test_mask_shares_and_targets() -> None:
    words = tokenizer.vocabulary()
    dice = Dice("mask test")
    coded = [encode(document(dice), words, row % 2 == 0) for row in range(400)]
    inputs, attention, targets = mask(coded, Recipe(masked=0.2), len(words), torch.Generator().manual_seed(0))
    clean = torch.full_like(inputs, tokenizer.PAD)
    for row, (ids, _) in enumerate(coded):
        clean[row, : len(ids)] = torch.tensor(ids)
    chosen = targets != IGNORED
    chosen[:, 0] = False
    assert torch.equal(targets[chosen], clean[chosen])
    assert torch.equal(inputs[~chosen], clean[~chosen])
    assert torch.equal(attention == 0, clean == tokenizer.PAD)
    silent = torch.tensor([asked is None for _, asked in coded])
    assert not chosen[~silent].any()
    assert chosen[silent][clean[silent] >= len(tokenizer.SPECIAL)].float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert (inputs[chosen] == tokenizer.MASK).float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert (inputs[chosen] == clean[chosen]).float().mean().item() == pytest.approx(0.2, abs=0.05)


def test_objective_adds_the_weighted_connectives() -> None:
    words = tokenizer.vocabulary()
    torch.manual_seed(0)
    model = transformers.RobertaForMaskedLM(config(TINY)).eval()
    dice = Dice("objective")
    coded = [encode(document(dice), words, row % 2 == 0) for row in range(32)]
    inputs, attention, targets = mask(coded, TINY, len(words), torch.Generator().manual_seed(0))
    logits = model(input_ids=inputs, attention_mask=attention).logits
    inner = targets.clone()
    inner[:, 0] = IGNORED
    at_words = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inner.flatten())
    at_head = torch.nn.functional.cross_entropy(logits[:, 0], targets[:, 0])
    torch.testing.assert_close(objective(model, inputs, attention, targets, 0.5), at_words + 0.5 * at_head)
    torch.testing.assert_close(objective(model, inputs, attention, inner, 0.5), at_words)


def test_rate_warms_up_and_ends_near_zero() -> None:
    recipe = Recipe(steps=1000, warmup_steps=100, lr=1.0)
    assert rate(0, recipe) == pytest.approx(0.01)
    assert rate(99, recipe) == pytest.approx(1.0)
    assert rate(550, recipe) == pytest.approx(0.5)
    assert rate(999, recipe) < 1e-4


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import suites.micro.pretrain as module

    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 9)
    whole, curve = pretrain(TINY, tmp_path / "whole")
    real = module.rate

    def stopping(step: int, recipe: Recipe) -> float:
        if step == 13:
            raise KeyboardInterrupt
        return real(step, recipe)

    monkeypatch.setattr(module, "rate", stopping)
    with pytest.raises(KeyboardInterrupt):
        pretrain(TINY, tmp_path / "cut")
    monkeypatch.setattr(module, "rate", real)
    resumed, _ = pretrain(TINY, tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(ValueError, match="another recipe"):
        pretrain(dataclasses.replace(TINY, seed=5), tmp_path / "cut")
    write(resumed, tmp_path / "out", TINY, curve, 1.0)
    again = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "out", local_files_only=True)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), resumed.parameters(), strict=True))


def test_shipped_configuration_is_the_recipes() -> None:
    stored = transformers.AutoConfig.from_pretrained(encoder_path(), local_files_only=True)
    made = config(Recipe())
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(stored, key) == getattr(made, key)
    assert stored.vocab_size == len(tokenizer.vocabulary())
